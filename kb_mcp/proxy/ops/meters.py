"""Meters: how long the ledger and Stripe take, counted in whole milliseconds.

Floor: wing B, put around ledger and upstream in wiring. They measure and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from kb_mcp.proxy.ledger import KeyId, Ledger, Lineage, Refs, Step, StoreSettings, VaultKey
from kb_mcp.proxy.sending import Answered, NotSent, Upstream, UpstreamAnswer, UpstreamRequest

T = TypeVar("T")
BUCKETS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000)


@dataclass(slots=True)
class Histogram:
    """Counts of durations, by the first of BUCKETS_MS that is not smaller."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_MS) + 1))
    sum_ms: int = 0

    def observe(self, duration_ms: int) -> None:
        """Count one duration."""
        self.sum_ms += duration_ms
        for place, bound in enumerate(BUCKETS_MS):
            if duration_ms <= bound:
                self.counts[place] += 1
                return
        self.counts[-1] += 1

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """Return how many took at most each bound, the last bound being `+Inf`."""
        bounds = [*(str(bound) for bound in BUCKETS_MS), "+Inf"]
        totals, total = list[int](), 0
        for each in self.counts:
            total += each
            totals.append(total)
        return list(zip(bounds, totals, strict=True))


@dataclass(slots=True)
class Meters:
    """What one process has measured since it began."""

    ledger: Histogram = field(default_factory=Histogram)
    sends: dict[str, Histogram] = field(
        default_factory=lambda: {name: Histogram() for name in ("answered", "not_sent", "lost")}
    )
    waiting: int = 0
    in_flight: Callable[[], int] = lambda: 0


class MeteredLedger:
    """A ledger whose transactions are timed: from asking until the commit is durable."""

    def __init__(self, ledger: Ledger, meters: Meters, boottime_ms: Callable[[], int]) -> None:
        """Serve `ledger`."""
        self._ledger = ledger
        self._meters = meters
        self._boottime_ms = boottime_ms

    @property
    def settings(self) -> StoreSettings:
        """What the store is bound to."""
        return self._ledger.settings

    async def transact(self, refs: Callable[[int], Refs], step: Step[T]) -> T:
        """Do what the ledger does, and count how long it took."""
        begun = self._boottime_ms()
        self._meters.waiting += 1
        try:
            return await self._ledger.transact(refs, step)
        finally:
            self._meters.waiting -= 1
            self._meters.ledger.observe(self._boottime_ms() - begun)

    async def find_key(self, key_id: KeyId) -> tuple[VaultKey, Lineage] | None:
        """Return the key and its lineage as committed right now, or None."""
        return await self._ledger.find_key(key_id)

    async def close(self) -> None:
        """Close the ledger."""
        await self._ledger.close()


class MeteredUpstream:
    """A way to Stripe whose sends are timed, by what became of them."""

    def __init__(self, upstream: Upstream, meters: Meters, boottime_ms: Callable[[], int]) -> None:
        """Send by `upstream`."""
        self._upstream = upstream
        self._meters = meters
        self._boottime_ms = boottime_ms

    async def send(self, request: UpstreamRequest, *, deadline_ms: int) -> UpstreamAnswer:
        """Send once, and count how long it took."""
        begun = self._boottime_ms()
        answer = await self._upstream.send(request, deadline_ms=deadline_ms)
        self._meters.sends[_ending(answer)].observe(self._boottime_ms() - begun)
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        await self._upstream.aclose()


def _ending(answer: UpstreamAnswer) -> str:
    if isinstance(answer, Answered):
        return "answered"
    return "not_sent" if isinstance(answer, NotSent) else "lost"
