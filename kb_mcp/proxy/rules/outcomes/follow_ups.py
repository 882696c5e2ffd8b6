"""How a step ends: what an operation holds once confirm, capture, raise or cancel was answered.

Floor: above caps and windows, below conclude. Pure. A step goes on with an object that exists,
so that no answer to it can unmake the object: a no gives back only what the step had added, and
only where no other step may still land. An object that is done is concluded as any other.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import Attempt, AttemptOutcome, Changes, Operation, State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import move
from kb_mcp.proxy.rules.caps import count_decline
from kb_mcp.proxy.stripe.evidence import (
    CANCELED,
    Declined,
    Ending,
    Made,
    NeverBegan,
    Nothing,
    Rejected,
)

READ_AGAIN_MS = 60_000
_HOLD_NOTHING = frozenset({State.FAILED, State.AWAITING_APPROVAL})


def conclude_follow_up(
    snapshot: Snapshot, operation: Operation, attempt: Attempt, ending: Ending
) -> Changes:
    """Return the rows after the step `attempt` was answered, the operation first."""
    proof = ending.proof
    closed = _closed_by(snapshot, attempt, ending)
    current = operation.attempt == attempt.number and operation.lease_token == ending.token
    over = not (_alive(operation) or operation.state in _HOLD_NOTHING)
    if not current:
        # Somebody went on meanwhile: what this answer shows is older than what they know.
        return Changes(attempts=(closed,))
    if over:
        return Changes(operations=(_freed(snapshot, operation),), attempts=(closed,))
    if closed.outcome is AttemptOutcome.OPEN:
        later = 0 if ending.read_at is None else READ_AGAIN_MS
        waiting = replace(_freed(snapshot, operation), next_read_at=snapshot.now + later)
        return Changes(operations=(waiting,), attempts=(closed,))
    if isinstance(proof, Made):
        return _shown(snapshot, operation, closed, proof, ending.daily_declines)
    if isinstance(proof, Declined):
        return _declined(snapshot, operation, closed, proof, ending.daily_declines)
    return _restored(snapshot, operation, closed)


def _closed_by(snapshot: Snapshot, attempt: Attempt, ending: Ending) -> Attempt:
    """Return the step as the answer or the reading leaves it; open where nothing is proven."""
    proof = ending.proof
    match proof:
        case Made() if ending.read_at is not None:
            return _after_reading(snapshot, attempt, proof, ending.read_at)
        case Made():
            return _closed(attempt, AttemptOutcome.SUCCEEDED, proof.status)
        case Declined():
            return _closed(attempt, AttemptOutcome.DECLINED, proof.status)
        case Rejected() | NeverBegan():
            return _after_no(attempt, proof)
        case Nothing():
            return replace(attempt, status=proof.status)
        case _:
            assert_never(proof)


def _shown(
    snapshot: Snapshot, operation: Operation, step: Attempt, proof: Made, daily_declines: int
) -> Changes:
    """Return the rows after Stripe showed an object that is not done, in an answer or a reading."""
    if proof.verdict == "failed":
        return _failed(snapshot, operation, step, proof, daily_declines)
    if not _alive(operation):
        # It failed before, and nothing was reserved for this step: it holds nothing now.
        return Changes(operations=(_freed(snapshot, operation),), attempts=(step,))
    amount = proof.total or operation.amount
    shown = replace(
        _freed(snapshot, operation),
        amount=amount,
        held=_still_held(snapshot, operation, step, amount),
        stripe_status=proof.stripe_status,
        code=None,
        answer_status=proof.status,
        answer=proof.body,
        next_read_at=snapshot.now + READ_AGAIN_MS,
    )
    return Changes(operations=(shown,), attempts=(step,), windows=move(snapshot, operation, shown))


def _alive(operation: Operation) -> bool:
    return operation.state is State.SUCCEEDED and not operation.final


def _freed(snapshot: Snapshot, operation: Operation) -> Operation:
    return replace(operation, lease_owner=None, next_read_at=None, updated_at=snapshot.now)


def _closed(attempt: Attempt, outcome: AttemptOutcome, status: int | None) -> Attempt:
    return replace(attempt, outcome=outcome, open_sends=0, status=status)


def _after_no(attempt: Attempt, proof: Rejected | NeverBegan) -> Attempt:
    open_sends = max(attempt.open_sends - 1, 0)
    if open_sends > 0 or attempt.sends > 1:
        # While an earlier send is open, a later no proves nothing.
        return replace(attempt, open_sends=open_sends)
    outcome = AttemptOutcome.REJECTED if isinstance(proof, Rejected) else AttemptOutcome.NOT_SENT
    return _closed(attempt, outcome, proof.status)


def _after_reading(snapshot: Snapshot, step: Attempt, proof: Made, read_at: int) -> Attempt:
    """Return the step, closed where what was read since `read_at` cannot change by it any more."""
    if step.outcome is not AttemptOutcome.OPEN:
        return step
    if proof.stripe_status == CANCELED:
        return _closed(step, AttemptOutcome.SUCCEEDED, step.status)
    if read_at > step.last_sent_at + snapshot.settings.recovery_grace_ms and not snapshot.skewed:
        return _closed(step, AttemptOutcome.VOIDED, step.status)
    # Read, and free for another step: no send of it is waited for, though one may still land.
    return replace(step, open_sends=0)


def _failed(
    snapshot: Snapshot, operation: Operation, step: Attempt, proof: Made, daily_declines: int
) -> Changes:
    canceled = proof.stripe_status == CANCELED
    if not canceled and not _alive(operation):
        return Changes(operations=(_freed(snapshot, operation),), attempts=(step,))
    if not canceled and _may_land(snapshot, operation, step):
        waiting = replace(_freed(snapshot, operation), next_read_at=snapshot.now + READ_AGAIN_MS)
        return Changes(operations=(waiting,), attempts=(step,))
    counts = _alive(operation) and not canceled and step.path.endswith("/confirm")
    status = proof.stripe_status
    gone = replace(_over(snapshot, operation), stripe_status=status, code=status)
    # The next step on it holds what it comes to now.
    amount = proof.total or operation.amount
    gone = replace(gone, amount=amount, answer_status=proof.status, answer=proof.body)
    changes = _with_decline(snapshot, operation, gone, step, daily_declines if counts else None)
    return _with_maker_closed(snapshot, operation, changes)


def _declined(
    snapshot: Snapshot, operation: Operation, step: Attempt, proof: Declined, daily_declines: int
) -> Changes:
    if not step.path.endswith("/confirm") or _may_land(snapshot, operation, step):
        # A declined raise leaves the authorisation as it was; reading says how that is.
        back = _restored(snapshot, operation, step).operations[0]
        back = replace(back, next_read_at=snapshot.now)
        return _with_decline(snapshot, operation, back, step, daily_declines)
    gone = replace(_over(snapshot, operation), stripe_status="failed", code=proof.code)
    gone = replace(gone, answer_status=proof.status, answer=proof.body)
    changes = _with_decline(snapshot, operation, gone, step, daily_declines)
    return _with_maker_closed(snapshot, operation, changes)


def _over(snapshot: Snapshot, operation: Operation) -> Operation:
    return replace(_freed(snapshot, operation), state=State.FAILED, final=True, held=0)


def _with_decline(
    snapshot: Snapshot,
    operation: Operation,
    after: Operation,
    step: Attempt,
    daily_declines: int | None,
) -> Changes:
    counted = Changes()
    if daily_declines is not None:
        counted = count_decline(snapshot, operation, daily_declines)
    return replace(
        counted,
        operations=(after,),
        attempts=(step,),
        windows=(*move(snapshot, operation, after), *counted.windows),
    )


def _with_maker_closed(snapshot: Snapshot, operation: Operation, changes: Changes) -> Changes:
    """Return `changes`, and the attempt that made the object as one whose object is over."""
    made = snapshot.maker(operation)
    if made is None:
        return changes
    closed = replace(made, outcome=AttemptOutcome.DECLINED)
    return replace(changes, attempts=(*changes.attempts, closed))


def _restored(snapshot: Snapshot, operation: Operation, step: Attempt) -> Changes:
    """Return the operation as it was before the step, which is known to have done nothing."""
    if not _alive(operation):
        return Changes(operations=(_freed(snapshot, operation),), attempts=(step,))
    if (operation.answer_status or 0) >= 400 and not _may_land(snapshot, operation, step):
        # It had failed, and was reserved for this step alone.
        before = _over(snapshot, operation)
    else:
        held = _still_held(snapshot, operation, step, operation.amount)
        before = replace(_freed(snapshot, operation), held=held)
        before = replace(before, next_read_at=snapshot.now + READ_AGAIN_MS)
    return Changes(
        operations=(before,), attempts=(step,), windows=move(snapshot, operation, before)
    )


def _still_held(snapshot: Snapshot, operation: Operation, step: Attempt, amount: int) -> int:
    return max(operation.held, amount) if _may_land(snapshot, operation, step) else amount


def _may_land(snapshot: Snapshot, operation: Operation, step: Attempt) -> bool:
    """Say whether a step beside `step` was sent, and may yet arrive at Stripe."""
    return any(
        each.outcome is AttemptOutcome.OPEN
        and each.number != step.number
        and (
            snapshot.skewed
            or snapshot.now <= each.last_sent_at + snapshot.settings.recovery_grace_ms
        )
        for each in snapshot.attempts_of(operation)
        if operation.continued_by(each)
    )
