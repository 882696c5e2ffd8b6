"""PaymentIntents: held until final, cancelled before another attempt, never told their secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from kb_mcp.proxy.access.policy import Policy
from tests.in_process_proxy import InProcessProxy, Issued, error_of

INTENTS = "/v1/payment_intents"
FORM = {"confirm": "true", "off_session": "true", "payment_method": "pm_card_visa"}


def intend(in_process: InProcessProxy, key: Issued, **form: Any) -> httpx.Response:
    return in_process.charge(key, INTENTS, period="2026-11", **{**FORM, **form})


def intents(in_process: InProcessProxy) -> list[dict[str, Any]]:
    headers = {"Authorization": "Bearer rk_test_sandbox"}
    listed = in_process.stripe.get(f"{INTENTS}?limit=100", headers=headers).json()["data"]
    return [dict(each) for each in listed]


def test_a_confirmed_intent_settles_and_repeats_replay_it(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue("billing-payment-intents")
        first, second = intend(in_process, key), intend(in_process, key)
        assert (first.json()["status"], second.json()["id"]) == ("succeeded", first.json()["id"])
        assert len(intents(in_process)) == 1
        assert (in_process.operations()[0].final, in_process.operations()[0].held) == (True, 2900)


def test_the_secret_is_told_to_nobody(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue("billing-payment-intents")
        for answer in (intend(in_process, key), intend(in_process, key)):
            assert answer.json()["client_secret"] is None
        bill = {"payment_method": "pm_card_chargeDeclined", "customer": "cus_B2"}
        for declined in (intend(in_process, key, **bill), intend(in_process, key, **bill)):
            assert declined.status_code == 402
            assert declined.json()["error"]["payment_intent"]["client_secret"] is None


def test_an_unconfirmed_intent_holds_its_amount_until_it_is_final(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue("billing-payment-intents", daily={"usd": 3000})
        made = intend(in_process, key, confirm="false", off_session=None)
        assert made.json()["status"] == "requires_confirmation"
        operation = in_process.operations()[0]
        assert (operation.state.value, operation.final, operation.held) == (
            "succeeded",
            False,
            2900,
        )
        assert error_of(intend(in_process, key, customer="cus_B2")) == "spend_cap_exceeded"
        headers = {"Authorization": "Bearer rk_test_sandbox"}
        in_process.stripe.post(f"{INTENTS}/{made.json()['id']}/cancel", headers=headers)
        in_process.turn_clock(61)
        in_process.recover()
        assert (in_process.operations()[0].state.value, in_process.operations()[0].held) == (
            "failed",
            0,
        )


def test_a_declined_intent_is_cancelled_before_another_attempt(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue("billing-payment-intents")
        assert intend(in_process, key, customer="cus_Declined").status_code == 402
        in_process.turn_clock(16 * 60)
        assert intend(in_process, key, customer="cus_Declined").status_code == 402
        states = sorted(each["status"] for each in intents(in_process))
        assert states == ["canceled", "requires_payment_method"]
        assert in_process.operations()[0].attempt == 2


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
def test_a_lost_intent_is_found_by_reading(tmp_path: Path, kind: str) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue("billing-payment-intents")
        in_process.fault(kind, match="POST /v1/payment_intents")
        assert error_of(intend(in_process, key)) == "outcome_unknown"
        in_process.recover()
        expected = "succeeded" if kind == "drop_after" else "unknown"
        assert in_process.operations()[0].state.value == expected
        assert intend(in_process, key).status_code == 200
        assert len(intents(in_process)) == 1


def test_a_charge_and_an_intent_for_one_period_are_one_bill(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        charges, intending = in_process.issue(), in_process.issue("billing-payment-intents")
        assert in_process.charge(charges, period="2026-11").status_code == 200
        refused = intend(in_process, intending)
        assert refused.status_code == 403
        assert error_of(refused) == "vault_key_not_authorized"
        assert intents(in_process) == []


def test_a_customers_new_card_does_not_make_another_bill_of_a_replay(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue("billing-payment-intents")
        made = intend(in_process, key, looked_up=True).json()["id"]
        again = intend(in_process, key, looked_up=True, payment_method="pm_card_mastercard")
        assert (again.json()["id"], again.headers["idempotent-replayed"]) == (made, "true")
        chosen = intend(in_process, key, payment_method="pm_card_mastercard")
        assert error_of(chosen) == "period_already_charged"
        assert len(intents(in_process)) == 1


def test_a_declined_intent_that_was_paid_elsewhere_is_the_bill_and_no_other_is_made(
    tmp_path: Path,
) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue("billing-payment-intents")
        declined = {"payment_method": "pm_card_chargeDeclined"}
        assert intend(in_process, key, **declined).status_code == 402
        [made] = intents(in_process)
        headers = {"Authorization": "Bearer rk_test_sandbox"}
        path = f"{INTENTS}/{made['id']}/confirm"
        paid = in_process.stripe.post(
            path, data={"payment_method": "pm_card_visa"}, headers=headers
        ).json()
        assert paid["status"] == "succeeded", paid
        in_process.turn_clock(16 * 60)
        answers = [intend(in_process, key, **declined) for _ in range(3)]
        assert [each.json().get("id") for each in answers] == [made["id"]] * 3
        assert len(intents(in_process)) == 1
        operation = in_process.operations()[0]
        assert (operation.state.value, operation.held, operation.overshoot) == (
            "succeeded",
            2900,
            False,
        )


def test_no_intent_is_made_while_a_declined_one_cannot_be_cancelled(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue("billing-payment-intents")
        assert intend(in_process, key, customer="cus_Declined").status_code == 402
        [made] = intents(in_process)
        in_process.turn_clock(16 * 60)
        in_process.fault("500_before", match=f"POST {INTENTS}/{made['id']}/cancel", times=2)
        for _ in range(2):
            assert error_of(intend(in_process, key, customer="cus_Declined")) == (
                "upstream_unreachable"
            )
        assert [each["status"] for each in intents(in_process)] == ["requires_payment_method"]
        assert intend(in_process, key, customer="cus_Declined").status_code == 402
        assert sorted(each["status"] for each in intents(in_process)) == [
            "canceled",
            "requires_payment_method",
        ]


STEPS = Policy.model_validate(
    {
        "role": "steps",
        "allow": (
            "POST /v1/payment_intents",
            "GET /v1/payment_intents/*",
            "POST /v1/payment_intents/*/confirm",
        ),
    }
)


def confirm(in_process: InProcessProxy, key: Issued, intent: str, card: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key.token}"}
    form = {"payment_method": card}
    return in_process.client.post(f"{INTENTS}/{intent}/confirm", data=form, headers=headers)


def test_a_confirm_that_brought_a_declined_intent_to_life_is_replayed(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(STEPS)
        intend(in_process, key, payment_method="pm_card_chargeDeclined")
        (intent,) = intents(in_process)
        in_process.turn_clock(16 * 60)
        first, again = (confirm(in_process, key, intent["id"], "pm_card_visa") for _ in range(2))
        assert (first.json()["status"], again.content) == ("succeeded", first.content)
        assert again.headers["idempotent-replayed"] == "true"
        assert in_process.operations()[0].attempt == 2


def test_an_intent_whose_confirm_was_declined_and_that_was_then_paid_is_the_bill(
    tmp_path: Path,
) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(STEPS)
        made = intend(in_process, key, confirm="false", off_session=None).json()["id"]
        assert confirm(in_process, key, made, "pm_card_chargeDeclined").status_code == 402
        in_process.turn_clock(16 * 60)
        headers = {"Authorization": "Bearer rk_test_sandbox"}
        paid = {"payment_method": "pm_card_visa"}
        in_process.stripe.post(f"{INTENTS}/{made}/confirm", data=paid, headers=headers)
        answers = [intend(in_process, key, confirm="false", off_session=None) for _ in range(2)]
        assert [(each.status_code, each.json()["id"]) for each in answers] == [(200, made)] * 2
        assert len(intents(in_process)) == 1
        operation = in_process.operations()[0]
        assert (operation.state.value, operation.final, operation.held) == ("succeeded", True, 2900)
