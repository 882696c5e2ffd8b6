"""Ids: ordered by the time at which they are made, and never the same."""

from __future__ import annotations

import re

from kb_mcp.serving.machine import host_ms, new_id, random_name


def test_an_id_begins_with_its_time_and_none_is_made_twice() -> None:
    before = host_ms()
    made = [new_id("op") for _ in range(5_000)]
    after = host_ms()
    assert all(re.fullmatch("op_[0-9a-f]{24}", each) for each in made)
    times = [int(each[3:14], 16) for each in made]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= after
    assert len({each[14:] for each in made}) == len(made)


def test_a_random_name_is_random_from_its_beginning() -> None:
    names = [random_name() for _ in range(1_000)]
    assert all(re.fullmatch("[0-9a-f]{24}", name) for name in names)
    assert len({name[:8] for name in names}) > 990
