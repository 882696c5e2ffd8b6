"""Adopting what the ledger knows otherwise: it failed or waits here, and Stripe has its object.

Floor: operators, above adopt. After a restore the ledger remembers an earlier moment: what was
declined, voided, rejected or waited then may have been charged since. Stripe's object is the truth.
"""

from __future__ import annotations

from msgspec.structs import replace

from kb_mcp.operators.actions.adopt import NOBODY, Adopted, Left, counted
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import (
    Attempt,
    AttemptOutcome,
    AuditDraft,
    Changes,
    Operation,
    Refs,
)
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_of


async def adopt_known(
    ledger: Ledger, found: Operation, attempt: Attempt, operator: str
) -> Adopted | Left:
    """Let the operation `found.id` succeed with the object of `found`, in one transaction.

    `found` and `attempt` are what the object stands for by itself. The operation keeps its name;
    it counts in the windows of the object's creation.
    """

    def step(snapshot: Snapshot) -> tuple[Adopted | Left, Changes]:
        current = snapshot.operations[found.id]
        refusal = _refusal(snapshot, current, found)
        if refusal is not None:
            return refusal, Changes()
        made = _attempt_of(snapshot, current, attempt)
        after = _succeeded(current, found, made)
        changes = Changes(
            operations=(after,),
            attempts=(made,),
            windows=counted(snapshot, current, after),
            audit=(_row(after, current, operator),),
        )
        return Adopted(after), changes

    refs = Refs(
        operations=frozenset({found.id}),
        names=frozenset({found.name}),
        objects=frozenset({str(found.object_id)}),
        windows=frozenset(windows_of(found).all()),
    )
    return await ledger.transact(lambda _: refs, step)


def _refusal(snapshot: Snapshot, current: Operation, found: Operation) -> Left | None:
    owner = snapshot.object_owners.get(str(found.object_id))
    if current.state is S.SUCCEEDED:
        return Left("the ledger has it meanwhile")
    if owner is not None and owner != current.id:
        return Left(f"operation {owner} has it")
    if snapshot.leased(current):
        return Left("it is being sent or looked up: run this again later")
    return None


def _attempt_of(snapshot: Snapshot, current: Operation, attempt: Attempt) -> Attempt:
    """Return the attempt that made the object: the one of its mark, or one that was lost."""
    known = snapshot.attempts_of(current)
    numbers = {each.number for each in known}
    same = next((each for each in known if each.upstream_key == attempt.upstream_key), None)
    if same is not None:
        return replace(
            same,
            outcome=AttemptOutcome.SUCCEEDED,
            open_sends=0,
            status=200,
            object_id=attempt.object_id,
        )
    number = attempt.number if attempt.number not in numbers else max(numbers) + 1
    return replace(attempt, number=number)


def _succeeded(current: Operation, found: Operation, made: Attempt) -> Operation:
    """Return the operation with its object; what it billed is what the object says."""
    same = (current.amount, current.currency, current.customer) == (
        found.amount,
        found.currency,
        found.customer,
    )
    kept = current if same else found
    mine = found.lineage_id != NOBODY
    return replace(
        found,
        name=current.name,
        generation=current.generation,
        named_by=current.named_by,
        period=kept.period,
        period_start=kept.period_start,
        period_end=kept.period_end,
        reference=kept.reference,
        fingerprint=kept.fingerprint,
        upstream_name=current.upstream_name,
        first_arrival_at=max(current.first_arrival_at, found.first_arrival_at),
        attempt=made.number,
        lease_token=current.lease_token + 1,
        key_id=found.key_id if mine else current.key_id,
        lineage_id=found.lineage_id if mine else current.lineage_id,
        approval_id=current.approval_id,
        created_at=current.created_at,
    )


def _row(after: Operation, before: Operation, operator: str) -> AuditDraft:
    return AuditDraft(
        kind="admin",
        decision="adopt",
        agent_id=operator,
        operation_id=after.id,
        attempt=after.attempt,
        amount=after.amount,
        currency=after.currency,
        customer_id=after.customer,
        object_id=after.object_id,
        note=f"it was {before.state.value}",
    )
