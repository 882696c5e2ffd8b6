"""Planted bugs: each takes one rule of the ledger out of the product, while a world is played.

A simulation that finds none of these proves nothing by finding nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from msgspec.structs import replace

from kb_mcp.proxy import governor, recovery
from kb_mcp.proxy.audit.chain import Journal
from kb_mcp.proxy.edge import pipeline
from kb_mcp.proxy.ledger.records import (
    HOLDING,
    Attempt,
    AttemptOutcome,
    Changes,
    Operation,
    OperationId,
    State,
)
from kb_mcp.proxy.ledger.snapshot import Operations, Snapshot
from kb_mcp.proxy.rules import decide, duplicates, reserve
from kb_mcp.proxy.rules.command import Proceed
from kb_mcp.proxy.rules.outcomes import conclude, resolve
from kb_mcp.proxy.rules.outcomes.resolve import Absent, Unreadable
from kb_mcp.proxy.stores.sqlite.ledger import SqliteLedger
from kb_mcp.proxy.stripe.evidence import NeverBegan
from tests.faults.planting import part, swapped
from tests.faults.simulation import Simulation

BUGS: dict[str, Callable[[Simulation], AbstractContextManager[None]]] = {}


def bug(plant: Callable[[Simulation], Iterator[None]]) -> Callable[[Simulation], Iterator[None]]:
    """Enter `plant` under the sentence that its name spells."""
    BUGS[plant.__name__.replace("_", " ")] = contextmanager(plant)
    return plant


@bug
def a_later_no_releases_while_an_earlier_send_is_open(_: Simulation) -> Iterator[None]:
    right = part(conclude, "_negative")

    def wrong(snapshot: Snapshot, operation: Operation, attempt: Attempt, *rest: Any) -> Any:
        return right(snapshot, operation, replace(attempt, open_sends=1), *rest)

    with swapped(conclude, "_negative", wrong):
        yield


@bug
def a_timeout_releases(_: Simulation) -> Iterator[None]:
    def wrong(
        snapshot: Snapshot, operation: Operation, attempt: Attempt, proof: Any, ending: Any
    ) -> Any:
        lost = NeverBegan("timeout")
        alone = replace(attempt, open_sends=1)
        return part(conclude, "_negative")(snapshot, operation, alone, lost, ending)

    with swapped(conclude, "_unproven", wrong):
        yield


@bug
def caps_are_checked_outside_the_transaction(simulation: Simulation) -> Iterator[None]:
    seen: dict[OperationId, Any] = {}
    right = part(reserve, "check_caps")

    def wrong(snapshot: Snapshot, command: Any, raised: Any = None) -> Any:
        return right(dataclasses.replace(snapshot, windows=seen[command.fresh_id]), command, raised)

    with (
        _remembered(seen, lambda: dict(simulation.mirror.windows)),
        swapped(reserve, "check_caps", wrong),
    ):
        yield


@bug
def guards_are_read_without_their_lock(simulation: Simulation) -> Iterator[None]:
    seen: dict[OperationId, Any] = {}
    right = part(duplicates, "find_conflict")

    def wrong(snapshot: Snapshot, command: Any, operation: Operation) -> Any:
        loaded = Operations(seen[command.fresh_id].values())
        unlocked = dataclasses.replace(snapshot, operations=loaded)
        return right(unlocked, command, operation)

    with (
        _remembered(seen, lambda: dict(simulation.mirror.operations)),
        swapped(duplicates, "find_conflict", wrong),
    ):
        yield


@bug
def a_later_attempt_skips_the_guards(_: Simulation) -> Iterator[None]:
    right = part(duplicates, "find_conflict")

    def wrong(snapshot: Snapshot, command: Any, operation: Operation) -> Any:
        later = snapshot.newest(command.name) is not None
        return None if later else right(snapshot, command, operation)

    with swapped(duplicates, "find_conflict", wrong):
        yield


@bug
def periods_that_share_days_are_two_bills(_: Simulation) -> Iterator[None]:
    with swapped(duplicates, "overlap", lambda _one, _other: False):
        yield


@bug
def a_voided_operation_frees_its_guards_at_once(_: Simulation) -> Iterator[None]:
    live = property(lambda self: self.state in HOLDING or self.state is State.SUCCEEDED)
    with swapped(Operation, "live", live):
        yield


@bug
def recovery_voids_without_its_lease(_: Simulation) -> Iterator[None]:
    seen: dict[OperationId, int] = {}
    right_take, right = part(recovery, "take"), part(recovery, "resolve")

    def take(snapshot: Snapshot, operation_id: OperationId, owner: str) -> Any:
        taken, changes = right_take(snapshot, operation_id, owner)
        if taken is not None:
            seen[operation_id] = max(each.last_sent_at for each in taken[1])
        return taken, changes

    def wrong(snapshot: Snapshot, leased: Operation, *rest: Any) -> Any:
        token = snapshot.operations[leased.id].lease_token
        return right(snapshot, replace(leased, lease_token=token), *rest)

    def as_read(snapshot: Snapshot, operation: Operation, _read_at: int) -> bool:
        if operation.state is State.VOIDED:
            return True
        sent_at = seen[operation.id]
        over = snapshot.now > sent_at + snapshot.settings.recovery_grace_ms
        return operation.state in HOLDING and over

    with (
        swapped(recovery, "take", take),
        swapped(recovery, "resolve", wrong),
        swapped(resolve, "_proves_absence", as_read),
    ):
        yield


@bug
def recovery_voids_before_grace(_: Simulation) -> Iterator[None]:
    with swapped(resolve, "_proves_absence", lambda *_: True):
        yield


@bug
def an_absence_counts_from_when_it_is_told_not_read(_: Simulation) -> Iterator[None]:
    right = part(resolve, "_proves_absence")
    told = lambda snapshot, operation, _: right(snapshot, operation, snapshot.now)  # noqa: E731 as short as the bug
    with swapped(resolve, "_proves_absence", told):
        yield


@bug
def recovery_trusts_an_incomplete_walk(_: Simulation) -> Iterator[None]:
    right = part(recovery.Recovery, "_walk")

    async def wrong(self: Any, *rest: Any) -> Any:
        found = await right(self, *rest)
        return Absent() if isinstance(found, Unreadable) else found

    with swapped(recovery.Recovery, "_walk", wrong):
        yield


@bug
def recovery_matches_the_operation_not_the_attempt(_: Simulation) -> Iterator[None]:
    def wrong(item: Any, operation: Operation, attempts: list[Attempt]) -> int | None:
        mine = item["metadata"].get("keybrake_operation") == operation.id
        return operation.attempt if mine else None

    with swapped(recovery, "match_attempt", wrong):
        yield


@bug
def an_unknown_outcome_gets_a_new_upstream_key(_: Simulation) -> Iterator[None]:
    right = part(decide, "send")

    def wrong(snapshot: Snapshot, command: Any, operation: Operation, _keep: Attempt) -> Any:
        return right(snapshot, command, operation, None)

    with swapped(decide, "send", wrong):
        yield


@bug
def an_old_key_is_sent_again_after_stripe_forgot_it(_: Simulation) -> Iterator[None]:
    with swapped(reserve, "RESEND_WITHIN_MS", 72 * 3_600_000):
        yield


@bug
def a_resend_writes_the_body_anew(_: Simulation) -> Iterator[None]:
    right = part(decide, "send")

    def wrong(snapshot: Snapshot, command: Any, operation: Operation, attempt: Attempt) -> Any:
        return right(
            snapshot,
            command,
            operation,
            replace(attempt, body=attempt.body + b"&description=again"),
        )

    with swapped(decide, "send", wrong):
        yield


@bug
def a_conclusion_does_not_compare_before_it_sets(_: Simulation) -> Iterator[None]:
    right = part(conclude, "_made")

    def wrong(snapshot: Snapshot, operation: Operation, *rest: Any) -> Any:
        # As read when it was sent, not as it is now.
        return right(snapshot, replace(operation, state=State.RESERVED), *rest)

    with swapped(conclude, "_made", wrong):
        yield


@bug
def a_late_yes_does_not_beat_a_void(_: Simulation) -> Iterator[None]:
    right = part(conclude, "_made")

    def wrong(snapshot: Snapshot, operation: Operation, *rest: Any) -> Any:
        if operation.state is State.VOIDED:
            return Changes()
        return right(snapshot, operation, *rest)

    with swapped(conclude, "_made", wrong):
        yield


@bug
def a_decline_does_not_release(_: Simulation) -> Iterator[None]:
    with swapped(conclude, "_given_back", lambda *_: ()):
        yield


@bug
def a_decline_counts_for_any_attempt(_: Simulation) -> Iterator[None]:
    right = part(conclude, "_declined")

    def wrong(snapshot: Snapshot, operation: Operation, attempt: Attempt, *rest: Any) -> Any:
        return right(snapshot, operation, replace(attempt, outcome=AttemptOutcome.OPEN), *rest)

    with swapped(conclude, "_declined", wrong), _every_attempt_matches():
        yield


@bug
def the_window_is_taken_when_it_is_settled(_: Simulation) -> Iterator[None]:
    right = part(conclude, "count")

    def wrong(snapshot: Snapshot, operation: Operation, **more: int) -> Any:
        return right(snapshot, replace(operation, reserved_at=snapshot.now), **more)

    with swapped(conclude, "count", wrong):
        yield


@bug
def the_key_is_not_checked_in_the_transaction(_: Simulation) -> Iterator[None]:
    with swapped(decide, "key_refusal", lambda *_: None):
        yield


@bug
def the_reference_is_ignored(_: Simulation) -> Iterator[None]:
    right = part(pipeline, "name_of")
    with (
        swapped(pipeline, "name_of", lambda p, reading: right(p, replace(reading, reference=None))),
        swapped(pipeline, "fingerprint", _without("reference")),
    ):
        yield


@bug
def another_customer_is_given_the_answer(_: Simulation) -> Iterator[None]:
    right = part(pipeline, "name_of")

    def wrong(policy: Any, reading: Any) -> Any:
        somebody = None if reading.explicit_key is None else "cus_A"
        return right(policy, replace(reading, customer=somebody or reading.customer))

    with (
        swapped(pipeline, "name_of", wrong),
        swapped(decide, "_may_see", lambda *_: True),
        swapped(pipeline, "fingerprint", _without("customer")),
    ):
        yield


@bug
def the_amount_is_left_out_of_the_fingerprint(_: Simulation) -> Iterator[None]:
    with swapped(pipeline, "fingerprint", _without("money")):
        yield


@bug
def the_decision_is_not_in_the_audit_before_the_send(_: Simulation) -> Iterator[None]:
    right = part(decide, "_audited")

    def wrong(snapshot: Snapshot, command: Any, decision: Any) -> Any:
        return decision if isinstance(decision, Proceed) else right(snapshot, command, decision)

    with swapped(decide, "_audited", wrong):
        yield


@bug
def the_chain_goes_on_after_a_rollback(_: Simulation) -> Iterator[None]:
    with swapped(Journal, "rewind", lambda *_: None):
        yield


@bug
def a_send_begins_before_the_commit(_: Simulation) -> Iterator[None]:
    right = part(SqliteLedger, "_flush")

    def wrong(self: Any, batch: Any) -> None:
        right(self, batch)
        for item in batch:
            if item.error is not None and isinstance(item.result, Proceed):
                item.error = None

    with swapped(SqliteLedger, "_flush", wrong):
        yield


@bug
def a_key_in_use_by_our_own_send_is_held_for_foreign(_: Simulation) -> Iterator[None]:
    right = part(conclude, "_unproven")

    def wrong(
        snapshot: Snapshot, operation: Operation, attempt: Attempt, proof: Any, ending: Any
    ) -> Any:
        alone = replace(attempt, open_sends=1)
        changes = right(snapshot, operation, alone, proof, ending)
        noted = (replace(attempt, status=proof.status),)
        return replace(changes, attempts=noted)

    with swapped(conclude, "_unproven", wrong):
        yield


def _without(name: str) -> Callable[[Any], str]:
    right = part(pipeline, "fingerprint")
    return lambda reading: right(replace(reading, **{name: None}))


@contextmanager
def _every_attempt_matches() -> Iterator[None]:
    def wrong(item: Any, operation: Operation, attempts: list[Attempt]) -> int | None:
        mark = item["metadata"].get("keybrake_attempt")
        return next((each.number for each in attempts if each.upstream_key == mark), None)

    with swapped(recovery, "match_attempt", wrong):
        yield


@contextmanager
def _remembered(seen: dict[OperationId, Any], look: Callable[[], Any]) -> Iterator[None]:
    """Let every intent remember what was committed when it arrived."""
    right = governor.Governor.govern

    async def wrong(self: Any, admitted: Any, command: Any) -> Any:
        seen[command.fresh_id] = look()
        return await right(self, admitted, command)

    with swapped(governor.Governor, "govern", wrong):
        yield
