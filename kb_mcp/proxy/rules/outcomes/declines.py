"""Declines: what a no from the card's side counts against, and when a lineage freezes.

Floor: above the snapshot and windows, below conclude. Pure. Declines are counted per bill, whatever
its amount, and per lineage and day: too many in a day look like card testing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import Changes, Lineage, Operation
from kb_mcp.proxy.ledger.windows import windows_then
from kb_mcp.proxy.rules.operation_names import tally_of

if TYPE_CHECKING:
    from kb_mcp.proxy.ledger.snapshot import Snapshot


def count_decline(snapshot: Snapshot, operation: Operation, daily_declines: int) -> Changes:
    """Count one decline of `operation`; past `daily_declines` its lineage freezes."""
    tally = snapshot.tally(tally_of(operation))
    counted = replace(
        tally,
        declines=tally.declines + 1,
        last_declined_at=snapshot.now,
        last_operation=operation.id,
    )
    today = snapshot.window(windows_then(operation, snapshot.now).counts)
    today = replace(today, declines=today.declines + 1)
    too_many = today.declines >= daily_declines
    lineages = (freeze(snapshot, operation, "too many declines"),) if too_many else ()
    return Changes(tallies=(counted,), windows=(today,), lineages=lineages)


def freeze(snapshot: Snapshot, operation: Operation, reason: str) -> Lineage:
    """Return the lineage of `operation`, frozen; an older reason stands."""
    lineage = snapshot.lineage(operation.lineage_id)
    if lineage.frozen_at is not None:
        return lineage
    return replace(lineage, frozen_at=snapshot.now, frozen_reason=reason)
