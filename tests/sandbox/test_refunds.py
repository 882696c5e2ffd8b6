"""Refunds and disputes behave as Stripe's do, and can be moved on as a bank would."""

from __future__ import annotations

from typing import Any

import pytest

from kb_mcp.sandbox.steering import ConnectionDropped
from tests.sandbox.driver import Driver


def charged(sandbox: Driver, **changes: str) -> str:
    return str(sandbox.charge(**changes).json()["id"])


def refund(sandbox: Driver, of: str, key: str | None = None, **changes: str) -> Any:
    return sandbox.post("/v1/refunds", {"charge": of} | changes, key=key)


def move(sandbox: Driver, refund_id: str, status: str) -> Any:
    return sandbox.post("/_sandbox/refunds", json={"refund": refund_id, "status": status}).json()


def refunded(sandbox: Driver, charge: str) -> tuple[int, bool]:
    shown = sandbox.get(f"/v1/charges/{charge}")
    return shown["amount_refunded"], shown["refunded"]


@pytest.mark.parametrize(
    ("customer", "status"),
    [
        ("cus_Abc123", "succeeded"),
        ("cus_PendingRefund1", "pending"),
        ("cus_RefundAction1", "requires_action"),
    ],
)
def test_a_refund_begins_as_its_customers_name_says(
    sandbox: Driver, customer: str, status: str
) -> None:
    charge = charged(sandbox, customer=customer)
    made = refund(sandbox, charge, amount="900").json()
    assert (made["status"], made["amount"]) == (status, 900)
    assert ("next_action" in made) is (status == "requires_action")
    assert refunded(sandbox, charge) == (900, False), "a refund that waits counts as refunded too"


@pytest.mark.parametrize("status", ["failed", "canceled"])
def test_a_refund_that_comes_back_later_is_left_on_the_charge_again(
    sandbox: Driver, status: str
) -> None:
    charge = charged(sandbox)
    made = refund(sandbox, charge).json()
    assert refunded(sandbox, charge) == (2900, True)
    moved = move(sandbox, made["id"], status)
    assert moved["status"] == status
    assert ("failure_reason" in moved) is (status == "failed")
    assert refunded(sandbox, charge) == (0, False)
    assert refund(sandbox, charge).json()["amount"] == 2900


def test_a_pending_refund_that_succeeds_counts_once(sandbox: Driver) -> None:
    charge = charged(sandbox, customer="cus_PendingRefund1")
    made = refund(sandbox, charge).json()
    assert move(sandbox, made["id"], "succeeded")["status"] == "succeeded"
    assert refunded(sandbox, charge) == (2900, True)


def test_only_a_refund_that_waits_for_the_customer_can_be_cancelled(sandbox: Driver) -> None:
    charge = charged(sandbox, customer="cus_RefundAction1")
    waiting = refund(sandbox, charge).json()
    canceled = sandbox.post(f"/v1/refunds/{waiting['id']}/cancel")
    assert canceled.json()["status"] == "canceled"
    assert refunded(sandbox, charge) == (0, False)
    other = refund(sandbox, charged(sandbox)).json()
    assert sandbox.post(f"/v1/refunds/{other['id']}/cancel").status_code == 400


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"amount": "2901"}, None, "amount"),
        ({"amount": "0"}, "parameter_invalid_integer", "amount"),
        ({"amount": "-1"}, "parameter_invalid_integer", "amount"),
        ({"amount": "1.5"}, "parameter_invalid_integer", "amount"),
        ({"amount": ""}, "parameter_invalid_empty", "amount"),
        ({"charge": "ch_none"}, "resource_missing", "charge"),
        ({"charge": "re_none"}, "resource_missing", "charge"),
        ({"reason": "because"}, None, "reason"),
        ({"payment_intent": "pi_none"}, None, "charge"),
    ],
)
def test_a_bad_refund_is_refused_and_nothing_is_given_back(
    sandbox: Driver, changes: dict[str, str], code: str | None, param: str
) -> None:
    charge = charged(sandbox)
    error = refund(sandbox, charge, **changes).json()["error"]
    assert (error.get("code"), error["param"]) == (code, param)
    assert refunded(sandbox, charge) == (0, False)
    assert sandbox.state()["refunds"] == []


