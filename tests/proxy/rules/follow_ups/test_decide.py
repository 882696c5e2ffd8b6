"""The table in the docstring of the steps, row by row, by the decider alone."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import Changes, LineageId, Operation
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.windows import release, windows_of
from kb_mcp.proxy.rules.command import Decision, Join, Look, Proceed, Refuse, Replay
from kb_mcp.proxy.rules.decide import decide
from kb_mcp.proxy.stripe.evidence import Made
from tests.proxy.rules.one_intent import FIRST, OneIntent, shown
from tests.proxy.rules.one_key import HOUR, LOST, MINUTE, REJECTED, declined, made, told

RAISE = "increment_authorization"
PAID = shown("succeeded", amount_received=2900)


def marked(one_intent: OneIntent, **changes: Any) -> Operation:
    changed = replace(one_intent.operation, **changes)
    one_intent.snapshot.operations[FIRST] = changed
    return changed


def failed() -> OneIntent:
    """Return a till whose intent was declined, long enough ago for another attempt."""
    one_intent = OneIntent("requires_confirmation")
    one_intent.after(one_intent.step("confirm"), declined("pi_1"))
    one_intent.pass_time(16 * MINUTE)
    return one_intent


def refused(decision: Decision, code: str) -> Refuse:
    """Check that a step was refused with `code`, and that the operation was named."""
    assert isinstance(decision, Refuse), decision
    assert decision.refusal.code.value == code
    assert decision.operation is not None
    assert decision.operation.id == FIRST
    return decision


def test_a_step_under_way_is_joined_by_its_operation_and_another_is_told_so() -> None:
    one_intent = OneIntent()
    one_intent.step("capture")
    joined = one_intent.step("capture")
    assert isinstance(joined, Join)
    assert joined.operation.id == FIRST
    busy = refused(one_intent.step("cancel"), "idempotency_key_in_use")
    assert dict(busy.refusal.facts) == {"operation": FIRST}


def test_a_step_waits_for_a_reading_of_the_lost_one_before_it() -> None:
    one_intent = OneIntent()
    one_intent.after(one_intent.step("capture"), LOST)
    look = one_intent.step("cancel")
    assert isinstance(look, Look)
    assert look.operation.id == FIRST


def test_the_step_that_is_sent_bears_all_that_a_resend_needs() -> None:
    one_intent = OneIntent()
    go = one_intent.step("capture", amount_to_capture=1000)
    assert isinstance(go, Proceed)
    step = go.attempt
    assert (step.number, step.path) == (2, "/v1/payment_intents/pi_1/capture")
    assert step.upstream_key == f"{one_intent.operation.upstream_name}-s2"
    assert (step.body, step.stripe_version) == (b"amount_to_capture=1000", "2026-10-28.endive")
    assert step.key_id == "one"
    assert step.first_sent_at == step.last_sent_at == one_intent.snapshot.now
    # Whoever sends may die: the object is read once the lease has ended.
    assert go.operation.next_read_at == go.operation.lease_until > one_intent.snapshot.now


def test_what_is_final_needs_no_reading_after_a_step() -> None:
    one_intent = OneIntent("succeeded")
    go = one_intent.step("", description="Seats")
    assert isinstance(go, Proceed)
    assert go.operation.next_read_at is None


@pytest.mark.parametrize(
    ("passed", "skewed", "number", "sends"),
    [
        (23 * HOUR - 1, False, 2, 2),
        (23 * HOUR, False, 3, 1),
        (0, True, 3, 1),
    ],
)
def test_a_lost_step_that_was_read_is_sent_again_for_23_hours(
    passed: int, skewed: bool, number: int, sends: int
) -> None:
    one_intent = OneIntent()
    one_intent.after(one_intent.step("capture"), LOST)
    one_intent.look(shown("requires_capture"))
    one_intent.pass_time(passed)
    one_intent.snapshot.skewed = skewed
    again = one_intent.step("capture")
    assert isinstance(again, Proceed)
    assert (again.attempt.number, again.attempt.sends) == (number, sends)


@pytest.mark.parametrize(
    ("status", "verb", "proof", "expected"),
    [
        ("requires_capture", "", shown("requires_capture"), "replay"),
        ("requires_capture", RAISE, shown("requires_capture", 2900), "replay"),
        ("requires_capture", "capture", PAID, "replay"),
        ("requires_confirmation", "confirm", shown("requires_action"), "replay"),
        ("requires_confirmation", "confirm", PAID, "replay"),
        ("requires_confirmation", "confirm", shown("requires_confirmation"), "proceed as K-s3"),
        ("requires_confirmation", "", shown("requires_confirmation"), "replay"),
        ("requires_capture", "capture", REJECTED, "proceed as K-s3"),
    ],
)
def test_a_step_known_to_be_done_is_told_again_unless_it_may_be_meant_once_more(
    status: str, verb: str, proof: Made, expected: str
) -> None:
    one_intent = OneIntent(status)
    form = {"amount": 2900} if verb == RAISE else {}
    one_intent.after(one_intent.step(verb, "one", **form), proof)
    again = one_intent.step(verb, "one", **form)
    assert told(again) == expected
    if isinstance(again, Replay):
        assert again.operation.id == FIRST


def test_what_was_charged_is_raised_no_more() -> None:
    one_intent = OneIntent()
    one_intent.after(one_intent.step("capture"), PAID)
    asked = refused(one_intent.step(RAISE, amount=4000), "period_already_charged")
    assert asked.refusal.facts["charge_id"] == "pi_1"


def test_only_the_key_that_made_a_bill_may_raise_it() -> None:
    one_intent = OneIntent()
    asked = refused(one_intent.step(RAISE, "two", amount=4000), "vault_key_not_authorized")
    assert "another key" in asked.refusal.message
    assert one_intent.held() == 2900
    assert told(one_intent.step(RAISE, "two", amount=2900)) == "proceed as K-s2"


def test_a_raise_counts_what_it_adds_and_no_more() -> None:
    one_intent = OneIntent()
    one_intent.pass_time(MINUTE)
    # The cap is 90.00 a day: what is held already is part of the new total.
    go = one_intent.step(RAISE, amount=9000)
    assert isinstance(go, Proceed)
    assert one_intent.held() == 9000
    assert go.operation.reserved_at == one_intent.snapshot.now


def test_a_raise_of_a_bill_of_nothing_counts_no_second_send() -> None:
    # As an invoice of nothing that was finalized, and has something left to pay since.
    one_intent = OneIntent()
    one_intent.policy = one_intent.policy.model_copy(update={"daily_charges": 1})
    emptied = one_intent.operation
    changes = Changes(
        operations=(replace(emptied, amount=0, held=0),),
        windows=release(one_intent.snapshot, emptied),
    )
    one_intent.snapshot.apply(changes)
    assert isinstance(one_intent.step(RAISE, amount=2900), Proceed)
    assert one_intent.held() == 2900


def test_a_step_that_asks_for_no_more_moves_no_window() -> None:
    one_intent = OneIntent()
    go = one_intent.step(RAISE, amount=2900)
    assert isinstance(go, Proceed)
    assert go.changes.windows == ()
    assert one_intent.held() == 2900


def test_an_approval_of_a_raise_is_used_up_by_it() -> None:
    one_intent = OneIntent()
    one_intent.policy = one_intent.policy.model_copy(update={"approval_above": {"usd": 3000}})
    assert told(one_intent.step(RAISE, amount=4000)) == "approval_required"
    assert one_intent.held() == 2900
    ((name, approval),) = one_intent.snapshot.approvals.items()
    one_intent.snapshot.approvals[name] = replace(approval, state="approved")
    assert isinstance(one_intent.step(RAISE, amount=4000), Proceed)
    assert one_intent.snapshot.approvals[name].state == "used"


def test_canceling_what_had_failed_holds_nothing() -> None:
    one_intent = failed()
    go = one_intent.step("cancel")
    assert isinstance(go, Proceed)
    assert (go.operation.state, go.operation.held, go.changes.windows) == (S.FAILED, 0, ())
    assert (go.attempt.number, go.attempt.sends) == (3, 1)


def test_a_lost_cancel_of_what_had_failed_is_sent_again_under_its_key() -> None:
    one_intent = failed()
    one_intent.after(one_intent.step("cancel"), LOST)
    marked(one_intent, final=True)
    again = one_intent.step("cancel")
    assert isinstance(again, Proceed)
    assert (again.attempt.number, again.attempt.sends) == (3, 2)


def test_what_had_failed_is_held_anew_for_whoever_brings_it_to_life() -> None:
    one_intent = failed()
    before = one_intent.snapshot.window(windows_of(one_intent.operation).counts)
    go = one_intent.step("confirm", "two", payment_method="pm_1")
    assert isinstance(go, Proceed)
    after = go.operation
    assert (after.state, after.final, after.held) == (S.SUCCEEDED, False, 2900)
    assert (after.lineage_id, after.key_id) == (LineageId("two"), "one")
    assert after.reserved_at == one_intent.snapshot.now
    counts = one_intent.snapshot.window(windows_of(after).counts)
    assert (counts.sends, before.sends) == (1, 1)
    again = failed()
    again.step("confirm", payment_method="pm_1")
    assert again.snapshot.window(windows_of(again.operation).counts).sends == 2


def test_a_bill_paid_meanwhile_keeps_a_failed_intent_from_coming_to_life() -> None:
    one_intent = failed()
    other = one_intent.ask(period="2026-11", amount=3000)
    operation = one_intent.end(other, made("ch_2"))
    asked = one_intent.step("confirm", payment_method="pm_1")
    assert isinstance(asked, Refuse)
    assert told(asked) == "period_already_charged"
    assert asked.operation == operation
    # An operator who reopens the other bill lets one more pass, and that one uses it up.
    now = one_intent.snapshot.now
    reopened = replace(operation, reopened=True, refunded_at=now, refund_read_at=now + HOUR)
    one_intent.snapshot.operations[operation.id] = reopened
    assert told(one_intent.step("confirm", payment_method="pm_1")) == "period_already_charged"
    for_it = replace(reopened, permit_amount=one_intent.operation.amount)
    one_intent.snapshot.operations[operation.id] = replace(for_it, refund_read_at=now)
    assert told(one_intent.step("confirm", payment_method="pm_1")) == "look"
    one_intent.snapshot.operations[operation.id] = for_it
    assert told(one_intent.step("confirm", payment_method="pm_1")) == "proceed as K-s3"
    assert one_intent.snapshot.operations[operation.id].successor == one_intent.operation.id


@pytest.mark.parametrize("state", [S.RESERVED, S.UNKNOWN, S.VOIDED])
def test_no_step_goes_on_with_what_is_not_known(state: S) -> None:
    one_intent = OneIntent()
    marked(one_intent, state=state, final=False, lease_owner=None)
    asked = refused(one_intent.step("capture"), "outcome_unknown")
    assert dict(asked.refusal.facts) == {"operation": FIRST}


def test_a_step_on_what_has_moved_meanwhile_is_told_to_ask_again() -> None:
    for changes in ({"object_id": "pi_2"}, {"currency": "eur"}):
        one_intent = OneIntent()
        step = one_intent.meant("capture")
        marked(one_intent, **changes)
        refused(decide(one_intent.snapshot, step), "idempotency_key_in_use")
    one_intent = OneIntent()
    step = one_intent.meant("capture")
    del one_intent.snapshot.operations[FIRST]
    gone = refused(decide(one_intent.snapshot, step), "idempotency_key_in_use")
    assert dict(gone.refusal.facts) == {"operation": FIRST}
