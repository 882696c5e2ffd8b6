"""Windows: which day and month a moment is in, and that what goes in comes out there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.instants import DAY_MS, day_of, rfc3339
from kb_mcp.proxy.ledger.records import LineageId, WindowKey
from kb_mcp.proxy.ledger.windows import resets_at, windows_at

# 2024-02-29T00:00:00Z
LEAP_MS = 1_709_164_800_000
LINEAGE = LineageId("k1")


@pytest.mark.parametrize(
    ("at_ms", "day", "month"),
    [
        (0, "1970-01-01", "1970-01-01"),
        (DAY_MS - 1, "1970-01-01", "1970-01-01"),
        (DAY_MS, "1970-01-02", "1970-01-01"),
        (LEAP_MS - 1, "2024-02-28", "2024-02-01"),
        (LEAP_MS, "2024-02-29", "2024-02-01"),
        (LEAP_MS + DAY_MS, "2024-03-01", "2024-03-01"),
    ],
)
def test_a_window_turns_at_midnight_utc(at_ms: int, day: str, month: str) -> None:
    places = windows_at(at_ms, LINEAGE, "cus_A1", "usd")
    assert places.account_day == WindowKey("account", "", "day", day, "usd")
    assert places.key_day == WindowKey("key", "k1", "day", day, "usd")
    assert places.key_month == WindowKey("key", "k1", "month", month, "usd")
    assert places.customer_day == WindowKey("customer", "cus_A1", "day", day, "usd")
    assert places.counts == WindowKey("key", "k1", "day", day, "")
    assert places.all() == (
        places.account_day, places.key_day, places.key_month, places.counts, places.customer_day,
    )  # fmt: skip
    assert places.counts not in places.money()
    assert len(places.money()) == 4


def test_without_a_customer_there_is_no_window_of_one() -> None:
    places = windows_at(0, LINEAGE, None, "usd")
    assert places.customer_day is None
    assert len(places.all()) == 4


@pytest.mark.parametrize(
    ("window", "start", "end"),
    [
        ("day", "2026-12-31", "2027-01-01T00:00:00Z"),
        ("day", "2024-02-28", "2024-02-29T00:00:00Z"),
        ("month", "2026-11-01", "2026-12-01T00:00:00Z"),
        ("month", "2026-12-01", "2027-01-01T00:00:00Z"),
    ],
)
def test_a_window_says_when_it_turns(window: str, start: str, end: str) -> None:
    assert resets_at(WindowKey("key", "k1", window, start, "usd")) == end


@given(st.integers(0, 4_000_000_000_000))
def test_every_moment_has_one_day_and_is_told_to_the_millisecond(at_ms: int) -> None:
    assert rfc3339(at_ms).startswith(day_of(at_ms).isoformat())
    assert rfc3339(at_ms).endswith(f".{at_ms % 1000:03d}Z")
    assert (
        day_of(at_ms)
        == day_of(at_ms - at_ms % DAY_MS)
        == day_of(at_ms - at_ms % DAY_MS + DAY_MS - 1)
    )
