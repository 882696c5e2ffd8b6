"""Reserving: the checks that stand before every reservation, and the rows it leaves.

Floor: above duplicates and gates, below decide. Pure. First attempts, later attempts,
after voids and after approvals all pass through `reserve`.
"""

from __future__ import annotations

from msgspec.structs import replace

from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, clock_disputed, refuse
from kb_mcp.proxy.ledger.records import Attempt, AttemptOutcome, Changes, Operation, State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import count
from kb_mcp.proxy.rules import duplicates
from kb_mcp.proxy.rules.command import Command, Decision, Look, Proceed, ReadAgain, Refuse, Replay
from kb_mcp.proxy.rules.gates import check_approval, check_caps, check_key
from kb_mcp.proxy.rules.operation_names import attempt_key, later_name

# Stripe may forget a v1 key after 24 hours; we stop an hour before.
RESEND_WITHIN_MS = 23 * 3_600_000


def reserve(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> Decision:
    """Run the checks that stand before every reservation, then reserve.

    `operation` may be new; `keep` is the attempt whose key and stored bytes are used again.
    """
    checked = check(snapshot, command, operation, keep)
    if not isinstance(checked, Changes):
        return checked
    reserved = replace(
        operation,
        **command.asks(),
        state=State.RESERVED,
        final=True,
        held=command.money.amount,
        reserved_at=snapshot.now,
        key_id=command.key_id,
        lineage_id=command.lineage_id,
        code=None,
        voided_at=None,
        empty_listings=0,
        next_read_at=None,
    )
    leased, attempt = send(snapshot, command, reserved, keep)
    rows = replace(
        checked,
        operations=(*checked.operations, leased),
        attempts=(attempt,),
        windows=count(snapshot, leased, reserved=command.money.amount, sends=1),
    )
    return Proceed(leased, attempt, rows)


def check(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> Refuse | Replay | ReadAgain | Look | Changes:
    """Run every check; return the approval and the permits that are used up where all pass.

    An operation that was reserved already stands in the guards, and took its permits then.
    """
    holds = _holds(operation)
    stops: Refuse | ReadAgain | None = None
    if not holds:
        stops = duplicates.find_conflict(snapshot, command, operation)
    stops = stops or duplicates.refund_conflict(snapshot, command, operation)
    checked = stops or _check_sender(snapshot, command, operation, keep)
    if holds or not isinstance(checked, Changes):
        return checked
    taken = duplicates.take_permits(snapshot, command, operation)
    return taken if isinstance(taken, Look) else replace(checked, operations=taken)


def blocking(snapshot: Snapshot, command: Command, operation: Operation) -> Refusal | None:
    """Return why `command` would be refused now once it is approved, or None.

    What Stripe alone can say, like what is left of a charge, is not asked.
    """
    stops = None if _holds(operation) else duplicates.find_conflict(snapshot, command, operation)
    other = duplicates.other_refund(snapshot, command, operation)
    if stops is None and other is not None:
        stops = duplicates.already_refunded(other)
    checked = stops or _check_sender(snapshot, command, operation, None)
    return checked.refusal if isinstance(checked, Refuse) else None


def _holds(operation: Operation) -> bool:
    # What succeeded was reserved, an invoice of nothing too.
    return operation.state is State.SUCCEEDED or operation.held > 0


def _check_sender(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> Refuse | Replay | Changes:
    """Run the checks of the key, its approvals, attempts and caps."""
    known = snapshot.operations.get(operation.id)
    if snapshot.turning:
        return Refuse(clock_disputed(), known)
    stopped = check_key(snapshot, command)
    if stopped is not None:
        return Refuse(stopped, known)
    if snapshot.unresolved.get(command.lineage_id, 0) >= command.policy.max_unresolved:
        return Refuse(refuse(Code.TOO_MANY_UNRESOLVED), known)
    approval = check_approval(snapshot, command, operation, keep)
    if isinstance(approval, Refuse):
        return approval
    if (declined := recent_decline(snapshot, command)) is not None:
        return declined
    declines = snapshot.tally(command.tally).declines
    if declines >= command.policy.max_attempts:
        facts: dict[str, Fact] = {"declines": declines}
        facts |= {} if known is None else {"operation": known.id}
        return Refuse(refuse(Code.ATTEMPTS_EXHAUSTED, facts=facts), known)
    over = check_caps(snapshot, command, operation if _holds(operation) else None)
    return approval if over is None else Refuse(over, known)


def recent_decline(snapshot: Snapshot, command: Command) -> Replay | None:
    """Return the last decline of this bill while it is too early to try again."""
    tally = snapshot.tally(command.tally)
    if tally.last_operation is None:
        return None
    declined = snapshot.operations.get(tally.last_operation)
    retry_at = tally.last_declined_at + command.policy.decline_retry_after_ms
    if declined is None or declined.answer is None or snapshot.now >= retry_at:
        return None
    # One that waits for an approval since then was declined all the same.
    return Replay(declined) if declined.state in {State.FAILED, State.AWAITING_APPROVAL} else None


def new_operation(snapshot: Snapshot, command: Command, older: Operation | None) -> Operation:
    """Return the operation that `command` would begin, as the successor of `older` if given."""
    return Operation(
        **command.asks(),
        id=command.fresh_id,
        name=command.name,
        generation=0 if older is None else older.generation + 1,
        named_by=command.named_by,
        upstream_name=command.upstream_name if older is None else later_name(older),
        gives_back=None if command.refund is None else command.refund.charge,
        state=State.RESERVED,
        first_arrival_at=snapshot.now,
        key_id=command.key_id,
        lineage_id=command.lineage_id,
        created_at=snapshot.now,
        updated_at=snapshot.now,
    )


def send(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> tuple[Operation, Attempt]:
    """Lease `operation` for a send of `keep`, under its own key, or of a new attempt.

    A stored request is sent byte for byte; a new one is the parsed form, rebuilt.
    """
    now = snapshot.now
    leased = replace(
        operation,
        lease_owner=command.owner,
        lease_token=operation.lease_token + 1,
        lease_until=now + command.lease_ms,
        void_look_at=None,
        updated_at=now,
    )
    if keep is not None:
        sends = {"sends": keep.sends + 1, "open_sends": keep.open_sends + 1}
        return leased, replace(keep, last_sent_at=now, outcome=AttemptOutcome.OPEN, **sends)
    number, reading, body = operation.attempt + 1, command.reading, command.reading.form
    key = attempt_key(operation, number)
    if command.continues is not None:
        key = f"{operation.upstream_name}-s{number}"
    elif reading.route.standing is None:
        # The marks that find it again; an object that stands at Stripe is asked itself.
        marks = {"operation": operation.id, "attempt": key, "key": command.lineage_id}
        marks |= {"store": store_id} if (store_id := snapshot.settings.store_id) else {}
        body = body.with_({f"metadata[keybrake_{name}]": mark for name, mark in marks.items()})
    attempt = Attempt(
        operation_id=operation.id,
        number=number,
        upstream_key=key,
        path=reading.path,
        stripe_version=command.stripe_version,
        body=body.encode(),
        first_sent_at=now,
        last_sent_at=now,
        key_id=command.key_id,
    )
    return replace(leased, attempt=number), attempt


def resendable(snapshot: Snapshot, attempt: Attempt | None) -> Attempt | None:
    """Return `attempt` while its key is still good: Stripe surely remembers it."""
    if attempt is None or age_disputed(snapshot, attempt):
        return None
    return attempt if snapshot.now < attempt.first_sent_at + RESEND_WITHIN_MS else None


def age_disputed(snapshot: Snapshot, attempt: Attempt) -> bool:
    """Say whether nobody can tell how old the key of `attempt` is: the clocks disagree."""
    doubt = snapshot.doubt
    return snapshot.skewed or bool(doubt and doubt.ahead_ms(attempt.first_sent_at))
