"""The store's clock: never back, and no day turned by the word of one `Date` or one host."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from kb_mcp.proxy.ledger.clock import (
    AGREE_MS,
    APART_MS,
    HEARD_FOR_MS,
    Doubt,
    StoreClock,
    StoredTime,
    Told,
)

NOW = 1_795_482_000_000  # 2026-11-24T01:00:00Z
MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR


class Host:
    """A host's clocks in hand, and the facts of a store that a process on it writes."""

    def __init__(self) -> None:
        self.ms, self.steady_ms = NOW, 5_000
        self.facts: dict[str, str] = {}
        self.clock: StoreClock
        self.restart()

    def restart(self, boot: str = "boot") -> None:
        self.clock = StoreClock(lambda: self.ms, None, lambda: self.steady_ms, boot_id=boot)
        self.clock.observe(None)  # Stripe has answered

    def pass_time(self, milliseconds: int) -> None:
        self.ms += milliseconds
        self.steady_ms += milliseconds

    def hear(self, ahead_ms: int = 0) -> None:
        self.clock.observe(formatdate((self.ms + ahead_ms) // 1000, usegmt=True))

    def tell(self) -> Told:
        return self.clock.tell(StoredTime.of_facts(self.facts))

    def charge(self) -> Told:
        """Tell the time, and write it down as a transaction that bills does."""
        told = self.tell()
        self.facts |= self.clock.facts(told, raised=not told.turning)
        return told


def certain(told: Told) -> bool:
    return not told.dispute and not told.turning and told.now == told.latest


def test_time_never_runs_behind_the_high_water_mark() -> None:
    host = Host()
    assert host.tell().now == NOW
    assert host.clock.tell(StoredTime(mark=NOW + 500)).now == NOW + 500
    assert host.clock.tell(StoredTime(mark=NOW - 500)).now == NOW + 500


def test_where_stripe_tells_no_time_the_host_rules() -> None:
    host = Host()
    assert certain(host.charge())
    host.pass_time(DAY)
    assert certain(host.charge())
    host.restart()
    assert host.charge() == Told(NOW + DAY, NOW + DAY, alone=True)


def test_a_host_alone_that_is_behind_what_the_store_has_seen_does_not_rule() -> None:
    host = Host()
    host.charge()
    host.ms -= DAY
    host.restart()
    told = host.charge()
    assert "86400 s ahead" in told.dispute
    assert told.turning


@pytest.mark.parametrize(
    "date",
    [None, "", "yesterday", "Tue, 99 Nov 2026 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT",
     "Fri, 31 Dec 9999 23:59:59 GMT"],
)  # fmt: skip
def test_what_is_no_date_says_nothing(date: str | None) -> None:
    host = Host()
    host.clock.observe(date)
    assert (host.clock.skew_ms, host.clock.heard, certain(host.tell())) == (0, False, True)


@pytest.mark.parametrize("ahead_ms", [0, AGREE_MS, -AGREE_MS])
def test_within_a_minute_host_and_stripe_agree(ahead_ms: int) -> None:
    host = Host()
    host.hear(ahead_ms)
    told = host.charge()
    assert (certain(told), told.agreed, told.now) == (True, True, NOW)


@pytest.mark.parametrize("ahead_ms", [AGREE_MS + 1_000, -AGREE_MS - 1_000, DAY, -DAY, 40 * DAY])
def test_one_date_that_is_off_turns_nothing(ahead_ms: int) -> None:
    host = Host()
    host.hear()
    host.charge()
    host.pass_time(1_000)
    host.hear(ahead_ms)
    told = host.charge()
    assert told.now == NOW + 1_000
    assert told.dispute
    assert told.turning == (abs(ahead_ms) >= DAY)
    # The next answer is right: it was one answer.
    host.pass_time(1_000)
    host.hear()
    assert certain(host.charge())


def test_two_answers_half_a_minute_apart_overrule_the_host() -> None:
    host = Host()
    host.hear()
    host.charge()
    host.ms += DAY
    host.pass_time(1_000)
    host.hear(-DAY)
    assert certain(host.charge()) is False or host.charge().now == NOW + 1_000
    host.pass_time(APART_MS)
    host.hear(-DAY)
    told = host.charge()
    assert (certain(told), told.now) == (True, NOW + 1_000 + APART_MS)


def test_two_answers_that_do_not_agree_with_each_other_do_not() -> None:
    host = Host()
    host.hear()
    host.charge()
    host.pass_time(1_000)
    host.hear(DAY)
    host.pass_time(2 * APART_MS)
    host.hear(2 * DAY)
    assert host.charge().turning


def test_answers_that_run_ahead_of_the_time_that_passed_do_not_rule_however_many() -> None:
    host = Host()
    host.hear()
    host.charge()
    for _ in range(5):
        host.pass_time(APART_MS)
        host.hear(DAY)
    told = host.charge()
    assert told.now == NOW + 5 * APART_MS
    assert told.turning


def test_a_host_that_is_set_shows_at_once_without_another_answer() -> None:
    host = Host()
    host.hear()
    host.charge()
    host.pass_time(HOUR)
    host.ms += DAY
    told = host.charge()
    assert (told.now, told.turning) == (NOW + HOUR, True)
    host.ms -= DAY
    assert certain(host.charge())


def test_after_ten_minutes_without_a_date_the_host_rules_alone() -> None:
    host = Host()
    host.hear(-30_000)
    host.charge()
    host.pass_time(HEARD_FOR_MS + 1)
    told = host.charge()
    assert (certain(told), told.agreed, host.clock.heard) == (True, False, False)


def test_a_wild_first_answer_and_then_silence_ends_in_a_dispute() -> None:
    host = Host()
    host.hear(DAY)
    host.pass_time(HEARD_FOR_MS + 1)
    assert host.charge().turning


def test_a_date_that_stands_still_is_no_clock() -> None:
    host = Host()
    for _ in range(3):
        host.clock.observe("Wed, 01 Jan 2025 00:00:00 GMT")
        host.pass_time(2_000)
    host.clock.observe("Wed, 01 Jan 2025 00:00:00 GMT")
    assert (certain(host.charge()), host.clock.heard) == (True, False)
    host.pass_time(DAY)
    assert certain(host.charge())
    # It moves again: then it is compared again.
    host.hear(DAY)
    assert host.charge().turning


def test_answers_of_one_second_are_one_answer() -> None:
    host = Host()
    for _ in range(20):
        host.hear(DAY)
        host.pass_time(40)
    assert host.charge().turning


def test_a_new_store_waits_until_the_clocks_agree() -> None:
    host = Host()
    host.hear(DAY)
    assert host.charge().turning
    assert host.facts == {}
    host.pass_time(APART_MS)
    host.hear(DAY)
    told = host.charge()
    assert (certain(told), told.now) == (True, NOW + APART_MS + DAY)


def test_a_host_alone_binds_nobody_before_something_is_billed() -> None:
    host = Host()
    host.ms += DAY
    assert host.tell().alone
    host.ms -= DAY
    host.hear()
    assert (certain(host.charge()), host.charge().now) == (True, NOW)


def test_a_stripe_that_falls_behind_the_time_that_passed_does_not_rule() -> None:
    host = Host()
    host.hear()
    host.charge()
    for _ in range(4):
        host.pass_time(HOUR)
        host.hear(-2 * HOUR)
    told = host.charge()
    assert (bool(told.dispute), told.now) == (True, NOW + 4 * HOUR)


def test_after_a_restart_the_boot_clock_says_what_has_passed() -> None:
    host = Host()
    host.hear()
    host.charge()
    host.ms += DAY
    host.pass_time(5 * HOUR)
    host.restart()
    host.hear(-DAY)
    assert host.charge().turning
    host.pass_time(APART_MS)
    host.hear(-DAY)
    assert host.charge().now == NOW + 5 * HOUR + APART_MS


def test_after_a_boot_nobody_knows_what_has_passed_and_host_and_stripe_must_agree() -> None:
    host = Host()
    host.hear()
    host.charge()
    host.pass_time(5 * HOUR)
    host.restart("another boot")
    for _ in range(3):
        host.hear(2 * MINUTE)
        told = host.charge()
        assert (bool(told.dispute), told.turning) == (True, True)
        host.pass_time(APART_MS)
    host.ms += 2 * MINUTE
    host.hear()
    assert certain(host.charge())


def test_what_a_clock_that_was_ahead_wrote_down_stays_in_doubt() -> None:
    host = Host()
    host.ms += DAY
    host.charge()
    host.ms -= DAY
    host.hear()
    assert "ahead" in host.charge().dispute
    # Also once that time has come, and in every other process.
    host.pass_time(DAY + HOUR)
    host.restart()
    host.hear()
    told = host.charge()
    assert (certain(told), told.doubt) == (True, Doubt(NOW, NOW + DAY))
    assert [host.clock.may_be_ahead_ms(NOW + at) for at in (-1, 0, DAY + 999, DAY + 1000)] == [
        0, DAY, DAY, 0,
    ]  # fmt: skip


def test_whoever_moves_the_clock_on_purpose_is_not_out_of_step() -> None:
    moved = StoreClock(lambda: NOW + DAY, lambda: NOW, lambda: 0)
    moved.observe(formatdate(NOW // 1000, usegmt=True))
    assert certain(moved.tell(StoredTime(mark=NOW)))
    assert moved.tell(StoredTime(mark=NOW)).now == NOW + DAY
    back = StoreClock(lambda: NOW - DAY, lambda: NOW, lambda: 0)
    back.observe(formatdate(NOW // 1000, usegmt=True))
    assert certain(back.tell(StoredTime(mark=NOW)))


def test_the_sandboxs_clock_is_the_truth_where_it_is_followed() -> None:
    host = Host()
    host.clock = StoreClock(
        lambda: host.ms, None, lambda: host.steady_ms, followed=lambda: True, boot_id="boot"
    )
    host.hear(DAY)
    assert certain(host.charge())
    host.ms += 40 * DAY
    assert certain(host.charge())
    host.ms -= 80 * DAY
    assert host.charge() == Told(NOW + 40 * DAY, NOW + 40 * DAY)
    assert host.clock.unsure is False


def test_an_answer_that_lay_in_a_suspended_host_is_not_believed() -> None:
    host = Host()
    host.hear()
    heard = formatdate(host.ms // 1000, usegmt=True)
    host.pass_time(1_200_000)
    host.clock.observe(heard, waited_ms=1_200_000)
    assert (host.clock.skew_ms, host.charge().now) == (0, NOW + 1_200_000)


def test_to_look_at_the_clock_does_not_bind_anybody_to_it() -> None:
    host = Host()
    host.ms += DAY
    assert host.clock.now() == NOW + DAY
    host.ms -= DAY
    assert (host.clock.now(), certain(host.charge())) == (NOW, True)


def test_stripe_is_asked_once_after_a_start_and_while_the_clocks_disagree() -> None:
    host = Host()
    host.clock = StoreClock(lambda: host.ms, None, lambda: host.steady_ms)
    assert (host.clock.unsure, host.tell().unheard) == (True, True)
    host.clock.observe(None)
    assert (host.clock.unsure, host.tell().unheard) == (False, False)
    host.hear(DAY)
    assert host.clock.unsure
    host.hear()
    assert host.clock.unsure is False
