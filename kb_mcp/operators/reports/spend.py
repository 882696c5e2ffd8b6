"""What every key has used of its caps.

Floor: operators, above records. There may be tens of thousands of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date

from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.edge.records import Spend, spend
from kb_mcp.proxy.ledger.records import Window
from kb_mcp.proxy.ledger.windows import REFUNDS
from kb_mcp.proxy.stores.reads import StoreReads


async def spend_of_every_key(records: StoreReads, day: date, *, rotated: bool) -> list[Spend]:
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


async def refunds_of_every_key(records: StoreReads, day: date) -> list[Spend]:
    """Return what was given back on `day` and in its month: the account's, then each key's.

    Raises: LedgerUnavailableError.
    """
    today, month = day.isoformat(), day.replace(day=1).isoformat()
    ceilings = await records.ceilings(refunds=True)
    account = _held(await records.windows(scope=f"account{REFUNDS}", starts=(today,)))
    keys = _held(await records.windows(scope=f"key{REFUNDS}", starts=(today, month)))
    rows = _rows(None, f"account{REFUNDS}", "day", today, ceilings, account.get(("", "day"), {}))
    for key, _ in await records.keys():
        if key.rotated_to is not None:
            continue
        caps = policy_of(key.policy).refund_caps
        for window, start, limits in (("day", today, caps.daily), ("month", month, caps.monthly)):
            here = keys.get((key.lineage_id, window), {})
            rows += _rows(key.id, f"key{REFUNDS}", window, start, limits, here)
    return rows


def _held(windows: Iterable[Window]) -> dict[tuple[str, str], dict[str, tuple[int, int]]]:
    held: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for each in windows:
        if each.key.currency:
            here = held.setdefault((each.key.scope_id, each.key.window), {})
            here[each.key.currency] = (each.reserved, each.settled)
    return held


def _rows(
    key_id: str | None,
    scope: str,
    window: str,
    start: str,
    limits: Mapping[str, int],
    held: Mapping[str, tuple[int, int]],
) -> list[Spend]:
    return [
        spend(key_id, scope, window, start, each, limits.get(each), *held.get(each, (0, 0)))
        for each in sorted(limits.keys() | held)
    ]
