"""Charging through PaymentIntents: the card is looked up, never guessed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ChargeArguments, ToolName
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.client.network import NetworkLine
from kb_mcp.agent.outcomes import ProxyUnavailableError
from tests.agent.conftest import BILLING_KEY, Says, StubProxy, charge, refusal

BILL = ChargeArguments(customer_id="cus_Abc123", amount_cents=2900, billing_period="2026-06")
KEY = "38de2d05855909930dc2287649e68ba3"
POST = "POST /stripe/v1/charges"
NOBODY = CallContext()
CUSTOMER = "GET /stripe/v1/customers/cus_Abc123"
METHODS = "GET /stripe/v1/customers/cus_Abc123/payment_methods"
INTENT = "POST /stripe/v1/payment_intents"


@pytest.fixture
def intents(proxy: StubProxy) -> Iterator[Billing]:
    made = Billing(
        {ToolName.CHARGE: BILLING_KEY}, NetworkLine(proxy.url), charge_api="payment_intents"
    )
    yield made
    made.close()


def customer(default: str | None) -> Says:
    settings = {"default_payment_method": default}
    body = {"id": "cus_Abc123", "object": "customer", "invoice_settings": settings}
    return Says(200, body)


def methods(*ids: str) -> Says:
    data = [{"id": name, "object": "payment_method"} for name in ids]
    return Says(200, {"object": "list", "data": data, "has_more": False, "url": "/v1"})


@pytest.mark.parametrize(
    ("default", "others", "used"), [("pm_d", ["pm_a", "pm_b"], "pm_d"), (None, ["pm_a"], "pm_a")]
)
def test_an_intent_charges_the_default_or_the_only_payment_method(
    proxy: StubProxy, intents: Billing, default: str | None, others: list[str], used: str
) -> None:
    proxy.on(CUSTOMER, customer(default))
    proxy.on(METHODS, methods(*others))
    intent = charge(id="pi_1", object="payment_intent")
    proxy.on(INTENT, Says(200, intent))

    result = intents.charge(BILL, NOBODY)

    sent = proxy.seen[-1]
    assert (sent.form["payment_method"], sent.form["off_session"]) == (used, "true")
    assert (sent.form["confirm"], sent.form["error_on_requires_action"]) == ("true", "true")
    assert sent.headers["idempotency-key"] == KEY
    # A card that was looked up is not what the customer is billed for: a new one is no new bill.
    assert sent.headers["keybrake-looked-up"] == "payment_method"
    assert (result.status, result.charge_id) == ("succeeded", "pi_1")


@pytest.mark.parametrize("others", [[], ["pm_a", "pm_b"]])
def test_no_payment_method_is_guessed(
    proxy: StubProxy, intents: Billing, others: list[str]
) -> None:
    proxy.on(CUSTOMER, customer(None))
    proxy.on(METHODS, methods(*others))

    result = intents.charge(BILL, NOBODY)

    assert (result.status, result.code) == ("failed", "no_default_payment_method")
    assert all(seen.method == "GET" for seen in proxy.seen)


def test_a_key_that_may_not_see_the_payment_method_is_refused(
    proxy: StubProxy, intents: Billing
) -> None:
    says = refusal("vault_key_not_authorized", "This vault key may not do that: read customers.")
    proxy.on(CUSTOMER, Says(403, says))

    result = intents.charge(BILL, NOBODY)

    assert (result.status, result.code) == ("refused", "vault_key_not_authorized")
    assert "read customers" in result.message


def test_a_look_up_that_is_lost_charged_nothing(proxy: StubProxy, intents: Billing) -> None:
    proxy.on(CUSTOMER, Says(drop=True))

    with pytest.raises(ProxyUnavailableError):
        intents.charge(BILL, NOBODY)


BROKEN = Says(500, "<html>bad gateway</html>")


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ((BROKEN, Says(404, refusal("resource_missing"))), ("refused", "resource_missing")),
        ((BROKEN, Says(401, refusal("vault_key_revoked"))), ("refused", "vault_key_revoked")),
        ((Says(drop=True), Says(401, refusal("no_key"))), ("refused", "no_key")),
    ],
)
def test_a_look_up_that_broke_before_it_was_refused_leaves_no_doubt(
    proxy: StubProxy, intents: Billing, answers: tuple[Says, ...], told: tuple[str, str]
) -> None:
    proxy.on(CUSTOMER, *answers)

    result = intents.charge(BILL, NOBODY)

    assert (result.status, result.code) == told
    assert all(seen.method == "GET" for seen in proxy.seen)


@pytest.mark.parametrize("status", [408, 409])
def test_a_look_up_that_timed_out_or_collided_charged_nothing(
    proxy: StubProxy, intents: Billing, status: int
) -> None:
    proxy.on(CUSTOMER, Says(status, refusal("busy"), {"Stripe-Should-Retry": "false"}))

    with pytest.raises(ProxyUnavailableError):
        intents.charge(BILL, NOBODY)


def test_a_declined_intent_names_the_intent(proxy: StubProxy, intents: Billing) -> None:
    proxy.on(CUSTOMER, customer("pm_d"))
    error = {
        "type": "card_error",
        "code": "authentication_required",
        "charge": "ch_d",
        "payment_intent": {"id": "pi_d"},
    }
    proxy.on(INTENT, Says(402, {"error": error}))

    result = intents.charge(BILL, NOBODY)

    assert (result.status, result.code, result.charge_id) == (
        "failed",
        "authentication_required",
        "pi_d",
    )
    assert "Do not try again" in result.next_step
