"""Meters: how long the ledger and Stripe take in whole milliseconds, and how full batches are.

Floor: wing B, put around ledger and the client in wiring. They measure and change nothing. What one
process measured is a `Measured`, which also goes from a worker to the process that is scraped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

import msgspec
from msgspec import Struct

from kb_mcp.proxy.ledger.port import Ledger, Step
from kb_mcp.proxy.ledger.records import Grant, KeyId, Lineage, Refs, VaultKey
from kb_mcp.proxy.ledger.snapshot import StoreSettings
from kb_mcp.proxy.stripe.messages import (
    Answered,
    Lost,
    NotSent,
    Upstream,
    UpstreamAnswer,
    UpstreamRequest,
)

T = TypeVar("T")
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


@dataclass(frozen=True, slots=True)
class MeteredLedger:
    """A ledger whose transactions are timed: from asking until the commit is durable."""

    ledger: Ledger
    meters: Meters
    boottime_ms: Callable[[], int]

    @property
    def settings(self) -> StoreSettings:
        """What the store is bound to."""
        return self.ledger.settings

    async def transact(self, refs: Callable[[int], Refs], step: Step[T]) -> T:
        """Do what the ledger does, and count how long it took."""
        begun = self.boottime_ms()
        self.meters.waiting += 1
        try:
            return await self.ledger.transact(refs, step)
        finally:
            self.meters.waiting -= 1
            self.meters.ledger.observe(self.boottime_ms() - begun)

    async def find_key(self, key_id: KeyId) -> tuple[VaultKey, Lineage] | None:
        """Return the key and its lineage as committed right now, or None."""
        return await self.ledger.find_key(key_id)

    async def find_grants(self, issuer: str) -> list[Grant]:
        """Return the grants of `issuer` as committed right now."""
        return await self.ledger.find_grants(issuer)

    async def close(self) -> None:
        """Close the ledger."""
        await self.ledger.close()


@dataclass(frozen=True, slots=True)
class MeteredUpstream:
    """A way to Stripe whose sends are timed, by what became of them."""

    upstream: Upstream
    meters: Meters
    boottime_ms: Callable[[], int]

    async def send(self, request: UpstreamRequest, *, deadline_ms: int) -> UpstreamAnswer:
        """Send once, and count how long it took."""
        begun = self.boottime_ms()
        answer = await self.upstream.send(request, deadline_ms=deadline_ms)
        self.meters.sends[_ENDINGS[type(answer)]].observe(self.boottime_ms() - begun)
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        await self.upstream.aclose()
