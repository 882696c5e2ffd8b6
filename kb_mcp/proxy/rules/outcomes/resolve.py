"""Resolving: what a reading of Stripe's list says about an operation nobody could conclude.

Floor: above conclude, below recovery. Pure. Reading proves a yes at once; it proves a no only after
grace, from a complete walk, with a clock that agrees with Stripe's, and never where somebody
outside the ledger used the key.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import (
    HOLDING,
    LISTINGS_THAT_FREE,
    Attempt,
    AttemptOutcome,
    AuditDraft,
    Changes,
    Operation,
    OperationId,
    State,
)
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import release
from kb_mcp.proxy.rules.outcomes.conclude import FOREIGN_KEY, HOUR_MS, conclude
from kb_mcp.proxy.rules.outcomes.matching import TWIN
from kb_mcp.proxy.stripe.evidence import Ending, Made

LEASE_MS = 120_000
# Listings of a voided operation, counted from the void; the last one frees its guards.
SECOND_LISTING_MS = HOUR_MS
LAST_LISTING_MS = 25 * HOUR_MS
_ROW = AuditDraft(kind="recovery")


@dataclass(frozen=True, slots=True)
class Present:
    """Stripe shows the object of attempt `number`."""

    number: int
    proof: Made


@dataclass(frozen=True, slots=True)
class Absent:
    """A complete walk found no object of any attempt.

    `begun_at` is when the walk began, where that was before this lease. `twins` are the names of
    objects without a mark that may be it all the same: somebody may have edited the mark away.
    """

    begun_at: int | None = None
    twins: tuple[tuple[str, ...], ...] = ()

    @property
    def objects(self) -> frozenset[str]:
        """Every name of a twin: whose they are decides whether absence is proven."""
        return frozenset(name for names in self.twins for name in names)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The walk was not complete: nothing follows."""


Finding = Present | Absent | Unreadable
Taken = tuple[Operation, list[Attempt]] | None


def take(snapshot: Snapshot, operation_id: OperationId, owner: str) -> tuple[Taken, Changes]:
    """Lease an operation for reading, or return None where somebody is at it."""
    operation = snapshot.operations.get(operation_id)
    if operation is None or snapshot.leased(operation) or not _needs_reading(operation):
        return None, Changes()
    leased = replace(
        operation,
        lease_owner=owner,
        lease_token=operation.lease_token + 1,
        lease_until=snapshot.now + LEASE_MS,
    )
    return (leased, snapshot.attempts_of(operation)), Changes(operations=(leased,))


def resolve(
    snapshot: Snapshot, leased: Operation, finding: Finding, daily_declines: int
) -> tuple[Operation, Changes]:
    """Return the operation after `finding`, read under the lease in `leased`."""
    operation = snapshot.operations[leased.id]
    if operation.lease_token != leased.lease_token:
        # Somebody sent again meanwhile: what was read says nothing about that send.
        return operation, Changes()
    # A reading says what was there when it began: its result may have waited in a suspended host.
    read_at = leased.lease_until - LEASE_MS
    if isinstance(finding, Present):
        ending = Ending(
            operation_id=operation.id,
            attempt=finding.number,
            token=leased.lease_token,
            proof=finding.proof,
            daily_declines=daily_declines,
            request=_ROW,
            read_at=read_at,
        )
        after, changes = conclude(snapshot, ending)
        if not changes.operations:
            after = replace(after, lease_owner=None, next_read_at=snapshot.now + HOUR_MS)
            changes = replace(changes, operations=(after,))
        return after, changes
    twin = False
    if isinstance(finding, Absent):
        read_at = read_at if finding.begun_at is None else finding.begun_at
        twin = bool(unowned_twins(snapshot, operation, finding))
        if not twin and _proves_absence(snapshot, operation, read_at):
            changes = _absent(snapshot, operation, read_at)
            return changes.operations[0], changes
    changes = _look_again(snapshot, operation, TWIN if twin else None)
    return changes.operations[0], changes


def unowned_twins(snapshot: Snapshot, operation: Operation, absent: Absent) -> list[str]:
    """Return the objects without a mark that may be this operation's, and are no other's."""
    return [
        names[0]
        for names in absent.twins
        if all(snapshot.object_owners.get(name) in {None, operation.id} for name in names)
    ]


def _needs_reading(operation: Operation) -> bool:
    came_back = operation.state is State.SUCCEEDED and operation.gives_back is not None
    return operation.state in HOLDING or came_back or operation.next_read_at is not None


def _proves_absence(snapshot: Snapshot, operation: Operation, read_at: int) -> bool:
    if operation.state is State.VOIDED:
        return not snapshot.skewed
    if operation.state not in HOLDING or snapshot.skewed or operation.code == FOREIGN_KEY:
        return False
    last_sent = max((each.last_sent_at for each in snapshot.attempts_of(operation)), default=0)
    return read_at > last_sent + snapshot.settings.recovery_grace_ms


def _absent(snapshot: Snapshot, operation: Operation, read_at: int) -> Changes:
    if operation.state is State.VOIDED:
        first, listings = operation.empty_listings == 1, operation.empty_listings + 1
        voided_at = operation.voided_at or snapshot.now
        if read_at < voided_at + (SECOND_LISTING_MS if first else LAST_LISTING_MS):
            return _look_again(snapshot, operation)
        again = None if listings >= LISTINGS_THAT_FREE else voided_at + LAST_LISTING_MS
        listed = operation.ended(snapshot.now, empty_listings=listings, next_read_at=again)
        return Changes(operations=(listed,))
    voided = operation.ended(
        snapshot.now,
        state=State.VOIDED,
        held=0,
        code="voided",
        voided_at=snapshot.now,
        empty_listings=1,
        void_look_at=read_at,
        next_read_at=snapshot.now + SECOND_LISTING_MS,
    )
    attempt = snapshot.attempts[operation.id, operation.attempt]
    row = _ROW.about(operation, decision="voided", attempt=operation.attempt)
    return Changes(
        operations=(voided,),
        attempts=(replace(attempt, outcome=AttemptOutcome.VOIDED),),
        windows=release(snapshot, operation),
        audit=(row,),
    )


def _look_again(snapshot: Snapshot, operation: Operation, why: str | None = None) -> Changes:
    """Leave the operation as it is, to be read again; `why` it is unknown still, if there is one.

    That others used its key outweighs everything else that is known of it.
    """
    state, code = operation.state, operation.code
    # What is done already can wait where Stripe does not show it.
    again = snapshot.now + (HOUR_MS if state is State.SUCCEEDED and operation.final else 0)
    if state in HOLDING:
        state = State.UNKNOWN
        code = code if code == FOREIGN_KEY else why or code or "outcome_unknown"
    elif state is State.VOIDED:
        code = why or code
    again = max(operation.next_read_at or 0, again)
    waiting = operation.ended(snapshot.now, state=state, code=code, next_read_at=again)
    return Changes(operations=(waiting,))
