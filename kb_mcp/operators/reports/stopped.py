"""What was not moved: repeated calls, duplicates, what waits for a person, and refusals, in money.

Floor: operators, beside the views. The store counts each call as it writes its audit row, by day
and by month; nothing here reads the audit. Amounts are minor units, never summed over currencies.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import islice
from operator import attrgetter
from typing import TypeVar

from kb_mcp.proxy.errors.refusals import Code
from kb_mcp.proxy.stores.gauges import StoppedCalls
from kb_mcp.proxy.stores.reads import StoreReads

T = TypeVar("T")
DAYS = 30
COUNTS_MAX = 200
KEYS_MAX = 15
# Refused since the same bill, or one too like it, was made already or is under way.
_DUPLICATES = (
    Code.PERIOD_ALREADY_CHARGED, Code.DUPLICATE_SUSPECTED, Code.ALREADY_REFUNDED,
    Code.IDEMPOTENCY_KEY_REUSED, Code.OUTCOME_UNKNOWN,
)  # fmt: skip
# Under which of `Sums` a call counts by why it was stopped; every other was refused.
_COUNTS_AS = {
    "replay": "repeated",
    "held": "held",
    # What waits for a person counts once, as `held`, however often it is asked for meanwhile.
    Code.APPROVAL_REQUIRED.value: None,
    **dict.fromkeys(map(str, _DUPLICATES), "duplicate"),
}
_WHOSE = attrgetter("key_id", "agent_id")


@dataclass(slots=True)
class Sum:
    """Calls, and what they asked for by currency: to charge, and to refund."""

    calls: int = 0
    charges: dict[str, int] = field(default_factory=dict)
    refunds: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Sums:
    """Stopped calls by what stopped them."""

    repeated: Sum = field(default_factory=Sum)
    duplicate: Sum = field(default_factory=Sum)
    held: Sum = field(default_factory=Sum)
    refused: Sum = field(default_factory=Sum)

    def add(self, each: StoppedCalls) -> None:
        """Count `each` in."""
        name = _COUNTS_AS.get(each.why, "refused")
        if name is None:
            return
        counted: Sum = getattr(self, name)
        counted.calls += each.calls
        if each.amount:
            amounts = counted.refunds if each.kind == "refund" else counted.charges
            amounts[each.currency] = amounts.get(each.currency, 0) + each.amount


@dataclass(frozen=True, slots=True)
class OfKey:
    """What was stopped of one vault key and agent (None where none was named)."""

    key_id: str
    agent_id: str | None
    today: Sums
    month: Sums


@dataclass(frozen=True, slots=True)
class Figures:
    """What was stopped today and in this month, by whom, on each of 30 days, and why."""

    today: Sums
    month: Sums
    by_key: Sequence[OfKey]
    days: Sequence[tuple[str, int]]
    codes: Sequence[tuple[str, int]]


async def stopped_figures(records: StoreReads, today: date) -> Figures:
    """Return what was stopped on `today` (UTC) and in its month. Raises: LedgerUnavailableError."""
    month, this_day = today.replace(day=1).isoformat(), today.isoformat()
    days = [(today - timedelta(days=back)).isoformat() for back in range(DAYS, -1, -1)]
    rows = await records.stopped_on(days)
    calls, codes = Counter[str](), Counter[str]()
    for each in rows:
        calls[each.start] += each.calls
        if each.start == this_day and each.why not in {"replay", "held"}:
            codes[each.why] += each.calls
    by_key = _sums(await records.stopped_most("month", month, COUNTS_MAX), _WHOSE)
    of_today = _sums(await records.stopped_most("day", this_day, COUNTS_MAX), _WHOSE)
    return Figures(
        today=_sums(rows, lambda each: each.start == this_day)[True],
        month=_sums(rows, lambda each: each.start >= month)[True],
        by_key=[
            OfKey(key_id, agent_id or None, of_today[key_id, agent_id], sums)
            for (key_id, agent_id), sums in islice(by_key.items(), KEYS_MAX)
        ],
        days=[(day, calls[day]) for day in days[1:]],
        codes=codes.most_common(),
    )


def _sums(rows: Iterable[StoppedCalls], by: Callable[[StoppedCalls], T]) -> defaultdict[T, Sums]:
    sums: defaultdict[T, Sums] = defaultdict(Sums)
    for each in rows:
        sums[by(each)].add(each)
    return sums
