"""The word of an operator about the host's clock: what it ends, and when it ends itself."""

from __future__ import annotations

import pytest

from kb_mcp.proxy.ledger.clock import Doubt, StoredTime
from tests.proxy.ledger.test_clock import DAY, HOUR, MINUTE, NOW, Host, certain


@pytest.mark.parametrize("wrong_ms", [-DAY, -HOUR, HOUR, DAY, 400 * DAY])
def test_an_operator_ends_a_dispute_and_the_word_ends_when_the_clocks_agree(wrong_ms: int) -> None:
    host = Host()
    host.facts = {"high_water_ms": str(NOW + DAY)}
    host.hear(wrong_ms)
    assert host.charge().dispute
    host.facts |= host.clock.word_of_operator(StoredTime.of_facts(host.facts))
    assert (certain(host.charge()), host.charge().now) == (True, NOW)
    # It holds on, over a restart too, though Stripe goes on saying otherwise.
    host.pass_time(2 * MINUTE)
    host.hear(wrong_ms)
    assert certain(host.charge())
    host.restart()
    host.hear(wrong_ms)
    assert certain(host.charge())
    # They agree: from then on the host is no longer believed against Stripe.
    host.pass_time(2 * MINUTE)
    host.hear()
    assert host.charge().agreed
    host.pass_time(2_000)
    host.hear(wrong_ms)
    assert host.charge().dispute


def test_a_confirmed_clock_that_is_set_is_disputed_again() -> None:
    host = Host()
    host.facts |= host.clock.word_of_operator(StoredTime.of_facts(host.facts))
    host.hear(DAY)
    assert certain(host.charge())
    host.ms += 3 * DAY
    assert "259200 s off" in host.charge().dispute


def test_an_operators_word_that_sets_the_time_back_leaves_it_in_doubt() -> None:
    host = Host()
    stored = StoredTime(mark=NOW + DAY, doubt=Doubt(NOW - HOUR, NOW))
    facts = host.clock.word_of_operator(stored)
    assert StoredTime.of_facts(facts).doubt == Doubt(NOW - HOUR, NOW + DAY)
    host.ms += 2 * DAY
    assert "clock_doubt" not in host.clock.word_of_operator(stored)


def test_an_operators_word_is_about_the_clock_as_it_was_also_for_a_process_that_starts_later() -> (
    None
):
    host = Host()
    host.facts |= host.clock.word_of_operator(StoredTime())
    host.ms += 2 * HOUR
    host.restart()
    assert "7200 s off" in host.tell().dispute


def test_another_process_hears_of_the_operators_word() -> None:
    host = Host()
    host.ms += DAY
    host.charge()
    host.ms -= DAY
    assert host.charge().dispute
    host.facts |= host.clock.word_of_operator(StoredTime.of_facts(host.facts))
    told = host.charge()
    assert (certain(told), told.now) == (True, NOW)


def test_what_a_confirmed_clock_ahead_of_stripe_writes_may_be_as_much_ahead() -> None:
    host = Host()
    host.ms += 26 * HOUR
    host.facts |= host.clock.word_of_operator(StoredTime.of_facts(host.facts))
    host.hear(-26 * HOUR)
    assert host.tell().now == host.ms
    assert host.clock.may_be_ahead_ms(host.ms) >= 26 * HOUR
    host.hear()
    assert host.clock.may_be_ahead_ms(host.ms) == 0


def test_a_word_about_a_clock_that_was_ahead_doubts_as_much_as_it_was_ahead_days_later() -> None:
    host = Host()
    host.ms += 40 * DAY
    written = host.charge().now
    host.pass_time(3 * DAY)
    host.ms -= 40 * DAY
    host.hear()
    doubt = host.tell().doubt
    assert doubt is not None
    assert doubt.ahead_ms(written) == 40 * DAY
    stored = StoredTime.of_facts(host.facts)
    host.facts |= host.clock.word_of_operator(stored)
    assert StoredTime.of_facts(host.facts).doubt == doubt
