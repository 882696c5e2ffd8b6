"""Concluding: what becomes of an operation once something about a send is proven.

Floor: above evidence and windows, below governor and recovery. Pure. The rules:

* a yes counts whenever it comes, also after a void or from a send that lost its lease;
* a decline (402) settles its upstream key for every send of it;
* any other no counts only where no other send of the attempt is open;
* everything else leaves the reservation where it is;
* the object of an earlier attempt that was paid since is the bill: nothing was sent beside it.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import (
    HOLDING,
    Attempt,
    AttemptOutcome,
    AuditDraft,
    Changes,
    Operation,
    State,
    Window,
)
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import count, release
from kb_mcp.proxy.rules.gates import count_decline, freeze
from kb_mcp.proxy.rules.outcomes import follow_ups
from kb_mcp.proxy.rules.outcomes.matching import as_asked, comes_to_of, difference
from kb_mcp.proxy.stripe.evidence import (
    CANCELED,
    Declined,
    Ending,
    Made,
    NeverBegan,
    Nothing,
    Proof,
    Rejected,
)

# A bank may return a refund for some 30 days.
COMES_BACK_WITHIN_MS = 32 * 86_400_000
HOUR_MS = 3_600_000
# How long the payment of a paid invoice is looked for.
LOOKED_FOR_MS = 25 * HOUR_MS
NOBODYS_NO = frozenset({CANCELED, "uncollectible", "void"})
REFUND_FAILED = "refund_failed"
FOREIGN_KEY = "key_used_outside_ledger"
DIFFERS = "answer_differs"


def conclude(snapshot: Snapshot, ending: Ending) -> tuple[Operation, Changes]:
    """Return the operation after `ending`, and the rows that it changes, audit row included."""
    operation = snapshot.operations[ending.operation_id]
    attempt = snapshot.attempts[ending.operation_id, ending.attempt]
    proof = ending.proof
    earlier = _paid_meanwhile(snapshot, operation, attempt, proof)
    match proof:
        case Made() if earlier is not None:
            unsent = replace(attempt, outcome=AttemptOutcome.NOT_SENT, open_sends=0)
            changes = _made(snapshot, operation, earlier, proof)
            changes = replace(changes, attempts=(*changes.attempts, unsent))
        case Made(verdict="done"):
            changes = _made(snapshot, operation, attempt, proof)
        case _ if operation.continued_by(attempt):
            changes = follow_ups.conclude_follow_up(snapshot, operation, attempt, ending)
        case Made(verdict="failed"):
            decline = Declined(proof.object_id, proof.status, proof.body, proof.stripe_status)
            changes = _declined(snapshot, operation, attempt, decline, ending)
        case Made():
            changes = _made(snapshot, operation, attempt, proof)
        case Declined():
            changes = _declined(snapshot, operation, attempt, proof, ending)
        case Rejected() | NeverBegan():
            changes = _negative(snapshot, operation, attempt, proof, ending)
        case Nothing():
            changes = _unproven(snapshot, operation, attempt, proof, ending)
        case _:
            assert_never(proof)
    after = changes.operations[0] if changes.operations else operation
    return after, replace(changes, audit=(_outcome_row(after, ending),))


def _made(snapshot: Snapshot, operation: Operation, attempt: Attempt, proof: Made) -> Changes:
    # Paying an invoice twice names one object twice; only what creates money's objects owns them.
    invoice, object_id = operation.pays_invoice, proof.object_id
    owns = operation.amount > 0 and not operation.continued_by(attempt) and not invoice
    owner = snapshot.object_owners.get(object_id, operation.id)
    foreign = object_id != operation.object_id if invoice else owns and owner != operation.id
    if foreign:
        # An object that concluded one operation never concludes another.
        return _kept_unknown(snapshot, operation, "object_of_another_operation")
    if _known_since(operation, attempt, proof):
        return Changes()
    made = _payment_of(snapshot, attempt, proof) if invoice else object_id if owns else None
    closed = attempt.closed(AttemptOutcome.SUCCEEDED, proof.status, object_id=made)
    return _booked(snapshot, operation, closed, proof)


def _booked(snapshot: Snapshot, operation: Operation, closed: Attempt, proof: Made) -> Changes:
    """Return the operation as what `closed` made, counted where it was reserved."""
    step = operation.continued_by(closed)
    final = proof.verdict == "done"
    held = operation.state in HOLDING or not operation.final
    known = operation.state is State.SUCCEEDED and operation.final
    bill = operation if known or step else as_asked(operation, closed, proof)
    differs = difference(snapshot, operation, proof, step=step)
    if differs is None and bill.period != operation.period:
        differs = f"it was sent for {bill.period}, not {operation.period}"
    taken = _taken(bill, proof, known=known, differs=differs is not None)
    late = not held and not (known and operation.object_id == proof.object_id)
    done = bill.ended(
        snapshot.now,
        state=State.SUCCEEDED,
        final=final or known,
        amount=proof.total or operation.amount if step else bill.amount,
        held=taken if final or known else bill.held or bill.amount,
        object_id=operation.object_id if known else proof.object_id,
        stripe_status=proof.stripe_status,
        code=None if differs is None else DIFFERS,
        answer_status=proof.status,
        answer=proof.body,
        overshoot=operation.overshoot or late or differs is not None or taken > operation.held > 0,
        next_read_at=_next_read(snapshot, operation, closed, taken, final=final or known),
    )
    windows: tuple[Window, ...] = ()
    if held and done.currency == operation.currency:
        # One that may still fail stays held.
        if final:
            windows = count(snapshot, operation, reserved=-operation.held, settled=done.held)
    elif held or late:
        counted = {"settled": done.held} if final else {"reserved": done.amount}
        freed = release(snapshot, operation) if held else ()
        windows = (*freed, *count(snapshot, done, **counted))
    why = f"a {operation.kind} turned up late" if late else differs
    frozen = () if why is None else (freeze(snapshot, operation, why),)
    return Changes(operations=(done,), attempts=(closed,), windows=windows, lineages=frozen)


def _paid_meanwhile(
    snapshot: Snapshot, operation: Operation, attempt: Attempt, proof: Proof
) -> Attempt | None:
    """Return the earlier attempt whose object `proof` shows as paid, or None.

    Before a new attempt is sent, what the last one left is cancelled; this is where it was paid.
    """
    if not isinstance(proof, Made) or proof.verdict != "done" or operation.continued_by(attempt):
        return None
    earlier = (each for each in snapshot.attempts_of(operation) if each.number < attempt.number)
    return next((each for each in earlier if each.object_id == proof.object_id), None)


def _payment_of(snapshot: Snapshot, attempt: Attempt, proof: Made) -> str | None:
    """Return the charge or intent that paid an invoice, so that no other bill is taken for it."""
    paid_by = proof.facts.get("paid_by")
    if not isinstance(paid_by, str) or proof.verdict != "done":
        return attempt.object_id
    owner = snapshot.object_owners.get(paid_by, attempt.operation_id)
    return paid_by if owner == attempt.operation_id else attempt.object_id


def _next_read(
    snapshot: Snapshot, operation: Operation, closed: Attempt, taken: int, *, final: bool
) -> int | None:
    """Return when the object must be read again, or None where nothing can come any more.

    A refund may fail days after it succeeded, so it is read at ever longer intervals for a month.
    Of an invoice that is paid, what paid it is asked for; one that is open may be so for weeks.
    Source: docs.stripe.com/refunds#failed-refunds.
    """
    age_ms = snapshot.now - operation.reserved_at
    if operation.pays_invoice:
        later_ms = min(max(age_ms, follow_ups.READ_AGAIN_MS), HOUR_MS)
        asked_for = taken > 0 and closed.object_id is None and age_ms < LOOKED_FOR_MS
        asked_before = operation.state is State.SUCCEEDED and operation.final
        if not final or (asked_for and asked_before):
            return snapshot.now + later_ms
        return snapshot.now if asked_for else None
    if not final:
        return snapshot.now + follow_ups.READ_AGAIN_MS
    if operation.gives_back is None:
        return None
    return None if age_ms > COMES_BACK_WITHIN_MS else snapshot.now + max(age_ms, HOUR_MS)


def _taken(operation: Operation, proof: Made, *, known: bool, differs: bool) -> int:
    """Return what a yes counts for: what is known stays, and a larger amount is the truth."""
    if known:
        return operation.held
    if operation.pays_invoice:
        # Paid, and nothing that says by how much: what was reserved.
        return comes_to_of(operation, proof) or operation.amount
    if not operation.final and proof.verdict == "done":
        # What was authorised first may be taken in part; what is made at once is taken whole.
        return proof.moved or proof.total or operation.amount
    same_currency = proof.facts.get("currency", operation.currency) == operation.currency
    if differs and same_currency:
        return max(operation.amount, proof.total or 0)
    return operation.amount


def _known_since(operation: Operation, attempt: Attempt, proof: Made) -> bool:
    """Say whether the object's end is known, or a step has gone on with it.

    An answer that calls it pending lay in the line then: it is older than what is known. So is one
    that calls a refund done which has come back since.
    """
    object_id = proof.object_id
    if proof.verdict != "pending" and operation.gives_back is None:
        return False
    if attempt.outcome is AttemptOutcome.DECLINED:
        return attempt.object_id == object_id
    if proof.verdict != "pending":
        return False
    settled = operation.state is State.SUCCEEDED and operation.final
    went_on = operation.attempt != attempt.number
    return (settled or went_on) and operation.object_id == object_id


def _declined(
    snapshot: Snapshot, operation: Operation, attempt: Attempt, proof: Declined, ending: Ending
) -> Changes:
    if attempt.outcome is AttemptOutcome.DECLINED:
        return Changes()
    # The intent of an invoice goes on: the payment that succeeds in the end is its own, too.
    invoice, refund = operation.pays_invoice, operation.gives_back is not None
    made = None if invoice else proof.object_id
    closed = attempt.closed(AttemptOutcome.DECLINED, proof.status, object_id=made)
    settled = operation.state is State.SUCCEEDED and operation.final
    if (settled and not refund) or operation.attempt != attempt.number:
        return Changes(attempts=(closed,))
    failed = operation.ended(
        snapshot.now,
        **follow_ups.FAILED,
        object_id=operation.object_id if invoice else proof.object_id,
        stripe_status="failed",
        code=proof.code,
        answer_status=proof.status,
        answer=proof.body,
    )
    counted = Changes()
    if not refund and proof.code not in NOBODYS_NO:
        # A cancelled intent, or a refund that came back, is no card's no and counts for nothing.
        counted = count_decline(snapshot, operation, ending.daily_declines)
    windows = (*_given_back(snapshot, operation), *counted.windows)
    return replace(counted, operations=(failed,), attempts=(closed,), windows=windows)


def _given_back(snapshot: Snapshot, operation: Operation) -> tuple[Window, ...]:
    """Return the windows without what `operation` holds, or had settled before it came back."""
    if operation.state in HOLDING or not operation.final:
        return release(snapshot, operation)
    if operation.state is State.SUCCEEDED:
        return count(snapshot, operation, settled=-operation.held)
    return ()


def _negative(
    snapshot: Snapshot, operation: Operation, attempt: Attempt, proof: follow_ups.No, ending: Ending
) -> Changes:
    open_sends = max(attempt.open_sends - 1, 0)
    current = operation.attempt == attempt.number and operation.state in HOLDING
    mine = operation.lease_token == ending.token
    if not current or (not mine and snapshot.leased(operation)):
        return Changes(attempts=(replace(attempt, open_sends=open_sends),))
    if open_sends > 0:
        # While an earlier send is open, a later no proves nothing.
        waiting = _kept_unknown(snapshot, operation, operation.code)
        return replace(waiting, attempts=(replace(attempt, open_sends=open_sends),))
    failed = operation.ended(
        snapshot.now,
        state=State.FAILED,
        held=0,
        code=proof.code,
        answer_status=proof.status,
        answer=proof.body,
    )
    closed = follow_ups.closed_by_no(attempt, proof)
    return Changes(operations=(failed,), attempts=(closed,), windows=release(snapshot, operation))


def _unproven(
    snapshot: Snapshot, operation: Operation, attempt: Attempt, proof: Nothing, ending: Ending
) -> Changes:
    # An error that Stripe keeps under the key is remembered, whatever a later send comes to.
    kept_error = (attempt.status or 0) >= 500 > (proof.status or 0)
    noted = attempt if kept_error else replace(attempt, status=proof.status)
    if operation.state not in HOLDING or operation.lease_token != ending.token:
        return Changes(attempts=(noted,))
    # While an earlier send is open, a key in use (409) is in use by that send: ours, not foreign.
    ours = proof.status == 409 and attempt.open_sends > 1
    foreign = (proof.foreign and not ours) or operation.code == FOREIGN_KEY
    kept = _kept_unknown(snapshot, operation, FOREIGN_KEY if foreign else "outcome_unknown")
    return replace(kept, attempts=(noted,))


def _kept_unknown(snapshot: Snapshot, operation: Operation, code: str | None) -> Changes:
    if operation.state not in HOLDING:
        return Changes()
    now, code = snapshot.now, code or "outcome_unknown"
    unknown = operation.ended(now, state=State.UNKNOWN, code=code, next_read_at=now)
    return Changes(operations=(unknown,))


def _outcome_row(operation: Operation, ending: Ending) -> AuditDraft:
    proof = ending.proof
    match proof:
        case Made(verdict="failed") if operation.gives_back is not None:
            # However late: people are told.
            code: str | None = REFUND_FAILED
        case Made():
            code = operation.code
        case Rejected(ours=True):
            # As the caller is told: it was our own key that Stripe refused, not the bill.
            code = "upstream_rejected_key"
        case Declined() | Rejected() | NeverBegan():
            code = proof.code
        case Nothing():
            code = "outcome_unknown"
        case _:
            assert_never(proof)
    return ending.request.about(
        operation,
        kind="recovery" if ending.request.kind == "recovery" else "outcome",
        decision=operation.state.value,
        code=code,
        attempt=ending.attempt,
        stripe_status=proof.status,
        object_id=operation.object_id,
    )
