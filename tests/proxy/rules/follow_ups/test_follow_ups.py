"""Steps on an intent or a charge: they share its operation, its hold and its one open send."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from kb_mcp.operators.actions.operations import decide_approval
from kb_mcp.operators.reports.views import approval_record
from kb_mcp.proxy.access.policy import CapRules, CustomerRules, ParameterRule, Policy
from tests.in_process_proxy import InProcessProxy, Issued, error_of
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


class OneIntent:
    """A proxy with one key that may take every step."""

    def __init__(self, in_process: InProcessProxy, policy: Policy = POLICY) -> None:
        self.in_process = in_process
        self.key = in_process.issue(policy)
        self.headers = {"Authorization": f"Bearer {self.key.token}"}

    def intend(self, **form: Any) -> httpx.Response:
        fields = {"payment_method": "pm_card_visa", "period": "2026-11", **form}
        return self.in_process.charge(self.key, INTENTS, **fields)

    def authorise(self, **form: Any) -> str:
        made = self.intend(confirm="true", capture_method="manual", **form)
        assert made.json()["status"] == "requires_capture", made.text
        return str(made.json()["id"])

    def step(self, path: str, key: Issued | None = None, **form: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {(key or self.key).token}"}
        named = {name: str(value) for name, value in form.items()}
        return self.in_process.client.post(path, data=named, headers=headers)

    def held(self) -> tuple[str, bool, int]:
        operation = self.in_process.operations()[0]
        return operation.state.value, operation.final, operation.held

    def window(self) -> tuple[int, int]:
        """Return what is reserved and settled under the key, over all days."""
        days = day_windows(self.in_process).values()
        return sum(day[0] for day in days), sum(day[1] for day in days)

    def commands(self) -> list[dict[str, Any]]:
        headers = {"Authorization": "Bearer rk_test_sandbox"}
        return list(self.in_process.stripe.get(INTENTS, headers=headers).json()["data"])


@pytest.fixture
def one_intent(tmp_path: Path) -> Iterator[OneIntent]:
    with InProcessProxy(tmp_path) as in_process:
        here = OneIntent(in_process)
        yield here
        assert broken_invariants(in_process) == []


def test_a_confirmation_settles_what_its_create_reserved(one_intent: OneIntent) -> None:
    made = one_intent.intend().json()
    assert (one_intent.held(), one_intent.window()) == (("succeeded", False, 2900), (2900, 0))
    done = one_intent.step(f"{INTENTS}/{made['id']}/confirm")
    assert (done.json()["status"], done.headers["keybrake-attempt"]) == ("succeeded", "2")
    assert (one_intent.held(), one_intent.window()) == (("succeeded", True, 2900), (0, 2900))
    assert len(one_intent.in_process.operations()) == 1


def test_a_repeated_step_is_replayed_and_sent_once(one_intent: OneIntent) -> None:
    path = f"{INTENTS}/{one_intent.authorise()}/capture"
    first, second = one_intent.step(path), one_intent.step(path)
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert one_intent.window() == (0, 2900)


def test_of_a_partial_capture_only_what_was_taken_is_spend(one_intent: OneIntent) -> None:
    command = one_intent.authorise()
    assert (
        one_intent.step(f"{INTENTS}/{command}/capture", amount_to_capture=1000).status_code == 200
    )
    assert (one_intent.held(), one_intent.window()) == (("succeeded", True, 1000), (0, 1000))
    assert one_intent.commands()[0]["amount_received"] == 1000


def test_a_raise_is_held_before_it_is_sent_and_refused_over_the_cap(one_intent: OneIntent) -> None:
    path = f"{INTENTS}/{one_intent.authorise()}/increment_authorization"
    refused = one_intent.step(path, amount=5001)
    assert error_of(refused) == "spend_cap_exceeded"
    assert refused.json()["error"]["keybrake"]["left"] == 5000
    assert (one_intent.held()[2], one_intent.commands()[0]["amount"]) == (2900, 2900)
    assert one_intent.step(path, amount=5000).json()["amount"] == 5000
    assert (one_intent.held(), one_intent.window()) == (("succeeded", False, 5000), (5000, 0))
    captured = one_intent.step(path.replace("increment_authorization", "capture"))
    assert captured.json()["amount_received"] == 5000
    assert one_intent.window() == (0, 5000)


def test_a_raise_that_stripe_rejects_is_given_back(one_intent: OneIntent) -> None:
    made = one_intent.intend().json()
    refused = one_intent.step(f"{INTENTS}/{made['id']}/increment_authorization", amount=4000)
    assert refused.status_code == 400
    assert error_of(refused) == "payment_intent_unexpected_state"
    assert (one_intent.held(), one_intent.window()) == (("succeeded", False, 2900), (2900, 0))


def test_a_raise_on_a_later_day_counts_wholly_in_that_day(one_intent: OneIntent) -> None:
    path = f"{INTENTS}/{one_intent.authorise()}/increment_authorization"
    before = day_windows(one_intent.in_process)
    one_intent.in_process.turn_clock(24 * 3600)
    assert one_intent.step(path, amount=4000).status_code == 200
    after = day_windows(one_intent.in_process)
    (yesterday,), (today,) = before, after.keys() - before.keys()
    assert (after[yesterday], after[today]) == ((0, 0), (4000, 0))


def test_an_update_to_a_smaller_amount_gives_back_the_difference(one_intent: OneIntent) -> None:
    made = one_intent.intend().json()
    assert one_intent.step(f"{INTENTS}/{made['id']}", amount=1000).json()["amount"] == 1000
    assert (one_intent.held(), one_intent.window()) == (("succeeded", False, 1000), (1000, 0))


def test_a_cancelled_intent_gives_its_reservation_back(one_intent: OneIntent) -> None:
    command = one_intent.authorise()
    done = one_intent.step(f"{INTENTS}/{command}/cancel", cancellation_reason="abandoned")
    assert done.json()["status"] == "canceled"
    assert (one_intent.held(), one_intent.window()) == (("failed", True, 0), (0, 0))
    again = one_intent.step(f"{INTENTS}/{command}/cancel", cancellation_reason="abandoned")
    assert (again.json()["status"], again.headers["idempotent-replayed"]) == ("canceled", "true")


def test_a_declined_confirmation_fails_the_bill_and_may_be_tried_again_later(
    one_intent: OneIntent,
) -> None:
    made = one_intent.intend(customer="cus_Declined").json()
    path = f"{INTENTS}/{made['id']}/confirm"
    declined = one_intent.step(path)
    assert (declined.status_code, one_intent.held(), one_intent.window()) == (
        402,
        ("failed", True, 0),
        (0, 0),
    )
    early = one_intent.step(path, payment_method="pm_card_mastercard")
    assert (early.status_code, early.headers["idempotent-replayed"]) == (402, "true")
    one_intent.in_process.turn_clock(16 * 60)
    assert one_intent.step(path, payment_method="pm_card_mastercard").status_code == 402
    assert one_intent.in_process.operations()[0].attempt == 3


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "500_before", "500_after"])
def test_a_lost_confirmation_keeps_the_reservation_and_is_read_before_it_is_repeated(
    one_intent: OneIntent, kind: str
) -> None:
    made = one_intent.intend().json()
    path = f"{INTENTS}/{made['id']}/confirm"
    one_intent.in_process.fault(kind, match=f"POST {INTENTS}/*/confirm")
    lost = one_intent.step(path)
    assert (lost.status_code, error_of(lost)) == (504, "outcome_unknown")
    assert (one_intent.held(), one_intent.window()) == (("succeeded", False, 2900), (2900, 0))
    again = one_intent.step(path)
    if again.status_code != 504:
        assert again.json()["status"] == "succeeded"
    one_intent.in_process.turn_clock(660)
    one_intent.in_process.recover()
    assert one_intent.step(path).json()["status"] == "succeeded"
    assert (one_intent.held(), one_intent.window()) == (("succeeded", True, 2900), (0, 2900))
    assert len(one_intent.in_process.charges()) == 1


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
def test_a_lost_raise_stays_held_until_grace_and_then_is_what_stripe_has(
    one_intent: OneIntent, kind: str
) -> None:
    command = one_intent.authorise()
    one_intent.in_process.fault(kind, match=f"POST {INTENTS}/*/increment_authorization")
    lost = one_intent.step(f"{INTENTS}/{command}/increment_authorization", amount=4000)
    assert (error_of(lost), one_intent.held()[2]) == ("outcome_unknown", 4000)
    one_intent.in_process.turn_clock(120)
    one_intent.in_process.recover()
    assert one_intent.held() == ("succeeded", False, 4000)
    one_intent.in_process.turn_clock(600)
    one_intent.in_process.recover()
    amount = one_intent.commands()[0]["amount"]
    assert (amount, one_intent.held()[2]) == (4000 if kind == "drop_after" else 2900,) * 2
    assert one_intent.window() == (amount, 0)


def test_another_step_is_taken_after_a_lost_one_was_read(one_intent: OneIntent) -> None:
    command = one_intent.authorise()
    one_intent.in_process.fault("drop_before", match=f"POST {INTENTS}/*/increment_authorization")
    one_intent.step(f"{INTENTS}/{command}/increment_authorization", amount=4000)
    captured = one_intent.step(f"{INTENTS}/{command}/capture")
    assert captured.json()["amount_received"] == 2900
    assert (one_intent.held(), one_intent.window()) == (("succeeded", True, 2900), (0, 2900))


def test_a_crash_within_a_step_is_found_by_reading(one_intent: OneIntent) -> None:
    command = one_intent.authorise()
    one_intent.in_process.fault("drop_after", match=f"POST {INTENTS}/*/capture")
    assert error_of(one_intent.step(f"{INTENTS}/{command}/capture")) == "outcome_unknown"
    one_intent.in_process.restart()
    one_intent.in_process.recover()
    assert (one_intent.held(), one_intent.window()) == (("succeeded", True, 2900), (0, 2900))


def test_many_at_once_take_one_step(one_intent: OneIntent) -> None:
    path = f"{INTENTS}/{one_intent.authorise()}/capture"
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: one_intent.step(path), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1


def test_a_raise_over_the_approval_limit_needs_an_approval_of_its_own(tmp_path: Path) -> None:
    policy = POLICY.model_copy(update={"approval_above": {"usd": 3000}})
    with InProcessProxy(tmp_path) as in_process:
        one_intent = OneIntent(in_process, policy)
        path = f"{INTENTS}/{one_intent.authorise()}/increment_authorization"
        asked = one_intent.step(path, amount=4000)
        assert error_of(asked) == "approval_required"
        approval = in_process.run(in_process.proxy.store.records.approvals())[0]
        assert approval_record(approval, 0)["amount"] == 4000
        assert one_intent.held() == ("succeeded", False, 2900)
        decided = decide_approval(in_process.proxy.store.ledger, approval.id, "approved", "ann")
        in_process.run(decided)
        assert error_of(one_intent.step(path, amount=4500)) == "approval_required"
        assert one_intent.held()[2] == 2900


def test_an_approved_raise_goes_through_once(tmp_path: Path) -> None:
    policy = POLICY.model_copy(update={"approval_above": {"usd": 3000}})
    with InProcessProxy(tmp_path) as in_process:
        one_intent = OneIntent(in_process, policy)
        path = f"{INTENTS}/{one_intent.authorise()}/increment_authorization"
        one_intent.step(path, amount=4000)
        approval = in_process.run(in_process.proxy.store.records.approvals())[0]
        in_process.run(
            decide_approval(in_process.proxy.store.ledger, approval.id, "approved", "ann")
        )
        assert one_intent.step(path, amount=4000).json()["amount"] == 4000
        assert in_process.run(in_process.proxy.store.records.approvals())[0].state == "used"
        assert one_intent.window() == (4000, 0)


def test_only_the_key_that_made_a_bill_may_raise_it_and_another_may_capture(
    one_intent: OneIntent,
) -> None:
    other = one_intent.in_process.issue(POLICY)
    command = one_intent.authorise()
    raised = one_intent.step(f"{INTENTS}/{command}/increment_authorization", other, amount=4000)
    assert error_of(raised) == "vault_key_not_authorized"
    assert one_intent.step(f"{INTENTS}/{command}/capture", other).status_code == 200
    assert one_intent.window() == (0, 2900)


def test_a_key_for_other_customers_takes_no_step(one_intent: OneIntent) -> None:
    rules = CustomerRules(ids=("cus_B2",))
    other = one_intent.in_process.issue(POLICY.model_copy(update={"customers": rules}))
    command = one_intent.authorise()
    refused = one_intent.step(f"{INTENTS}/{command}/capture", other)
    assert error_of(refused) == "vault_key_not_authorized"
    assert (
        error_of(one_intent.step(f"{INTENTS}/pi_Nobodys/capture", other))
        == "vault_key_not_authorized"
    )
    assert one_intent.held() == ("succeeded", False, 2900)


def test_an_object_the_ledger_does_not_know_is_not_metered(one_intent: OneIntent) -> None:
    assert error_of(one_intent.step(f"{INTENTS}/pi_Elsewhere/confirm")) == "amount_not_metered"


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
    one_intent: OneIntent, form: dict[str, str], code: str
) -> None:
    command = one_intent.authorise()
    refused = one_intent.step(f"{INTENTS}/{command}", None, **form)
    assert (error_of(refused), one_intent.held()[2]) == (code, 2900)


def test_a_raise_without_an_amount_is_refused(one_intent: OneIntent) -> None:
    command = one_intent.authorise()
    refused = one_intent.step(f"{INTENTS}/{command}/increment_authorization")
    assert error_of(refused) == "parameter_missing"


def test_a_created_bill_joins_what_its_step_has_become(one_intent: OneIntent) -> None:
    made = one_intent.intend().json()
    one_intent.step(f"{INTENTS}/{made['id']}/confirm")
    again = one_intent.intend()
    assert (again.json()["id"], again.json()["status"]) == (made["id"], "succeeded")
    assert again.headers["idempotent-replayed"] == "true"


def test_an_intent_without_a_payment_method_is_held_too(one_intent: OneIntent) -> None:
    made = one_intent.intend(payment_method=None)
    assert made.json()["status"] == "requires_payment_method"
    assert (one_intent.held(), one_intent.window()) == (("succeeded", False, 2900), (2900, 0))
    path = f"{INTENTS}/{made.json()['id']}/confirm"
    assert error_of(one_intent.step(path)) == "payment_intent_unexpected_state"
    assert one_intent.step(path, payment_method="pm_card_visa").json()["status"] == "succeeded"
    assert one_intent.window() == (0, 2900)


def test_a_charge_that_was_authorised_is_captured_in_its_operation(one_intent: OneIntent) -> None:
    made = one_intent.in_process.charge(one_intent.key, period="2026-11", capture="false").json()
    assert one_intent.window() == (2900, 0)
    done = one_intent.step(f"/v1/charges/{made['id']}/capture", amount=2000)
    assert (done.json()["amount_captured"], one_intent.window()) == (2000, (0, 2000))
    assert one_intent.held() == ("succeeded", True, 2000)


def test_the_wording_of_a_settled_charge_may_be_changed(one_intent: OneIntent) -> None:
    made = one_intent.in_process.charge(one_intent.key, period="2026-11").json()
    done = one_intent.step(f"/v1/charges/{made['id']}", description="Seats")
    assert (done.json()["description"], one_intent.window()) == ("Seats", (0, 2900))
