"""Rates: how many requests a key may make in a minute, in this process.

Floor: below the governor. A token bucket in integers: a key may burst to its whole rate, then
refills evenly.
"""

from __future__ import annotations

from collections import OrderedDict

MINUTE_MS = 60_000
KEYS_MAX = 10_000


class Rates:
    """Token buckets by key id; the least recently used are forgotten beyond KEYS_MAX."""

    def __init__(self) -> None:
        """Start with full buckets."""
        # key -> (tokens x MINUTE_MS, last look in ms): integers throughout.
        self._buckets: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def retry_after(self, key_id: str, per_minute: int, now_ms: int) -> int | None:
        """Take one token of `key_id`; return None, or the seconds until there is one.

        `now_ms` is a monotonic clock in milliseconds.
        """
        full = per_minute * MINUTE_MS
        tokens, at = self._buckets.pop(key_id, (full, now_ms))
        tokens = min(full, tokens + max(now_ms - at, 0) * per_minute)
        self._buckets[key_id] = (tokens - MINUTE_MS if tokens >= MINUTE_MS else tokens, now_ms)
        if len(self._buckets) > KEYS_MAX:
            self._buckets.popitem(last=False)
        if tokens >= MINUTE_MS:
            return None
        return 1 + (MINUTE_MS - tokens) // (per_minute * 1000)
