"""The sandbox as an upstream: in this process or behind an address, and its clock.

Floor: wiring. In sandbox mode kb-mcp follows the sandbox's clock (ledger.md: Clocks).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from kb_mcp.proxy.stripe.sends import Answered, Upstream, UpstreamRequest

_CLOCK_WITHIN_MS = 2_000


class FollowedClock:
    """How far the sandbox's clock was turned, asked for before each request that may charge."""

    def __init__(self, upstream: Upstream, host_ms: Callable[[], int]) -> None:
        """Follow the clock behind `upstream`; `host_ms` is this host's."""
        self._upstream = upstream
        self._host_ms = host_ms
        self.offset_ms = 0

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
        if not isinstance(answer, Answered):
            return
        exact = _now_of(answer.body)
        if exact is not None:
            self.offset_ms = exact - self._host_ms()
            return
        dated = _date_of(answer.headers.get("date"))
        # A header has whole seconds: an offset within them is none.
        if dated is not None:
            offset = dated - self._host_ms()
            self.offset_ms = 0 if -2_000 < offset < 1_000 else offset


def _now_of(body: bytes) -> int | None:
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    now = parsed.get("now_ms") if isinstance(parsed, dict) else None
    return now if type(now) is int else None


def _date_of(header: str | None) -> int | None:
    try:
        return None if header is None else int(parsedate_to_datetime(header).timestamp()) * 1000
    except (ValueError, TypeError):
        return None
