"""What an answer proves, on the only send and while an earlier one is open; and late truths."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.access.policy import CapRules
from kb_mcp.proxy.ledger.records import AttemptOutcome, OperationId, Window
from kb_mcp.proxy.ledger.windows import windows_of
from kb_mcp.proxy.rules.command import Proceed
from kb_mcp.proxy.rules.outcomes.conclude import FOREIGN_KEY
from kb_mcp.proxy.rules.outcomes.follow_ups import READ_AGAIN_MS
from kb_mcp.proxy.rules.outcomes.resolve import Present
from kb_mcp.proxy.stripe.evidence import Declined, NeverBegan, Nothing, Proof, Rejected
from tests.proxy.rules.one_key import (
    BILLING,
    LINEAGE,
    LOST,
    MINUTE,
    NEVER_SENT,
    REJECTED,
    OneKey,
    declined,
    made,
    told,
)

FIRST = OperationId("op_1")
FOREIGN = Nothing("in use", 400, foreign=True)
IN_USE = Nothing("in use", 409, foreign=True)
CASES: list[tuple[str, Proof, str, str]] = [
    # the answer, on the operation's only send, while an earlier send is open
    ("2xx, done", made("ch_1"), "succeeded", "succeeded"),
    ("2xx, pending", made("ch_1", "pending", "pending"), "succeeded", "succeeded"),
    ("2xx, failed", made("ch_1", "failed", "failed"), "failed", "failed"),
    ("402", declined(), "failed", "failed"),
    ("400", REJECTED, "failed", "unknown"),
    ("never sent", NEVER_SENT, "failed", "unknown"),
    ("5xx or lost", LOST, "unknown", "unknown"),
    ("another used the key", FOREIGN, "unknown", "unknown"),
]


def held(one_key: OneKey) -> set[tuple[int, int]]:
    """Return (reserved, settled) of every window of the first operation's money."""
    places = windows_of(one_key.snapshot.operations[FIRST]).money()
    windows = [one_key.snapshot.window(key) for key in places]
    return {(window.reserved, window.settled) for window in windows}


@pytest.mark.parametrize(("verdict", "state"), [("failed", "failed"), ("done", "succeeded")])
def test_an_answer_that_lay_in_the_line_is_older_than_what_was_read(
    verdict: str, state: str
) -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    one_key.pass_time(MINUTE)
    one_key.read(FIRST, Present(1, made("ch_1", state, verdict)))
    known = one_key.snapshot.operations[FIRST]
    before = held(one_key)
    after = one_key.end(go, made("ch_1", "pending", "pending"))
    assert (after.state.value, after.final, after.overshoot) == (state, True, False)
    assert (after.answer, after.stripe_status) == (known.answer, known.stripe_status)
    assert held(one_key) == before
    assert one_key.snapshot.lineages[LINEAGE].frozen_at is None


def test_an_answer_about_a_refund_that_has_come_back_since_is_older_than_that() -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    known = one_key.snapshot.operations
    known[FIRST] = replace(known[FIRST], gives_back="ch_1")
    one_key.pass_time(MINUTE)
    one_key.read(FIRST, Present(1, made("re_1", "failed", "failed")))
    told_then = known[FIRST]
    after = one_key.end(go, made("re_1"))
    assert (after.state.value, after.overshoot) == ("failed", False)
    assert (after.answer, after.stripe_status) == (told_then.answer, "failed")
    assert one_key.snapshot.lineages[LINEAGE].frozen_at is None
    # Another refund that turned up under its key all the same is the truth, and alarming.
    after = one_key.end(go, made("re_2"))
    assert (after.state.value, after.overshoot) == ("succeeded", True)


@pytest.mark.parametrize(("_what", "proof", "alone", "beside"), CASES)
def test_what_an_answer_proves(_what: str, proof: Proof, alone: str, beside: str) -> None:
    for earlier, state in ((False, alone), (True, beside)):
        one_key = OneKey()
        if earlier:
            one_key.end(one_key.ask("june"), LOST)
        after = one_key.end(one_key.ask("june"), proof)
        assert after.state.value == state
        pending = state == "succeeded" and not after.final
        expected = {
            "succeeded": (2900, 0) if pending else (0, 2900),
            "failed": (0, 0),
            "unknown": (2900, 0),
        }[state]
        assert held(one_key) == {expected}
        assert after.lease_owner is None
        assert after.held == sum(expected)


