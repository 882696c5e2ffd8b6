"""What an operator does to refunds: let one more be made, and adopt those that others made.

Floor: operators, beside the other acts. Each is one audited transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from kb_mcp.idempotency import REFERENCE, refund_name
from kb_mcp.money import Money
from kb_mcp.operators.actions.adopt import NOBODY, Adopted, Left, counted, marked_id, number_of
from kb_mcp.operators.actions.operations import By, Done, NotDone, told_state
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import (
    Attempt,
    AttemptOutcome,
    Changes,
    KeyId,
    LineageId,
    NamedBy,
    Operation,
    OperationId,
    Refs,
)
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_of
from kb_mcp.proxy.rules.outcomes.matching import marks_of
from kb_mcp.proxy.rules.refunds import refund_fingerprint

ROUTE = "POST /v1/refunds"


async def reopen_refund(ledger: Ledger, operation: Operation, by: By) -> Done | NotDone:
    """Let one more refund of its charge be made; together they are never more than the charge."""

    def step(snapshot: Snapshot) -> tuple[Done | NotDone, Changes]:
        current = snapshot.operations[operation.id]
        newest = snapshot.newest(current.name)
        if current.state is not S.SUCCEEDED or not current.final:
            why = f"refund {current.id} is {told_state(current)}, not succeeded for good"
            return NotDone(why, "Only a refund that was made can be made once more."), Changes()
        if newest is None or newest.id != current.id:
            newer = newest.id if newest else "another operation"
            return NotDone(f"{newer} is the newest refund of this charge"), Changes()
        if current.reopened:
            return NotDone(f"operation {current.id} is open already"), Changes()
        again = replace(current, reopened=True, updated_at=snapshot.now)
        return Done(again), Changes(operations=(again,), audit=(by.row("reopen", again),))

    refs = Refs(operations=frozenset({operation.id}), names=frozenset({operation.name}))
    return await ledger.transact(lambda _: refs, step)


def refund_operation(
    refund: Mapping[str, Any],
    customer: str | None,
    lineages: Mapping[str, KeyId],
    now: int,
    fresh_id: OperationId,
) -> tuple[Operation, Attempt]:
    """Return the operation that a refund at Stripe stands for, and its one attempt.

    One without our mark is named by its own id: it stands beside the refunds that are asked for
    here, and leaves them so much less of the charge.
    """
    marks = marks_of(refund)
    mark, lineage = str(marks.get("keybrake_attempt", "")), str(marks.get("keybrake_key", ""))
    said = marks.get("reference") if mark else refund["id"]
    reference = said if isinstance(said, str) and REFERENCE.fullmatch(said) else None
    charge, at = str(refund["charge"]), int(refund["created"]) * 1000
    money = Money(int(refund["amount"]), str(refund["currency"]))
    final = refund.get("status") == "succeeded"
    name = refund_name(charge, reference)
    operation = Operation(
        id=marked_id(marks.get("keybrake_operation"), fresh_id),
        name=name,
        named_by=NamedBy.CONTENT,
        route=ROUTE,
        customer=customer,
        amount=money.amount,
        currency=money.currency,
        period=None,
        reference=reference,
        fingerprint=refund_fingerprint(charge, money, reference),
        upstream_name=name,
        gives_back=charge,
        state=S.SUCCEEDED,
        final=final,
        held=money.amount,
        reserved_at=at,
        first_arrival_at=at,
        attempt=number_of(mark),
        key_id=lineages.get(lineage, KeyId(NOBODY)),
        lineage_id=LineageId(lineage if lineage in lineages else NOBODY),
        object_id=str(refund["id"]),
        stripe_status=str(refund.get("status")),
        overshoot=True,
        next_read_at=now,
        created_at=at,
        updated_at=now,
    )
    return operation, _attempt_of(operation, mark)


async def adopt_refund(
    ledger: Ledger, operation: Operation, attempt: Attempt, operator: str
) -> Adopted | Left:
    """Write an adopted refund, its attempt and what it counts for, in one transaction."""

    def step(snapshot: Snapshot) -> tuple[Adopted | Left, Changes]:
        if operation.object_id in snapshot.object_owners:
            return Left("the ledger has it meanwhile"), Changes()
        newest = snapshot.newest(operation.name)
        if newest is not None and newest.live:
            return Left(f"operation {newest.id} is of the same refund"), Changes()
        generation = 0 if newest is None else newest.generation + 1
        kept = replace(operation, generation=generation)
        changes = Changes(
            operations=(kept,),
            attempts=(attempt,),
            windows=counted(snapshot, None, kept),
            audit=(By(operator).row("adopt", kept),),
        )
        return Adopted(kept), changes

    refs = Refs(
        names=frozenset({operation.name}),
        charges=frozenset({str(operation.gives_back)}),
        objects=frozenset({str(operation.object_id)}),
        windows=frozenset(windows_of(operation).all()),
    )
    return await ledger.transact(lambda _: refs, step)


def _attempt_of(operation: Operation, mark: str) -> Attempt:
    """Return the one attempt of an adopted refund; `mark` is its upstream key, if it is ours."""
    return Attempt(
        operation_id=operation.id,
        number=operation.attempt,
        upstream_key=mark or f"{NOBODY}-{operation.object_id}",
        path="/v1/refunds",
        stripe_version=None,
        body=b"",
        first_sent_at=operation.reserved_at,
        last_sent_at=operation.reserved_at,
        open_sends=0,
        status=200,
        object_id=operation.object_id,
        outcome=AttemptOutcome.SUCCEEDED,
        key_id=operation.key_id,
    )
