"""The MCP conformance suite, where it has something to say about authorization.

Its `auth/…` scenarios test clients, with a server and a provider of the suite's own; none tests a
server that needs a token. So what tests servers is run with a token in every request, and what
tests providers shows that the provider of these tests is one that MCP's clients expect.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conftest import npm
from tests.clients.installs import environ, npm_script
from tests.clients.others.bridges import free_port
from tests.identity.conftest import RESOURCE, Provider
from tests.proxy_processes import cluster

__all__ = ["npm"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("npm")]

ROOT = Path(__file__).parents[2]
# What no fixture of the suite's is needed for, and what a header or a session could go wrong in.
SCENARIOS = (
    ("2026-07-28", "server-stateless"),
    ("2026-07-28", "http-header-validation"),
    ("2026-07-28", "dns-rebinding-protection"),
    ("2025-11-25", "server-initialize"),
    ("2025-11-25", "server-sse-multiple-streams"),
)


def suite(*arguments: str) -> list[str]:
    return [*npm_script("@modelcontextprotocol/conformance", "dist/index.js"), *arguments]


def statuses(folder: Path) -> dict[str, set[str]]:
    """Return how the checks of each scenario ended; a folder is named KIND-SCENARIO-TIME."""
    found: dict[str, set[str]] = {}
    for file in folder.glob("*/checks.json"):
        checks: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        found[file.parent.name] = {each["status"] for each in checks}
    return found


@pytest.fixture(scope="module")
def url_with_token(
    one_provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Serve /mcp with a token in every request: the suite can send none."""
    one_provider.do("lie")
    issuers = {"KEYBRAKE_OAUTH_ISSUERS": one_provider.url, "KEYBRAKE_OAUTH_AUDIENCE": RESOURCE}
    with cluster(tmp_path_factory.mktemp("suite"), **issuers) as place:
        asked = ("keys", "issue", "--role", "billing-with-status", "--uncapped", "--json")
        key = json.loads(place.command(*asked).stdout)["id"]
        given = ("--issuer", one_provider.url, "--match", "sub=agent-7", "--key", key)
        place.command("grants", "add", *given)
        token = one_provider.sign(exp=one_provider.claims()["exp"] + 3600)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.clients.keyed"],
            cwd=ROOT,
            env=place.environ() | {"VAULT_KEY_OF_THE_TEST": token},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            yield f"{process.stdout.readline().split()[-1]}/mcp"
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


@pytest.mark.parametrize(("revision", "scenario"), SCENARIOS, ids=str)
def test_what_the_suite_tests_of_a_server_holds_for_one_that_takes_a_token(
    url_with_token: str, revision: str, scenario: str, tmp_path: Path
) -> None:
    where = ("--url", url_with_token, "-o", str(tmp_path))
    done = subprocess.run(
        suite("server", "--scenario", scenario, "--spec-version", revision, *where),
        env=environ(),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )

    assert done.returncode == 0, done.stdout[-4000:]
    (ended,) = statuses(tmp_path).values()
    assert "SUCCESS" in ended
    assert "FAILURE" not in ended


@pytest.mark.parametrize("revision", ["2026-07-28", "2025-11-25"])
def test_the_provider_of_these_tests_is_one_that_the_suite_accepts(
    one_provider: Provider, revision: str, tmp_path: Path
) -> None:
    one_provider.do("lie")
    port = free_port()
    client = {"client_id": f"suite-{revision}", "token_endpoint_auth_method": "none"}
    back = [f"http://127.0.0.1:{port}/callback"]
    one_provider.http.post("/register", json={**client, "redirect_uris": back})
    options = ("--client-id", client["client_id"], "--resource", RESOURCE, "-p", str(port))
    where = ("--url", one_provider.url, "--spec-version", revision, "-o", str(tmp_path))
    process = subprocess.Popen(
        suite("authorization", *where, *options),
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    with process.stdout as lines:
        for line in lines:
            said += line
            if line.startswith("Callback server started"):
                (address,) = re.findall(rf"{one_provider.url}/authorize\S+", said)
                httpx.get(address, follow_redirects=True, trust_env=False, timeout=60)

    assert process.wait(60) == 0, said
    ended = statuses(tmp_path)
    assert len(ended) == 2
    # A warning is what a provider may do without: client identifiers that are addresses.
    assert all("SUCCESS" in each and "FAILURE" not in each for each in ended.values()), ended


def test_the_suite_has_no_scenario_of_authorization_that_tests_a_server() -> None:
    listed = subprocess.run(
        suite("list"), env=environ(), capture_output=True, text=True, check=True, timeout=110
    ).stdout
    of_servers, _, others = listed.partition("Client scenarios")

    assert "- server-stateless" in of_servers
    assert not re.search(r"auth|token|scope", of_servers)
    assert others.count("- auth/") > 30
