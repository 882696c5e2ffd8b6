"""The store's clock: never back, compared with Stripe's, and frozen by no wild jump."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from kb_mcp.proxy.ledger.clock import SKEW_MAX_MS, StoreClock

NOW = 1_795_482_000_000
DAY = 86_400_000


class Host:
    """A host's clocks in hand: one that can be set, and one that only goes on."""

    def __init__(self) -> None:
        self.ms, self.steady_ms = NOW, 5_000
        self.clock = StoreClock(lambda: self.ms, None, lambda: self.steady_ms)

    def pass_time(self, milliseconds: int) -> None:
        self.ms += milliseconds
        self.steady_ms += milliseconds

    def hear(self, ahead_ms: int = 0) -> None:
        self.clock.observe(formatdate((self.ms + ahead_ms) // 1000, usegmt=True))


def test_time_never_runs_behind_the_high_water_mark() -> None:
    host = Host()
    assert host.clock.now(0) == NOW
    assert host.clock.now(NOW + 1) == NOW + 1
    assert host.clock.now(NOW - 1) == NOW


def test_until_stripe_was_heard_nothing_is_skewed() -> None:
    host = Host()
    assert (host.clock.skew_ms, host.clock.skewed, host.clock.turning(NOW - DAY)) == (
        0,
        False,
        False,
    )


@pytest.mark.parametrize("date", [None, "", "yesterday", "Tue, 99 Nov 2026 00:00:00 GMT"])
def test_what_is_no_date_says_nothing(date: str | None) -> None:
    host = Host()
    host.clock.observe(date)
    assert host.clock.skew_ms == 0


@pytest.mark.parametrize(("ahead_ms", "skewed"), [
    (0, False), (SKEW_MAX_MS, False), (-SKEW_MAX_MS, False),
    (SKEW_MAX_MS + 1_000, True), (-SKEW_MAX_MS - 1_000, True),
])  # fmt: skip
def test_more_than_a_minute_apart_is_skew(ahead_ms: int, skewed: bool) -> None:
    host = Host()
    host.hear(ahead_ms)
    assert (host.clock.skew_ms, host.clock.skewed) == (-ahead_ms, skewed)
    # While it is skewed, the time is Stripe's.
    assert host.clock.now(0) == NOW + (ahead_ms if skewed else 0)


def test_a_clock_that_is_set_shows_at_once_without_another_answer() -> None:
    host = Host()
    host.hear()
    host.pass_time(3_600_000)
    assert host.clock.skewed is False
    host.ms += DAY
    assert (host.clock.skewed, host.clock.skew_ms) == (True, DAY)
    assert host.clock.now(0) == NOW + 3_600_000
    host.ms -= DAY
    assert host.clock.skewed is False


def test_a_skewed_clock_turns_no_window() -> None:
    host = Host()
    host.hear()
    assert host.clock.turning(NOW - DAY) is False  # in step: a new day is a new day
    host.ms += DAY
    assert host.clock.turning(NOW) is True
    assert host.clock.turning(NOW + DAY) is False  # that day was seen
    assert host.clock.turning(0) is False  # a new store has seen none
    host.ms -= 2 * DAY
    assert host.clock.turning(NOW) is True


def test_whoever_moves_the_clock_on_purpose_is_not_out_of_step() -> None:
    moved = StoreClock(lambda: NOW + DAY, lambda: NOW, lambda: 0)
    moved.observe(formatdate(NOW // 1000, usegmt=True))
    assert (moved.skewed, moved.now(0)) == (False, NOW + DAY)


def test_an_answer_that_lay_in_a_suspended_host_is_not_believed() -> None:
    host = Host()
    host.hear()
    heard = formatdate(host.ms // 1000, usegmt=True)
    host.pass_time(1_200_000)
    host.clock.observe(heard, waited_ms=1_200_000)
    assert (host.clock.skew_ms, host.clock.now(0)) == (0, NOW + 1_200_000)
