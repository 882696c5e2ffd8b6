"""Meters: how long the ledger and Stripe take in whole milliseconds, and how full batches are.

Floor: wing B, below the governor, which counts what it waits for. What one process measured is a
`Measured`, which also goes from a worker to the process that is scraped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import msgspec
from msgspec import Struct

from kb_mcp.proxy.stripe.messages import Answered, Lost, NotSent, UpstreamAnswer

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUCKETS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000)

_ENDINGS = {Answered: "answered", NotSent: "not_sent", Lost: "lost"}


class Histogram(Struct):
    """Counts of values, by the first of `bounds` that is not smaller."""

    bounds: tuple[int, ...] = BUCKETS_MS
    counts: list[int] = []
    total: int = 0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: int, times: int = 1) -> None:
        """Count a value, which was seen so many times."""
        self.total += value * times
        self.counts[bisect_left(self.bounds, value)] += times

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """Return how many were at most each bound, the last bound being `+Inf`."""
        bounds = [*(str(bound) for bound in self.bounds), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))


class Measured(Struct, frozen=True, kw_only=True):
    """What one process has measured until now, as numbers alone."""

    waiting: int
    queued: int
    in_flight: int
    ledger: Histogram
    batches: Histogram
    sends: dict[str, Histogram]

    def dump(self) -> bytes:
        """Write it as one line."""
        return msgspec.json.encode(self) + b"\n"

    @classmethod
    def load(cls, line: bytes) -> Measured:
        """Read what `dump` wrote. Raises: ValueError."""
        return msgspec.json.decode(line, type=cls)


@dataclass(slots=True)
class Meters:
    """What one process measures since it began."""

    ledger: Histogram = field(default_factory=Histogram)
    sends: dict[str, Histogram] = field(
        default_factory=lambda: {name: Histogram() for name in _ENDINGS.values()}
    )
    waiting: int = 0
    in_flight: Callable[[], int] = lambda: 0
    queued: Callable[[], int] = lambda: 0
    batches: Callable[[], Sequence[int]] = tuple

    def sent(self, answer: UpstreamAnswer, took_ms: int) -> None:
        """Count a send that took so long, by what became of it."""
        self.sends[_ENDINGS[type(answer)]].observe(took_ms)

    def read(self) -> Measured:
        """Return what was measured until now."""
        batches = Histogram(BATCH_SIZES)
        for size, times in enumerate(self.batches()):
            if times:
                batches.observe(size, times)
        return Measured(
            waiting=self.waiting,
            queued=self.queued(),
            in_flight=self.in_flight(),
            ledger=self.ledger,
            batches=batches,
            sends=self.sends,
        )
