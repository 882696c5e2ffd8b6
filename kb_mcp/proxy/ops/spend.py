"""What every key has used of its caps.

Floor: wing B, above records. There may be tens of thousands of keys.
"""

from __future__ import annotations

from datetime import date

from kb_mcp.proxy.ops.gauges import GaugeRecords
from kb_mcp.proxy.records import Record, spend_record


async def spend_of_every_key(records: GaugeRecords, day: date, *, rotated: bool) -> list[Record]:
    """Return the spend of every key on `day` and in its month, oldest key first.

    A rotated key shares its windows with its successor; with `rotated` both have rows for them.

    Raises: LedgerUnavailableError.
    """
    starts = {"day": day.isoformat(), "month": day.replace(day=1).isoformat()}
    return [
        spend_record(
            each.key_id, "key", each.window, starts[each.window], currency,
            each.caps.get(currency), *each.held.get(currency, (0, 0)),
        )
        for each in await records.windows_of_keys(starts["day"], starts["month"])
        if rotated or not each.rotated
        for currency in sorted({*each.caps, *each.held})
    ]  # fmt: skip
