"""The high-water mark of the store's time: what a transaction decides by, and when it is raised.

Floor: inside the stores, shared by both.
"""

from __future__ import annotations

from kb_mcp.proxy.ledger.clock import Told
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.store_settings import StoreSettings

HIGH_WATER_STEP_MS = 1_000


def snapshot_at(told: Told, settings: StoreSettings) -> Snapshot:
    """Return the empty snapshot of a transaction that is told the time `told`."""
    return Snapshot(
        now=told.now,
        latest=told.latest,
        settings=settings,
        skewed=bool(told.dispute),
        turning=told.turning,
        unheard=told.unheard,
        doubt=told.doubt,
    )


def raises_mark(told: Told, marked: int, snapshot: Snapshot) -> bool:
    """Say whether the transaction raises the store's mark, which is at `marked`.

    Where Stripe has not told its time, only what was billed makes the host's word binding: a clock
    that is wrong at a first start can be set right before it matters.
    """
    counts = told.agreed or bool(snapshot.dirty.operations)
    return counts and not told.turning and told.now >= marked + HIGH_WATER_STEP_MS
