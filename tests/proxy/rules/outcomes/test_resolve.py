"""What reading Stripe proves: a yes at once, a no after grace, freedom after three lists."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import Attempt, AttemptOutcome, Changes, Operation, OperationId
from kb_mcp.proxy.rules.command import Proceed
from kb_mcp.proxy.rules.outcomes.conclude import FOREIGN_KEY
from kb_mcp.proxy.rules.outcomes.matching import match_attempt, twin_names
from kb_mcp.proxy.rules.outcomes.resolve import (
    LEASE_MS,
    Absent,
    Present,
    Unreadable,
    resolve,
    take,
)
from kb_mcp.proxy.stripe.evidence import Nothing
from tests.proxy.rules.one_key import (
    HOUR,
    LINEAGE,
    LOST,
    REJECTED,
    START_MS,
    OneKey,
    declined,
    made,
    told,
)

FIRST = OperationId("op_1")


def unknown(one_key: OneKey) -> Proceed:
    go = one_key.ask("june")
    one_key.end(go, LOST)
    assert isinstance(go, Proceed)
    return go


def state(one_key: OneKey) -> str:
    return one_key.snapshot.operations[FIRST].state.value


def test_a_yes_counts_at_once() -> None:
    one_key = OneKey()
    unknown(one_key)
    after = one_key.read(FIRST, Present(1, made("ch_1")))
    assert after is not None
    assert (after.state.value, after.object_id, after.overshoot) == ("succeeded", "ch_1", False)
    assert one_key.snapshot.dirty.audit[-1].kind == "recovery"


def test_a_no_counts_only_after_grace_from_the_last_send() -> None:
    one_key = OneKey()
    unknown(one_key)
    grace = one_key.snapshot.settings.recovery_grace_ms
    one_key.pass_time(grace // 2)
    one_key.end(one_key.ask("june"), LOST)  # sent once more: grace begins anew
    one_key.pass_time(grace)
    one_key.read(FIRST, Absent())
    assert state(one_key) == "unknown"
    one_key.pass_time(1)
    after = one_key.read(FIRST, Absent())
    assert after is not None
    assert (after.state.value, after.held, after.code) == ("voided", 0, "voided")
    assert one_key.snapshot.attempts[FIRST, 1].outcome is AttemptOutcome.VOIDED
    assert all(not window.reserved for window in one_key.snapshot.windows.values())
    row = one_key.snapshot.dirty.audit[-1]
    assert (row.decision, row.operation_id, row.attempt) == ("voided", FIRST, 1)
    assert (row.amount, row.currency, row.customer_id) == (2900, "usd", "cus_A1")


@pytest.mark.parametrize("why", ["incomplete walk", "skewed clock", "foreign key", "sent again"])
def test_nothing_follows_from_an_empty_list_that_cannot_be_trusted(why: str) -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    one_key.end(go, Nothing("in use", 400, foreign=True) if why == "foreign key" else LOST)
    one_key.pass_time(one_key.snapshot.settings.recovery_grace_ms + 1)
    one_key.snapshot.skewed = why == "skewed clock"
    if why == "sent again":
        taken, changes = take(one_key.snapshot, FIRST, "recovery")
        assert taken is not None
        one_key.snapshot.apply(changes)
        one_key.pass_time(LEASE_MS)
        one_key.ask("june")
        after, changes = resolve(one_key.snapshot, taken[0], Absent(), 20)
        assert (after.lease_owner, changes.operations) == ("me", ())
        return
    one_key.read(FIRST, Unreadable() if why == "incomplete walk" else Absent())
    assert state(one_key) == "unknown"
    code = one_key.snapshot.operations[FIRST].code
    assert code == (FOREIGN_KEY if why == "foreign key" else "outcome_unknown")


def test_only_one_reads_at_a_time_and_nobody_while_it_is_being_sent() -> None:
    one_key = OneKey()
    one_key.ask("june")
    assert take(one_key.snapshot, FIRST, "recovery")[0] is None
    one_key.pass_time(35_000)
    taken, changes = take(one_key.snapshot, FIRST, "recovery")
    assert taken is not None
    one_key.snapshot.apply(changes)
    assert take(one_key.snapshot, FIRST, "another")[0] is None
    assert told(one_key.ask("june")) == "join"
    one_key.pass_time(LEASE_MS)
    assert take(one_key.snapshot, FIRST, "another")[0] is not None


def test_what_is_settled_is_not_read() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), made("ch_1"))
    assert take(one_key.snapshot, FIRST, "recovery") == (None, Changes())
    assert take(one_key.snapshot, OperationId("op_none"), "recovery")[0] is None


def test_a_voided_operation_is_free_after_its_third_empty_list() -> None:
    one_key = OneKey()
    unknown(one_key)
    one_key.void(FIRST)
    lists = []
    for wait in (HOUR - 1, 1, 24 * HOUR - 1, 1):
        one_key.pass_time(wait)
        after = one_key.read(FIRST, Absent())
        assert after is not None
        lists.append((after.empty_listings, after.live))
    assert lists == [(1, True), (2, True), (2, True), (3, False)]
    assert one_key.snapshot.operations[FIRST].next_read_at is None
    assert one_key.read(FIRST, Absent()) is None


def test_an_unreadable_list_does_not_count_towards_freedom() -> None:
    one_key = OneKey()
    unknown(one_key)
    one_key.void(FIRST)
    one_key.pass_time(30 * HOUR)
    one_key.read(FIRST, Unreadable())
    assert one_key.snapshot.operations[FIRST].empty_listings == 1
    one_key.snapshot.skewed = True
    one_key.read(FIRST, Absent())
    assert one_key.snapshot.operations[FIRST].empty_listings == 1


def test_a_charge_found_after_a_void_is_the_truth() -> None:
    one_key = OneKey()
    unknown(one_key)
    one_key.void(FIRST)
    one_key.pass_time(HOUR)
    after = one_key.read(FIRST, Present(1, made("ch_1")))
    assert after is not None
    assert (after.state.value, after.overshoot, after.held) == ("succeeded", True, 2900)
    assert one_key.snapshot.lineage(LINEAGE).frozen_at is not None


def test_a_finding_that_changes_nothing_frees_the_lease_and_is_read_again_in_an_hour() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), made("ch_1"))
    second = OperationId("op_2")
    one_key.end(one_key.ask("july", customer="cus_B2"), LOST)
    one_key.void(second)
    # Not at the hour that was due before.
    one_key.pass_time(7)
    # The object of another operation says nothing about a voided one.
    after = one_key.read(second, Present(1, made("ch_1")))
    assert after is not None
    assert (after.state.value, after.lease_owner) == ("voided", None)
    assert after.next_read_at == one_key.snapshot.now + HOUR
    assert one_key.snapshot.operations[second] == after
    assert one_key.snapshot.dirty.audit[-1].decision == "voided"


def test_reading_fences_off_the_send_that_it_takes_over_from() -> None:
    one_key = OneKey()
    go = one_key.ask("june")
    assert isinstance(go, Proceed)
    one_key.pass_time(35_000)
    taken, changes = take(one_key.snapshot, FIRST, "recovery")
    one_key.snapshot.apply(changes)
    assert taken is not None
    leased = taken[0]
    assert (leased.lease_owner, leased.lease_until) == ("recovery", one_key.snapshot.now + LEASE_MS)
    assert leased.lease_token == go.operation.lease_token + 1
    # The sender was only slow: its no does not count any more, since the list may be newer.
    assert one_key.end(go, REJECTED).state.value == "reserved"
    after, changes = resolve(one_key.snapshot, leased, Unreadable(), 20)
    one_key.snapshot.apply(changes)
    assert (after.state.value, after.code, after.lease_owner) == (
        "unknown",
        "outcome_unknown",
        None,
    )
    assert (after.next_read_at, after.updated_at) == (one_key.snapshot.now, one_key.snapshot.now)


def test_what_a_list_left_open_is_looked_at_again_when_it_is_due() -> None:
    one_key = OneKey()
    unknown(one_key)
    one_key.void(FIRST)
    operation = one_key.snapshot.operations[FIRST]
    voided_at = one_key.snapshot.now
    assert (operation.next_read_at, operation.lease_owner) == (voided_at + HOUR, None)
    assert operation.updated_at == voided_at
    early = one_key.read(FIRST, Absent())
    assert early is not None
    assert (early.state.value, early.code, early.next_read_at) == (
        "voided", "voided", voided_at + HOUR,
    )  # fmt: skip
    one_key.pass_time(HOUR)
    second = one_key.read(FIRST, Absent())
    assert second is not None
    assert (second.next_read_at, second.lease_owner) == (voided_at + 25 * HOUR, None)
    assert second.updated_at == one_key.snapshot.now


def test_a_failed_object_found_by_reading_counts_as_a_decline_of_the_policy() -> None:
    one_key = OneKey()
    unknown(one_key)
    taken, changes = take(one_key.snapshot, FIRST, "recovery")
    one_key.snapshot.apply(changes)
    assert taken is not None
    after, changes = resolve(
        one_key.snapshot, taken[0], Present(1, made("ch_1", "failed", "failed")), 1
    )
    one_key.snapshot.apply(changes)
    assert (after.state.value, after.held) == ("failed", 0)
    assert one_key.snapshot.lineage(LINEAGE).frozen_reason == "too many declines"


def listed(operation: Operation, mark: str | None, **fields: Any) -> dict[str, Any]:
    item: dict[str, Any] = {
        "amount": operation.amount,
        "currency": operation.currency,
        "customer": operation.customer,
        "metadata": {"keybrake_attempt": mark, "keybrake_operation": operation.id},
    }
    return item | fields


def two_attempts() -> tuple[Operation, list[Attempt]]:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), declined("ch_0"))
    one_key.pass_time(one_key.policy.decline_retry_after_ms)
    one_key.end(one_key.ask("june"), LOST)
    operation = one_key.snapshot.operations[FIRST]
    return operation, one_key.snapshot.attempts_of(operation)


def test_an_object_is_matched_by_its_attempt_and_by_what_it_says() -> None:
    operation, attempts = two_attempts()
    first, second = (each.upstream_key for each in attempts)
    assert match_attempt(listed(operation, second), operation, attempts) == 2
    # A declined attempt is settled, and its failed object is no news.
    assert match_attempt(listed(operation, first), operation, attempts) is None
    for wrong in ({"metadata": None}, {"metadata": {"keybrake_operation": operation.id}}):
        assert match_attempt(listed(operation, second) | wrong, operation, attempts) is None
    assert match_attempt(listed(operation, "another"), operation, attempts) is None
    half_marked = {"metadata": {"keybrake_attempt": second}}
    assert match_attempt(listed(operation, second) | half_marked, operation, attempts) == 2
    for other in (
        {"amount": 2901}, {"currency": "eur"}, {"customer": "cus_B2"}, {"customer": None},
    ):  # fmt: skip
        item = listed(operation, second) | other
        # With both marks it is ours, whatever it says; with one of them it may be anybody's.
        assert match_attempt(item, operation, attempts) == 2
        assert match_attempt(item | half_marked, operation, attempts) is None


GRACE = 600_000


def bare(operation: Operation, **fields: Any) -> dict[str, Any]:
    """Return an object without marks that is otherwise like the operation's."""
    return listed(operation, None, id="ch_9", created=START_MS // 1000, metadata={}) | fields


@pytest.mark.parametrize(
    ("fields", "is_twin"),
    [
        ({}, True),
        ({"metadata": None}, True),
        ({"metadata": {"note": "x"}}, True),
        # A mark that was edited to half of one, or to nonsense, is edited away.
        ({"metadata": {"keybrake_operation": "op_1"}}, True),
        ({"metadata": {"keybrake_attempt": "nonsense"}}, True),
        ({"metadata": {"keybrake_attempt": "", "keybrake_operation": "op_else"}}, True),
        ({"metadata": {"keybrake_attempt": "K9", "keybrake_operation": "op_else"}}, False),
        ({"status": "failed"}, False),
        ({"status": "canceled"}, False),
        ({"status": "pending"}, True),
        ({"amount": 2901}, False),
        ({"currency": "eur"}, False),
        ({"customer": "cus_B2"}, False),
        ({"customer": None}, False),
        ({"customer": {"id": "cus_A1", "object": "customer"}}, True),
        ({"created": None}, False),
        ({"created": START_MS // 1000 - 90}, True),
        ({"created": START_MS // 1000 - 91}, False),
        ({"created": (START_MS + 5_000 + GRACE) // 1000}, True),
        ({"created": (START_MS + 5_000 + GRACE) // 1000 + 1}, False),
    ],
)
def test_an_unmarked_object_like_ours_of_the_time_of_our_sends_is_a_twin(
    fields: dict[str, Any], is_twin: bool
) -> None:
    one_key = OneKey()
    unknown(one_key)
    operation = one_key.snapshot.operations[FIRST]
    attempts = one_key.snapshot.attempts_of(operation)
    names = twin_names(bare(operation, **fields), operation, attempts, GRACE)
    assert names == (("ch_9",) if is_twin else ())


def test_the_charge_of_a_customerless_bill_has_twins_too() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june", customer="cus_A1"), LOST)
    operation = replace(one_key.snapshot.operations[FIRST], customer=None)
    attempts = one_key.snapshot.attempts_of(operation)
    assert twin_names(bare(operation), operation, attempts, GRACE) == ("ch_9",)
    assert twin_names(bare(operation, customer="cus_A1"), operation, attempts, GRACE) == ()


def test_attempts_that_surely_made_nothing_do_not_widen_the_time_of_a_twin() -> None:
    operation, attempts = two_attempts()
    first = attempts[0].first_sent_at // 1000
    assert twin_names(bare(operation, created=first), operation, attempts, GRACE) == ()
    second = attempts[1].first_sent_at // 1000
    assert twin_names(bare(operation, created=second), operation, attempts, GRACE) == ("ch_9",)


@pytest.mark.parametrize("voided", [False, True])
def test_a_twin_that_is_nobodys_keeps_an_operation_from_being_voided_or_freed(
    voided: bool,
) -> None:
    one_key = OneKey()
    unknown(one_key)
    one_key.pass_time(one_key.snapshot.settings.recovery_grace_ms + 1)
    if voided:
        one_key.read(FIRST, Absent())
    for _ in range(4):
        one_key.pass_time(26 * HOUR)
        one_key.read(FIRST, Absent(twins=(("ch_9", "pi_9"),)))
    after = one_key.snapshot.operations[FIRST]
    assert after.live
    assert (after.state.value, after.code) == ("voided" if voided else "unknown", "unmarked_charge")
    # It is another operation's, as the ledger learns later: then absence is absence.
    one_key.snapshot.object_owners["pi_9"] = OperationId("op_2")
    one_key.read(FIRST, Absent(twins=(("ch_9", "pi_9"),)))
    assert one_key.snapshot.operations[FIRST].state.value == "voided"


def test_a_walk_counts_from_when_it_began() -> None:
    one_key = OneKey()
    unknown(one_key)
    began = one_key.snapshot.now
    one_key.pass_time(HOUR)
    one_key.read(FIRST, Absent(begun_at=began))
    assert state(one_key) == "unknown"
    one_key.read(FIRST, Absent(begun_at=began + one_key.snapshot.settings.recovery_grace_ms + 1))
    assert state(one_key) == "voided"


def test_a_request_that_does_not_tell_its_amount_is_matched_by_the_mark_alone() -> None:
    operation, attempts = two_attempts()
    untold = replace(operation, amount=0)
    item = listed(operation, attempts[1].upstream_key, amount=500)
    assert match_attempt(item, untold, attempts) == 2
