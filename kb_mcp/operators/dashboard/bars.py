"""Bars: spend against cap of the whole account, and of the keys nearest to their caps.

Floor: operators, below the pages, above views. The store chooses the keys; only those are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kb_mcp.instants import day_of
from kb_mcp.operators.dashboard.render import bar
from kb_mcp.operators.reports.views import Views
from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.access.policy import is_uncapped
from kb_mcp.proxy.edge.records import Record, Spend, spend_records
from kb_mcp.proxy.ledger.records import KeyId, VaultKey

# More bars than this are for nobody to read; the keys page leads to the others.
BARS_MAX = 100
# Where there are more keys, which have bars is decided anew so often: it takes a look at every key,
# on the thread on which charges are served.
CHOSEN_FOR_MS = 60_000


@dataclass(frozen=True, slots=True)
class Shown:
    """Bars, the labels of their keys by id, and whether these are all that there are.

    `uncapped` are those of these keys that serve, and may move money without a cap over time.
    """

    bars: list[Record]
    labels: Mapping[str, str]
    whole: bool
    uncapped: Sequence[KeyId]


@dataclass(slots=True)
class Bars:
    """Reads the bars of today; money in minor units. Raises: LedgerUnavailableError."""

    views: Views
    _chosen: Sequence[KeyId] = field(default=(), init=False)
    _chosen_until: int = field(default=0, init=False)

    async def today(self) -> Shown:
        """Return the bars of the account, and of the keys that serve or hold something.

        Where there are no more than BARS_MAX they stand by their keys' age, else by how full they
        are.
        """
        now, records = self.views.now_ms(), self.views.records
        day = day_of(now)
        starts = (day.isoformat(), day.replace(day=1).isoformat())
        chosen = await self._choose(*starts, now)
        spend = {each.key_id: each for each in await records.spend_of_keys(chosen, *starts, now)}
        keys = [key for key, _ in await records.keys_by_id(chosen)]
        rows = [
            *await self.views.account_spend(day),
            *await self.views.account_spend(day, refunds=True),
        ]
        for key in keys:
            each = spend[key.id]
            found = spend_records(key.id, each.caps, each.refund_caps, each.windows, starts)
            rows += [row for row in found if each.serves or row.settled or row.reserved]
        whole = len(chosen) < BARS_MAX and len(rows) <= BARS_MAX
        uncapped = [
            key.id for key in keys if spend[key.id].serves and is_uncapped(policy_of(key.policy))
        ]
        labels: dict[str, str] = {key.id: label_of(key) for key in keys}
        return Shown([bar(row) for row in _fullest(rows)], labels, whole, uncapped)

    async def _choose(self, day: str, month: str, now: int) -> Sequence[KeyId]:
        if len(self._chosen) < BARS_MAX or now >= self._chosen_until:
            self._chosen = await self.views.records.fullest_keys(day, month, now, BARS_MAX)
            self._chosen_until = now + CHOSEN_FOR_MS
        return self._chosen


def label_of(key: VaultKey) -> str:
    """Return what people call a key."""
    return key.label or key.agent or key.id


def _fullest(rows: list[Spend]) -> list[Spend]:
    """Return the rows to show: all, or of very many those that have used most of their cap."""
    if len(rows) <= BARS_MAX:
        return rows
    return sorted(rows, key=_used, reverse=True)[:BARS_MAX]


def _used(row: Spend) -> tuple[bool, int, int]:
    spent = row.settled + row.reserved
    return row.scope.startswith("account"), spent * 1000 // row.cap if row.cap else 0, spent
