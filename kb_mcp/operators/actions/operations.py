"""What an operator may do to one operation: approve or deny, reopen, reset, forget.

Floor: operators, above the ledger. Each is one audited transaction; what was seen at Stripe arrives
as an argument. What an unresolved operation needs is never erased. What an approval covers, and how
it is used up, stands in `rules.approvals`; here only its state changes, and only from pending.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from kb_mcp.instants import how_many
from kb_mcp.money import MoneyError, check_amount
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import (
    Approval,
    Attempt,
    AttemptOutcome,
    AuditDraft,
    Changes,
    Operation,
    OperationId,
    Refs,
    Tally,
)
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules.duplicates import REFUND_READ_EVERY_MS
from kb_mcp.proxy.rules.operation_names import tally_of

REASON_MAX = 200
FORGOTTEN_DECLINE = "The payment was declined. Its details were erased."


@dataclass(frozen=True, slots=True)
class Done:
    """It is done; `operation` is as it was left."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class NotDone:
    """Nothing changed: why, and what may be done instead."""

    why: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class By:
    """Who does it and why."""

    operator: str
    reason: str | None = None

    def row(self, decision: str, operation: Operation, note: str | None = None) -> AuditDraft:
        """Return the audit row of this act on `operation`."""
        text = note or self.reason
        return AuditDraft(
            kind="admin",
            decision=decision,
            agent_id=self.operator,
            operation_id=operation.id,
            amount=operation.amount,
            currency=operation.currency,
            customer_id=operation.customer,
            object_id=operation.object_id,
            note=None if text is None else clean_text(text, REASON_MAX),
        )


@dataclass(frozen=True, slots=True)
class Reopening:
    """What may be billed once more: this bill, for `amount` (minor units) where one is given.

    With `release` it is the days of the bill, for other periods than its own.
    """

    amount: int | None = None
    release: bool = False


async def reopen(
    ledger: Ledger, operation: Operation, by: By, said: Reopening, *, refunded: bool
) -> Done | NotDone:
    """Let a refunded bill be billed once more (under K-r1…), or waive one wrong suspicion.

    `refunded` says that Stripe shows it as given back in full, by refunds that succeeded. Of a
    refund, one more may be made; together they are never more than the charge.
    """

    def step(snapshot: Snapshot) -> tuple[Done | NotDone, Changes]:
        current = snapshot.operations[operation.id]
        refusal = _not_reopenable(snapshot, current, said, refunded=refunded)
        if refusal is not None:
            return refusal, Changes()
        again = replace(current, updated_at=snapshot.now)
        if refunded:
            due = snapshot.now + REFUND_READ_EVERY_MS
            again = replace(again, refunded_at=snapshot.now, refund_read_at=due, waived=False)
        if current.kind == "refund":
            again = replace(again, reopened=True)
            row = by.row("reopen", again)
        elif said.release:
            row = by.row("release", again)
            again = replace(again, released=True)
        else:
            # Unrefunded, its own period stays charged: one other bill that looks like it may pass.
            row = by.row("reopen" if refunded else "waive", again)
            row = replace(row, amount=said.amount or again.amount)
            again = replace(
                again,
                reopened=refunded,
                waived=not refunded,
                permit_amount=said.amount,
                successor=None,
            )
        return Done(again), Changes(operations=(again,), audit=(row,))

    ids = frozenset({operation.id, *filter(None, [operation.successor])})
    refs = Refs(operations=ids, names=frozenset({operation.name}))
    return await ledger.transact(lambda _: refs, step)


def _not_reopenable(
    snapshot: Snapshot, current: Operation, said: Reopening, *, refunded: bool
) -> NotDone | None:
    newest = snapshot.newest(current.name)
    if current.kind == "refund":
        return _refund_not_reopenable(current, newest, said)
    if current.state is not S.SUCCEEDED or not current.final:
        why = f"operation {current.id} is {told_state(current)}, not succeeded for good"
        return NotDone(why, "Only what was charged can be billed once more.")
    if newest is not None and newest.id != current.id:
        return NotDone(f"{newest.id} is the newest of this bill", "Reopen that one.")
    if not refunded and (said.release or said.amount is not None):
        hint = "Refund it at Stripe first; a refund counts once it has succeeded."
        return NotDone(f"Stripe shows no full refund of {current.object_id}", hint)
    wrong = _wrong_amount(said, current)
    if wrong is not None:
        return wrong
    if said.release:
        return NotDone(f"operation {current.id} is released already") if current.released else None
    if current.refunded and (taker := snapshot.successor(current)) is not None:
        billed = taker.object_id or taker.state.value
        return NotDone(f"{taker.id} ({billed}) was billed in its place", "Look at that one.")
    open_for = current.permit_amount or current.amount
    unused = current.successor is None
    same = (current.reopened and open_for == (said.amount or current.amount)) or (
        current.waived and not refunded
    )
    return NotDone(f"operation {current.id} is open already") if unused and same else None


def _refund_not_reopenable(
    current: Operation, newest: Operation | None, said: Reopening
) -> NotDone | None:
    if said != Reopening():
        why = f"operation {current.id} is a refund: it has no days to free, and no other amount"
        return NotDone(why, "Reopen it without either; the next call says how much.")
    if current.state is not S.SUCCEEDED or not current.final:
        why = f"refund {current.id} is {told_state(current)}, not succeeded for good"
        return NotDone(why, "Only a refund that was made can be made once more.")
    if newest is None or newest.id != current.id:
        newer = newest.id if newest else "another operation"
        return NotDone(f"{newer} is the newest refund of this charge")
    return NotDone(f"operation {current.id} is open already") if current.reopened else None


