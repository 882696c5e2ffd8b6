"""The MCP inspector's command line, strict about schemas, on both transports and in both eras."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Served
from tests.clients.installs import environ, npm_script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STRICT = ("--method", "tools/list", "--strict")


@pytest.fixture(params=["modern", "legacy"])
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["http", "stdio"])
def where(request: pytest.FixtureRequest, served: Served) -> list[str]:
    if request.param == "http":
        return over_http(served, served.both)
    keys = {
        "KEYBRAKE_PROXY_URL": served.url,
        "KEYBRAKE_VAULT_KEY_BILLING": served.billing,
        "KEYBRAKE_VAULT_KEY_AUDIT": served.audit,
    }
    pairs = [part for name, value in keys.items() for part in ("-e", f"{name}={value}")]
    return [sys.executable, "-m", "kb_mcp", "mcp", *pairs]


def over_http(served: Served, key: str) -> list[str]:
    header = ["--header", f"Authorization: Bearer {key}"]
    return ["--transport", "http", "--server-url", f"{served.url}/mcp", *header]


def inspect(home: Path, era: str, where: list[str], *what: str) -> tuple[int, str]:
    inspector = npm_script("@modelcontextprotocol/inspector", "clients/launcher/build/index.js")
    options = ["--cli", "-q", "--format", "json", "--protocol-era", era]
    done = subprocess.run(
        [*inspector, *options, *where, *what],
        env=environ() | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout or done.stderr


def test_the_schemas_are_portable(npm: str, tmp_path: Path, era: str, where: list[str]) -> None:
    del npm
    code, told = inspect(tmp_path, era, where, *STRICT)

    assert code == 0, told
    tools = json.loads(told)["result"]["tools"]
    assert [tool["name"] for tool in tools] == ["charge", "charge_status"]


def test_a_charge_is_called_and_a_bad_one_is_a_tool_error(
    npm: str, tmp_path: Path, era: str, where: list[str], served: Served
) -> None:
    del npm
    customer = f"cus_{era}{'Http' if '--server-url' in where else 'Stdio'}"
    bill: dict[str, Any] = {"customer_id": customer, "billing_period": "2026-11"}

    def charge(amount: object) -> tuple[int, str]:
        arguments = json.dumps({**bill, "amount_cents": amount})
        call = ("--method", "tools/call", "--tool-name", "charge", "--tool-args-json", arguments)
        return inspect(tmp_path, era, where, *call)

    code, told = charge(2900)
    refused, _ = charge(29.5)

    assert code == 0, told
    made = json.loads(told)["result"]["structuredContent"]["charge_id"]
    assert [c["id"] for c in served.cluster.charges() if c["customer"] == customer] == [made]
    assert refused == 5


def test_a_key_that_nobody_issued_is_an_authorization_error(
    npm: str, tmp_path: Path, era: str, served: Served
) -> None:
    del npm
    code, told = inspect(
        tmp_path, era, [*over_http(served, "vk_test_nobody_nothing"), "--stored-auth-only"], *STRICT
    )

    assert code == 3, told
