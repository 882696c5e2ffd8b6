"""Billing periods: one grammar, one canonical label for each span of days.

Floor: the shared ground, free to both wings. Pure: today arrives as an argument.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import Final, Literal

MAX_DAYS: Final = 366
PeriodKind = Literal["year", "quarter", "month", "week", "day", "range"]
EXAMPLES: Final[Mapping[PeriodKind, str]] = {
    "year": "a year (2026)",
    "quarter": "a quarter (2026-Q2)",
    "month": "a month (2026-06)",
    "week": "an ISO week (2026-W23)",
    "day": "a day (2026-06-15)",
    "range": "a range of days (2026-06-15/2026-07-14)",
}
KINDS: Final = tuple(EXAMPLES)
GRAMMAR: Final = (
    f"A period is {', '.join(EXAMPLES.values())}; a range is at most {MAX_DAYS} days long."
)
MONTHS: Final = (
    "January February March April May June July August September October November December"
).split()

_YEAR = re.compile(r"(20[0-9]{2})")
_QUARTER = re.compile(r"(20[0-9]{2})-Q([1-4])")
_MONTH = re.compile(r"(20[0-9]{2})-(0?[1-9]|1[0-2])")
_NAMED_MONTH = re.compile(rf"({'|'.join(MONTHS)}) (20[0-9]{{2}})")
_WEEK = re.compile(r"(20[0-9]{2})-W([0-5][0-9])")
_DAY = re.compile(r"(20[0-9]{2})-([0-1][0-9])-([0-3][0-9])")
_DESCRIPTION = "Subscription "
_KINDS_BY_DASHES: Final[tuple[PeriodKind, ...]] = ("year", "month", "day")
_WEEK_DAYS = 7


class PeriodError(ValueError):
    """Text that is no period; the message carries the grammar."""


@dataclass(frozen=True, slots=True)
class Period:
    """A span of whole days, `start` and `end` both within it, under its canonical label."""

    label: str
    start: date
    end: date

    @property
    def kind(self) -> PeriodKind:
        """Return which of the grammar's kinds this is: its label alone tells."""
        if "/" in self.label:
            return "range"
        if "W" in self.label:
            return "week"
        if "Q" in self.label:
            return "quarter"
        return _KINDS_BY_DASHES[self.label.count("-")]


@lru_cache(maxsize=1024)
def parse_period(text: str) -> Period:
    """Read a period; equal spans get equal labels, however they were written.

    `2026-6` and `June 2026` are `2026-06`, and a range that is a named period becomes it.
    Raises: PeriodError.
    """
    first, slash, last = text.partition("/")
    start, end = _span(first)
    if slash:
        if not (_DAY.fullmatch(first) and _DAY.fullmatch(last)):
            raise PeriodError(GRAMMAR)
        end = _span(last)[1]
        if end < start or (end - start).days >= MAX_DAYS:
            raise PeriodError(GRAMMAR)
    return Period(_label(start, end), start, end)


def overlap(one: Period, other: Period) -> bool:
    """Say whether two periods bill the same days.

    Ranges of seven days or more may share their boundary day: many bills run from the 15th to the
    15th. A year, quarter, month or week says itself where it ends, so it shares no day.
    """
    start, end = max(one.start, other.start), min(one.end, other.end)
    if end != start:
        return end > start
    return not (_may_share_a_day(one) and _may_share_a_day(other))


def _may_share_a_day(period: Period) -> bool:
    return period.kind == "range" and (period.end - period.start).days + 1 >= _WEEK_DAYS


def find_period(text: str | None) -> Period | None:
    """Read a period; None where there is no text, or none that is a period."""
    try:
        return None if text is None else parse_period(text)
    except PeriodError:
        return None


def period_from_description(text: str) -> Period | None:
    """Return the period of a description that reads exactly `Subscription {period}`."""
    return find_period(text.removeprefix(_DESCRIPTION)) if text.startswith(_DESCRIPTION) else None


def within_window(period: Period, today: date, back: int, ahead: int) -> bool:
    """Say whether `period` may be billed `today`, counted in calendar months.

    It begins at most `ahead` months after this one and ends at most `back` months before it, so
    a year may be billed at its beginning, and a long past or invented period never.
    """
    this = _month_index(today)
    return _month_index(period.start) <= this + ahead and _month_index(period.end) >= this - back


def _span(text: str) -> tuple[date, date]:
    try:
        return _match_span(text)
    except ValueError:
        # Of a well-formed text that names no day: the 31st of June, week 53 of a short year.
        raise PeriodError(GRAMMAR) from None


def _match_span(text: str) -> tuple[date, date]:
    if match := _MONTH.fullmatch(text):
        return _months(int(match[1]), int(match[2]), 1)
    if match := _DAY.fullmatch(text):
        day = date(int(match[1]), int(match[2]), int(match[3]))
        return day, day
    if match := _NAMED_MONTH.fullmatch(text):
        return _months(int(match[2]), MONTHS.index(match[1]) + 1, 1)
    if match := _QUARTER.fullmatch(text):
        return _months(int(match[1]), 3 * int(match[2]) - 2, 3)
    if match := _WEEK.fullmatch(text):
        monday = date.fromisocalendar(int(match[1]), int(match[2]), 1)
        return monday, monday + timedelta(days=_WEEK_DAYS - 1)
    if match := _YEAR.fullmatch(text):
        return _months(int(match[1]), 1, 12)
    raise PeriodError(GRAMMAR)


def _months(year: int, month: int, count: int) -> tuple[date, date]:
    after, month_after = divmod(year * 12 + month - 1 + count, 12)
    return date(year, month, 1), date(after, month_after + 1, 1) - timedelta(days=1)


def _label(start: date, end: date) -> str:
    if start == end:
        return start.isoformat()
    year, month = start.year, start.month
    if (start, end) == _months(year, month, 1):
        return f"{year}-{month:02}"
    if month % 3 == 1 and (start, end) == _months(year, month, 3):
        return f"{year}-Q{(month + 2) // 3}"
    if (start, end) == _months(year, 1, 12):
        return f"{year}"
    iso = start.isocalendar()
    if iso.weekday == 1 and (end - start).days == _WEEK_DAYS - 1:
        return f"{iso.year}-W{iso.week:02}"
    return f"{start.isoformat()}/{end.isoformat()}"


def _month_index(day: date) -> int:
    return day.year * 12 + day.month
