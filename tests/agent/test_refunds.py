"""What `refund` sends, and what each answer of the proxy means to a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import (
    Answered,
    Invalid,
    NotOffered,
    Unavailable,
    call_tool,
    read_arguments,
    read_texts,
)
from kb_mcp.agent.catalogue import TOOLS, RefundArguments, ToolName, tools_granted
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.client.network import NetworkLine
from kb_mcp.agent.results import RefundResult
from tests.agent.conftest import AUDIT_KEY, Says, StubProxy, charge, refusal

POST = "POST /stripe/v1/refunds"
REFUND = TOOLS[ToolName.REFUND]
KEY = "vk_test_refunds_secret"
GOOD = {"charge_id": "ch_1", "amount_cents": 900}


def refund(**fields: Any) -> dict[str, Any]:
    return {
        "id": "re_1",
        "object": "refund",
        "status": "succeeded",
        "amount": 900,
        "currency": "usd",
        "charge": "ch_1",
        **fields,
    }


@pytest.fixture
def billing(proxy: StubProxy) -> Iterator[Billing]:
    made = Billing(
        {ToolName.REFUND: KEY, ToolName.CHARGE_STATUS: AUDIT_KEY}, NetworkLine(proxy.url)
    )
    yield made
    made.close()


def ask(billing: Billing, **arguments: object) -> RefundResult:
    answer = call_tool(billing, "refund", arguments, CallContext())
    assert isinstance(answer, Answered), answer
    assert isinstance(answer.result, RefundResult)
    return answer.result


def test_a_refund_names_its_charge_and_says_what_happened(
    proxy: StubProxy, billing: Billing
) -> None:
    proxy.on(POST, Says(200, refund(), {"Keybrake-Operation": "op_1"}))
    result = ask(billing, **GOOD, reason="duplicate")
    [sent] = proxy.seen
    assert sent.form == {"charge": "ch_1", "amount": "900", "reason": "duplicate"}
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert (result.status, result.refund_id, result.amount_cents) == ("succeeded", "re_1", 900)
    assert (result.already_refunded, result.livemode, result.operation_id) == (False, False, "op_1")
    assert "9.00 USD was refunded" in result.message


def test_without_an_amount_none_is_sent_and_an_intent_is_named_as_one(
    proxy: StubProxy, billing: Billing
) -> None:
    proxy.on(POST, Says(200, refund(amount=2900)))
    result = ask(billing, charge_id="pi_1", amount_cents=None)
    assert proxy.seen[0].form == {"payment_intent": "pi_1"}
    assert (result.charge_id, result.amount_cents) == ("ch_1", 2900)


@pytest.mark.parametrize(
    ("stripe", "status"),
    [
        ("pending", "pending"),
        ("requires_action", "pending"),
        ("failed", "failed"),
        ("canceled", "failed"),
        ("something_new", "unknown"),
    ],
)
def test_each_status_of_stripes_means_one_of_ours(
    proxy: StubProxy, billing: Billing, stripe: str, status: str
) -> None:
    proxy.on(POST, Says(200, refund(status=stripe)))
    assert ask(billing, **GOOD).status == status


def test_a_replay_says_that_nothing_was_given_back_now(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(POST, Says(200, refund(), {"Idempotent-Replayed": "true"}))
    result = ask(billing, **GOOD)
    assert (result.status, result.already_refunded) == ("succeeded", True)
    assert "nothing was refunded now" in result.message
    assert "Do not refund again" in result.next_step


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (400, "already_refunded", "look at the refunds"),
        (400, "refund_exceeds_charge", "do not choose another amount"),
        (400, "charge_disputed", "bank"),
        (400, "charge_not_refundable", "Do not try other ids"),
        (403, "refund_cap_exceeded", "Do not split"),
        (403, "approval_required", "operator must approve"),
        (403, "vault_key_not_authorized", "Do not refund again"),
    ],
)
def test_a_refusal_tells_what_to_do_next(
    proxy: StubProxy, billing: Billing, status: int, code: str, told: str
) -> None:
    facts = {"left": 100, "currency": "usd", "refund_id": "re_9", "operation": "op_9"}
    proxy.on(POST, Says(status, refusal(code, "Because.", **facts)))
    result = ask(billing, **GOOD)
    assert (result.status, result.code, result.message) == ("refused", code, "Because.")
    assert (result.amount_left, result.refund_id) == (100, "re_9")
    assert result.already_refunded is (code == "already_refunded")
    assert told in result.next_step


def test_what_stripe_rejects_has_failed(proxy: StubProxy, billing: Billing) -> None:
    error = {"type": "invalid_request_error", "code": "charge_already_refunded", "message": "No."}
    proxy.on(POST, Says(400, {"error": error}))
    assert ask(billing, **GOOD).status == "failed"


@pytest.mark.parametrize(
    "says",
    [
        Says(504, refusal("outcome_unknown")),
        Says(409, refusal("idempotency_key_in_use"), {"Stripe-Should-Retry": "false"}),
        Says(200, "no json"),
        Says(drop=True),
    ],
)
def test_what_is_not_proven_is_unknown_and_never_a_no(
    proxy: StubProxy, billing: Billing, says: Says
) -> None:
    proxy.on(POST, says)
    result = ask(billing, **GOOD)
    assert result.status == "unknown"
    assert "charge_status" in result.next_step
    assert result.already_refunded is False


def test_where_nothing_was_sent_the_same_call_can_be_made_again(
    proxy: StubProxy, billing: Billing
) -> None:
    proxy.on(POST, Says(503, refusal("ledger_unavailable"), {"Stripe-Should-Retry": "false"}))
    assert isinstance(call_tool(billing, "refund", GOOD, CallContext()), Unavailable)


def test_a_door_without_the_key_does_not_offer_it(proxy: StubProxy) -> None:
    made = Billing({ToolName.CHARGE: KEY}, NetworkLine(proxy.url))
    assert isinstance(call_tool(made, "refund", GOOD, CallContext()), NotOffered)
    assert proxy.seen == []
    made.close()


def test_a_key_that_may_refund_is_offered_the_tool_and_no_other_is() -> None:
    refunding = frozenset({"POST /v1/refunds"})
    assert tools_granted(refunding, "charges") == {ToolName.REFUND}
    assert tools_granted(refunding, "payment_intents") == {ToolName.REFUND}
    assert ToolName.REFUND not in tools_granted(frozenset({"POST /v1/charges"}), "charges")


@pytest.mark.parametrize("amount", ["", "None", "null", "0", "-1", "1.5", "1e3", "nine", "true"])
def test_no_text_but_a_whole_number_is_an_amount(amount: str) -> None:
    texts = read_texts(REFUND, [("charge_id", "ch_1"), ("amount_cents", amount)])
    assert not isinstance(texts, Invalid)
    assert isinstance(read_arguments(REFUND, texts), Invalid)


@pytest.mark.parametrize("amount", ["", "None", "null", 0, -1, 1.0, 1.5, True, [900], "900"])
def test_no_json_value_but_a_positive_integer_and_null_is_an_amount(amount: object) -> None:
    asked = {"charge_id": "ch_1", "amount_cents": amount}
    assert isinstance(read_arguments(REFUND, asked), Invalid)


def test_null_and_a_missing_argument_mean_what_is_left() -> None:
    for raw in ({"charge_id": "ch_1"}, {"charge_id": "ch_1", "amount_cents": None}):
        read = read_arguments(REFUND, raw)
        assert isinstance(read, RefundArguments)
        assert read.amount_cents is None


def test_an_amount_may_come_as_text_where_a_runtime_sends_text() -> None:
    texts = read_texts(REFUND, [("charge_id", "ch_1"), ("amount_cents", "900")])
    assert texts == {"charge_id": "ch_1", "amount_cents": 900}


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"charge_id": "re_1"},
        {"charge_id": "cus_1"},
        {"charge_id": "ch_1", "reason": "because"},
        {"charge_id": "ch_1", "currency": "usd"},
    ],
)
def test_what_cannot_be_meant_says_what_to_send(raw: dict[str, object]) -> None:
    read = read_arguments(REFUND, raw)
    assert isinstance(read, Invalid)
    assert "because" not in read.message


def test_a_look_up_tells_the_refunds_of_a_charge(proxy: StubProxy, billing: Billing) -> None:
    proxy.on("GET /stripe/v1/charges/ch_1", Says(200, charge(amount_refunded=900)))
    refunds = [
        {"refund_id": "re_1", "amount": 900, "status": "succeeded", "created_at": "2026-06-01"},
        {"refund_id": None, "amount": 100, "status": "unknown", "created_at": None},
    ]
    proxy.on("GET /keybrake/v1/operations", Says(200, {"data": [], "refunds": refunds}))
    answer = call_tool(billing, "charge_status", {"charge_id": "ch_1"}, CallContext())
    assert isinstance(answer, Answered)
    body = answer.result.model_dump(mode="json", exclude_none=True)
    assert body["refunds"] == [
        {"refund_id": "re_1", "amount_cents": 900, "status": "succeeded", "created": "2026-06-01"},
        {"amount_cents": 100, "status": "unknown"},
    ]


@pytest.mark.parametrize(
    "says", [Says(503, refusal("draining")), Says(403, refusal("x")), Says(500)]
)
def test_a_charge_is_shown_though_its_refunds_cannot_be(
    proxy: StubProxy, billing: Billing, says: Says
) -> None:
    proxy.on("GET /stripe/v1/charges/ch_1", Says(200, charge()))
    proxy.on("GET /keybrake/v1/operations", says)
    answer = call_tool(billing, "charge_status", {"charge_id": "ch_1"}, CallContext())
    assert isinstance(answer, Answered)
    assert answer.result.model_dump(exclude_none=True).get("refunds") is None
    assert answer.result.status == "succeeded"
