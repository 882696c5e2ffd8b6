"""When tests are: no test depends on the month, the day or the hour at which it runs.

The months they bill are written as if it were November 2026, and moved to where now is. A policy
refuses periods more than a year back. What is sent through a real clock is therefore moved by the
months that have passed since the tests were written, so that `2026-11` is this month for good, and
`2026-10` the last one.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from kb_mcp.serving.machine import host_ms

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WRITTEN_IN = 2026 * 12 + 11 - 1
_MONTH = re.compile(r"\b(20\d\d)-(0[1-9]|1[0-2])\b")


def lately(period: str) -> str:
    """Move every month in `period`, also those of days, to where it lies as seen from now."""
    now = datetime.fromtimestamp(host_ms() // 1000, UTC)
    passed = now.year * 12 + now.month - 1 - WRITTEN_IN

    def moved(match: re.Match[str]) -> str:
        year, month = divmod(int(match[1]) * 12 + int(match[2]) - 1 + passed, 12)
        return f"{year}-{month + 1:02}"

    return _MONTH.sub(moved, period)


def to_next_day_s() -> int:
    """Return how far a sandbox's clock is turned for a day of which 23 hours are left."""
    return (DAY_MS - host_ms() % DAY_MS + HOUR_MS) // 1000


def spelled(period: str) -> str:
    """Write a month, moved as above, as people do: `November 2026`."""
    year, month = lately(period).split("-")
    return f"{_NAMES[int(month) - 1]} {year}"


_NAMES = (
    "January February March April May June July August September October November December"
).split()
