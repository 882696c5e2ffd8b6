"""What processes of one machine know of the time from each other, by their store."""

from __future__ import annotations

from email.utils import formatdate

from kb_mcp.proxy.ledger.clock import APART_MS, StoreClock, StoredTime
from tests.proxy.ledger.test_clock import DAY, HOUR, MINUTE, Host, certain


def test_what_another_process_of_this_boot_was_certain_of_since_is_what_time_has_passed_from() -> (
    None
):
    host = Host()
    host.hear(2 * HOUR)
    host.pass_time(APART_MS)
    host.hear(2 * HOUR)
    assert host.charge().now == host.ms + 2 * HOUR  # nothing here knows better
    host.pass_time(3 * HOUR)
    other = StoreClock(lambda: host.ms, None, lambda: host.steady_ms, boot_id="boot")
    other.observe(formatdate(host.ms // 1000, usegmt=True))
    told = other.tell(StoredTime.of_facts(host.facts))
    assert certain(told)
    host.facts |= other.facts(told, raised=True)
    host.pass_time(MINUTE)
    host.hear(2 * HOUR)
    assert "does not go with the time that has passed" in host.charge().dispute


def test_what_one_process_alone_was_certain_of_gives_way_to_what_the_store_holds() -> None:
    host = Host()
    host.hear(DAY)
    host.pass_time(APART_MS)
    host.hear(DAY)
    assert host.tell().now == host.ms + DAY  # and nothing is written by it
    host.pass_time(3 * HOUR)
    other = StoreClock(lambda: host.ms, None, lambda: host.steady_ms, boot_id="boot")
    other.observe(formatdate(host.ms // 1000, usegmt=True))
    told = other.tell(StoredTime.of_facts(host.facts))
    host.facts |= other.facts(told, raised=True)
    host.pass_time(HOUR)
    host.hear(40 * DAY)
    told = host.tell()
    assert told.dispute
    assert told.now == host.ms


def test_what_was_written_by_a_time_that_ran_ahead_is_in_doubt_once_the_clocks_agree() -> None:
    host = Host()
    host.hear(DAY)
    host.pass_time(APART_MS)
    host.hear(DAY)
    written = host.charge().now
    assert written == host.ms + DAY  # nothing here knows better
    host.pass_time(27 * HOUR)
    host.hear()
    told = host.charge()
    assert certain(told)
    assert told.now == host.ms
    assert told.doubt is not None
    assert told.doubt.ahead_ms(written) == DAY
    host.pass_time(HOUR)
    host.hear()
    assert host.charge().doubt == told.doubt
