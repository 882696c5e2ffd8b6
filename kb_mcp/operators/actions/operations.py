"""What an operator may do to one operation: resolve, reopen, reset, forget.

Floor: wing B, above the ledger. Each is one audited transaction; what was seen at Stripe arrives
as an argument. The law is ledger.md's: resolving works on `unknown` only, and what an unresolved
operation needs is never erased.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.governor import ending_refs
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import (
    LISTINGS_THAT_FREE,
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
from kb_mcp.proxy.ledger.windows import release
from kb_mcp.proxy.rules.conclude import conclude
from kb_mcp.proxy.rules.ending import Ending
from kb_mcp.proxy.rules.operation_names import tally_of
from kb_mcp.proxy.stripe.evidence import Made

REASON_MAX = 200
LATE_LISTING_MS = 25 * 3_600_000
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


def mismatch(item: Mapping[str, Any], operation: Operation) -> str | None:
    """Return in what an object at Stripe cannot be that of `operation`, or None."""
    metadata = item.get("metadata")
    mark = metadata.get("keybrake_operation") if isinstance(metadata, dict) else None
    if mark is not None and mark != operation.id:
        return f"it belongs to operation {mark}"
    wanted = {
        "amount": operation.amount,
        "currency": operation.currency,
        "customer": operation.customer,
    }
    for name, value in wanted.items():
        if (item.get(name) or None) != value:
            return f"its {name} is {item.get(name)}, the operation's is {value}"
    return None


async def settle_by_object(
    ledger: Ledger, operation: Operation, made: Made, by: By, daily_declines: int
) -> Done | NotDone:
    """Conclude an unknown operation with the object that an operator found at Stripe."""

    def step(snapshot: Snapshot) -> tuple[Done | NotDone, Changes]:
        current = snapshot.operations[operation.id]
        refusal = _not_resolvable(snapshot, current)
        if refusal is not None:
            return refusal, Changes()
        ending = Ending(
            operation_id=current.id,
            attempt=current.attempt,
            token=current.lease_token,
            proof=made,
            daily_declines=daily_declines,
            request=AuditDraft(kind="admin", agent_id=by.operator),
        )
        after, changes = conclude(snapshot, ending)
        if after.state is not S.SUCCEEDED:
            why = f"{made.object_id} already concluded another operation"
            return NotDone(why), Changes()
        rows = (*changes.audit, by.row("resolve_succeeded", after))
        return Done(after), replace(changes, audit=rows)

    return await ledger.transact(lambda now: ending_refs(operation, made, now), step)


async def void_by_operator(ledger: Ledger, operation: Operation, by: By) -> Done | NotDone:
    """Void an operation on an operator's word: held money is released, its guards are freed.

    An operation that recovery has just voided is freed too. It is listed once more after 25 h: a
    late object still beats the word.
    """

    def step(snapshot: Snapshot) -> tuple[Done | NotDone, Changes]:
        current = snapshot.operations[operation.id]
        if current.state is not S.VOIDED:
            refusal = _not_resolvable(snapshot, current) or _too_early(snapshot, current)
            if refusal is not None:
                return refusal, Changes()
        voided = replace(
            current,
            state=S.VOIDED,
            held=0,
            code="voided_by_operator",
            voided_at=snapshot.now,
            empty_listings=LISTINGS_THAT_FREE,
            next_read_at=snapshot.now + LATE_LISTING_MS,
            lease_owner=None,
            updated_at=snapshot.now,
        )
        attempt = snapshot.attempt(current)
        closed = () if attempt is None else (replace(attempt, outcome=AttemptOutcome.VOIDED),)
        changes = Changes(
            operations=(voided,),
            attempts=closed,
            windows=release(snapshot, current) if current.held else (),
            audit=(by.row("resolve_void", voided),),
        )
        return Done(voided), changes

    return await ledger.transact(lambda _: _refs(operation), step)


async def reopen(ledger: Ledger, operation: Operation, by: By, *, refunded: bool) -> Done | NotDone:
    """Let a refunded bill be billed once more (under K-r1…), or waive one wrong suspicion."""

    def step(snapshot: Snapshot) -> tuple[Done | NotDone, Changes]:
        current = snapshot.operations[operation.id]
        newest = snapshot.newest(current.name)
        if current.state is not S.SUCCEEDED or not current.final:
            why = f"operation {current.id} is {_told(current)}, not succeeded for good"
            return NotDone(why, "Only what was charged can be billed once more."), Changes()
        if newest is None or newest.id != current.id:
            newer = newest.id if newest else "another operation"
            return NotDone(f"{newer} is the newest of this bill", None), Changes()
        if current.reopened or (current.waived and not refunded):
            return NotDone(f"operation {current.id} is open already", None), Changes()
        # Unrefunded, its own period stays charged: one other bill that looks like it may pass.
        again = replace(current, reopened=refunded, waived=not refunded, updated_at=snapshot.now)
        return Done(again), Changes(operations=(again,), audit=(by.row("reopen", again),))

    refs = Refs(operations=frozenset({operation.id}), names=frozenset({operation.name}))
    return await ledger.transact(lambda _: refs, step)


async def reset_declines(ledger: Ledger, operation: Operation, by: By) -> int:
    """Start the count of declines of this bill anew; return how many there were."""
    key = tally_of(operation)

    def step(snapshot: Snapshot) -> tuple[int, Changes]:
        declines = snapshot.tally(key).declines
        row = by.row("reset", operation, note=f"{declines} declines")
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


def _not_resolvable(snapshot: Snapshot, operation: Operation) -> NotDone | None:
    if operation.state is not S.UNKNOWN:
        why = f"operation {operation.id} is {_told(operation)}; only unknown ones are resolved"
        hint = (
            "A reserved one is being sent, or `kb-mcp recover` finds out."
            if (operation.state is S.RESERVED)
            else None
        )
        return NotDone(why, hint)
    if snapshot.leased(operation):
        return NotDone(f"operation {operation.id} is being sent or read right now", "Try again.")
    return None


def _too_early(snapshot: Snapshot, operation: Operation) -> NotDone | None:
    sent = max((each.last_sent_at for each in snapshot.attempts_of(operation)), default=0)
    left_ms = sent + snapshot.settings.recovery_grace_ms - snapshot.now
    if left_ms < 0:
        return None
    why = f"operation {operation.id} was sent so lately that Stripe may still be at it"
    return NotDone(why, f"Try again in {left_ms // 1000 + 1} seconds.")


def _told(operation: Operation) -> str:
    return operation.state.value + ("" if operation.final else " but not final")


def _refs(operation: Operation) -> Refs:
    return Refs(
        operations=frozenset({OperationId(operation.id)}),
        tallies=frozenset({tally_of(operation)}),
    )
