"""Rates: a burst of a whole minute, then evenly, each key by itself."""

from __future__ import annotations

import pytest

from kb_mcp.proxy.access.authorize import KEYS_MAX, MINUTE_MS, Rates


@pytest.mark.parametrize("per_minute", [1, 7, 600])
def test_a_burst_of_the_whole_rate_and_then_one_at_a_time(per_minute: int) -> None:
    rates, now = Rates(), 1_000_000
    assert [rates.retry_after("k", per_minute, now) for _ in range(per_minute)] == [
        None
    ] * per_minute
    wait = rates.retry_after("k", per_minute, now)
    assert wait == 1 + MINUTE_MS // (per_minute * 1000)
    now += -(-MINUTE_MS // per_minute)
    assert rates.retry_after("k", per_minute, now) is None
    assert rates.retry_after("k", per_minute, now) is not None


def test_whoever_waits_as_long_as_told_is_let_in() -> None:
    rates, now = Rates(), 0
    for _ in range(20):
        wait = rates.retry_after("k", 7, now)
        if wait is not None:
            now += wait * 1000
            assert rates.retry_after("k", 7, now) is None


def test_a_refused_request_takes_nothing_and_an_hour_saves_no_more_than_a_minute() -> None:
    rates = Rates()
    for _ in range(10):
        rates.retry_after("k", 2, 0)
    assert rates.retry_after("k", 2, MINUTE_MS // 2) is None
    granted = [rates.retry_after("k", 2, 60 * MINUTE_MS) for _ in range(3)]
    assert [each is None for each in granted] == [True, True, False]


def test_a_clock_that_goes_back_grants_nothing() -> None:
    rates = Rates()
    assert rates.retry_after("k", 1, 10 * MINUTE_MS) is None
    assert rates.retry_after("k", 1, 0) is not None


def test_keys_have_buckets_of_their_own_and_the_oldest_are_forgotten() -> None:
    rates = Rates()
    assert rates.retry_after("one", 1, 0) is None
    assert rates.retry_after("two", 1, 0) is None
    assert rates.retry_after("one", 1, 0) is not None
    for number in range(KEYS_MAX):
        rates.retry_after(f"k{number}", 1, 0)
    assert rates.retry_after("one", 1, 0) is None