def test_what_is_not_final_stays_held_until_it_is_read_again() -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    after = one_key.end(go, made("ch_1", "pending", "pending"))
    assert (after.final, after.next_read_at) == (False, one_key.snapshot.now + READ_AGAIN_MS)
    after = one_key.end(go, made("ch_1"))
    assert (after.final, after.next_read_at, held(one_key)) == (True, None, {(0, 2900)})
    # Said once more, it is the same truth: nothing is counted twice, and nothing freezes.
    after = one_key.end(go, made("ch_1"))
    assert (after.overshoot, held(one_key)) == (False, {(0, 2900)})
    assert one_key.snapshot.lineage(LINEAGE).frozen_at is None


def test_what_was_pending_and_fails_is_given_back() -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    one_key.end(go, made("ch_1", "pending", "pending"))
    after = one_key.end(go, made("ch_1", "failed", "failed"))
    assert (after.state.value, after.held, held(one_key)) == ("failed", 0, {(0, 0)})


def test_a_final_yes_is_not_taken_back_by_a_later_no() -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    one_key.end(go, made("ch_1"))
    for proof in (declined(), REJECTED, NEVER_SENT, LOST, made("ch_1", "failed", "failed")):
        after = one_key.end(go, proof)
        assert (after.state.value, after.object_id, held(one_key)) == (
            "succeeded", "ch_1", {(0, 2900)},
        )  # fmt: skip


def test_a_no_of_a_send_that_lost_its_lease_releases_nothing() -> None:
    one_key = OneKey()
    first = one_key.ask("june")
    one_key.pass_time(MINUTE)  # the lease is over, and somebody else sends again
    second = one_key.ask("june")
    assert isinstance(second, Proceed)
    for proof in (NEVER_SENT, REJECTED):
        after = one_key.end(first, proof)
        assert (after.state.value, after.lease_owner, held(one_key)) == (
            "reserved",
            "me",
            {(2900, 0)},
        )
    assert one_key.end(second, made("ch_1")).state.value == "succeeded"


def test_a_yes_counts_whoever_brings_it() -> None:
    one_key = OneKey()
    first = one_key.ask("june")
    one_key.pass_time(MINUTE)
    one_key.ask("june")
    assert one_key.end(first, made("ch_1")).state.value == "succeeded"
    assert held(one_key) == {(0, 2900)}


def test_a_decline_of_an_older_attempt_says_nothing_about_the_newer() -> None:
    one_key = OneKey()
    first = one_key.ask("june")
    one_key.end(first, declined("ch_0"))
    one_key.pass_time(one_key.policy.decline_retry_after_ms)
    one_key.ask("june")
    after = one_key.end(first, declined("ch_0"))
    assert (after.state.value, after.held) == ("reserved", 2900)
    assert one_key.snapshot.attempts[FIRST, 1].outcome is AttemptOutcome.DECLINED
    (tally,) = one_key.snapshot.tallies.values()
    assert tally.declines == 1


def test_a_late_yes_beats_a_void_and_freezes_the_key() -> None:
    one_key = OneKey(policy=BILLING.model_copy(update={"caps": CapRules(daily={"usd": 2900})}))
    go = one_key.ask("june")
    one_key.end(go, LOST)
    one_key.void(FIRST)
    assert held(one_key) == {(0, 0)}
    other = one_key.end(one_key.ask("july", customer="cus_B2"), made("ch_2"))
    assert other.state.value == "succeeded"
    after = one_key.end(go, made("ch_1"))
    assert (after.state.value, after.overshoot, after.final) == ("succeeded", True, True)
    assert one_key.snapshot.lineage(LINEAGE).frozen_reason == "a charge turned up late"
    assert told(one_key.ask("august", customer="cus_C3")) == "vault_key_frozen"


def test_a_late_object_that_may_still_fail_is_held_again() -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    one_key.end(go, LOST)
    one_key.void(FIRST)
    after = one_key.end(go, made("ch_1", "pending", "pending"))
    assert (after.overshoot, after.final, held(one_key)) == (True, False, {(2900, 0)})
    after = one_key.end(go, made("ch_1"))
    assert held(one_key) == {(0, 2900)}


