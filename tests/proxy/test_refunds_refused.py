"""Refunds that are refused, or that come back: over the wire, on both stores."""

from __future__ import annotations

import pytest

from kb_mcp.proxy.access.policy import Policy
from tests.in_process_proxy import InProcessProxy, error_of
from tests.postgres import database, server
from tests.proxy.test_path_of_a_refund import by_hand, charged, given_back, in_process, refunder

__all__ = ["database", "in_process", "server"]
STRIPE = {"Authorization": "Bearer rk_test_sandbox"}


@pytest.mark.parametrize(
    ("sent", "code", "param"),
    [
        ({"charge": "ch_Unknown1"}, "charge_not_refundable", None),
        ({"charge": "re_Abc123"}, "parameter_invalid", "charge"),
        ({"charge": "pi_Abc123"}, "parameter_invalid", "charge"),
        ({"charge": "ch_1/../x"}, "parameter_invalid", "charge"),
        ({"charge": ""}, "parameter_invalid", "charge"),
        ({}, "parameter_missing", "charge"),
        ({"amount": "0"}, "parameter_invalid", "amount"),
        ({"amount": ""}, "parameter_invalid", "amount"),
        ({"amount": "-1"}, "parameter_invalid", "amount"),
        ({"amount": "9.00"}, "parameter_invalid", "amount"),
        ({"amount": "None"}, "parameter_invalid", "amount"),
        ({"amount": "2901"}, "refund_exceeds_charge", "amount"),
        ({"currency": "eur"}, "parameter_invalid", "currency"),
        ({"payment_intent": "pi_Abc123"}, "parameter_duplicate", "charge"),
        (
            {"metadata[keybrake_attempt]": "x"},
            "parameter_not_allowed",
            "metadata[keybrake_attempt]",
        ),
        ({"reverse_transfer": "true"}, "parameter_not_allowed", "reverse_transfer"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_sent(
    in_process: InProcessProxy, sent: dict[str, str], code: str, param: str | None
) -> None:
    charge, key = charged(in_process), refunder(in_process)
    form = {} if not sent else {"charge": charge} | sent
    answer = in_process.client.post(
        "/v1/refunds", data=form, headers={"Authorization": f"Bearer {key.token}"}
    )
    error = answer.json()["error"]
    assert (error["code"], error.get("param")) == (code, param), error
    assert answer.status_code in {400, 403}
    assert given_back(in_process) == 0


def test_a_charge_that_another_made_is_refunded_only_where_the_policy_says_any(
    in_process: InProcessProxy,
) -> None:
    sent = {"amount": "2900", "currency": "usd", "customer": "cus_A1"}
    charge = in_process.stripe.post("/v1/charges", data=sent, headers=STRIPE).json()["id"]
    refused = in_process.refund(refunder(in_process), charge)
    assert (refused.status_code, error_of(refused)) == (400, "charge_not_refundable")
    assert in_process.refund(refunder(in_process, refunds_of="any"), charge).status_code == 200


def test_a_charge_of_a_customer_that_is_not_the_keys_tells_nothing(
    in_process: InProcessProxy,
) -> None:
    charge = charged(in_process, "cus_B2")
    key = refunder(in_process, customers={"ids": ["cus_A1"]})
    refused = in_process.refund(key, charge)
    assert (refused.status_code, error_of(refused)) == (403, "vault_key_not_authorized")
    in_process.refund(refunder(in_process), charge)
    assert in_process.refund(key, charge).status_code == 403, "nor once it is refunded"
    assert "2900" not in refused.text


def test_what_was_not_captured_is_not_refunded(in_process: InProcessProxy) -> None:
    free = Policy.model_validate(
        {
            "role": "holds",
            "allow": ["POST /v1/charges"],
            "parameters": {"POST /v1/charges": {"allowed": ["capture"]}},
        },
        strict=False,
    )
    charge = in_process.charge(in_process.issue(free), capture="false", period="2026-11").json()[
        "id"
    ]
    assert error_of(in_process.refund(refunder(in_process), charge)) == "charge_not_refundable"


@pytest.mark.parametrize(
    ("status", "refundable"),
    [("needs_response", False), ("lost", False), ("won", True), ("warning_needs_response", True)],
)
def test_a_disputed_charge_is_refunded_only_where_the_bank_has_nothing(
    in_process: InProcessProxy, status: str, refundable: bool
) -> None:
    charge, key = charged(in_process), refunder(in_process)
    in_process.stripe.post("/_sandbox/disputes", json={"charge": charge, "status": status})
    answer = in_process.refund(key, charge)
    assert answer.status_code == (200 if refundable else 400)
    assert refundable or error_of(answer) == "charge_disputed"


def test_an_intent_is_refunded_by_its_one_charge_under_the_same_name(
    in_process: InProcessProxy,
) -> None:
    paid = {"payment_method": "pm_card_visa", "confirm": "true", "off_session": "true"}
    intent = charged(in_process, path="/v1/payment_intents", **paid)
    charge = in_process.stripe.get(f"/v1/payment_intents/{intent}", headers=STRIPE).json()
    key = refunder(in_process)
    made = in_process.refund(key, intent, amount=900)
    assert (made.status_code, made.json()["charge"]) == (200, charge["latest_charge"])
    again = in_process.refund(key, charge["latest_charge"], amount=900)
    assert again.json()["id"] == made.json()["id"]
    assert given_back(in_process) == 900


def test_a_pending_refund_is_held_and_read_until_it_is_final(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process, "cus_PendingRefund1"), refunder(in_process)
    made = in_process.refund(key, charge, amount=900).json()
    operation = in_process.operations()[0]
    assert (made["status"], operation.state.value, operation.final) == (
        "pending",
        "succeeded",
        False,
    )
    in_process.stripe.post("/_sandbox/refunds", json={"refund": made["id"], "status": "succeeded"})
    in_process.turn_clock(61)
    in_process.recover()
    assert in_process.operations()[0].final


@pytest.mark.parametrize("customer", ["cus_A1", "cus_PendingRefund1", "cus_RefundAction1"])
def test_a_refund_that_comes_back_later_is_released_and_can_be_made_again(
    in_process: InProcessProxy, customer: str
) -> None:
    charge = charged(in_process, customer)
    key = refunder(in_process, refund_caps={"daily": {"usd": 1000}})
    made = in_process.refund(key, charge, amount=900).json()["id"]
    in_process.stripe.post("/_sandbox/refunds", json={"refund": made, "status": "failed"})
    in_process.turn_clock(3601)
    in_process.recover()
    operation = in_process.operations()[0]
    assert (operation.state.value, operation.held) == ("failed", 0)
    in_process.begin_day()
    again = in_process.refund(key, charge, amount=900)
    assert (again.status_code, again.json()["id"] != made) == (200, True)
    assert given_back(in_process) == 900


def test_a_refund_that_came_back_is_noticed_by_the_next_call(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process)
    made = in_process.refund(key, charge, amount=900).json()["id"]
    in_process.stripe.post("/_sandbox/refunds", json={"refund": made, "status": "failed"})
    again = in_process.refund(key, charge, amount=900)
    assert (again.status_code, again.json()["id"] != made) == (200, True), again.text
    assert given_back(in_process) == 900


def test_a_refund_made_by_hand_between_reading_and_sending_shows_as_stripes_no(
    in_process: InProcessProxy,
) -> None:
    charge, key = charged(in_process), refunder(in_process)
    in_process.fault("400", "POST /v1/refunds")
    first = in_process.refund(key, charge, amount=900)
    assert first.status_code == 400
    assert in_process.operations()[0].state.value == "failed"
    by_hand(in_process, charge, 2500)
    assert error_of(in_process.refund(key, charge, amount=900)) == "refund_exceeds_charge"
    assert in_process.refund(key, charge).json()["amount"] == 400
    assert given_back(in_process) == 2900


def test_a_key_that_may_not_refund_cannot(in_process: InProcessProxy) -> None:
    charge = charged(in_process)
    for role in ("billing", "audit", "billing-with-status"):
        refused = in_process.refund(in_process.issue(role), charge)
        assert (refused.status_code, error_of(refused)) == (403, "vault_key_not_authorized")
    key = refunder(in_process)
    assert error_of(in_process.charge(key, period="2026-11")) == "vault_key_not_authorized"


def test_nothing_is_sent_where_stripe_cannot_be_read(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process)
    for match in ("GET /v1/refunds", "GET /v1/charges/*"):
        in_process.fault("500_before", match)
        refused = in_process.refund(key, charge)
        assert (refused.status_code, error_of(refused)) == (502, "upstream_unreachable")
    in_process.fault("403", "GET /v1/charges/*")
    assert error_of(in_process.refund(key, charge)) == "upstream_rejected_key"
    assert given_back(in_process) == 0


def test_what_is_refunded_is_replayed_where_stripe_cannot_be_read(
    in_process: InProcessProxy,
) -> None:
    charge, key = charged(in_process), refunder(in_process)
    made = in_process.refund(key, charge).json()["id"]
    in_process.fault("drop_before", "GET /*", times=5)
    assert in_process.refund(key, charge).json()["id"] == made


def test_a_refunded_bill_still_counts_as_charged(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process)
    in_process.refund(key, charge)
    again = in_process.charge(in_process.issue(), period="2026-11")
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (charge, "true")
    other = in_process.charge(in_process.issue(), amount=3000, period="2026-11")
    assert error_of(other) == "period_already_charged"


def test_a_refund_is_not_taken_for_a_bill_of_the_same_amount(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process)
    in_process.refund(key, charge, amount=500)
    assert in_process.charge(in_process.issue(), amount=500, period=None).status_code == 200
