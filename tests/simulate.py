"""Play seeds of the simulation: `python -m tests.simulate --seeds 2000`, or one: `--seed 17`.

Seeds are played in as many processes as there are cores, or as `--processes` says. A seed that
fails is printed with its story, and plays the same again under `--seed`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.faults.checks import ViolationError
from tests.faults.story import run_seed

CHUNK = 10


@dataclass(frozen=True, slots=True)
class Played:
    """One seed: what it came to, or how it failed."""

    seed: int
    counts: Counter[str]
    failure: str = ""


def play(seed: int) -> Played:
    """Play one seed; a violation is a result, not an error."""
    try:
        report = run_seed(seed)
    except ViolationError as violation:
        return Played(seed, Counter(), violation.story())
    figures = {
        "calls": report.calls,
        "charges": report.charges,
        "refunds": report.refunds,
        "commits": report.commits,
        "turns": report.turns,
        "crashes": sum(" > " not in place for place in report.crashed_at),
    }
    return Played(seed, Counter(figures))


def main() -> int:
    """Play what the arguments ask for; 1 where a seed failed."""
    wanted = argparse.ArgumentParser(description=__doc__)
    wanted.add_argument("--seeds", type=int, default=200, help="how many seeds to play")
    wanted.add_argument("--first", type=int, default=0, help="the first of them")
    wanted.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at a time")
    wanted.add_argument("--seed", type=int, help="play this one alone, and print its story")
    options = wanted.parse_args()
    if options.seed is not None:
        return _play_one(options.seed)
    total: Counter[str] = Counter()
    failures: list[Played] = []
    seeds = range(options.first, options.first + options.seeds)
    for played in _play_all(seeds, options.processes):
        total += played.counts
        if played.failure:
            failures.append(played)
            sys.stdout.write(f"{played.failure}\n\n")
    told = ", ".join(f"{count:,} {name}" for name, count in total.items())
    sys.stdout.write(f"{options.seeds:,} seeds, {len(failures)} failed: {told}\n")
    for played in failures:
        sys.stdout.write(f"  python -m tests.simulate --seed {played.seed}\n")
    return 1 if failures else 0


def _play_one(seed: int) -> int:
    try:
        report = run_seed(seed)
    except ViolationError as violation:
        sys.stdout.write(f"{violation.story()}\n")
        return 1
    sys.stdout.write("\n".join((*report.trace, f"SEED={seed}: everything holds")) + "\n")
    return 0


def _play_all(seeds: range, processes: int) -> Iterator[Played]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    context = multiprocessing.get_context("spawn")
    with Progress(*columns) as progress, context.Pool(processes) as pool:
        bar = progress.add_task("seeds", total=len(seeds))
        for played in pool.imap_unordered(play, seeds, chunksize=CHUNK):
            progress.advance(bar)
            yield played


if __name__ == "__main__":
    sys.exit(main())
