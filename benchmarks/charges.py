"""How much a governed charge costs beside proxies that govern nothing, or govern something else.

In every round each contender, alone on its core, serves the same load to the same upstream, which
has the other core together with the load. Each run of charges ends with a count: distinct
operations sent = ledger = audit = upstream, else the script stops. Needs wrk and nginx; LiteLLM
runs in an environment of its own, which --set-up-litellm makes, and is left out without it.

    python benchmarks/charges.py --set-up-litellm
    python benchmarks/charges.py [--short | --smoke] [--rounds N] [--json] [--plot FILE.svg]
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from stage import litellm
from stage.contenders import (
    Contender,
    enter_if_present,
    kb_mcp,
    no_proxy,
    pass_through,
    plain_nginx,
)
from stage.load import Job
from stage.machine import cores
from stage.options import Options
from stage.report import Report, measured
from stage.runs import CLIENTS, Runs
from stage.upstream import Upstream, upstream

MANY, ONE, OPEN, MORE = "32 clients", "One client", "Open loop, 32 connections", "Other requests"
DIRECT, KB, RAW, NGINX = "no proxy", "kb-mcp", "raw pass-through", "nginx"


class Charges:
    """What each round does with a contender."""

    def __init__(self, options: Options, report: Report, up: Upstream) -> None:
        """Begin."""
        self.options = options
        self.report = report
        self.runs = Runs(up)
        self.seconds = options.of(6, 2, 1)

    def measure(self, contender: Contender) -> None:
        """Measure one contender once."""
        report, name = self.report, contender.name
        bills = self.runs.new_bills(contender)
        many, spent = self.runs.load(contender, bills, CLIENTS, self.seconds)
        report.sample(
            MANY, name, requests_per_s=many.per_second, CPU_us=spent / many.answered * 1e6,
            core_busy_percent=100 * spent / many.seconds, p50_ms=many.p50_us / 1000,
            p99_ms=many.p99_us / 1000,
        )  # fmt: skip
        one, _ = self.runs.load(contender, self.runs.new_bills(contender), 1, self.seconds / 2)
        report.sample(ONE, name, p50_ms=one.p50_us / 1000, p99_ms=one.p99_us / 1000)
        if name != DIRECT:
            direct = report.samples(ONE, DIRECT, "p50_ms")[-1]
            report.sample(ONE, name, added_p50_ms=one.p50_us / 1000 - direct)
        if contender.house is not None:
            self.others(contender, bills, many.answered)

    def others(self, contender: Contender, bills: Job, count: int) -> None:
        """Measure reads, and replays of bills that were charged just now."""
        for mode in ("read", "replay"):
            job = Job(mode, bills.token, bills.prefix, bills.first, count, bills.period)
            ran, spent = self.runs.load(contender, job, CLIENTS, self.seconds / 2)
            name = {"read": "GET /v1/charges/*", "replay": "replay from the ledger"}[mode]
            self.report.sample(
                MORE, name, requests_per_s=ran.per_second, CPU_us=spent / ran.answered * 1e6,
                p50_ms=ran.p50_us / 1000, p99_ms=ran.p99_us / 1000,
            )  # fmt: skip

    def open_loop(self, contender: Contender) -> None:
        """Send on a schedule, at half of what kb-mcp managed."""
        rate = median(self.report.samples(MANY, KB, "requests_per_s")) / 2
        seen = self.runs.on_schedule(contender, rate, self.options.of(8, 2, 1))
        p50, p99 = seen.percentile(0.5), seen.percentile(0.99)
        self.report.sample(
            OPEN, contender.name, rate_per_s=rate, p50_ms=p50, p99_ms=p99,
            p99_over_p50=p99 / p50, schedule_late_ms=seen.late_ms,
        )  # fmt: skip


def run(options: Options, report: Report, folder: Path) -> None:
    """Start everybody, measure in rounds, and hold the figures against the targets."""
    core, load_core = cores()
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        up = stack.enter_context(upstream(folder, load_core))
        charges = Charges(options, report, up)
        everybody = [
            stack.enter_context(no_proxy(up)),
            stack.enter_context(kb_mcp(up, folder / "house", core)),
            stack.enter_context(pass_through(up, core)),
            stack.enter_context(plain_nginx(up, folder / "nginx", core)),
        ]
        other: Contender | str = "it takes too long to start for the smoke form"
        if options.form != "smoke":
            other = enter_if_present(stack, litellm.serving(up, folder / "litellm", core))
        if isinstance(other, Contender):
            everybody.append(other)
        else:
            absent[litellm.NAME] = other
        for contender in everybody:
            report.contender(contender.name, contender.config)
            charges.runs.warm(contender, CLIENTS, options.of(1, 1, 0))
        for number in range(options.rounds):
            report.progress(f"round {number + 1} of {options.rounds}")
            direct, *proxies = everybody
            turn = number % len(proxies)
            for contender in [direct, *proxies[turn:], *proxies[:turn]]:
                charges.measure(contender)
            for contender in everybody[1:4]:
                charges.open_loop(contender)
        house = everybody[1].house
        assert house is not None
        count = charges.runs.charges
        report.note(f"{count:,} charges by kb-mcp: sent = ledger = audit = upstream.")
        report.note(f"kb-mcp audit verify: {house.command('audit', 'verify').stdout.strip()}")
    for name, why in absent.items():
        report.note(f"{name} is left out: {why}")


def judge(report: Report) -> None:
    """Compare with the targets."""
    for base in (RAW, NGINX):
        report.ratio_column(MANY, "requests_per_s", base)
    report.ratio_column(MANY, "CPU_us", RAW)
    column = "requests_per_s"
    what = "CPU of a governed charge at 32 clients / pass-through"
    report.target(what, report.ratios(MANY, "CPU_us", KB, RAW), "≤", 6)
    for name in report.tables[MORE]:
        pairs = zip(report.samples(MORE, name, column), report.samples(MANY, KB, column),
                    strict=True)  # fmt: skip
        report.target(f"{name} / governed charges", [a / b for a, b in pairs], "≥", 1.5)
    tail = report.samples(OPEN, KB, "p99_over_p50")
    report.target("p99 / p50, open loop at half of capacity", tail, "≤", 4)


def main() -> None:
    """Run, and print what was found."""
    if sys.argv[1:] == ["--set-up-litellm"]:
        litellm.set_up()
        return
    with measured(
        "charges", "Governed charges beside other proxies", __doc__, rounds=(5, 2, 1), within_s=1800
    ) as (options, report, folder):
        run(options, report, folder)
        judge(report)


if __name__ == "__main__":
    main()
