"""Resolving: what a reading of Stripe's list says about an operation nobody could conclude.

Floor: above conclude, below recovery. Pure. Reading proves a yes at once; it proves a no only after
grace, from a complete walk, with a clock that agrees with Stripe's, and never where somebody
outside the ledger used the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
)
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import release
from kb_mcp.proxy.rules.conclude import FOREIGN_KEY, conclude
from kb_mcp.proxy.rules.ending import Ending
from kb_mcp.proxy.stripe.evidence import Made, customer_of
from kb_mcp.proxy.stripe.sends import SEND_WITHIN_MS

HOUR_MS = 3_600_000
LEASE_MS = 120_000
# Listings of a voided operation, counted from the void; the last one frees its guards.
SECOND_LISTING_MS = HOUR_MS
LAST_LISTING_MS = 25 * HOUR_MS
# Stripe's clock and ours may be a minute apart, and `created` has whole seconds.
BEFORE_MS = 90_000
TWIN = "unmarked_charge"
# A failed or canceled object took no money, so that it is nobody's charge.
NO_MONEY = frozenset({"failed", "canceled"})
_MAY_HAVE_ARRIVED = frozenset({AttemptOutcome.OPEN, AttemptOutcome.VOIDED})
_ROW = AuditDraft(kind="recovery")


@dataclass(frozen=True, slots=True)
class Found:
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


Finding = Found | Absent | Unreadable


def take(snapshot: Snapshot, operation_id: OperationId, owner: str) -> tuple[
    tuple[Operation, list[Attempt]] | None, Changes
]:  # fmt: skip
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
    if isinstance(finding, Found):
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
            freed = replace(after, lease_owner=None, next_read_at=snapshot.now + HOUR_MS)
            return freed, replace(changes, operations=(freed,))
        return after, changes
    if isinstance(finding, Absent):
        read_at = read_at if finding.begun_at is None else finding.begun_at
        if unowned_twins(snapshot, operation, finding):
            return _look_again(snapshot, operation, TWIN)
        if _proves_absence(snapshot, operation, read_at):
            return _absent(snapshot, operation, read_at)
    return _look_again(snapshot, operation)


def unowned_twins(snapshot: Snapshot, operation: Operation, absent: Absent) -> list[str]:
    """Return the objects without a mark that may be this operation's, and are no other's."""
    return [
        names[0]
        for names in absent.twins
        if all(snapshot.object_owners.get(name) in {None, operation.id} for name in names)
    ]


def match_attempt(
    item: Mapping[str, Any], operation: Operation, attempts: list[Attempt]
) -> int | None:
    """Return the number of the attempt that made the listed object `item`, or None.

    The attempt's mark alone is not enough: the operation's must stand beside it, or amount,
    currency and customer must be the operation's. With both marks it is ours whatever it says.
    """
    marks = _marks_of(item)
    mark = marks.get("keybrake_attempt")
    ours = marks.get("keybrake_operation") == operation.id
    # An operation whose request did not tell its amount has the mark alone.
    if mark is None or not (ours or operation.amount == 0 or _is_like(item, operation)):
        return None
    # A declined attempt is settled: its failed object says nothing about the attempts after it.
    return next(
        (
            each.number
            for each in attempts
            if each.upstream_key == mark and each.outcome is not AttemptOutcome.DECLINED
        ),
        None,
    )


def twin_names(
    item: Mapping[str, Any], operation: Operation, attempts: list[Attempt], grace_ms: int
) -> tuple[str, ...]:
    """Return the names of a listed object without a whole mark that may be the operation's.

    It is of the same customer, amount and currency, and made between the first send that may have
    arrived and the last one's deadline and grace. Empty where it is not.
    """
    marks = _marks_of(item)
    mark, owner = marks.get("keybrake_attempt"), marks.get("keybrake_operation")
    known = any(each.upstream_key == mark for each in attempts)
    if known or (mark and owner and owner != operation.id) or not _is_like(item, operation):
        return ()
    created = item.get("created")
    if not isinstance(created, int) or item.get("status") in NO_MONEY:
        return ()
    maybe = [each for each in attempts if each.outcome in _MAY_HAVE_ARRIVED] or attempts
    begins = min(each.first_sent_at for each in maybe) - BEFORE_MS
    ends = max(each.last_sent_at for each in maybe) + SEND_WITHIN_MS + grace_ms
    if not begins <= created * 1000 <= ends:
        return ()
    names = (item.get("id"), item.get("payment_intent"))
    return tuple(name for name in names if isinstance(name, str))


def _marks_of(item: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = item.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _is_like(item: Mapping[str, Any], operation: Operation) -> bool:
    return (
        item.get("amount") == operation.amount
        and item.get("currency") == operation.currency
        and customer_of(item) == operation.customer
    )


def _needs_reading(operation: Operation) -> bool:
    if operation.state in HOLDING:
        return True
    return operation.next_read_at is not None


def _proves_absence(snapshot: Snapshot, operation: Operation, read_at: int) -> bool:
    if operation.state is S.VOIDED:
        return not snapshot.skewed
    if operation.state not in HOLDING or snapshot.skewed or operation.code == FOREIGN_KEY:
        return False
    last_sent = max(
        (attempt.last_sent_at for attempt in snapshot.attempts_of(operation)), default=0
    )
    return read_at > last_sent + snapshot.settings.recovery_grace_ms


def _absent(snapshot: Snapshot, operation: Operation, read_at: int) -> tuple[Operation, Changes]:
    if operation.state is S.VOIDED:
        return _listed_empty(snapshot, operation, read_at)
    voided = replace(
        operation,
        state=S.VOIDED,
        held=0,
        code="voided",
        voided_at=snapshot.now,
        empty_listings=1,
        next_read_at=snapshot.now + SECOND_LISTING_MS,
        lease_owner=None,
        updated_at=snapshot.now,
    )
    attempt = snapshot.attempts[operation.id, operation.attempt]
    row = replace(
        _ROW,
        decision="voided",
        operation_id=operation.id,
        attempt=operation.attempt,
        amount=operation.amount,
        currency=operation.currency,
        customer_id=operation.customer,
    )
    return voided, Changes(
        operations=(voided,),
        attempts=(replace(attempt, outcome=AttemptOutcome.VOIDED),),
        windows=release(snapshot, operation),
        audit=(row,),
    )


def _listed_empty(
    snapshot: Snapshot, operation: Operation, read_at: int
) -> tuple[Operation, Changes]:
    voided_at = operation.voided_at or snapshot.now
    count = operation.empty_listings
    due = voided_at + (SECOND_LISTING_MS if count == 1 else LAST_LISTING_MS)
    if read_at < due:
        return _look_again(snapshot, operation)
    over = count + 1 >= LISTINGS_THAT_FREE
    listed = replace(
        operation,
        empty_listings=count + 1,
        next_read_at=None if over else voided_at + LAST_LISTING_MS,
        lease_owner=None,
        updated_at=snapshot.now,
    )
    return listed, Changes(operations=(listed,))


def _look_again(
    snapshot: Snapshot, operation: Operation, why: str | None = None
) -> tuple[Operation, Changes]:
    """Leave the operation as it is, to be read again; `why` it is unknown still, if there is one.

    That others used its key outweighs everything else that is known of it.
    """
    state = S.UNKNOWN if operation.state in HOLDING else operation.state
    code = operation.code
    if state is S.UNKNOWN and code != FOREIGN_KEY:
        code = why or code or "outcome_unknown"
    waiting = replace(
        operation,
        state=state,
        code=code,
        lease_owner=None,
        next_read_at=max(operation.next_read_at or 0, snapshot.now),
        updated_at=snapshot.now,
    )
    return waiting, Changes(operations=(waiting,))
