"""The shipped governor, deciders, recovery and SQL, under seeds of faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.checks import ViolationError
from tests.faults.loop import SimulatedLoop
from tests.faults.store import DEATHS
from tests.faults.story import Report, run_seed

CHUNK = 50
SEEDS, PROVED = 300, 1_000
# Every place of the path of a charge at which the product waits, and may die.
AWAITS = (
    "Governor.govern",
    "Governor._detached",
    "Governor._send",
    "Governor._conclude",
    "Waiters.wait",
    "Recovery.examine",
    "StripeReads.fetch",
)


def play(first: int) -> list[Report]:
    try:
        return [run_seed(seed) for seed in range(first, first + CHUNK)]
    except ViolationError as violation:
        pytest.fail(violation.story())


@pytest.mark.parametrize(
    "first",
    [
        *range(0, SEEDS, CHUNK),
        *(pytest.param(each, marks=pytest.mark.prove) for each in range(SEEDS, PROVED, CHUNK)),
    ],
)
def test_money_is_exact_whatever_happens(first: int) -> None:
    reports = play(first)
    assert sum(report.charges for report in reports) > CHUNK / 2


@pytest.mark.prove
def test_processes_die_at_every_await_and_at_every_point_of_a_transaction() -> None:
    missing = {*AWAITS, *DEATHS, "killed"}
    for seed in range(PROVED):
        missing -= {place.partition(" > ")[0] for place in run_seed(seed).crashed_at}
        if not missing:
            break
    assert missing == set()


def test_a_seed_plays_the_same_in_every_process() -> None:
    """Also where sets are iterated in another order: the story is equal to the last letter."""

    def story(hash_seed: str) -> str:
        command = [sys.executable, "-m", "tests.simulate", "--seed", "29"]
        root = Path(__file__).resolve().parents[2]
        played = subprocess.run(
            command, cwd=root, check=True, capture_output=True, text=True,
            env={"PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        return played.stdout

    first = story("1")
    assert "everything holds" in first
    assert story("2") == first


def test_time_passes_only_when_nobody_is_ready() -> None:
    from random import Random  # noqa: TID251 seeded here

    loop = SimulatedLoop(Random(1))
    loop.run_until_complete(loop.pause(3_600_000))
    assert loop.now_ms == 3_600_000
    loop.close()
