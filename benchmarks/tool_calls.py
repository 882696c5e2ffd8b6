"""What a tool call costs an agent, door by door, beside the same call without any rule.

MCP over HTTP, at one client and at 32: beside a bare MCP server (stage/bare_tools.py says of what
it consists) and beside the Stripe surface of the same proxy. MCP over stdio, over the network and
embedded: beside the same bare server on stdio. Lambda's handler and ConverseTools.handle, warm:
beside a plain POST to the proxy in the same process, and beside that POST to the upstream itself.
And how long requests on the Stripe surface wait while a fresh process gets its first tool call.

Server and door have one core; upstream and load have the other, for all alike. Each run ends with
the count: distinct operations sent = ledger = audit = upstream, else the script stops.

    python benchmarks/tool_calls.py [--short | --smoke] [--rounds N] [--json] [--plot FILE.svg]
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

import httpx
from stage import bare_tools
from stage.contenders import Contender, kb_mcp
from stage.doors import Door, bare_stdio, bare_tool_server, callers, embedded_stdio, network_stdio
from stage.machine import cores, cpu_s
from stage.options import Options
from stage.report import Report, measured
from stage.runs import CLIENTS, Runs
from stage.upstream import Upstream, upstream

T = TypeVar("T")
MANY, ONE, PIPE, PROCESS = "MCP HTTP, 32 clients", "MCP HTTP, one client", "MCP stdio", "In process"
FIRST = "The first tool call of a process"
KB, SURFACE = "kb-mcp tools/call", "kb-mcp Stripe surface"
BARE, FASTEST = "bare, httpx", "bare, pyreqwest"
MODERN = "kb-mcp tools/call, 2026-07-28"
WAIT = "longest_wait_per_median"


class ToolCalls:
    """What each round does."""

    def __init__(self, options: Options, report: Report, runs: Runs) -> None:
        """Begin."""
        self.options, self.report, self.runs = options, report, runs
        self.seconds = options.of(6, 3, 1)

    def over_http(self, contender: Contender) -> None:
        """Measure one contender over HTTP, at 32 clients and at one."""
        for table, clients in ((MANY, CLIENTS), (ONE, 1)):
            bills = self.runs.new_bills(contender)
            ran, spent = self.runs.load(contender, bills, clients, self.seconds)
            self.report.sample(
                table, contender.name, calls_per_s=ran.per_second,
                CPU_us=spent / ran.answered * 1e6, p50_ms=ran.p50_us / 1000,
                p99_ms=ran.p99_us / 1000,
            )  # fmt: skip

    def by_hand(self, table: str, door: Door) -> None:
        """Measure one door that a process of ours calls, one call after the other."""
        begun = cpu_s(door.contender.roots)
        took = self.runs.by_hand(door, self.seconds)
        spent = cpu_s(door.contender.roots) - begun
        self.report.sample(
            table, door.contender.name, CPU_us=spent / len(took) * 1e6,
            p50_ms=median(took) / 1000, p99_ms=quantiles(took, n=100)[98] / 1000,
        )  # fmt: skip

    def first_call(self, folder: Path, core: int) -> None:
        """Send charges to a fresh process without a pause, and a tool call in between."""
        with kb_mcp(self.runs.upstream, folder, core) as fresh:
            bills = self.runs.new_bills(fresh)
            surface = bare_tools.surface(fresh.url, fresh.token)
            span: list[float] = []

            def tool_call() -> None:
                time.sleep(self.seconds / 2)
                span.append(time.perf_counter())
                call_tool(fresh, f"cus_{bills.prefix}n0", bills.period)
                span.append(time.perf_counter())

            caller = threading.Thread(target=tool_call)
            caller.start()
            waits, meanwhile, number = [], [0.0], 0
            while caller.is_alive() or number < 2:
                number += 1
                begun = time.perf_counter()
                said = surface(f"cus_{bills.prefix}n{number}", bills.period)
                ended = time.perf_counter()
                assert "succeeded" in said, said
                waits.append(ended - begun)
                if span and ended > span[0]:
                    meanwhile.append(ended - begun)
            self.runs.agree(fresh, bills.prefix, number + 1)
        self.report.sample(
            FIRST, SURFACE, median_ms=median(waits) * 1000, longest_wait_ms=max(meanwhile) * 1000,
            **{WAIT: max(meanwhile) / median(waits)},
        )  # fmt: skip


def call_tool(contender: Contender, customer: str, period: str) -> None:
    """Charge by one tool call over HTTP."""
    wanted = {"customer_id": customer, "amount_cents": bare_tools.AMOUNT, "billing_period": period}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": "charge", "arguments": wanted}}  # fmt: skip
    headers = {"Authorization": f"Bearer {contender.token}",
               "Accept": "application/json, text/event-stream"}  # fmt: skip
    answer = httpx.post(f"{contender.url}/mcp", json=call, headers=headers, timeout=30,
                        trust_env=False)  # fmt: skip
    assert answer.json()["result"]["structuredContent"]["status"] == "succeeded", answer.text


def run(options: Options, report: Report, folder: Path) -> None:
    """Start everybody, and measure in rounds."""
    core, load_core = cores()
    with ExitStack() as stack:
        up = stack.enter_context(upstream(folder, load_core))
        calls = ToolCalls(options, report, Runs(up))
        house = stack.enter_context(kb_mcp(up, folder / "house", core))
        http = [
            replace(house, name=KB, mode="tool"),
            replace(house, name=SURFACE),
            stack.enter_context(bare_tool_server(up, BARE, "httpx", core)),
            stack.enter_context(bare_tool_server(up, FASTEST, "pyreqwest", core)),
            replace(house, name=MODERN, mode="tool26"),
        ]
        pipes = [
            stack.enter_context(network_stdio(house, core)),
            stack.enter_context(bare_stdio(up, BARE, "httpx", core)),
            stack.enter_context(bare_stdio(up, FASTEST, "pyreqwest", core)),
            stack.enter_context(embedded_stdio(up, folder / "embedded", core)),
        ]
        process = stack.enter_context(callers(house, up, core))
        configurations(report, house, up)
        os.sched_setaffinity(0, {load_core})  # what is called from here is load
        for contender in http:
            calls.runs.warm(contender, CLIENTS, options.of(1, 1, 0))
        for number in range(options.rounds):
            report.progress(f"round {number + 1} of {options.rounds}")
            for contender in turned(http, number):
                calls.over_http(contender)
            for door in turned(pipes, number):
                calls.by_hand(PIPE, door)
            for door in turned(process, number):
                calls.by_hand(PROCESS, door)
            calls.first_call(folder / f"first{number}", core)
        count = calls.runs.charges
        report.note(f"{count:,} charges by kb-mcp: sent = ledger = audit = upstream.")


def turned(everybody: list[T], number: int) -> list[T]:
    """Return the same in another order: nobody is always first."""
    turn = number % len(everybody)
    return [*everybody[turn:], *everybody[:turn]]


def configurations(report: Report, house: Contender, up: Upstream) -> None:
    """Say how everybody is set up."""
    report.contender("kb-mcp", house.config)
    report.contender("bare", bare_tools.CONFIG)
    report.contender("upstream", up.config)


def judge(report: Report) -> None:
    """Compare with the targets."""
    for table in (MANY, ONE):
        for column in ("p50_ms", "calls_per_s", "CPU_us"):
            report.ratio_column(table, column, BARE)
    tool = "tools/call charge, MCP HTTP"
    ratios = report.ratios(ONE, "p50_ms", KB, BARE)
    report.target(f"{tool}, one client: p50 / bare", ratios, "≤", 1.25)
    ratios = report.ratios(MANY, "calls_per_s", KB, BARE)
    report.target(f"{tool}, 32 clients: calls/s / bare", ratios, "≥", 2.5)
    ratios = report.ratios(MANY, "calls_per_s", KB, SURFACE)
    report.target("the same / Stripe surface", ratios, "≥", 0.5)
    waits = report.samples(FIRST, SURFACE, WAIT)
    what = "longest wait of a Stripe-surface request while the first tool call arrives / median"
    report.target(what, waits, "≤", 10)
    for name in ("kb-mcp mcp", "kb-mcp mcp, embedded"):
        ratios = report.ratios(PIPE, "p50_ms", name, BARE)
        report.target(f"MCP stdio, warm: p50 of {name} / bare", ratios, "≤", 1.25)
    own = report.samples(PROCESS, "POST to the proxy", "p50_ms")
    for name in ("Lambda handler", "Converse handle"):
        above = zip(report.samples(PROCESS, name, "p50_ms"), own, strict=True)
        what = f"{name}, warm: p50 in ms above the proxy's own answer"
        report.target(what, [mine - its for mine, its in above], "≤", 1)


def main() -> None:
    """Run, and print what was found."""
    with measured("tool_calls", "Tool calls", __doc__, rounds=(5, 2, 1), within_s=1800) as (
        options,
        report,
        folder,
    ):
        run(options, report, folder)
        judge(report)


if __name__ == "__main__":
    main()
