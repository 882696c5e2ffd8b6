"""Instants: milliseconds since 1970 UTC as UTC days and as RFC 3339 text, and as people give them.

Floor: the ground. Pure.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final

DAY_MS = 86_400_000
END_OF_MONTH: Final = "end-of-month"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_ORDINAL = _EPOCH.toordinal()
_LAST_MS = 253_402_214_400_000  # the last day of the year 9999, which no offset moves out of it
_LONGEST_MS = 36_525 * DAY_MS
_UNITS_MS = {"w": 7 * DAY_MS, "d": DAY_MS, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DURATION = re.compile(r"([0-9]{1,10})(ms|[smhdw])")
_MOMENT = re.compile(
    r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?:Z|[+-]\d{2}:\d{2})?)?",
    re.ASCII,
)


def day_of(at_ms: int) -> date:
    """Return the UTC day of `at_ms`."""
    return date.fromordinal(_EPOCH_ORDINAL + at_ms // DAY_MS)


@lru_cache(maxsize=64)
def rfc3339(at_ms: int) -> str:
    """Return `at_ms` as RFC 3339 UTC with milliseconds."""
    whole = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"


def epoch_ms(moment: datetime) -> int:
    """Return `moment` in ms UTC; one without an offset is in UTC."""
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(milliseconds=1)


def parse_duration(text: object, most_ms: int = _LONGEST_MS) -> int:
    """Read `500ms`, `15m`, `24h`, `90d` or `2w` as milliseconds. Raises: ValueError."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('a duration is a number and a unit in quotes, like "15m" or "24h"')
    milliseconds = int(match[1]) * _UNITS_MS[match[2]]
    if milliseconds > most_ms:
        raise ValueError(f"a duration is at most {most_ms // DAY_MS} days")
    return milliseconds


def format_duration(milliseconds: int) -> str:
    """Write milliseconds as `parse_duration` reads them, in the largest unit up to days."""
    for unit in ("d", "h", "m", "s"):
        if milliseconds and milliseconds % _UNITS_MS[unit] == 0:
            return f"{milliseconds // _UNITS_MS[unit]}{unit}"
    return f"{milliseconds}ms"


def how_many(count: int, noun: str) -> str:
    """Write a number with its noun: `1 month`, `2 months`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def past_ms(text: str, now: int) -> int:
    """Read a time, a day, or an age before `now` (ms UTC). Raises: ValueError."""
    if _DURATION.fullmatch(text):
        return now - parse_duration(text)
    return _moment_ms(text, "an age (36h, 30d)")


def future_ms(text: str, now: int) -> int:
    """Read a time, a day, a duration from `now` (ms UTC), or `end-of-month`. Raises: ValueError."""
    if text == END_OF_MONTH:
        today = day_of(now)
        year, month = today.year + today.month // 12, today.month % 12 + 1
        return epoch_ms(datetime(year, month, 1, tzinfo=UTC))
    if _DURATION.fullmatch(text):
        at_ms = now + parse_duration(text)
    else:
        at_ms = _moment_ms(text, f"a duration (36h, 30d), or {END_OF_MONTH}")
    if at_ms <= now:
        raise ValueError("this is already past")
    return at_ms


def _moment_ms(text: str, or_else: str) -> int:
    if _MOMENT.fullmatch(text):
        try:
            # A bare date is that day's beginning in UTC, in which all windows turn.
            at_ms = epoch_ms(datetime.fromisoformat(text))
        except ValueError:
            at_ms = 0
        if 0 < at_ms < _LAST_MS:
            return at_ms
    raise ValueError(f"give a day (2026-06-01), a time (2026-06-01T12:00:00Z) or {or_else}")
