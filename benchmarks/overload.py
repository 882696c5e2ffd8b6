"""What kb-mcp does with four times of what it can: how much of it still goes well, and the rest.

Capacity is measured first, closed loop at 32 clients, in the same run. Then new bills are sent on
a schedule at four times of it, over up to 1,800 connections, and counted: what was answered with
200 while they came (goodput), how fast the rest was turned away, what else was said. Afterwards
exactly what was answered with 200 must be in the ledger, in the audit and at the upstream.

    python benchmarks/overload.py [--short | --smoke] [--rounds N] [--json] [--plot FILE.svg]
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from stage.contenders import Contender, kb_mcp
from stage.machine import cores, resident_mib
from stage.open_loop import post_charge, run_open
from stage.options import Options
from stage.report import Report, measured
from stage.runs import CLIENTS, Runs
from stage.truth import accepted
from stage.upstream import upstream

TABLE, ROW = "Four times capacity", "kb-mcp"
TIMES, CONNECTIONS = 4, 1_800


def run(options: Options, report: Report, folder: Path) -> None:
    """Measure capacity and overload, turn by turn."""
    core, load_core = cores()
    with ExitStack() as stack:
        up = stack.enter_context(upstream(folder, load_core))
        runs = Runs(up)
        house = stack.enter_context(kb_mcp(up, folder / "house", core))
        report.contender(house.name, house.config)
        # Warm, and as busy as it will be: what it needs for many connections it then has.
        runs.load(house, runs.new_bills(house), CLIENTS, 1)
        overload(runs, house, 500, 1)
        for number in range(options.rounds):
            report.progress(f"round {number + 1} of {options.rounds}")
            bills = runs.new_bills(house)
            ran, _ = runs.load(house, bills, CLIENTS, options.of(6, 3, 1))
            before = resident_mib(house.roots)
            cells = overload(runs, house, ran.per_second, options.of(30, 8, 2))
            after = resident_mib(house.roots)
            report.sample(
                TABLE, ROW, capacity_per_s=ran.per_second, **cells, MiB_before=before,
                MiB_after=after, MiB_after_per_before=after / before,
            )  # fmt: skip


def overload(runs: Runs, house: Contender, capacity: float, seconds: float) -> dict[str, float]:
    """Send four times `capacity`; return a row's cells."""
    bills = runs.new_bills(house)
    host = house.url.removeprefix("http://")
    make = post_charge(host, house.token, bills.prefix, runs.period)
    runs.upstream.forget()
    seen = run_open(
        house.url, make, rate=TIMES * capacity, seconds=seconds, connections=CONNECTIONS
    )
    assert set(seen.took_ms) <= {200, 503}, {s: len(times) for s, times in seen.took_ms.items()}
    assert seen.broken == 0, f"{seen.broken} connections broke"
    accepted(house, runs.upstream, bills.prefix, len(seen.took_ms.get(200, ())))
    return {
        "sent_per_s": seen.due / seconds,
        "goodput_per_s": seen.in_time[200] / seconds,
        "goodput_per_capacity": seen.in_time[200] / seconds / capacity,
        "503_percent": 100 * len(seen.took_ms.get(503, ())) / seen.due,
        "503_p50_ms": seen.percentile(0.5, 503),
        "503_p99_ms": seen.percentile(0.99, 503),
        "200_p50_ms": seen.percentile(0.5),
        "200_p99_ms": seen.percentile(0.99),
        "schedule_late_ms": seen.late_ms,
    }


def main() -> None:
    """Run, and print what was found."""
    with measured(
        "overload", "Overload: four times capacity", __doc__, rounds=(3, 1, 1), within_s=900
    ) as (options, report, folder):
        run(options, report, folder)
        seconds = options.of(30, 8, 2)
        report.target(f"goodput / capacity, {seconds:.0f} s",
                      report.samples(TABLE, ROW, "goodput_per_capacity"), "≥", 0.85)  # fmt: skip
        report.target("503 in ms, p99", report.samples(TABLE, ROW, "503_p99_ms"), "≤", 50)
        report.target("resident memory after / before",
                      report.samples(TABLE, ROW, "MiB_after_per_before"), "≤", 1.1)  # fmt: skip


if __name__ == "__main__":
    main()
