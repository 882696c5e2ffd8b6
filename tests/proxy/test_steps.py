"""Steps on an intent or a charge: they share its operation, its hold and its one open send."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from kb_mcp.proxy.ops.approvals import approval_record, decide_approval
from kb_mcp.proxy.policy import CapRules, CustomerRules, ParameterRule, Policy
from tests.house import House, Issued, error_of
from tests.scenarios.acts import broken_invariants, day_windows

INTENTS = "/v1/payment_intents"
STEPS = ("confirm", "capture", "increment_authorization", "cancel")
POLICY = Policy(
    role="collector",
    allow=(
        "POST /v1/charges",
        "POST /v1/charges/*",
        "POST /v1/charges/*/capture",
        "POST /v1/payment_intents",
        "POST /v1/payment_intents/*",
        *(f"POST /v1/payment_intents/*/{step}" for step in STEPS),
    ),
    parameters={
        "POST /v1/payment_intents": ParameterRule(allowed=("capture_method",)),
        "POST /v1/charges": ParameterRule(allowed=("capture", "source")),
    },
    caps=CapRules(daily={"usd": 5000}),
)


class Till:
    """A house with one key that may take every step."""

    def __init__(self, house: House, policy: Policy = POLICY) -> None:
        self.house = house
        self.key = house.issue(policy)
        self.headers = {"Authorization": f"Bearer {self.key.token}"}

    def intend(self, **form: Any) -> httpx.Response:
        fields = {"payment_method": "pm_card_visa", "period": "2026-11", **form}
        return self.house.charge(self.key, INTENTS, **fields)

    def authorise(self, **form: Any) -> str:
        made = self.intend(confirm="true", capture_method="manual", **form)
        assert made.json()["status"] == "requires_capture", made.text
        return str(made.json()["id"])

    def step(self, path: str, key: Issued | None = None, **form: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {(key or self.key).token}"}
        named = {name: str(value) for name, value in form.items()}
        return self.house.client.post(path, data=named, headers=headers)

    def held(self) -> tuple[str, bool, int]:
        operation = self.house.operations()[0]
        return operation.state.value, operation.final, operation.held

    def window(self) -> tuple[int, int]:
        """Return what is reserved and settled under the key, over all days."""
        days = day_windows(self.house).values()
        return sum(day[0] for day in days), sum(day[1] for day in days)

    def intents(self) -> list[dict[str, Any]]:
        headers = {"Authorization": "Bearer rk_test_sandbox"}
        return list(self.house.stripe.get(INTENTS, headers=headers).json()["data"])


@pytest.fixture
def till(tmp_path: Path) -> Iterator[Till]:
    with House(tmp_path) as house:
        here = Till(house)
        yield here
        assert broken_invariants(house) == []


def test_a_confirmation_settles_what_its_create_reserved(till: Till) -> None:
    made = till.intend().json()
    assert (till.held(), till.window()) == (("succeeded", False, 2900), (2900, 0))
    done = till.step(f"{INTENTS}/{made['id']}/confirm")
    assert (done.json()["status"], done.headers["keybrake-attempt"]) == ("succeeded", "2")
    assert (till.held(), till.window()) == (("succeeded", True, 2900), (0, 2900))
    assert len(till.house.operations()) == 1


def test_a_repeated_step_is_replayed_and_sent_once(till: Till) -> None:
    path = f"{INTENTS}/{till.authorise()}/capture"
    first, second = till.step(path), till.step(path)
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert till.window() == (0, 2900)


def test_of_a_partial_capture_only_what_was_taken_is_spend(till: Till) -> None:
    intent = till.authorise()
    assert till.step(f"{INTENTS}/{intent}/capture", amount_to_capture=1000).status_code == 200
    assert (till.held(), till.window()) == (("succeeded", True, 1000), (0, 1000))
    assert till.intents()[0]["amount_received"] == 1000


def test_a_raise_is_held_before_it_is_sent_and_refused_over_the_cap(till: Till) -> None:
    path = f"{INTENTS}/{till.authorise()}/increment_authorization"
    refused = till.step(path, amount=5001)
    assert error_of(refused) == "spend_cap_exceeded"
    assert refused.json()["error"]["keybrake"]["left"] == 5000
    assert (till.held()[2], till.intents()[0]["amount"]) == (2900, 2900)
    assert till.step(path, amount=5000).json()["amount"] == 5000
    assert (till.held(), till.window()) == (("succeeded", False, 5000), (5000, 0))
    captured = till.step(path.replace("increment_authorization", "capture"))
    assert captured.json()["amount_received"] == 5000
    assert till.window() == (0, 5000)


def test_a_raise_that_stripe_rejects_is_given_back(till: Till) -> None:
    made = till.intend().json()
    refused = till.step(f"{INTENTS}/{made['id']}/increment_authorization", amount=4000)
    assert refused.status_code == 400
    assert error_of(refused) == "payment_intent_unexpected_state"
    assert (till.held(), till.window()) == (("succeeded", False, 2900), (2900, 0))


def test_a_raise_on_a_later_day_counts_wholly_in_that_day(till: Till) -> None:
    path = f"{INTENTS}/{till.authorise()}/increment_authorization"
    before = day_windows(till.house)
    till.house.turn_clock(24 * 3600)
    assert till.step(path, amount=4000).status_code == 200
    after = day_windows(till.house)
    (yesterday,), (today,) = before, after.keys() - before.keys()
    assert (after[yesterday], after[today]) == ((0, 0), (4000, 0))


def test_an_update_to_a_smaller_amount_gives_back_the_difference(till: Till) -> None:
    made = till.intend().json()
    assert till.step(f"{INTENTS}/{made['id']}", amount=1000).json()["amount"] == 1000
    assert (till.held(), till.window()) == (("succeeded", False, 1000), (1000, 0))


def test_a_cancelled_intent_gives_its_reservation_back(till: Till) -> None:
    intent = till.authorise()
    done = till.step(f"{INTENTS}/{intent}/cancel", cancellation_reason="abandoned")
    assert done.json()["status"] == "canceled"
    assert (till.held(), till.window()) == (("failed", True, 0), (0, 0))
    again = till.step(f"{INTENTS}/{intent}/cancel", cancellation_reason="abandoned")
    assert (again.json()["status"], again.headers["idempotent-replayed"]) == ("canceled", "true")


def test_a_declined_confirmation_fails_the_bill_and_may_be_tried_again_later(till: Till) -> None:
    made = till.intend(customer="cus_Declined").json()
    path = f"{INTENTS}/{made['id']}/confirm"
    declined = till.step(path)
    assert (declined.status_code, till.held(), till.window()) == (402, ("failed", True, 0), (0, 0))
    early = till.step(path, payment_method="pm_card_mastercard")
    assert (early.status_code, early.headers["idempotent-replayed"]) == (402, "true")
    till.house.turn_clock(16 * 60)
    assert till.step(path, payment_method="pm_card_mastercard").status_code == 402
    assert till.house.operations()[0].attempt == 3


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "500_before", "500_after"])
def test_a_lost_confirmation_keeps_the_reservation_and_is_read_before_it_is_repeated(
    till: Till, kind: str
) -> None:
    made = till.intend().json()
    path = f"{INTENTS}/{made['id']}/confirm"
    till.house.fault(kind, match=f"POST {INTENTS}/*/confirm")
    lost = till.step(path)
    assert (lost.status_code, error_of(lost)) == (504, "outcome_unknown")
    assert (till.held(), till.window()) == (("succeeded", False, 2900), (2900, 0))
    again = till.step(path)
    if again.status_code != 504:
        assert again.json()["status"] == "succeeded"
    till.house.turn_clock(660)
    till.house.recover()
    assert till.step(path).json()["status"] == "succeeded"
    assert (till.held(), till.window()) == (("succeeded", True, 2900), (0, 2900))
    assert len(till.house.charges()) == 1


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
def test_a_lost_raise_stays_held_until_grace_and_then_is_what_stripe_has(
    till: Till, kind: str
) -> None:
    intent = till.authorise()
    till.house.fault(kind, match=f"POST {INTENTS}/*/increment_authorization")
    lost = till.step(f"{INTENTS}/{intent}/increment_authorization", amount=4000)
    assert (error_of(lost), till.held()[2]) == ("outcome_unknown", 4000)
    till.house.turn_clock(120)
    till.house.recover()
    assert till.held() == ("succeeded", False, 4000)
    till.house.turn_clock(600)
    till.house.recover()
    amount = till.intents()[0]["amount"]
    assert (amount, till.held()[2]) == (4000 if kind == "drop_after" else 2900,) * 2
    assert till.window() == (amount, 0)


def test_another_step_is_taken_after_a_lost_one_was_read(till: Till) -> None:
    intent = till.authorise()
    till.house.fault("drop_before", match=f"POST {INTENTS}/*/increment_authorization")
    till.step(f"{INTENTS}/{intent}/increment_authorization", amount=4000)
    captured = till.step(f"{INTENTS}/{intent}/capture")
    assert captured.json()["amount_received"] == 2900
    assert (till.held(), till.window()) == (("succeeded", True, 2900), (0, 2900))


def test_a_crash_within_a_step_is_found_by_reading(till: Till) -> None:
    intent = till.authorise()
    till.house.fault("drop_after", match=f"POST {INTENTS}/*/capture")
    assert error_of(till.step(f"{INTENTS}/{intent}/capture")) == "outcome_unknown"
    till.house.restart()
    till.house.recover()
    assert (till.held(), till.window()) == (("succeeded", True, 2900), (0, 2900))


def test_many_at_once_take_one_step(till: Till) -> None:
    path = f"{INTENTS}/{till.authorise()}/capture"
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: till.step(path), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


def test_a_raise_over_the_approval_limit_needs_an_approval_of_its_own(tmp_path: Path) -> None:
    policy = POLICY.model_copy(update={"approval_above": {"usd": 3000}})
    with House(tmp_path) as house:
        till = Till(house, policy)
        path = f"{INTENTS}/{till.authorise()}/increment_authorization"
        asked = till.step(path, amount=4000)
        assert error_of(asked) == "approval_required"
        approval = house.run(house.proxy.store.records.approvals())[0]
        assert approval_record(approval, house.operations()[0], 0)["amount"] == 4000
        assert till.held() == ("succeeded", False, 2900)
        decided = decide_approval(house.proxy.store.ledger, approval.id, "approved", "ann")
        house.run(decided)
        assert error_of(till.step(path, amount=4500)) == "approval_required"
        assert till.held()[2] == 2900


def test_an_approved_raise_goes_through_once(tmp_path: Path) -> None:
    policy = POLICY.model_copy(update={"approval_above": {"usd": 3000}})
    with House(tmp_path) as house:
        till = Till(house, policy)
        path = f"{INTENTS}/{till.authorise()}/increment_authorization"
        till.step(path, amount=4000)
        approval = house.run(house.proxy.store.records.approvals())[0]
        house.run(decide_approval(house.proxy.store.ledger, approval.id, "approved", "ann"))
        assert till.step(path, amount=4000).json()["amount"] == 4000
        assert house.run(house.proxy.store.records.approvals())[0].state == "used"
        assert till.window() == (4000, 0)


def test_only_the_key_that_made_a_bill_may_raise_it_and_another_may_capture(till: Till) -> None:
    other = till.house.issue(POLICY)
    intent = till.authorise()
    raised = till.step(f"{INTENTS}/{intent}/increment_authorization", other, amount=4000)
    assert error_of(raised) == "vault_key_not_authorized"
    assert till.step(f"{INTENTS}/{intent}/capture", other).status_code == 200
    assert till.window() == (0, 2900)


def test_a_key_for_other_customers_takes_no_step(till: Till) -> None:
    rules = CustomerRules(ids=("cus_B2",))
    other = till.house.issue(POLICY.model_copy(update={"customers": rules}))
    intent = till.authorise()
    refused = till.step(f"{INTENTS}/{intent}/capture", other)
    assert error_of(refused) == "vault_key_not_authorized"
    assert error_of(till.step(f"{INTENTS}/pi_Nobodys/capture", other)) == "vault_key_not_authorized"
    assert till.held() == ("succeeded", False, 2900)


def test_an_object_the_ledger_does_not_know_is_not_metered(till: Till) -> None:
    assert error_of(till.step(f"{INTENTS}/pi_Elsewhere/confirm")) == "amount_not_metered"


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"amount": "0"}, "parameter_invalid"),
        ({"amount": "29.00"}, "parameter_invalid"),
        ({"amount": "1000000000000"}, "parameter_invalid"),
        ({"currency": "eur"}, "parameter_not_allowed"),
        ({"customer": "cus_B2"}, "parameter_not_allowed"),
        ({"metadata[billing_period]": "2026-10"}, "parameter_not_allowed"),
        ({"metadata[keybrake_attempt]": "k"}, "parameter_not_allowed"),
        ({"metadata": ""}, "parameter_not_allowed"),
    ],
)
def test_a_step_may_not_change_whose_bill_it_is(
    till: Till, form: dict[str, str], code: str
) -> None:
    intent = till.authorise()
    refused = till.step(f"{INTENTS}/{intent}", None, **form)
    assert (error_of(refused), till.held()[2]) == (code, 2900)


def test_a_raise_without_an_amount_is_refused(till: Till) -> None:
    intent = till.authorise()
    refused = till.step(f"{INTENTS}/{intent}/increment_authorization")
    assert error_of(refused) == "parameter_missing"


def test_a_created_bill_joins_what_its_step_has_become(till: Till) -> None:
    made = till.intend().json()
    till.step(f"{INTENTS}/{made['id']}/confirm")
    again = till.intend()
    assert (again.json()["id"], again.json()["status"]) == (made["id"], "succeeded")
    assert again.headers["idempotent-replayed"] == "true"


def test_an_intent_without_a_payment_method_is_held_too(till: Till) -> None:
    made = till.intend(payment_method=None)
    assert made.json()["status"] == "requires_payment_method"
    assert (till.held(), till.window()) == (("succeeded", False, 2900), (2900, 0))
    path = f"{INTENTS}/{made.json()['id']}/confirm"
    assert error_of(till.step(path)) == "payment_intent_unexpected_state"
    assert till.step(path, payment_method="pm_card_visa").json()["status"] == "succeeded"
    assert till.window() == (0, 2900)


def test_a_charge_that_was_authorised_is_captured_in_its_operation(till: Till) -> None:
    made = till.house.charge(till.key, period="2026-11", capture="false").json()
    assert till.window() == (2900, 0)
    done = till.step(f"/v1/charges/{made['id']}/capture", amount=2000)
    assert (done.json()["amount_captured"], till.window()) == (2000, (0, 2000))
    assert till.held() == ("succeeded", True, 2000)


def test_the_wording_of_a_settled_charge_may_be_changed(till: Till) -> None:
    made = till.house.charge(till.key, period="2026-11").json()
    done = till.step(f"/v1/charges/{made['id']}", description="Seats")
    assert (done.json()["description"], till.window()) == ("Seats", (0, 2900))
