"""What must hold on the agent's side of a deployment, each check with what to do if it does not.

Floor: the top. No request here can move money: amounts are zero, and everything else reads.
"""

from __future__ import annotations

import os
import re

import httpx

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ChargeArguments, ToolName
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.client.network import NetworkLine
from kb_mcp.enforcement.conftest import Deployment, code_of
from kb_mcp.idempotency import idempotency_key
from kb_mcp.settings import Secret
from kb_mcp.wiring.agent import network_line

VAULT_KEY = re.compile(r"vk_(?:test|live)_[a-z0-9]+_[a-z0-9]+")
STRIPE_KEY = re.compile(r"\b[rs]k_(?:test|live)_\w+")
NOBODY = "cus_EnforcementProbe"
NOTHING = "ch_EnforcementProbe"


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
    bills = {(period, idempotency_key("cus_Abc123", 2900, period)) for period in _MONTHS * 2}

    assert idempotency_key("cus_Abc123", 2900, "2026-06") == "38de2d05855909930dc2287649e68ba3"
    assert len(bills) == len({key for _, key in bills}) == len(_MONTHS)


def test_the_tools_send_that_key_in_the_header(deployment: Deployment) -> None:
    """In the body, where samples put it, it would be no key at all. Nothing leaves this process."""
    sent: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(403, json={"error": {"code": "probe", "message": "Not sent."}})

    billing = Billing(
        {ToolName.CHARGE: deployment.billing.reveal},
        NetworkLine("http://127.0.0.1", transport=httpx.MockTransport(note)),
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
    method, _, path = deployment.write.partition(" ")
    answer = deployment.ask(
        deployment.audit, method, path, amount="0", currency="usd", customer=NOBODY
    )

    assert (answer.status_code, code_of(answer)) == (403, "vault_key_not_authorized"), (
        "the key behind charge_status may charge: issue one with role audit"
    )


def test_the_billing_key_cannot_read_charges(deployment: Deployment) -> None:
    """Whoever steals it learns nothing about customers."""
    listing = deployment.read.partition(" ")[2].removesuffix("/*")
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


def is_vault_key(key: Secret) -> bool:
    """Say whether `key` is formed like one; the value itself stays out of what pytest shows."""
    return VAULT_KEY.fullmatch(key.reveal()) is not None


_MONTHS = [f"2026-{month:02}" for month in range(1, 13)]
