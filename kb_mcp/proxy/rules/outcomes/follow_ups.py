"""How a step ends: what an operation holds once confirm, capture, raise or cancel was answered.

Floor: above gates and windows, below conclude. Pure. A step goes on with an object that exists,
so that no answer to it can unmake the object: a no gives back only what the step had added, and
only where no other step may still land. An object that is done is concluded as any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, assert_never

from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import Attempt, AttemptOutcome, Changes, Operation, State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import move
from kb_mcp.proxy.rules.gates import count_decline
from kb_mcp.proxy.stripe import evidence

READ_AGAIN_MS = 60_000
No = evidence.Rejected | evidence.NeverBegan
FAILED: Final[dict[str, Any]] = {"state": State.FAILED, "final": True, "held": 0}
_HOLD_NOTHING = frozenset({State.FAILED, State.AWAITING_APPROVAL})


def closed_by_no(attempt: Attempt, proof: No) -> Attempt:
    """Return `attempt` once `proof` is known to hold for every send of it."""
    rejected = isinstance(proof, evidence.Rejected)
    outcome = AttemptOutcome.REJECTED if rejected else AttemptOutcome.NOT_SENT
    return attempt.closed(outcome, proof.status)


def conclude_follow_up(
    snapshot: Snapshot, operation: Operation, attempt: Attempt, ending: evidence.Ending
) -> Changes:
    """Return the rows after the step `attempt` was answered, the operation first."""
    step = _closed_by(snapshot, attempt, ending)
    if operation.attempt != attempt.number or operation.lease_token != ending.token:
        # Somebody went on meanwhile: what this answer shows is older than what they know.
        return Changes(attempts=(step,))
    return _EndedStep(snapshot, operation, step, ending).rows()


def _closed_by(snapshot: Snapshot, attempt: Attempt, ending: evidence.Ending) -> Attempt:
    """Return the step as the answer or the reading leaves it; open where nothing is proven."""
    proof = ending.proof
    match proof:
        case evidence.Made() if ending.read_at is not None:
            return _after_reading(snapshot, attempt, proof, ending.read_at)
        case evidence.Made():
            return attempt.closed(AttemptOutcome.SUCCEEDED, proof.status)
        case evidence.Declined():
            return attempt.closed(AttemptOutcome.DECLINED, proof.status)
        case evidence.Rejected() | evidence.NeverBegan():
            if attempt.open_sends > 1 or attempt.sends > 1:
                # While an earlier send is open, a later no proves nothing.
                return replace(attempt, open_sends=max(attempt.open_sends - 1, 0))
            return closed_by_no(attempt, proof)
        case evidence.Nothing():
            return replace(attempt, status=proof.status)
        case _:
            assert_never(proof)


def _after_reading(
    snapshot: Snapshot, step: Attempt, proof: evidence.Made, read_at: int
) -> Attempt:
    """Return the step, closed where what was read since `read_at` cannot change by it any more."""
    if step.outcome is not AttemptOutcome.OPEN:
        return step
    if proof.stripe_status == evidence.CANCELED:
        return step.closed(AttemptOutcome.SUCCEEDED, step.status)
    if read_at > step.last_sent_at + snapshot.settings.recovery_grace_ms and not snapshot.skewed:
        return step.closed(AttemptOutcome.VOIDED, step.status)
    # Read, and free for another step: no send of it is waited for, though one may still land.
    return replace(step, open_sends=0)


@dataclass(frozen=True, slots=True)
class _EndedStep:
    """The newest step of its operation, once it was answered; `step` is as the answer leaves it."""

    snapshot: Snapshot
    operation: Operation
    step: Attempt
    ending: evidence.Ending

    def rows(self) -> Changes:
        """Return the rows that the end of the step leaves behind."""
        proof, state = self.ending.proof, self.operation.state
        if not (self._alive or state in _HOLD_NOTHING):
            return self._leave()
        if self.step.outcome is AttemptOutcome.OPEN:
            return self._leave(again_ms=0 if self.ending.read_at is None else READ_AGAIN_MS)
        match proof:
            case evidence.Made(verdict="failed"):
                return self._failed(proof)
            case evidence.Made() if self._alive:
                return self._shown(proof)
            case evidence.Declined():
                return self._declined(proof)
            case _:
                return self._restored()

    @property
    def _alive(self) -> bool:
        return self.operation.state is State.SUCCEEDED and not self.operation.final

    def _leave(self, again_ms: int | None = None) -> Changes:
        """Return the operation as it is, to be read again `again_ms` from now if at all."""
        now = self.snapshot.now
        again = None if again_ms is None else now + again_ms
        return self._with(self.operation.ended(now, next_read_at=again))

    def _with(self, after: Operation, *, declined: bool = False) -> Changes:
        """Return the rows with the operation as it is `after`, and a decline where it was one."""
        counted = Changes()
        if declined:
            counted = count_decline(self.snapshot, self.operation, self.ending.daily_declines)
        windows = (*move(self.snapshot, self.operation, after), *counted.windows)
        return replace(counted, operations=(after,), attempts=(self.step,), windows=windows)

    def _over(self, *, declined: bool, **changes: Any) -> Changes:
        """Return the operation as failed, and the attempt that made the object as over."""
        failed = self.operation.ended(self.snapshot.now, **FAILED, **changes)
        changed, made = self._with(failed, declined=declined), self.snapshot.maker(self.operation)
        closed = () if made is None else (replace(made, outcome=AttemptOutcome.DECLINED),)
        return replace(changed, attempts=(*changed.attempts, *closed))

    def _shown(self, proof: evidence.Made) -> Changes:
        """Return the rows after Stripe showed an object that is not done yet."""
        now, amount = self.snapshot.now, proof.total or self.operation.amount
        shown = self.operation.ended(
            now,
            amount=amount,
            held=self._still_held(amount),
            stripe_status=proof.stripe_status,
            code=None,
            answer_status=proof.status,
            answer=proof.body,
            next_read_at=now + READ_AGAIN_MS,
        )
        return self._with(shown)

    def _failed(self, proof: evidence.Made) -> Changes:
        status = proof.stripe_status
        if status != evidence.CANCELED and not self._alive:
            return self._leave()
        if status != evidence.CANCELED and self._may_land:
            return self._leave(again_ms=READ_AGAIN_MS)
        return self._over(
            declined=status != evidence.CANCELED and self._confirms,
            stripe_status=status,
            code=status,
            # The next step on it holds what it comes to now.
            amount=proof.total or self.operation.amount,
            answer_status=proof.status,
            answer=proof.body,
        )

    def _declined(self, proof: evidence.Declined) -> Changes:
        if not self._confirms or self._may_land:
            # A declined raise leaves the authorisation as it was; reading says how that is.
            back = replace(self._restored().operations[0], next_read_at=self.snapshot.now)
            return self._with(back, declined=True)
        return self._over(
            declined=True,
            stripe_status="failed",
            code=proof.code,
            answer_status=proof.status,
            answer=proof.body,
        )

    def _restored(self) -> Changes:
        """Return the operation as it was before the step, which is known to have done nothing."""
        operation, now = self.operation, self.snapshot.now
        if not self._alive:
            # It failed before, and nothing was reserved for this step: it holds nothing now.
            return self._leave()
        if (operation.answer_status or 0) >= 400 and not self._may_land:
            # It had failed, and was reserved for this step alone.
            return self._with(operation.ended(now, **FAILED))
        held = self._still_held(operation.amount)
        return self._with(operation.ended(now, held=held, next_read_at=now + READ_AGAIN_MS))

    def _still_held(self, amount: int) -> int:
        return max(self.operation.held, amount) if self._may_land else amount

    @property
    def _confirms(self) -> bool:
        return self.step.path.endswith("/confirm")

    @property
    def _may_land(self) -> bool:
        """Say whether a step beside this one was sent, and may yet arrive at Stripe."""
        snapshot = self.snapshot
        since = snapshot.now - snapshot.settings.recovery_grace_ms
        return any(
            each.outcome is AttemptOutcome.OPEN
            and each.number != self.step.number
            and (snapshot.skewed or each.last_sent_at >= since)
            for each in snapshot.attempts_of(self.operation)
            if self.operation.continued_by(each)
        )
