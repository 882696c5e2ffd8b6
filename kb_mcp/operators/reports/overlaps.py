"""Overlaps: live bills that share days, and would not be made beside each other now.

Floor: operators, beside the views. Pure.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import groupby

from kb_mcp.periods import Period, overlap, parse_period
from kb_mcp.proxy.ledger.records import KeyId
from kb_mcp.proxy.stores.gauges import BilledDays


def count_overlaps(bills: Iterable[BilledDays], allowed: Container[KeyId]) -> int:
    """Count the pairs of `bills` of which the later one would be refused today.

    Bills of one customer and reference come together, by their first day. `allowed` are the keys
    that may bill days twice; the key of the later bill counts.
    """
    count = 0
    for _, group in groupby(bills, key=lambda bill: (bill.customer, bill.reference or "")):
        running: list[tuple[Period, BilledDays]] = []
        for bill in group:
            period = parse_period(bill.period)
            running = [each for each in running if each[0].end >= period.start]
            count += sum(_refused(period, bill, *each, allowed) for each in running)
            running.append((period, bill))
    return count


def _refused(
    period: Period, bill: BilledDays, other: Period, before: BilledDays, allowed: Container[KeyId]
) -> bool:
    later = max(bill, before, key=lambda each: each.reserved_at)
    unequal = period.label != other.label
    return unequal and overlap(period, other) and later.key_id not in allowed