def test_a_late_decline_of_a_voided_operation_gives_nothing_back_twice() -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    one_key.end(go, LOST)
    one_key.void(FIRST)
    after = one_key.end(go, declined())
    assert (after.state.value, held(one_key)) == ("failed", {(0, 0)})


def test_one_object_never_concludes_two_operations() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), made("ch_1"))
    after = one_key.end(one_key.ask("july", customer="cus_B2"), made("ch_1"))
    assert (after.state.value, after.code) == ("unknown", "object_of_another_operation")
    assert after.held == 2900


def test_a_key_in_use_is_ours_while_an_earlier_send_is_open_and_foreign_otherwise() -> None:
    one_key = OneKey()
    assert one_key.end(one_key.ask("june"), IN_USE).code == FOREIGN_KEY
    one_key = OneKey()
    one_key.end(one_key.ask("june"), LOST)
    assert one_key.end(one_key.ask("june"), IN_USE).code == "outcome_unknown"
    # Other parameters under our key are nobody's of ours, whatever is open.
    assert one_key.end(one_key.ask("june"), FOREIGN).code == FOREIGN_KEY
    assert one_key.end(one_key.ask("june"), LOST).code == FOREIGN_KEY


def test_too_many_declines_in_a_day_freeze_the_lineage() -> None:
    one_key = OneKey(policy=BILLING.model_copy(update={"daily_declines": 2}))
    one_key.end(one_key.ask("june"), declined())
    assert one_key.snapshot.lineage(LINEAGE).frozen_at is None
    one_key.end(one_key.ask("july", customer="cus_B2"), declined())
    assert one_key.snapshot.lineage(LINEAGE).frozen_reason == "too many declines"
    assert told(one_key.ask("august", customer="cus_C3")) == "vault_key_frozen"
    counts = [each for each in one_key.snapshot.windows.values() if not each.key.currency]
    assert [(each.sends, each.declines) for each in counts] == [(2, 2)]


def test_a_cancelled_intent_is_no_decline() -> None:
    one_key = OneKey()
    after = one_key.end(one_key.ask("june"), Declined("pi_1", 200, b"{}", "canceled"))
    assert (after.state.value, held(one_key), one_key.snapshot.tallies) == ("failed", {(0, 0)}, {})
    assert not any(window.declines for window in one_key.snapshot.windows.values())


def test_every_outcome_leaves_a_row_that_says_it() -> None:
    for proof, decision, code in (
        (made("ch_1"), "succeeded", None),
        (declined(), "failed", "card_declined"),
        (REJECTED, "failed", "parameter_missing"),
        (LOST, "unknown", "outcome_unknown"),
    ):
        one_key = OneKey()
        one_key.end(one_key.ask("june"), proof)
        row = one_key.snapshot.dirty.audit[-1]
        assert (row.kind, row.decision, row.code, row.attempt) == ("outcome", decision, code, 1)
        assert (row.operation_id, row.amount, row.currency, row.customer_id) == (
            FIRST, 2900, "usd", "cus_A1",
        )  # fmt: skip


NOS: list[tuple[Proof, AttemptOutcome, str | None, str | None]] = [
    # the no, what it makes of the attempt, the object that it leaves, and that object's status
    (declined("ch_1"), AttemptOutcome.DECLINED, "ch_1", "failed"),
    (Declined("pi_1", 200, b"{}", "canceled"), AttemptOutcome.DECLINED, "pi_1", "failed"),
    (REJECTED, AttemptOutcome.REJECTED, None, None),
    (NeverBegan("rate_limited", 429, b"{}"), AttemptOutcome.NOT_SENT, None, None),
]


@pytest.mark.parametrize(("proof", "outcome", "object_id", "stripe_status"), NOS)
def test_a_no_is_stored_whole_for_its_replay(
    proof: Any, outcome: AttemptOutcome, object_id: str | None, stripe_status: str | None
) -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    one_key.snapshot.operations[FIRST] = replace(
        one_key.snapshot.operations[FIRST], next_read_at=1, final=False
    )
    one_key.pass_time(7)
    after = one_key.end(go, proof)
    assert (after.answer_status, after.answer, after.code) == (proof.status, b"{}", proof.code)
    assert (after.object_id, after.stripe_status) == (object_id, stripe_status)
    assert (after.next_read_at, after.updated_at) == (None, one_key.snapshot.now)
    assert after.final is isinstance(proof, Declined)
    attempt = one_key.snapshot.attempts[FIRST, 1]
    assert (attempt.outcome, attempt.status, attempt.open_sends) == (outcome, proof.status, 0)
    assert attempt.object_id == object_id


