"""The MCP SDK for TypeScript and mcp-remote find everything out from the address of /mcp."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import npm
from tests.clients.connect import use
from tests.clients.installs import environ, node
from tests.clients.others.bridges import free_port
from tests.identity.conftest import Door, Provider, opened
from tests.identity.test_clients import BACK
from tests.months import lately

__all__ = ["npm"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
# Of the SDK's two majors: the first speaks 2026-07-28, the second 2025-11-25.
MAJORS = pytest.mark.parametrize("package", ["client", "sdk"])
# What mcp-remote opens as the person's browser: it follows the provider back to mcp-remote.
BROWSER = """#!{python}
import sys
import httpx

httpx.get(sys.argv[1], follow_redirects=True, trust_env=False, timeout=60)
"""


@pytest.fixture(scope="module")
def door(one_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    one_provider.do("lie")
    with opened(one_provider, tmp_path_factory.mktemp("door")) as door:
        yield door


def bill(customer: str) -> dict[str, Any]:
    return {"customer_id": customer, "amount_cents": 2900, "billing_period": lately("2026-11")}


def charge(npm: str, package: str, door: Door, customer: str, **wanted: Any) -> dict[str, Any]:
    """Let an application on the SDK charge; return what it saw."""
    script = Path(npm) / "typescript_sdk.mjs"
    shutil.copy(HERE / script.name, script)  # beside the installed packages
    given = {"url": door.url, "back": BACK, "bill": bill(customer), **wanted}
    done = subprocess.run(
        [node(), str(script), package],
        input=json.dumps(given),
        env=environ(),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@MAJORS
def test_the_typescript_sdk_finds_the_provider_registers_and_charges_for_a_person(
    npm: str, package: str, door: Door, one_provider: Provider
) -> None:
    seen = charge(npm, package, door, f"cus_{package}A")

    (visit,) = seen["visits"]
    assert visit["client_id"].startswith("client-")  # as the provider names whom it registers
    assert (visit["resource"], visit["code_challenge_method"]) == (door.url, "S256")
    assert seen["tools"] == ["charge", "charge_status"]
    assert seen["charged"]["status"] == "succeeded"
    assert door.charges(f"cus_{package}A") == 1
    assert door.subjects() == {f"{one_provider.url} person-1"}


@MAJORS
def test_the_typescript_sdk_uses_a_client_that_was_registered_before(
    npm: str, package: str, door: Door, one_provider: Provider
) -> None:
    known = {"client_id": "desktop", "redirect_uris": [BACK], "token_endpoint_auth_method": "none"}
    made = one_provider.http.post("/register", json=known).json()

    seen = charge(npm, package, door, f"cus_{package}B", client=made)

    assert [visit["client_id"] for visit in seen["visits"]] == ["desktop"]
    assert seen["charged"]["status"] == "succeeded"
    assert door.charges(f"cus_{package}B") == 1


@MAJORS
def test_the_typescript_sdk_asks_for_the_scope_that_a_challenge_names(
    npm: str, package: str, door: Door, one_provider: Provider
) -> None:
    one_provider.do("lie", consents=["charge_status"])

    seen = charge(npm, package, door, f"cus_{package}C")

    first, second = (set(visit["scope"].split()) for visit in seen["visits"])
    assert seen["tools"] == ["charge_status"]
    assert first == {"charge", "charge_status", "refund"}
    assert "charge" in second
    assert seen["charged"]["status"] == "succeeded"
    assert door.charges(f"cus_{package}C") == 1


def test_mcp_remote_opens_a_browser_and_charges_for_a_person(
    npm: str, door: Door, one_provider: Provider, tmp_path: Path
) -> None:
    browser = tmp_path / "browser"
    browser.write_text(BROWSER.format(python=sys.executable))
    browser.chmod(stat.S_IRWXU)
    script = Path(npm) / "node_modules" / "mcp-remote" / "dist" / "proxy.js"
    entry = {
        "command": node(),
        "args": [str(script), door.url, str(free_port()), "--host", "127.0.0.1"],
        "env": {"BROWSER": str(browser), "MCP_REMOTE_CONFIG_DIR": str(tmp_path / "remote")},
    }

    tools, answers = use(entry, bill("cus_Remote"), bill("cus_Remote"))

    assert tools == ["charge", "charge_status"]
    assert [each["already_charged"] for each in answers] == [False, True]
    assert door.charges("cus_Remote") == 1
    assert door.subjects() == {f"{one_provider.url} person-1"}
