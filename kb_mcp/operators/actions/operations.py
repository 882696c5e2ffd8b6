"""What an operator may do to one operation: approve or deny, reopen, reset, forget.

Floor: operators, above the ledger. Each is one audited transaction; what was seen at Stripe arrives
as an argument. What an unresolved operation needs is never erased. What an approval covers, and how
it is used up, stands in `rules.gates`; here only its state changes, and only from pending.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

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
    Refs,
    Tally,
)
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules.duplicates import REFUND_READ_EVERY_MS
from kb_mcp.proxy.rules.operation_names import tally_of
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS

REASON_MAX = 200
FORGOTTEN_DECLINE = "The payment was declined. Its details were erased."


@dataclass(frozen=True, slots=True)
class NotDone:
    """Nothing changed: why, and what may be done instead."""

    why: str
    hint: str | None = None


def admin_row(
    operator: str | None, decision: str, note: str | None = None, **columns: Any
) -> AuditDraft:
    """Return the audit row of what `operator` did; `columns` say to what."""
    return AuditDraft(kind="admin", agent_id=operator, decision=decision, note=note, **columns)


@dataclass(frozen=True, slots=True)
class By:
    """Who does it and why."""

    operator: str
    reason: str | None = None

    def row(self, decision: str, operation: Operation, note: str | None = None) -> AuditDraft:
        """Return the audit row of this act on `operation`."""
        text = note or self.reason
        cleaned = None if text is None else clean_text(text, REASON_MAX)
        row = admin_row(self.operator, decision, cleaned)
        return row.about(operation, object_id=operation.object_id)


@dataclass(frozen=True, slots=True)
class Reopening:
    """What may be billed once more: this bill, for `amount` (minor units) where one is given.

    With `release` it is the days of the bill, for other periods than its own.
    """

    amount: int | None = None
    release: bool = False


async def reopen(
    ledger: Ledger, operation: Operation, by: By, said: Reopening, *, refunded: bool
) -> Operation | NotDone:
    """Let a refunded bill be billed once more (under K-r1…), or waive one wrong suspicion.

    `refunded` says that Stripe shows it as given back in full, by refunds that succeeded. Of a
    refund, one more may be made; together they are never more than the charge.
    """

    def step(snapshot: Snapshot) -> tuple[Operation | NotDone, Changes]:
        current = snapshot.operations[operation.id]
        refusal = next(_why_not_once_more(snapshot, current, said, refunded=refunded), None)
        if refusal is not None:
            return refusal, Changes()
        again = replace(current, updated_at=snapshot.now)
        if refunded:
            due = snapshot.now + REFUND_READ_EVERY_MS
            again = replace(again, refunded_at=snapshot.now, refund_read_at=due, waived=False)
        if said.release:
            row, again = by.row("release", again), replace(again, released=True)
        elif current.kind == "refund":
            row, again = by.row("reopen", again), replace(again, reopened=True)
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
        return again, Changes(operations=(again,), audit=(row,))

    ids = frozenset({operation.id, *filter(None, [operation.successor])})
    refs = Refs(operations=ids, names=frozenset({operation.name}))
    return await ledger.transact(lambda _: refs, step)


def _why_not_once_more(
    snapshot: Snapshot, current: Operation, said: Reopening, *, refunded: bool
) -> Iterator[NotDone]:
    """Yield why `current` cannot be opened, which Stripe shows as `refunded` or not."""
    kind, newest = current.kind, snapshot.newest(current.name) or current
    if kind == "refund" and said != Reopening():
        why = f"operation {current.id} is a refund: it has no days to free, and no other amount"
        yield NotDone(why, "Reopen it without either; the next call says how much.")
    if current.state is not S.SUCCEEDED or not current.final:
        why = f"{kind} {current.id} is {told_state(current)}, not succeeded for good"
        yield NotDone(why, f"Only a {kind} that was made can be made once more.")
    if newest.id != current.id:
        of = "refund of this charge" if kind == "refund" else "of this bill"
        yield NotDone(f"{newest.id} is the newest {of}", "Reopen that one.")
    if kind != "refund":
        yield from _why_no_other_bill(snapshot, current, said, refunded=refunded)
    elif current.reopened:
        yield NotDone(f"operation {current.id} is open already")


def _why_no_other_bill(
    snapshot: Snapshot, current: Operation, said: Reopening, *, refunded: bool
) -> Iterator[NotDone]:
    if not refunded and said != Reopening():
        hint = "Refund it at Stripe first; a refund counts once it has succeeded."
        yield NotDone(f"Stripe shows no full refund of {current.object_id}", hint)
    if said.release and said.amount is not None:
        yield NotDone("days are freed without an amount", "Give an amount or release, not both.")
    if said.amount is not None:
        try:
            check_amount(said.amount, current.currency)
        except MoneyError as error:
            hint = "The amount is in the currency's minor unit: 2900 is 29.00 USD."
            yield NotDone(str(error), hint)
    taker, amount = snapshot.successor(current), said.amount or current.amount
    if current.refunded and taker is not None and not said.release:
        billed = taker.object_id or taker.state.value
        yield NotDone(f"{taker.id} ({billed}) was billed in its place", "Look at that one.")
    same = current.reopened and (current.permit_amount or current.amount) == amount
    unused = current.successor is None and (same or (current.waived and not refunded))
    if current.released if said.release else unused:
        yield NotDone(f"operation {current.id} is {'released' if said.release else 'open'} already")


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
    return sum([await _forget(ledger, operation, by) for operation in operations])


async def _forget(ledger: Ledger, operation: Operation, by: By) -> bool:
    def step(snapshot: Snapshot) -> tuple[bool, Changes]:
        current = snapshot.operations[operation.id]
        bare = _bare_answer(current, snapshot.attempts_of(current))
        if not forgettable(current) or current.answer == bare:
            return False, Changes()
        erased = replace(current, answer=bare, updated_at=snapshot.now)
        return True, Changes(operations=(erased,), audit=(by.row("forget", current),))

    return await ledger.transact(lambda _: _refs(operation), step)


def forgettable(operation: Operation) -> bool:
    """Say whether nothing that is still to be found out needs what is stored of `operation`."""
    over = operation.state in {S.SUCCEEDED, S.FAILED} and operation.final
    return over and operation.answer is not None


def _bare_answer(operation: Operation, attempts: list[Attempt]) -> bytes | None:
    outcomes = [each.outcome for each in attempts[-1:]]
    if operation.state is not S.FAILED or outcomes != [AttemptOutcome.DECLINED]:
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
    return busy(operation) if snapshot.leased(operation) else None


def busy(operation: Operation) -> NotDone:
    """Say that somebody sends or reads `operation` now."""
    return NotDone(f"operation {operation.id} is being sent or read right now", "Try again.")


def lost_attempt(operation: Operation, number: int, upstream_key: str, at: int) -> Attempt:
    """Return an attempt whose request no store remembers, sent `at` that moment (ms)."""
    return Attempt(
        operation_id=operation.id,
        number=number,
        upstream_key=upstream_key,
        path=ENDPOINTS[operation.route].template,
        stripe_version=None,
        body=b"",
        first_sent_at=at,
        last_sent_at=at,
        key_id=operation.key_id,
    )


def told_state(operation: Operation) -> str:
    """Return the state of an operation in words."""
    return operation.state.value + ("" if operation.final else " but not final")


def _refs(operation: Operation) -> Refs:
    ids, tallies = frozenset({operation.id}), frozenset({tally_of(operation)})
    return Refs(operations=ids, tallies=tallies)


Verdict = Literal["approved", "denied"]
# What the audit has no column of its own for.
_TOLD_OF_APPROVALS = ("period", "reference", "payment_method", "destination")


class NoSuchApprovalError(Exception):
    """There is no approval with this id."""


class NotPendingError(Exception):
    """An approval that is decided, used or expired already; the message says which."""


async def decide_approval(
    ledger: Ledger, approval_id: str, verdict: Verdict, operator: str
) -> Approval:
    """Decide a pending approval in the name of `operator`.

    Raises: NoSuchApprovalError, NotPendingError, LedgerUnavailableError.
    """
    # An id that does not print is nobody's, and PostgreSQL does not take a NUL.
    wanted = approval_id if approval_id.isprintable() else ""

    def step(snapshot: Snapshot) -> tuple[Approval, Changes]:
        approval = snapshot.approvals.get(wanted)
        if approval is None:
            raise NoSuchApprovalError(f"there is no approval {approval_id}")
        if approval.state != "pending" or approval.expires_at <= snapshot.now:
            state = "expired" if approval.state == "pending" else approval.state
            by = f" by {approval.decided_by}" if approval.decided_by else ""
            raise NotPendingError(f"approval {wanted} is not pending any more: it is {state}{by}")
        decided = replace(approval, state=verdict, decided_by=operator, decided_at=snapshot.now)
        method, _, path = approval.endpoint.partition(" ")
        asked = {name: getattr(approval, name) for name in _TOLD_OF_APPROVALS}
        told = (f"{name} {value}" for name, value in asked.items() if value is not None)
        row = admin_row(
            operator,
            "approve" if verdict == "approved" else "deny",
            ", ".join([approval.id, *told]),
            key_id=approval.key_id,
            method=method,
            path=path,
            operation_id=approval.operation_id,
            amount=approval.amount,
            currency=approval.currency,
            customer_id=approval.customer,
        )
        return decided, Changes(approvals=(decided,), audit=(row,))

    return await ledger.transact(lambda _: Refs(approvals=frozenset({wanted})), step)
