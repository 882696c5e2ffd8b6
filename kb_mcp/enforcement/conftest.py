"""The deployment under test: its settings, its keys and a line to its proxy.

Floor: the top. What is missing fails: a check that was skipped would look like one that passed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from kb_mcp.agent.catalogue import READS, WRITES, ToolName
from kb_mcp.agent.client.line import ANSWER_TIMEOUT_S
from kb_mcp.agent.client.network import CONNECT_TIMEOUT_S, check_address, open_transport
from kb_mcp.settings import Secret, Settings, SettingsError, load_settings
from kb_mcp.wiring.agent import held_keys, trust_of


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the agent's side knows. `http` sends what it is told, with no retries.

    Keys are secrets: pytest shows the values of whatever fails.
    """

    settings: Settings
    proxy_url: str
    http: httpx.Client
    billing: Secret
    audit: Secret

    def ask(self, key: Secret, method: str, path: str, **form: str) -> httpx.Response:
        """Send one request with `key`."""
        return self.http.request(
            method,
            self.proxy_url + path,
            headers={"Authorization": f"Bearer {key.reveal()}"},
            data=form or None,
        )

    def describe(self, key: Secret) -> dict[str, Any]:
        """Return what the proxy says about `key`."""
        answer = self.ask(key, "GET", "/keybrake/v1/key")
        assert answer.status_code == 200, f"the proxy does not serve this key: {code_of(answer)}"
        found: dict[str, Any] = answer.json()
        return found

    @property
    def write(self) -> str:
        """The allowlist entry behind `charge`."""
        return WRITES[self.settings.charge_api]

    @property
    def read(self) -> str:
        """The allowlist entry behind `charge_status`."""
        return READS[self.settings.charge_api]


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    """Read the deployment from the environment, as the doors do."""
    try:
        settings = load_settings()
        trust = trust_of(settings)
    except SettingsError as error:
        pytest.fail(str(error), pytrace=False)
    if settings.proxy_url is None:
        pytest.fail("KEYBRAKE_PROXY_URL is not set: there is no deployment to check", pytrace=False)
    keys = {
        tool: Secret(
            source if isinstance(source, str) else source(), f"the key behind {tool.value}"
        )
        for tool, source in held_keys(settings).items()
    }
    # A deployment need not refund.
    wanted = (ToolName.CHARGE, ToolName.CHARGE_STATUS)
    missing = [tool.value for tool in wanted if tool not in keys]
    if missing:
        pytest.fail(f"no vault key is set for {', '.join(missing)}", pytrace=False)
    check_address(settings.proxy_url, allow_http=settings.allow_http)
    transport = open_transport(settings.proxy_url, trust)
    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    with httpx.Client(transport=transport, trust_env=False, timeout=timeout) as http:
        yield Deployment(
            settings,
            settings.proxy_url.rstrip("/"),
            http,
            billing=keys[ToolName.CHARGE],
            audit=keys[ToolName.CHARGE_STATUS],
        )


def code_of(answer: httpx.Response) -> str:
    """Return the code of a refusal, or what there is instead; never a whole body."""
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return f"HTTP {answer.status_code}"
