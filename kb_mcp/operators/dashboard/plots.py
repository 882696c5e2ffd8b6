"""Plots: counts and amounts over time to the geometry of a bar chart, in whole units.

Floor: operators, below the pages. Pure. Templates draw what stands here as inline SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HEIGHT = 120
STEP = 20
BAR = 14


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its place, its height, and what it stands for."""

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
    bars: tuple[Bar, ...]
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
        bars.append(Bar(place * STEP + 3, HEIGHT - height, height, label, value))
    return Plot(title, currency, tuple(bars), sum(value for _, value in points), most)


def spend_plots(days: Sequence[str], held: Mapping[str, Mapping[str, int]]) -> list[Plot]:
    """Return a chart for each currency: `held` is minor units by currency and day."""
    return [
        plot("Spend by day", [(day, held[currency].get(day, 0)) for day in days], currency)
        for currency in sorted(held)
    ]
