"""Declines: what a no from the card's side counts against, and when a lineage freezes.

Floor: above standing and windows, below conclude. Pure. Declines are counted per bill, whatever its
amount, and per lineage and day: too many in a day look like card testing (design: Money).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from kb_mcp.proxy.ledger import Changes, Lineage, Operation
from kb_mcp.proxy.naming import tally_of
from kb_mcp.proxy.windows import windows_at

if TYPE_CHECKING:
    from kb_mcp.proxy.standing import Standing


def count_decline(standing: Standing, operation: Operation, daily_declines: int) -> Changes:
    """Count one decline of `operation`; past `daily_declines` its lineage freezes."""
    tally = standing.tally(tally_of(operation))
    counted = replace(
        tally,
        declines=tally.declines + 1,
        last_declined_at=standing.now,
        last_operation=operation.id,
    )
    places = windows_at(standing.now, operation.lineage_id, operation.customer, operation.currency)
    today = standing.window(places.counts)
    today = replace(today, declines=today.declines + 1)
    too_many = today.declines >= daily_declines
    lineages = (freeze(standing, operation, "too many declines"),) if too_many else ()
    return Changes(tallies=(counted,), windows=(today,), lineages=lineages)


def freeze(standing: Standing, operation: Operation, reason: str) -> Lineage:
    """Return the lineage of `operation`, frozen; an older reason stands."""
    lineage = standing.lineage(operation.lineage_id)
    if lineage.frozen_at is not None:
        return lineage
    return replace(lineage, frozen_at=standing.now, frozen_reason=reason)
