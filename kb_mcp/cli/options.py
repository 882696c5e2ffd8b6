"""Values on a command line: caps, moments, durations.

Floor: at the bottom of the commands. Moments and durations become integer milliseconds once the
store's clock is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from typing_extensions import override

if TYPE_CHECKING:
    from kb_mcp.money import Money

DAY_MS = 86_400_000
END_OF_MONTH = "end-of-month"
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": DAY_MS, "w": 7 * DAY_MS}
_DURATION = re.compile(r"([0-9]{1,5})([smhdw])")
_GRAMMAR = "is a date (2026-06-01), a time (2026-06-01T12:00:00Z) or an age (36h, 30d)"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Cap(click.ParamType[Any]):
    """A cap in major units with its currency, like `10000.00usd`."""

    name = "AMOUNT"

    @override
    def convert(self, value: Any, param: Any, ctx: Any) -> Money:
        """Read the cap."""
        from kb_mcp.money import MoneyError, parse_cap

        try:
            return parse_cap(str(value))
        except MoneyError as error:
            self.fail(str(error), param, ctx)


CAP = Cap()


class Kinds(click.ParamType[Any]):
    """Kinds of billing period, separated by commas, like `month,quarter`."""

    name = "KIND,…"

    @override
    def convert(self, value: Any, param: Any, ctx: Any) -> list[str]:
        """Read the kinds, each once."""
        from kb_mcp import periods

        found = [part.strip() for part in str(value).split(",")]
        wrong = next((each for each in found if each not in periods.KINDS), None)
        if wrong is not None:
            there_are = ", ".join(periods.KINDS)
            self.fail(f"{wrong!r} is no kind of period; there are {there_are}", param, ctx)
        return list(dict.fromkeys(found))


KINDS = Kinds()


def cap_table(caps: Iterable[Money], name: str) -> dict[str, int]:
    """Return caps as minor units by currency. Raises: UsageError for a currency given twice."""
    table: dict[str, int] = {}
    for cap in caps:
        if cap.currency in table:
            raise click.UsageError(f"{name} names {cap.currency} twice")
        table[cap.currency] = cap.amount
    return table


def duration_ms(text: str) -> int:
    """Read `15m`, `24h`, `30d` as milliseconds. Raises: BadParameter."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no duration, like 24h or 30d")
    return int(match[1]) * _UNITS_MS[match[2]]


def past_ms(text: str, now: int) -> int:
    """Read a moment: a date or time, or an age before `now` (ms UTC). Raises: BadParameter."""
    if _DURATION.fullmatch(text):
        return now - duration_ms(text)
    return _instant_ms(text)


def future_ms(text: str, now: int) -> int:
    """Read an expiry: a time, a duration from `now`, or `end-of-month`. Raises: BadParameter."""
    if text == END_OF_MONTH:
        today = _EPOCH + timedelta(milliseconds=now)
        first = today.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        after = (first + timedelta(days=32)).replace(day=1)
        moment = _ms(after)
    elif _DURATION.fullmatch(text):
        moment = now + duration_ms(text)
    else:
        moment = _instant_ms(text)
    if moment <= now:
        raise click.BadParameter(f"{text} is already past")
    return moment


def _instant_ms(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"a moment {_GRAMMAR}, not {text!r}") from None
    # A bare date is that day's beginning in UTC, in which all windows turn.
    return _ms(moment.replace(tzinfo=moment.tzinfo or UTC))


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
