"""Asking Stripe for the time, where the clock cannot do without.

Floor: wing B, above the sends. Any answer will do, a refusal too: what is wanted is its `Date`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.stripe.sends import Answered, Upstream, UpstreamRequest

ASK_EVERY_MS = 1_000
ASK_WITHIN_MS = 5_000


class TimeReader:
    """Asks once after a start, and again while the clocks disagree; at most once a second.

    `boottime_ms` counts suspended time.
    """

    def __init__(
        self, upstream: Upstream, clock: StoreClock, boottime_ms: Callable[[], int]
    ) -> None:
        """Ask through `upstream`, for `clock`."""
        self._upstream = upstream
        self._clock = clock
        self._boottime_ms = boottime_ms
        self._asked_at: int | None = None
        self._asking = asyncio.Lock()

    async def settle(self) -> None:
        """Ask for the time unless it is certain; wait for the answer a few seconds at most."""
        if not self._clock.unsure:
            return
        asked_at = self._asked_at
        async with self._asking:
            # Whoever came while another one asked has waited for the same answer.
            now = self._boottime_ms()
            lately = self._asked_at is not None and now < self._asked_at + ASK_EVERY_MS
            if self._clock.unsure and not lately and self._asked_at == asked_at:
                self._asked_at = now
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_WITHIN_MS / 1000):
                        await self.ask("/v1/charges?limit=1")

    async def ask(self, path: str) -> Answered | None:
        """Read `path` for the time of its answer; return the answer, if one came."""
        begun = self._boottime_ms()
        request = UpstreamRequest(
            method="GET", path=path, body=None, stripe_version=None, idempotency_key=None
        )
        answer = await self._upstream.send(request, deadline_ms=begun + ASK_WITHIN_MS)
        if not isinstance(answer, Answered):
            return None
        self._clock.observe(answer.headers.get("date"), self._boottime_ms() - begun)
        return answer
