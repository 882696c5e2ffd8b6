"""What a tool tells of a bill that is not plainly paid: no word more than is known."""

from __future__ import annotations

from typing import Any

import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ChargeArguments, ChargeStatusArguments
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.outcomes import ProxyUnavailableError
from tests.agent.conftest import Says, StubProxy, charge, refusal

BILL = ChargeArguments(customer_id="cus_Abc123", amount_cents=2900, billing_period="2026-06")
BY_BILL = ChargeStatusArguments(customer_id="cus_Abc123", billing_period="2026-06")
BY_ID = ChargeStatusArguments(charge_id="ch_1")
NOBODY = CallContext()
POST = "POST /stripe/v1/charges"
GET = "GET /stripe/v1/charges/ch_1"
OPERATIONS = "GET /keybrake/v1/operations"


def intent(status: str, **fields: Any) -> dict[str, Any]:
    return charge(id="pi_1", object="payment_intent", status=status, **fields)


NOT_YET = [
    intent("requires_payment_method"),
    intent("requires_payment_method", last_payment_error=None),
    intent("requires_confirmation"),
    intent("requires_action"),
    intent("requires_capture"),
    intent("processing"),
    charge(status="pending"),
    charge(captured=False, paid=True),
    charge(captured=False, refunded=False),
]


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("body", NOT_YET)
def test_what_is_not_final_is_pending_and_nothing_is_said_to_have_moved_or_not(
    proxy: StubProxy, billing: Billing, body: dict[str, Any], replayed: bool
) -> None:
    headers = {"Idempotent-Replayed": "true"} if replayed else {}
    proxy.on(POST, Says(200, body, headers))
    result = billing.charge(BILL, NOBODY)
    assert (result.status, result.already_charged) == ("pending", False)
    told = f"{result.message} {result.next_step}"
    assert "not final" in told
    assert "Do not charge again" in told
    for untrue in ("was charged", "had been charged", "No money moved", "Done."):
        assert untrue not in told


@pytest.mark.parametrize("body", NOT_YET)
def test_a_look_at_what_is_not_final_says_pending(
    proxy: StubProxy, billing: Billing, body: dict[str, Any]
) -> None:
    proxy.on(GET, Says(200, body))
    found = billing.charge_status(BY_ID, NOBODY)
    assert (found.found, found.status) == (True, "pending")
    assert "No money moved" not in f"{found.message} {found.next_step}"
    assert "was charged" not in found.message


def test_an_authorised_charge_is_told_as_authorised(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(GET, Says(200, charge(captured=False)))
    found = billing.charge_status(BY_ID, NOBODY)
    assert found.message == "29.00 USD was authorised, and is not charged yet."


def test_an_authorisation_that_lapsed_is_told_as_lapsed(proxy: StubProxy, billing: Billing) -> None:
    gone = charge(captured=False, refunded=True, amount_refunded=2900)
    proxy.on(GET, Says(200, gone))
    proxy.on(POST, Says(200, gone))
    found = billing.charge_status(BY_ID, NOBODY)
    assert found.status == "failed"
    assert "the authorisation expired. No money moved." in found.message
    result = billing.charge(BILL, NOBODY)
    assert (result.status, result.code) == ("failed", "authorization_lapsed")
    assert "expired" in result.message


def test_an_intent_that_says_why_its_card_failed_has_failed(
    proxy: StubProxy, billing: Billing
) -> None:
    error = {"code": "card_declined"}
    proxy.on(POST, Says(200, intent("requires_payment_method", last_payment_error=error)))
    assert billing.charge(BILL, NOBODY).status == "failed"


def test_a_receipt_is_promised_only_where_there_is_one(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(GET, Says(200, charge()), Says(200, charge(receipt_url=None)))
    assert "receipt_url" in billing.charge_status(BY_ID, NOBODY).next_step
    assert "receipt" not in billing.charge_status(BY_ID, NOBODY).next_step


def recorded(**fields: Any) -> dict[str, Any]:
    return {
        "id": "op_1",
        "state": "succeeded",
        "final": True,
        "amount": 2900,
        "currency": "usd",
        "customer_id": "cus_Abc123",
        "billing_period": "2026-06",
        "charge_id": "ch_1",
        "created_at": "2026-06-01T00:00:00.000Z",
        **fields,
    }


UNREADABLE = [
    Says(400, {"error": {"type": "invalid_request_error", "code": "parameter_invalid"}}),
    Says(404, {"error": {"type": "invalid_request_error", "code": "resource_missing"}}),
    Says(502, refusal("upstream_rejected_key"), {"Stripe-Should-Retry": "false"}),
    Says(502, refusal("upstream_unreachable"), {"Stripe-Should-Retry": "false"}),
    Says(500, {"error": {"type": "api_error"}}, {"Stripe-Should-Retry": "false"}),
    Says(200, "not json"),
]


@pytest.mark.parametrize("says", UNREADABLE)
@pytest.mark.parametrize("asked", [BY_BILL, BY_ID])
def test_a_paid_bill_that_cannot_be_read_is_told_as_the_ledger_has_it(
    proxy: StubProxy, billing: Billing, says: Says, asked: ChargeStatusArguments
) -> None:
    proxy.on(GET, says)
    proxy.on(OPERATIONS, Says(200, {"object": "list", "data": [recorded()]}))
    found = billing.charge_status(asked, NOBODY)
    assert (found.found, found.status, found.charge_id) == (True, "succeeded", "ch_1")
    assert (found.message, found.livemode) == ("29.00 USD was charged.", False)
    assert found.next_step == "Nothing more to charge. Tell the user."


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"final": False}, "pending", "A charge of 29.00 USD was accepted and is not final yet."),
        (
            {"state": "reserved", "charge_id": None},
            "unknown",
            "A charge of 29.00 USD is under way, and may have been sent.",
        ),
    ],
)
def test_what_the_ledger_holds_is_told_as_held(
    proxy: StubProxy, billing: Billing, fields: dict[str, Any], status: str, message: str
) -> None:
    proxy.on(GET, Says(404, {"error": {"type": "invalid_request_error"}}))
    proxy.on(OPERATIONS, Says(200, {"object": "list", "data": [recorded(**fields)]}))
    found = billing.charge_status(BY_BILL, NOBODY)
    assert (found.status, found.message) == (status, message)


def test_a_charge_that_nobody_knows_is_not_found_and_an_error_stays_an_error(
    proxy: StubProxy, billing: Billing
) -> None:
    proxy.on(OPERATIONS, Says(200, {"object": "list", "data": []}))
    proxy.on(GET, UNREADABLE[1])
    assert billing.charge_status(BY_ID, NOBODY).found is False
    proxy.on(GET, UNREADABLE[3])
    with pytest.raises(ProxyUnavailableError):
        billing.charge_status(BY_ID, NOBODY)


def test_a_declined_intent_that_the_customer_paid_since_is_told_as_paid(
    proxy: StubProxy, billing: Billing
) -> None:
    failed = {"state": "failed", "final": True, "charge_id": "pi_1", "amount": 2900}
    proxy.on(OPERATIONS, Says(200, {"data": [{**failed, "currency": "usd"}]}))
    proxy.on("GET /stripe/v1/payment_intents/pi_1", Says(200, intent("succeeded")))
    assert billing.charge_status(BY_BILL, NOBODY).status == "succeeded"
