"""Instants: milliseconds since 1970 UTC as UTC days and as RFC 3339 text.

Floor: the ground. Pure.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from functools import lru_cache

DAY_MS = 86_400_000
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


def day_of(at_ms: int) -> date:
    """Return the UTC day of `at_ms`."""
    return date.fromordinal(_EPOCH_ORDINAL + at_ms // DAY_MS)


@lru_cache(maxsize=64)
def rfc3339(at_ms: int) -> str:
    """Return `at_ms` as RFC 3339 UTC with milliseconds."""
    whole = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"