def test_what_was_not_captured_is_let_go_of_in_full_only(sandbox: Driver) -> None:
    charge = charged(sandbox, capture="false")
    assert refund(sandbox, charge, amount="900").status_code == 400
    assert refund(sandbox, charge).json()["amount"] == 2900


@pytest.mark.parametrize(
    ("status", "refundable"),
    [
        ("warning_needs_response", True),
        ("needs_response", False),
        ("under_review", False),
        ("lost", False),
        ("won", True),
    ],
)
def test_a_charge_whose_bank_has_the_money_gives_none_back(
    sandbox: Driver, status: str, refundable: bool
) -> None:
    charge = charged(sandbox)
    sandbox.post("/_sandbox/disputes", json={"charge": charge, "status": "needs_response"})
    made = sandbox.post("/_sandbox/disputes", json={"charge": charge, "status": status}).json()
    assert sandbox.get(f"/v1/charges/{charge}")["disputed"] is True
    assert sandbox.get(f"/v1/disputes?charge={charge}")["data"] == [made]
    assert sandbox.get(f"/v1/disputes/{made['id']}") == made
    answer = refund(sandbox, charge)
    assert answer.status_code == (200 if refundable else 400)
    assert refundable or answer.json()["error"]["code"] == "charge_disputed"


def test_refunds_are_listed_by_charge_by_intent_and_by_time(sandbox: Driver) -> None:
    confirmed = {"payment_method": "pm_card_visa", "confirm": "true", "off_session": "true"}
    sent = {"amount": "2900", "currency": "usd", "customer": "cus_Abc123"} | confirmed
    intent = sandbox.post("/v1/payment_intents", sent).json()
    first = sandbox.post("/v1/refunds", {"payment_intent": intent["id"], "amount": "100"}).json()
    sandbox.advance(100)
    second = refund(sandbox, charged(sandbox)).json()
    assert first["charge"] == intent["latest_charge"]
    for query, expected in (
        (f"charge={first['charge']}", [first]),
        (f"payment_intent={intent['id']}", [first]),
        (f"created[gte]={second['created']}", [second]),
        (f"starting_after={second['id']}", [first]),
        ("limit=1", [second]),
    ):
        assert sandbox.get(f"/v1/refunds?{query}")["data"] == expected


@pytest.mark.parametrize(
    ("kind", "made"), [("drop_before", 0), ("drop_after", 1), ("500_after", 1), ("429", 0)]
)
def test_a_refund_meets_the_faults_that_a_charge_meets(
    sandbox: Driver, kind: str, made: int
) -> None:
    charge = charged(sandbox)
    sandbox.fault(kind, "POST /v1/refunds")
    if kind.startswith("drop"):
        with pytest.raises(ConnectionDropped):
            refund(sandbox, charge, "k", amount="900")
    else:
        assert refund(sandbox, charge, "k", amount="900").status_code >= 400
    assert len(sandbox.state()["refunds"]) == made
    refund(sandbox, charge, "k", amount="900")
    assert len(sandbox.state()["refunds"]) == 1


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("refunds", {"refund": "re_none", "status": "failed"}),
        ("refunds", {"refund": "re_none"}),
        ("refunds", [{"refund": "re_none", "status": "failed"}]),
        ("refunds", {"refund": 1, "status": "failed"}),
        ("disputes", {"charge": "ch_none", "status": "lost"}),
        ("disputes", {"charge": "ch_none", "status": "maybe"}),
    ],
)
def test_what_cannot_be_meant_moves_nothing(sandbox: Driver, path: str, sent: object) -> None:
    response = sandbox.post(f"/_sandbox/{path}", json=sent)
    assert response.status_code == 400
    assert "Send" in response.json()["error"]["message"]
