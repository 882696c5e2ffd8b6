"""Finished bills: a refund that reopened one may fail later, and its stored answer grows old.

Floor: wing B, below recovery. It reads and never posts. A reopened bill stays open only while its
refund holds, which can fail days after it succeeded: then the charge is paid again, whatever was
not sent yet in its place must not be sent, and people are told. Stored answers are dropped after 90
days; a replay then reads the object from Stripe. Only answers of operations that succeeded for good
are dropped: a decline has no object whose reading would say the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from kb_mcp.proxy.ledger.port import Ledger, look_up
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Operation, OperationId, Refs
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules.duplicates import REFUND_READ_EVERY_MS
from kb_mcp.proxy.rules.outcomes.conclude import REFUND_FAILED
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stripe.reader import GivenBack, StripeReads, read_refund

WATCHED_MS = 30 * 86_400_000
RETAIN_MS = 90 * 86_400_000
BATCH = 200
_BATCH = 100


@dataclass(frozen=True, slots=True)
class RefundWatch:
    """Reads the refunds of reopened bills: hourly, and before such a bill is sent once more."""

    ledger: Ledger
    records: StoreReads
    reads: StripeReads

    async def run(self, now: int) -> None:
        """Read the refunds that are due at `now` (ms). Raises: LedgerUnavailableError."""
        for operation_id in await self.records.refunds_to_watch(now, _BATCH):
            await self.look(operation_id)

    async def look(self, operation_id: OperationId) -> None:
        """Read one refund and note what follows; what cannot be read changes nothing.

        Raises: LedgerUnavailableError.
        """
        refs = Refs(operations=frozenset({operation_id}))
        operation = await look_up(
            self.ledger, refs, lambda snapshot: snapshot.operations.get(operation_id)
        )
        if operation is None or not operation.refunded:
            return
        seen = await read_refund(self.reads, operation)
        if not isinstance(seen, GivenBack):
            return
        ids = [OperationId(each) for each in (operation_id, operation.successor) if each]
        refs = Refs(operations=frozenset(ids))

        def step(snapshot: Snapshot) -> tuple[None, Changes]:
            current = snapshot.operations[operation_id]
            if current.refunded_at != operation.refunded_at:
                return None, Changes()
            return None, (_holds if seen.whole else _failed)(snapshot, current)

        await self.ledger.transact(lambda _: refs, step)


def _holds(snapshot: Snapshot, operation: Operation) -> Changes:
    unused = operation.reopened and operation.successor is None
    over = not unused and snapshot.now >= (operation.refunded_at or 0) + WATCHED_MS
    due = None if over else snapshot.now + REFUND_READ_EVERY_MS
    return Changes(operations=(replace(operation, refund_read_at=due),))


def _failed(snapshot: Snapshot, operation: Operation) -> Changes:
    """Close what was opened: the charge is paid again."""
    successor = snapshot.successor(operation)
    note = "The refund failed: the charge stands as paid. "
    if successor is None:
        note += "A new bill was not sent in its place and will not be."
    else:
        billed = successor.object_id or successor.state.value
        note += f"Its new bill {successor.id} ({billed}) was sent: the customer is billed twice."
    paid = replace(
        operation,
        reopened=False,
        released=False,
        permit_amount=None,
        refunded_at=None,
        refund_read_at=None,
        updated_at=snapshot.now,
    )
    row = AuditDraft(
        kind="recovery",
        decision=REFUND_FAILED,
        code=REFUND_FAILED,
        operation_id=operation.id,
        amount=operation.amount,
        currency=operation.currency,
        customer_id=operation.customer,
        object_id=operation.object_id,
        note=note,
    )
    return Changes(operations=(paid,), audit=(row,))


@dataclass(frozen=True, slots=True)
class Retention:
    """Drops old answers, a batch a turn."""

    ledger: Ledger
    records: StoreReads

    async def run(self, now: int) -> int:
        """Drop a batch of answers that are older than RETAIN_MS at `now`; return how many."""
        old = frozenset(await self.records.answered_before(now - RETAIN_MS, BATCH))
        if not old:
            return 0

        def step(snapshot: Snapshot) -> tuple[int, Changes]:
            dropped = tuple(
                replace(operation, answer=None)
                for operation in snapshot.operations.values()
                if operation.id in old and operation.state is S.SUCCEEDED and operation.final
            )
            return len(dropped), Changes(operations=dropped)

        return await self.ledger.transact(lambda _: Refs(operations=old), step)
