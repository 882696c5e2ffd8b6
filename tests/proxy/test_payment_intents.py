"""PaymentIntents: held until final, cancelled before another attempt, never told their secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.house import House, Issued, error_of

INTENTS = "/v1/payment_intents"
FORM = {"confirm": "true", "off_session": "true", "payment_method": "pm_card_visa"}


def intend(house: House, key: Issued, **form: Any) -> httpx.Response:
    return house.charge(key, INTENTS, period="2026-11", **{**FORM, **form})


def intents(house: House) -> list[dict[str, Any]]:
    headers = {"Authorization": "Bearer rk_test_sandbox"}
    listed = house.stripe.get(f"{INTENTS}?limit=100", headers=headers).json()["data"]
    return [dict(each) for each in listed]


def test_a_confirmed_intent_settles_and_repeats_replay_it(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue("billing-payment-intents")
        first, second = intend(house, key), intend(house, key)
        assert (first.json()["status"], second.json()["id"]) == ("succeeded", first.json()["id"])
        assert len(intents(house)) == 1
        assert (house.operations()[0].final, house.operations()[0].held) == (True, 2900)


def test_the_secret_is_told_to_nobody(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue("billing-payment-intents")
        for answer in (intend(house, key), intend(house, key)):
            assert answer.json()["client_secret"] is None


def test_an_unconfirmed_intent_holds_its_amount_until_it_is_final(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue("billing-payment-intents", daily={"usd": 3000})
        made = intend(house, key, confirm="false", off_session=None)
        assert made.json()["status"] == "requires_confirmation"
        operation = house.operations()[0]
        assert (operation.state.value, operation.final, operation.held) == (
            "succeeded",
            False,
            2900,
        )
        assert error_of(intend(house, key, customer="cus_B2")) == "spend_cap_exceeded"
        headers = {"Authorization": "Bearer rk_test_sandbox"}
        house.stripe.post(f"{INTENTS}/{made.json()['id']}/cancel", headers=headers)
        house.turn_clock(61)
        house.recover()
        assert (house.operations()[0].state.value, house.operations()[0].held) == ("failed", 0)


def test_a_declined_intent_is_cancelled_before_another_attempt(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue("billing-payment-intents")
        assert intend(house, key, customer="cus_Declined").status_code == 402
        house.turn_clock(16 * 60)
        assert intend(house, key, customer="cus_Declined").status_code == 402
        states = sorted(each["status"] for each in intents(house))
        assert states == ["canceled", "requires_payment_method"]
        assert house.operations()[0].attempt == 2


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
def test_a_lost_intent_is_found_by_reading(tmp_path: Path, kind: str) -> None:
    with House(tmp_path) as house:
        key = house.issue("billing-payment-intents")
        house.fault(kind, match="POST /v1/payment_intents")
        assert error_of(intend(house, key)) == "outcome_unknown"
        house.recover()
        expected = "succeeded" if kind == "drop_after" else "unknown"
        assert house.operations()[0].state.value == expected
        assert intend(house, key).status_code == 200
        assert len(intents(house)) == 1


def test_a_charge_and_an_intent_for_one_period_are_one_bill(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        charges, intending = house.issue(), house.issue("billing-payment-intents")
        assert house.charge(charges, period="2026-11").status_code == 200
        refused = intend(house, intending)
        assert refused.status_code == 403
        assert error_of(refused) == "vault_key_not_authorized"
        assert intents(house) == []


def test_a_customers_new_card_does_not_make_another_bill_of_a_replay(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue("billing-payment-intents")
        made = intend(house, key, looked_up=True).json()["id"]
        again = intend(house, key, looked_up=True, payment_method="pm_card_mastercard")
        assert (again.json()["id"], again.headers["idempotent-replayed"]) == (made, "true")
        chosen = intend(house, key, payment_method="pm_card_mastercard")
        assert error_of(chosen) == "period_already_charged"
        assert len(intents(house)) == 1
