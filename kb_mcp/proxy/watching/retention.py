"""Retention: stored answers are dropped after 90 days; a replay then reads the object from Stripe.

Floor: wing B, beside recovery. Only answers of operations that succeeded for good are dropped: a
decline has no object whose reading would say the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Changes, Refs
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores.reads import StoreReads

RETAIN_MS = 90 * 86_400_000
BATCH = 200


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
