"""The other half of the seeds, in a file of its own so that two workers share them."""

from __future__ import annotations

import pytest

from tests.faults.test_simulation import CHUNK, play


@pytest.mark.parametrize("first", range(500, 1000, CHUNK))
def test_money_is_exact_whatever_happens(first: int) -> None:
    reports = play(first)
    assert sum(report.charges for report in reports) > CHUNK / 2