def _wrong_amount(said: Reopening, operation: Operation) -> NotDone | None:
    if said.amount is None:
        return None
    if said.release:
        return NotDone("days are freed without an amount", "Give an amount or release, not both.")
    try:
        check_amount(said.amount, operation.currency)
    except MoneyError as error:
        return NotDone(str(error), "The amount is in the currency's minor unit: 2900 is 29.00 USD.")
    return None


async def reset_declines(ledger: Ledger, operation: Operation, by: By) -> int:
    """Start the count of declines of this bill anew; return how many there were."""
    key = tally_of(operation)

    def step(snapshot: Snapshot) -> tuple[int, Changes]:
        declines = snapshot.tally(key).declines
        row = by.row("reset", operation, note=how_many(declines, "decline"))
        return declines, Changes(tallies=(Tally(key),), audit=(row,))

    return await ledger.transact(lambda _: _refs(operation), step)


async def forget_answers(ledger: Ledger, operations: list[Operation], by: By) -> int:
    """Erase the stored answers of final operations; return how many there were.

    A decline keeps a bare answer, since its replay must stay an error.
    """
    erased = [await _forget_one(ledger, operation, by) for operation in operations]
    return sum(erased)


async def note(ledger: Ledger, row: AuditDraft) -> None:
    """Commit one audit row: of an operator's act whose rows the ledger does not hold."""
    await ledger.transact(lambda _: Refs(), lambda _: (None, Changes(audit=(row,))))


async def _forget_one(ledger: Ledger, operation: Operation, by: By) -> int:
    def step(snapshot: Snapshot) -> tuple[int, Changes]:
        current = snapshot.operations[operation.id]
        bare = _bare_answer(current, snapshot.attempts_of(current))
        if not forgettable(current) or current.answer == bare:
            return 0, Changes()
        erased = replace(current, answer=bare, updated_at=snapshot.now)
        return 1, Changes(operations=(erased,), audit=(by.row("forget", current),))

    return await ledger.transact(lambda _: _refs(operation), step)


def forgettable(operation: Operation) -> bool:
    """Say whether nothing that is still to be found out needs what is stored of `operation`."""
    over = operation.state in {S.SUCCEEDED, S.FAILED} and operation.final
    return over and operation.answer is not None


def _bare_answer(operation: Operation, attempts: list[Attempt]) -> bytes | None:
    declined = bool(attempts) and attempts[-1].outcome is AttemptOutcome.DECLINED
    if operation.state is not S.FAILED or not declined:
        return None
    error = {"type": "card_error", "code": operation.code, "message": FORGOTTEN_DECLINE}
    return json.dumps({"error": error}).encode()


def unresolvable(
    snapshot: Snapshot, operation: Operation, states: frozenset[S], else_why: str
) -> NotDone | None:
    """Return why nobody may say now what became of `operation`: its state, or somebody is at it."""
    if operation.state not in states:
        reserved = operation.state is S.RESERVED
        hint = "`kb-mcp recover` finds out, once its send is over." if reserved else None
        return NotDone(f"operation {operation.id} is {told_state(operation)}; {else_why}", hint)
    if snapshot.leased(operation):
        return NotDone(f"operation {operation.id} is being sent or read right now", "Try again.")
    return None


def told_state(operation: Operation) -> str:
    """Return the state of an operation in words."""
    return operation.state.value + ("" if operation.final else " but not final")


def _refs(operation: Operation) -> Refs:
    return Refs(
        operations=frozenset({OperationId(operation.id)}),
        tallies=frozenset({tally_of(operation)}),
    )


Verdict = Literal["approved", "denied"]
_DECISIONS = {"approved": "approve", "denied": "deny"}


@dataclass(frozen=True, slots=True)
class NotDecided:
    """Nothing changed: `why` is `missing`, `expired`, or the state somebody else left it in."""

    why: str
    decided_by: str | None = None


async def decide_approval(
    ledger: Ledger, approval_id: str, verdict: Verdict, operator: str
) -> Approval | NotDecided:
    """Decide a pending approval in the name of `operator`. Raises: LedgerUnavailableError."""

    def step(snapshot: Snapshot) -> tuple[Approval | NotDecided, Changes]:
        approval = snapshot.approvals.get(approval_id)
        if approval is None:
            return NotDecided("missing"), Changes()
        if approval.state != "pending":
            return NotDecided(approval.state, approval.decided_by), Changes()
        if approval.expires_at <= snapshot.now:
            return NotDecided("expired"), Changes()
        decided = replace(approval, state=verdict, decided_by=operator, decided_at=snapshot.now)
        method, _, path = approval.endpoint.partition(" ")
        row = AuditDraft(
            kind="admin",
            decision=_DECISIONS[verdict],
            agent_id=operator,
            key_id=approval.key_id,
            method=method,
            path=path,
            operation_id=approval.operation_id,
            amount=approval.amount,
            currency=approval.currency,
            customer_id=approval.customer,
            note=_note(approval),
        )
        return decided, Changes(approvals=(decided,), audit=(row,))

    return await ledger.transact(lambda _: Refs(approvals=frozenset({approval_id})), step)


def _note(approval: Approval) -> str:
    """Return what of `approval` has no column of its own in the audit."""
    parts = {
        "period": approval.period,
        "reference": approval.reference,
        "payment_method": approval.payment_method,
        "destination": approval.destination,
    }
    told = [f"{name} {value}" for name, value in parts.items() if value is not None]
    return ", ".join([approval.id, *told])
