"""Readiness: whether Stripe can be reached and takes our key, asked at most every few seconds.

Floor: below the key API. Any answer but a 401 will do: it shows that there is a way.
"""

from __future__ import annotations

from collections.abc import Callable

from kb_mcp.proxy.stripe.sends import Answered, Upstream, UpstreamRequest

ASK_EVERY_MS = 5_000
ASK_WITHIN_MS = 2_000


class Readiness:
    """Remembers the last look; `boottime_ms` counts suspended time."""

    def __init__(self, upstream: Upstream, boottime_ms: Callable[[], int]) -> None:
        """Look through `upstream`."""
        self._upstream = upstream
        self._boottime_ms = boottime_ms
        self._looked_at = -ASK_EVERY_MS
        self._reachable = False

    async def reachable(self) -> bool:
        """Say whether Stripe answered and knows our key, now or a few seconds ago."""
        now = self._boottime_ms()
        if now >= self._looked_at + ASK_EVERY_MS:
            self._looked_at = now
            request = UpstreamRequest(
                method="GET",
                path="/v1/charges?limit=1",
                body=None,
                stripe_version=None,
                idempotency_key=None,
            )
            answer = await self._upstream.send(request, deadline_ms=now + ASK_WITHIN_MS)
            self._reachable = isinstance(answer, Answered) and answer.status != 401
        return self._reachable
