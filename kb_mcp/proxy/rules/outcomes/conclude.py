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
from kb_mcp.proxy.ledger.windows import hold_again, release, settle, take_back
from kb_mcp.proxy.rules.caps import count_decline, freeze
from kb_mcp.proxy.rules.outcomes.follow_ups import READ_AGAIN_MS, conclude_follow_up
from kb_mcp.proxy.rules.outcomes.matching import as_asked, comes_to_of, difference
from kb_mcp.proxy.stripe.evidence import (
    CANCELED,
    Declined,
    Ending,
    Made,
    NeverBegan,
    Nothing,
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
    earlier = (
        _paid_meanwhile(snapshot, operation, attempt, proof) if isinstance(proof, Made) else None
    )
    if isinstance(proof, Made) and earlier is not None:
        unsent = replace(attempt, outcome=AttemptOutcome.NOT_SENT, open_sends=0)
        changes = _made(snapshot, operation, earlier, proof)
        return _told(operation, replace(changes, attempts=(*changes.attempts, unsent)), ending)
    if operation.continued_by(attempt) and not (
        isinstance(proof, Made) and proof.verdict == "done"
    ):
        return _told(operation, conclude_follow_up(snapshot, operation, attempt, ending), ending)
    match proof:
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
    return _told(operation, changes, ending)


def _told(operation: Operation, changes: Changes, ending: Ending) -> tuple[Operation, Changes]:
    after = changes.operations[0] if changes.operations else operation
    return after, replace(changes, audit=(*changes.audit, _outcome_row(after, ending)))


def _made(snapshot: Snapshot, operation: Operation, attempt: Attempt, proof: Made) -> Changes:
    # Paying an invoice twice names one object twice; only what creates money's objects owns them.
    step = operation.continued_by(attempt)
    owns = operation.amount > 0 and not step and not operation.pays_invoice
    owner = snapshot.object_owners.get(proof.object_id)
    if owns and owner is not None and owner != operation.id:
        # An object that concluded one operation never concludes another.
        return _kept_unknown(snapshot, operation, "object_of_another_operation")
    if _known_since(operation, attempt, proof):
        return Changes()
    closed = replace(
        attempt, outcome=AttemptOutcome.SUCCEEDED, open_sends=0,
        status=proof.status, object_id=proof.object_id if owns else None,
    )  # fmt: skip
    if operation.pays_invoice:
        if proof.object_id != operation.object_id:
            return _kept_unknown(snapshot, operation, "object_of_another_operation")
        closed = replace(closed, object_id=_payment_of(snapshot, attempt, proof))
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
    done = replace(
        bill,
        state=State.SUCCEEDED,
        final=final or known,
        amount=proof.total or operation.amount if step else bill.amount,
        held=taken if final or known else bill.held or bill.amount,
        object_id=operation.object_id if known else proof.object_id,
        stripe_status=proof.stripe_status,
        code=None if differs is None else DIFFERS,
        answer_status=proof.status,
        answer=proof.body,
        lease_owner=None,
        overshoot=(
            operation.overshoot or late or differs is not None or taken > operation.held > 0
        ),
        next_read_at=_next_read(snapshot, operation, closed, taken, final=final or known),
        updated_at=snapshot.now,
    )
    why = f"a {operation.kind} turned up late" if late else differs
    return Changes(
        operations=(done,),
        attempts=(closed,),
        windows=_counted(snapshot, operation, done, final=final, held=held, late=late),
        lineages=() if why is None else (freeze(snapshot, operation, why),),
    )


def _paid_meanwhile(
    snapshot: Snapshot, operation: Operation, attempt: Attempt, proof: Made
) -> Attempt | None:
    """Return the earlier attempt whose object `proof` shows as paid, or None.

    Before a new attempt is sent, what the last one left is cancelled; this is where it was paid.
    """
    if proof.verdict != "done" or operation.continued_by(attempt):
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
        later_ms = min(max(age_ms, READ_AGAIN_MS), HOUR_MS)
        asked_for = taken > 0 and closed.object_id is None and age_ms < LOOKED_FOR_MS
        asked_before = operation.state is State.SUCCEEDED and operation.final
        if not final or (asked_for and asked_before):
            return snapshot.now + later_ms
        return snapshot.now if asked_for else None
    if not final:
        return snapshot.now + READ_AGAIN_MS
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


def _counted(
    snapshot: Snapshot,
    operation: Operation,
    done: Operation,
    *,
    final: bool,
    held: bool,
    late: bool,
) -> tuple[Window, ...]:
    """Return the windows after a yes: a final one is spend, one that may still fail stays held."""
    if held and done.currency == operation.currency:
        return settle(snapshot, operation, done.held, held=True) if final else ()
    if not held and not late:
        return ()
    released = release(snapshot, operation) if held else ()
    if not final:
        return (*released, *hold_again(snapshot, done))
    return (*released, *settle(snapshot, done, done.held, held=False))


def _declined(
    snapshot: Snapshot, operation: Operation, attempt: Attempt, proof: Declined, ending: Ending
) -> Changes:
    # The intent of an invoice goes on: the payment that succeeds in the end is its own, too.
    invoice = operation.pays_invoice
    closed = replace(
        attempt, outcome=AttemptOutcome.DECLINED, open_sends=0,
        status=proof.status, object_id=None if invoice else proof.object_id,
    )  # fmt: skip
    if attempt.outcome is AttemptOutcome.DECLINED:
        return Changes()
    settled = operation.state is State.SUCCEEDED and operation.final
    came_back = settled and operation.gives_back is not None
    if (settled and not came_back) or operation.attempt != attempt.number:
        return Changes(attempts=(closed,))
    failed = replace(
        operation,
        state=State.FAILED,
        final=True,
        held=0,
        object_id=operation.object_id if invoice else proof.object_id,
        stripe_status="failed",
        code=proof.code,
        answer_status=proof.status,
        answer=proof.body,
        lease_owner=None,
        next_read_at=None,
        updated_at=snapshot.now,
    )
    given_back = take_back(snapshot, operation) if came_back else _given_back(snapshot, operation)
    if proof.code in NOBODYS_NO or operation.gives_back is not None:
        # Nobody's card said no: a cancelled intent, or a refund that came back, counts for nothing.
        return Changes(operations=(failed,), attempts=(closed,), windows=given_back)
    counted = count_decline(snapshot, operation, ending.daily_declines)
    return replace(
        counted,
        operations=(failed,),
        attempts=(closed,),
        windows=(*given_back, *counted.windows),
    )


def _negative(
    snapshot: Snapshot,
    operation: Operation,
    attempt: Attempt,
    proof: Rejected | NeverBegan,
    ending: Ending,
) -> Changes:
    open_sends = max(attempt.open_sends - 1, 0)
    outcome = AttemptOutcome.REJECTED if isinstance(proof, Rejected) else AttemptOutcome.NOT_SENT
    current = operation.attempt == attempt.number and operation.state in HOLDING
    mine = operation.lease_token == ending.token
    if not current or (not mine and snapshot.leased(operation)):
        return Changes(attempts=(replace(attempt, open_sends=open_sends),))
    if open_sends > 0:
        # While an earlier send is open, a later no proves nothing.
        waiting = _kept_unknown(snapshot, operation, operation.code)
        return replace(waiting, attempts=(replace(attempt, open_sends=open_sends),))
    failed = replace(
        operation,
        state=State.FAILED,
        held=0,
        code=proof.code,
        answer_status=proof.status,
        answer=proof.body,
        lease_owner=None,
        next_read_at=None,
        updated_at=snapshot.now,
    )
    closed = replace(attempt, outcome=outcome, open_sends=0, status=proof.status)
    return Changes(operations=(failed,), attempts=(closed,), windows=release(snapshot, operation))


def _unproven(
    snapshot: Snapshot, operation: Operation, attempt: Attempt, proof: Nothing, ending: Ending
) -> Changes:
    # An error that Stripe keeps under the key is remembered, whatever a later send comes to.
    kept_error = (attempt.status or 0) >= 500 and (proof.status or 0) < 500
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
    unknown = replace(
        operation, state=State.UNKNOWN, code=code or "outcome_unknown", lease_owner=None,
        next_read_at=snapshot.now, updated_at=snapshot.now,
    )  # fmt: skip
    return Changes(operations=(unknown,))


def _given_back(snapshot: Snapshot, operation: Operation) -> tuple[Window, ...]:
    if operation.state in HOLDING or not operation.final:
        return release(snapshot, operation)
    return ()


def _outcome_row(operation: Operation, ending: Ending) -> AuditDraft:
    proof = ending.proof
    code: str | None = operation.code if isinstance(proof, Made) else None
    if operation.gives_back is not None and isinstance(proof, Made) and proof.verdict == "failed":
        # However late: people are told.
        code = REFUND_FAILED
    if isinstance(proof, Rejected) and proof.ours:
        # As the caller is told: it was our own key that Stripe refused, not the bill.
        code = "upstream_rejected_key"
    elif isinstance(proof, Declined | Rejected | NeverBegan):
        code = proof.code
    elif isinstance(proof, Nothing):
        code = "outcome_unknown"
    return replace(
        ending.request,
        kind="outcome" if ending.request.kind != "recovery" else "recovery",
        decision=operation.state.value,
        code=code,
        operation_id=operation.id,
        attempt=ending.attempt,
        amount=operation.amount,
        currency=operation.currency,
        customer_id=operation.customer,
        stripe_status=proof.status,
        object_id=operation.object_id,
    )
