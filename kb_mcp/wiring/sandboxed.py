"""The sandbox as an upstream: in this process or behind an address, and its clock.

Floor: wiring. In sandbox mode kb-mcp follows the sandbox's clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from kb_mcp.proxy.stripe.sends import Answered, Upstream, UpstreamRequest

_CLOCK_WITHIN_MS = 2_000


class FollowedClock:
    """How far the sandbox's clock was turned, asked for before each request that may charge.

    What stands at the sandbox's address may be no sandbox of ours: then nobody is `followed`, and
    its `Date` is compared as Stripe's is.
    """

    def __init__(self, upstream: Upstream, host_ms: Callable[[], int]) -> None:
        """Follow the clock behind `upstream`; `host_ms` is this host's."""
        self._upstream = upstream
        self._host_ms = host_ms
        self.offset_ms = 0
        self.followed = False

    def measure_from(self, base_ms: Callable[[], int]) -> None:
        """Tell the offset from another clock than this host's: the store's own."""
        self._host_ms = base_ms

    async def follow(self, boottime_ms: Callable[[], int]) -> None:
        """Ask for the sandbox's time. Where it cannot be had, the last known offset stands."""
        request = UpstreamRequest(
            method="GET",
            path="/_sandbox/clock",
            body=None,
            stripe_version=None,
            idempotency_key=None,
        )
        answer = await self._upstream.send(request, deadline_ms=boottime_ms() + _CLOCK_WITHIN_MS)
        exact = _now_of(answer.body) if isinstance(answer, Answered) else None
        if exact is not None:
            self.followed = True
            self.offset_ms = exact - self._host_ms()


def _now_of(body: bytes) -> int | None:
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    now = parsed.get("now_ms") if isinstance(parsed, dict) else None
    return now if type(now) is int else None
