"""Charts: bars of spend against cap, and counts and amounts over time, in whole units.

Floor: operators, below the pages, above views. Templates draw what stands here: bars by their
widths, plots as inline SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import asdict

from kb_mcp.operators.reports.views import Fullest
from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.access.policy import is_uncapped
from kb_mcp.proxy.edge.records import Record, Spend
from kb_mcp.proxy.ledger.records import KeyId

# More bars than this are for nobody to read; the keys page leads to the others.
BARS_MAX = 100
CHOSEN_FOR_MS = 60_000
BAR_WIDTH = 1000
HEIGHT = 120
STEP = 20


@dataclass(frozen=True, slots=True)
class Shown:
    """Bars, and whether these are all that there are.

    `uncapped` are those of these keys that serve, and may move money without a cap over time.
    """

    bars: list[Record]
    whole: bool
    uncapped: Sequence[KeyId]


async def bars_of_today(fullest: Fullest) -> Shown:
    """Return the bars of the account, and of the keys that serve or hold something.

    Where there are no more than BARS_MAX they stand by their keys' age, else by how full they are.
    Raises: LedgerUnavailableError.
    """
    rows, spend = await fullest.today(BARS_MAX, CHOSEN_FOR_MS)
    keys = [key for key, _ in await fullest.views.records.keys_by_id(fullest.keys)]
    for key in keys:
        each, found = spend[key.id]
        rows += [row for row in found if each.serves or row.settled or row.reserved]
    whole = len(keys) < BARS_MAX and len(rows) <= BARS_MAX
    if len(rows) > BARS_MAX:
        rows = sorted(rows, key=_used, reverse=True)[:BARS_MAX]
    serving = {key.id: key for key in keys if spend[key.id][0].serves}
    uncapped = [key.id for key in serving.values() if is_uncapped(policy_of(key.policy))]
    bars = [bar(row) | {"stoppable": row.key_id in serving} for row in rows]
    return Shown(bars, whole, uncapped)


def bar(row: Spend) -> Record:
    """Return a row of spend with the widths of its bar, out of BAR_WIDTH."""
    cap, settled, reserved = row.cap, 0, 0
    if cap:
        settled = min(row.settled * BAR_WIDTH // cap, BAR_WIDTH)
        reserved = min(row.reserved * BAR_WIDTH // cap, BAR_WIDTH - settled)
    percent = (row.settled + row.reserved) * 100 // cap if cap else None
    return asdict(row) | {
        "settled_width": settled,
        "reserved_width": reserved,
        "percent": percent,
    }


def _used(row: Spend) -> tuple[bool, int, int]:
    spent = row.settled + row.reserved
    return row.scope.startswith("account"), spent * 1000 // row.cap if row.cap else 0, spent


@dataclass(frozen=True, slots=True)
class Column:
    """One bar of a plot: its place, its height, and what it stands for."""

    x: int
    y: int
    height: int
    label: str
    value: int


@dataclass(frozen=True, slots=True)
class Plot:
    """A chart `width` by HEIGHT; `currency` is None where things are counted."""

    title: str
    currency: str | None
    bars: tuple[Column, ...]
    total: int
    most: int

    @property
    def width(self) -> int:
        """The width of the drawing."""
        return len(self.bars) * STEP


def plot(title: str, points: Sequence[tuple[str, int]], currency: str | None = None) -> Plot:
    """Return the chart of `points`, each a label and a value that is not negative."""
    most = max((value for _, value in points), default=0)
    bars = []
    for place, (label, value) in enumerate(points):
        # What is there shows, however small beside the rest.
        height = max(value * HEIGHT // most, 2) if value else 0
        bars.append(Column(place * STEP + 3, HEIGHT - height, height, label, value))
    return Plot(title, currency, tuple(bars), sum(value for _, value in points), most)


def spend_plots(days: Sequence[str], held: Mapping[str, Mapping[str, int]]) -> list[Plot]:
    """Return a chart for each currency: `held` is minor units by currency and day."""
    return [
        plot("Spend by day", [(day, held[currency].get(day, 0)) for day in days], currency)
        for currency in sorted(held)
    ]
