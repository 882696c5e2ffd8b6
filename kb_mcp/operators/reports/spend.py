"""What every key has used of its caps.

Floor: wing B, above records. There may be tens of thousands of keys.
"""

from __future__ import annotations

from datetime import date

from kb_mcp.proxy.edge.records import Spend, spend
from kb_mcp.proxy.reads import GaugeRecords


async def spend_of_every_key(records: GaugeRecords, day: date, *, rotated: bool) -> list[Spend]:
    """Return the spend of every key on `day` and in its month, oldest key first.

    A rotated key shares its windows with its successor; with `rotated` both have rows for them.

    Raises: LedgerUnavailableError.
    """
    today, month = day.isoformat(), day.replace(day=1).isoformat()
    keys = await records.caps_of_keys()
    held = await records.held_of_keys(today, month)
    rows = []
    for key_id, lineage_id, caps, has_successor in keys:
        if has_successor and not rotated:
            continue
        for window, start, limits in (("day", today, caps.daily), ("month", month, caps.monthly)):
            here = held.get((lineage_id, window), {})
            for currency in sorted(limits.keys() | here):
                cap, there = limits.get(currency), here.get(currency, (0, 0))
                rows.append(spend(key_id, "key", window, start, currency, cap, *there))
    return rows
