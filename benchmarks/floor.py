"""What a safe charge must cost one client, and what kb-mcp adds to it.

The floor is two waits for the disk and one hop: a charge is reserved durably before it is sent and
settled durably before it is answered. It is measured twice, as a sum (twice the median fdatasync
of 4 KiB, and what the raw pass-through adds) and as a program (the pass-through, waiting for the
disk twice). Times are added ones: above those of a client that talks to the upstream itself.

    python benchmarks/floor.py [--short | --smoke] [--rounds N] [--json] [--plot FILE.svg]
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from stage.contenders import Contender, kb_mcp, no_proxy, pass_through
from stage.machine import commit_us, cores, fdatasync_us
from stage.options import Options
from stage.report import Report, measured
from stage.runs import Runs
from stage.upstream import upstream

TABLE, SUM, PROGRAM, KB = "One client", "sum: floor", "pass-through, 2 fdatasync", "kb-mcp"
RAW = "raw pass-through"
DISK = "2 fdatasync of 4 KiB"
# As they come in a charge: with work in between, and of the pages that a transaction changes.
RESTED, COMMITS = f"{DISK}, 5 ms apart", "2 commits of SQLite, 20 pages, 5 ms apart"
PAUSE_S, PAGES = 0.005, 20
ADDED = "added_p50_ms"


def run(options: Options, report: Report, folder: Path) -> None:
    """Measure in rounds: the disk, then each contender."""
    core, load_core = cores()
    seconds = options.of(5, 2, 1)
    with ExitStack() as stack:
        up = stack.enter_context(upstream(folder, load_core))
        runs = Runs(up)
        direct = stack.enter_context(no_proxy(up))
        others = [
            stack.enter_context(kb_mcp(up, folder / "house", core)),
            stack.enter_context(pass_through(up, core)),
            stack.enter_context(pass_through(up, core, folder / "disk")),
        ]
        for contender in (direct, *others):
            report.contender(contender.name, contender.config)
            runs.warm(contender, 1, options.of(1, 1, 0))
        for number in range(options.rounds):
            report.progress(f"round {number + 1} of {options.rounds}")
            report.sample(TABLE, DISK, **{ADDED: 2 * fdatasync_us(folder) / 1000})
            rested = 2 * fdatasync_us(folder, 100, PAUSE_S) / 1000
            report.sample(TABLE, RESTED, **{ADDED: rested})
            commits = 2 * commit_us(folder, PAGES, 100, PAUSE_S) / 1000
            report.sample(TABLE, COMMITS, **{ADDED: commits})
            base = _p50_ms(runs, direct, seconds)
            turn = number % len(others)
            for contender in others[turn:] + others[:turn]:
                p50 = _p50_ms(runs, contender, seconds)
                report.sample(TABLE, contender.name, **{ADDED: p50 - base})
            disk = report.samples(TABLE, DISK, ADDED)[-1]
            hop = report.samples(TABLE, RAW, ADDED)[-1]
            report.sample(TABLE, SUM, **{ADDED: disk + hop})
        report.note(f"{runs.charges:,} charges by kb-mcp: sent = ledger = audit = upstream.")


def _p50_ms(runs: Runs, contender: Contender, seconds: float) -> float:
    ran, _ = runs.load(contender, runs.new_bills(contender), 1, seconds)
    return ran.p50_us / 1000


def main() -> None:
    """Run, and print what was found."""
    with measured(
        "floor",
        "Added time at one client beside the floor",
        __doc__,
        rounds=(7, 3, 1),
        within_s=900,
    ) as (options, report, folder):
        run(options, report, folder)
        report.ratio_column(TABLE, ADDED, SUM)
        what = "added p50 at one client / (two fdatasync + raw pass-through)"
        report.target(what, report.ratios(TABLE, ADDED, KB, SUM), "≤", 3.5)
        what = "the same / the pass-through that waits for the disk twice"
        report.target(what, report.ratios(TABLE, ADDED, KB, PROGRAM), "≤", 3.5)


if __name__ == "__main__":
    main()
