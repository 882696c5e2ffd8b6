"""What was not moved: repeated calls, duplicates, what waits for a person, and refusals, in money.

Floor: operators, beside the views. The store counts each call as it writes its audit row, by day
and by month; nothing here reads the audit. Amounts are minor units, never summed over currencies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from kb_mcp.proxy.errors.refusals import Code
from kb_mcp.proxy.stores.gauges import StoppedCalls
from kb_mcp.proxy.stores.reads import StoreReads

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


@dataclass(slots=True)
class Sum:
    """Calls, and what they asked for by currency: to charge, and to refund."""

    calls: int = 0
    charges: dict[str, int] = field(default_factory=dict)
    refunds: dict[str, int] = field(default_factory=dict)

    def add(self, each: StoppedCalls) -> None:
        """Count `each` in."""
        self.calls += each.calls
        if each.amount:
            amounts = self.refunds if each.kind == "refund" else self.charges
            amounts[each.currency] = amounts.get(each.currency, 0) + each.amount


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
        if name is not None:
            getattr(self, name).add(each)


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
    month = today.replace(day=1)
    days = [(today - timedelta(days=back)).isoformat() for back in range(DAYS, -1, -1)]
    rows = await records.stopped_on(days)
    this_day, this_month = today.isoformat(), month.isoformat()
    calls: dict[str, int] = defaultdict(int)
    codes: dict[str, int] = defaultdict(int)
    for each in rows:
        calls[each.start] += each.calls
        if each.start == this_day and each.why not in {"replay", "held"}:
            codes[each.why] += each.calls
    return Figures(
        today=_sums(each for each in rows if each.start == this_day),
        month=_sums(each for each in rows if each.start >= this_month),
        by_key=_by_key(
            await records.stopped_most("month", this_month, COUNTS_MAX),
            await records.stopped_most("day", this_day, COUNTS_MAX),
        ),
        days=[(day, calls[day]) for day in days[1:]],
        codes=sorted(codes.items(), key=lambda code: -code[1]),
    )


def _sums(rows: Iterable[StoppedCalls]) -> Sums:
    sums = Sums()
    for each in rows:
        sums.add(each)
    return sums


def _by_key(month: Iterable[StoppedCalls], today: Iterable[StoppedCalls]) -> list[OfKey]:
    whole, part = _grouped(month), _grouped(today)
    found = [
        OfKey(key_id, agent_id or None, part.get((key_id, agent_id), Sums()), sums)
        for (key_id, agent_id), sums in whole.items()
    ]
    return found[:KEYS_MAX]


def _grouped(rows: Iterable[StoppedCalls]) -> Mapping[tuple[str, str], Sums]:
    sums: dict[tuple[str, str], Sums] = {}
    for each in rows:
        sums.setdefault((each.key_id, each.agent_id), Sums()).add(each)
    return sums