def test_each_send_is_counted_open_until_it_is_known_that_it_did_nothing() -> None:
    one_key = OneKey()

    def opened() -> int:
        return one_key.snapshot.attempts[FIRST, 1].open_sends

    first = one_key.ask("june")
    one_key.end(first, LOST)
    second = one_key.ask("june")
    assert opened() == 2
    one_key.end(second, NEVER_SENT)
    assert (opened(), one_key.snapshot.operations[FIRST].code) == (1, "outcome_unknown")
    one_key.pass_time(MINUTE)
    third = one_key.ask("june")
    one_key.pass_time(MINUTE)
    one_key.ask("june")
    # The third lost its lease meanwhile: its no only says that it is not open any more.
    one_key.end(third, REJECTED)
    assert (opened(), one_key.snapshot.operations[FIRST].held) == (2, 2900)


def test_a_no_beside_a_foreign_use_does_not_make_the_key_ours_again() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), FOREIGN)
    assert one_key.end(one_key.ask("june"), NEVER_SENT).code == FOREIGN_KEY


def test_what_is_not_known_is_noted_whole_and_read_at_once() -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    one_key.pass_time(7)
    after = one_key.end(go, FOREIGN)
    assert (after.next_read_at, after.updated_at) == (one_key.snapshot.now, one_key.snapshot.now)
    assert after.lease_owner is None
    assert one_key.snapshot.attempts[FIRST, 1].status == 400


def test_silence_of_a_send_that_lost_its_lease_leaves_the_newer_one_alone() -> None:
    one_key = OneKey()
    first = one_key.ask("june")
    one_key.pass_time(MINUTE)  # the lease is over, and somebody else sends again
    one_key.ask("june")
    before = one_key.snapshot.operations[FIRST]
    assert one_key.end(first, FOREIGN) == before
    assert one_key.snapshot.attempts[FIRST, 1].status == 400
    assert told(one_key.ask("june")) == "join"


def test_a_yes_is_stored_whole_for_its_replay() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), LOST)
    one_key.pass_time(7)
    proof = made("ch_1")
    after = one_key.end(one_key.ask("june"), proof)
    assert (after.answer_status, after.answer) == (200, proof.body)
    assert (after.object_id, after.stripe_status, after.code) == ("ch_1", "succeeded", None)
    assert (after.updated_at, after.lease_owner) == (one_key.snapshot.now, None)
    assert (after.overshoot, after.amount) == (False, 2900)
    attempt = one_key.snapshot.attempts[FIRST, 1]
    assert (attempt.outcome, attempt.status, attempt.object_id) == (
        AttemptOutcome.SUCCEEDED, 200, "ch_1",
    )  # fmt: skip


def test_a_second_charge_of_a_paid_bill_is_counted_and_freezes_the_key() -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    one_key.end(go, made("ch_1"))
    after = one_key.end(go, made("ch_9"))
    assert (after.object_id, after.overshoot, held(one_key)) == ("ch_1", True, {(0, 5800)})
    assert one_key.snapshot.lineage(LINEAGE).frozen_reason == "a charge turned up late"


def test_a_row_says_what_stripe_answered_and_which_object_there_is() -> None:
    for proof, code, status, object_id in (
        (made("ch_1"), None, 200, "ch_1"),
        (declined("ch_1"), "card_declined", 402, "ch_1"),
        (Rejected(400, b"{}", "idempotency_key_in_use", ours=True), "upstream_rejected_key", 400,
         None),
    ):  # fmt: skip
        one_key = OneKey()
        one_key.end(one_key.ask("june"), proof)
        row = one_key.snapshot.dirty.audit[-1]
        assert (row.code, row.stripe_status, row.object_id) == (code, status, object_id)


def test_windows_never_go_below_zero() -> None:
    one_key = OneKey()
    for number in range(3):
        go = one_key.ask(f"bill {number}", customer=f"cus_{number}")
        for proof in (LOST, NEVER_SENT, declined(), REJECTED, declined()):
            one_key.end(go, proof)
    assert all(
        isinstance(each, Window) and min(each.reserved, each.settled) >= 0
        for each in one_key.snapshot.windows.values()
    )
