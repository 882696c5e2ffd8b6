"""What must hold on the agent's side of a deployment, each check with what to do if it does not.

Floor: the top. No request here can move money: amounts are zero, and everything else reads. What is
missing fails: a check that was skipped would look like one that passed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import TOOLS, ChargeArguments, ToolName
from kb_mcp.agent.client import network
from kb_mcp.agent.client.line import ANSWER_TIMEOUT_S, CallContext
from kb_mcp.idempotency import idempotency_key
from kb_mcp.settings import Secret, Settings, SettingsError, load_settings
from kb_mcp.wiring.agent import held_keys, network_line, trust_of

VAULT_KEY = re.compile(r"vk_(?:test|live)_[a-z0-9]+_[a-z0-9]+")
STRIPE_KEY = re.compile(r"\b[rs]k_(?:test|live)_\w+")
NOBODY = "cus_EnforcementProbe"
NOTHING = "ch_EnforcementProbe"
MONTHS = [f"2026-{month:02}" for month in range(1, 13)]


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
        # No local holds the revealed key: pytest may show them.
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
    network.check_address(settings.proxy_url, allow_http=settings.allow_http)
    transport = network.open_transport(settings.proxy_url, trust)
    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=network.CONNECT_TIMEOUT_S)
    with httpx.Client(transport=transport, trust_env=False, timeout=timeout) as http:
        billing, audit = (keys[tool] for tool in wanted)
        yield Deployment(settings, settings.proxy_url.rstrip("/"), http, billing, audit)


def code_of(answer: httpx.Response) -> str:
    """Return the code of a refusal, or what there is instead; never a whole body."""
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return f"HTTP {answer.status_code}"


def is_vault_key(key: Secret) -> bool:
    """Say whether `key` is formed like one; the value itself stays out of what pytest shows."""
    return VAULT_KEY.fullmatch(key.reveal()) is not None


def test_both_keys_are_vault_keys_that_the_proxy_serves(deployment: Deployment) -> None:
    """A Stripe key in their place would let the agent charge past every rule."""
    for key in (deployment.billing, deployment.audit):
        assert is_vault_key(key), "not a vault key: issue one with `kb-mcp keys issue`"
        deployment.describe(key)


def test_each_role_has_a_key_of_its_own(deployment: Deployment) -> None:
    """One key for both tools would put charging into the supervisor's hands."""
    billing, audit = (deployment.describe(k) for k in (deployment.billing, deployment.audit))

    assert billing["id"] != audit["id"], "issue one key with role billing and one with audit"
    assert billing["mode"] == audit["mode"], "one key is for test mode and one for live"


def test_the_proxy_knows_no_key_that_it_did_not_issue(deployment: Deployment) -> None:
    """Whatever answers here must be the proxy, and must be checking."""
    nobody = Secret("vk_test_nobody_nothing", "a key that nobody issued")
    answer = deployment.ask(nobody, "GET", "/keybrake/v1/key")

    assert (answer.status_code, code_of(answer)) == (401, "vault_key_unknown")


def test_the_tools_go_through_the_proxy(deployment: Deployment) -> None:
    """Only the proxy refuses a read in these words; Stripe would not know the key at all."""
    line = network_line(deployment.settings, deployment.proxy_url)
    resource = deployment.settings.charge_api
    try:
        reply = line.wait(line.retrieve(deployment.billing.reveal(), resource, NOTHING, {}))
    finally:
        line.close()

    assert reply.status, "the proxy's answer cannot be read"
    assert (reply.status, reply.text("code")) == (403, "vault_key_not_authorized")


def test_the_keys_of_bills_are_deterministic_and_differ_by_period() -> None:
    """A key that changes with the call protects from nothing."""
    bills = {(period, idempotency_key("cus_Abc123", 2900, period)) for period in MONTHS * 2}

    assert idempotency_key("cus_Abc123", 2900, "2026-06") == "38de2d05855909930dc2287649e68ba3"
    assert len(bills) == len({key for _, key in bills}) == len(MONTHS)


def test_the_tools_send_that_key_in_the_header(deployment: Deployment) -> None:
    """In the body, where samples put it, it would be no key at all. Nothing leaves this process."""
    sent: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(403, json={"error": {"code": "probe", "message": "Not sent."}})

    billing = Billing(
        {ToolName.CHARGE: deployment.billing.reveal},
        network.NetworkLine("http://127.0.0.1", transport=httpx.MockTransport(note)),
    )
    for period in ("2026-06", "2026-06", "2026-07"):
        bill = ChargeArguments(customer_id=NOBODY, amount_cents=2900, billing_period=period)
        billing.charge(bill, CallContext())
    billing.close()

    first, again, other = (request.headers["Idempotency-Key"] for request in sent)
    assert first == again == idempotency_key(NOBODY, 2900, "2026-06") != other
    assert all(b"idempotency_key" not in request.content for request in sent)


def test_the_audit_key_cannot_charge(deployment: Deployment) -> None:
    """An amount of zero: where the key may charge after all, it is told so, and nothing moves."""
    method, _, path = TOOLS[ToolName.CHARGE].endpoint(deployment.settings.charge_api).partition(" ")
    answer = deployment.ask(
        deployment.audit, method, path, amount="0", currency="usd", customer=NOBODY
    )

    assert (answer.status_code, code_of(answer)) == (403, "vault_key_not_authorized"), (
        "the key behind charge_status may charge: issue one with role audit"
    )


def test_the_billing_key_cannot_read_charges(deployment: Deployment) -> None:
    """Whoever steals it learns nothing about customers."""
    entry = TOOLS[ToolName.CHARGE_STATUS].endpoint(deployment.settings.charge_api)
    listing = entry.partition(" ")[2].removesuffix("/*")
    for path in (f"{listing}/{NOTHING}", listing):
        answer = deployment.ask(deployment.billing, "GET", path)
        assert (answer.status_code, code_of(answer)) == (403, "vault_key_not_authorized"), (
            f"the key behind charge may GET {path}: issue one with role billing"
        )


def test_the_billing_key_has_a_cap(deployment: Deployment) -> None:
    """Without one, only the account's ceiling limits what a confused agent can spend."""
    caps = deployment.describe(deployment.billing)["policy"]["caps"]

    assert caps["daily"] or caps["monthly"], "issue it with --daily-cap or --monthly-cap"


def test_both_keys_expire(deployment: Deployment) -> None:
    """A key that nobody renews must end by itself."""
    for key in (deployment.billing, deployment.audit):
        record = deployment.describe(key)
        assert record["expires_at"], f"key {record['id']} never expires: issue it with --expires"


def test_no_stripe_key_is_in_the_environment_of_the_agent() -> None:
    """With it, whatever runs here could go around the proxy."""
    variables = os.environ.items()  # noqa: TID251 - all of it is looked at, not only our settings
    found = [name for name, value in variables if STRIPE_KEY.search(value)]

    assert found == [], "take these variables away from the agent's side"
