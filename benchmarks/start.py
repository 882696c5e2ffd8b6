"""How long kb-mcp takes to begin, and how much memory it holds, beside bare counterparts.

MCP over stdio: from the start of the process to the answer to tools/list, beside a bare server of
the same SDK. Lambda: from the start of the process to the first answer, beside the handler that
samples publish (`import stripe`); the governed charge passes a proxy and its disk, the naive one
goes to the upstream itself. Memory: `up`, fresh and over many requests (charges, replays, reads),
beside uvicorn with a bare MCP server.

    python benchmarks/start.py [--short | --smoke] [--rounds N] [--json] [--plot FILE.svg]
"""

from __future__ import annotations

import compileall
import itertools
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
from stage.children import end, started
from stage.contenders import Contender, kb_mcp
from stage.load import Job
from stage.machine import cores, resident_mib
from stage.options import Options
from stage.report import Report, measured
from stage.runs import CLIENTS, Runs
from stage.upstream import Upstream, upstream

import kb_mcp as package
from kb_mcp.demo.scenarios import charging

STDIO, LAMBDA, MEMORY = "MCP over stdio", "Cold Lambda", "Resident memory"
BARE = str(Path(__file__).parent / "stage" / "bare.py")
PYTHON = "bare Python"
WITHIN_S = 60
_numbers = itertools.count(1)
_INITIALIZE = {"protocolVersion": "2025-06-18", "capabilities": {},
               "clientInfo": {"name": "bench", "version": "1"}}  # fmt: skip
MESSAGES = [
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": _INITIALIZE},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
]


def plain_environ(contender: Contender, up: Upstream) -> dict[str, str]:
    """Return the environment of a process beside the agent: the proxy's address and a key."""
    inherited = os.environ.items()  # noqa: TID251 - for a child process
    return {name: value for name, value in inherited if "KEYBRAKE" not in name} | {
        "KEYBRAKE_PROXY_URL": contender.url,
        "KEYBRAKE_VAULT_KEY_BILLING": contender.token,
        "KEYBRAKE_VAULT_KEY_AUDIT": contender.token,
        "STRIPE_SECRET_KEY": "rk_test_benchmark",
        "STRIPE_API_BASE": up.url,
    }


def tools_listed_ms(command: list[str], environ: dict[str, str]) -> float:
    """Start an MCP server, ask for its tools, and return how long the answer took in all."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        for message in MESSAGES:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            if "id" in message:
                answer = json.loads(process.stdout.readline())
                assert answer["id"] == message["id"], answer
        took = (time.perf_counter() - begun) * 1000
        assert {tool["name"] for tool in answer["result"]["tools"]} == {"charge", "charge_status"}
        process.stdin.close()
        process.wait(WITHIN_S)
        process.stdout.close()
    finally:
        end(process)
    return took


def answered_ms(arguments: list[str], environ: dict[str, str]) -> float:
    """Start a process that answers one event, and return how long the answer took in all."""
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            took = (time.perf_counter() - begun) * 1000
            process.wait(WITHIN_S)
        finally:
            end(process)
    assert "succeeded" in line or line == "ok\n", line
    return took


def measure_starts(report: Report, contender: Contender, up: Upstream) -> None:
    """Measure every start once."""
    environ = plain_environ(contender, up)
    bill = charging(f"cus_L{next(_numbers)}", time.strftime("%Y-%m"))
    event = json.dumps(bill.event("bench", "bill them"))
    bare = [sys.executable, BARE, "stdio"]
    ours = [sys.executable, "-m", "kb_mcp", "mcp"]
    report.sample(STDIO, "bare mcp server", ms=tools_listed_ms(bare, environ))
    report.sample(STDIO, "kb-mcp mcp", ms=tools_listed_ms(ours, environ))
    naive = answered_ms([BARE, "lambda", event], environ)
    report.sample(LAMBDA, "naive handler, import stripe", ms=naive)
    report.sample(LAMBDA, "kb_mcp.lambda_entry", ms=answered_ms([BARE, "governed", event], environ))
    report.sample(LAMBDA, PYTHON, ms=answered_ms(["-c", "print('ok')"], environ))


def measure_memory(
    options: Options, report: Report, runs: Runs, contender: Contender, bare_pid: int
) -> None:
    """Measure memory at rest, and over as many requests as the form has time for."""
    report.sample(MEMORY, "bare ASGI + mcp", MiB_fresh=resident_mib([bare_pid]))
    fresh = resident_mib(contender.roots)
    wanted, until = options.of(1_000_000, 4_000, 500), time.monotonic() + options.of(900, 8, 3)
    seconds = options.of(5, 2, 1)
    served, warm = 0, 0.0
    while served < wanted and time.monotonic() < until:
        bills = runs.new_bills(contender)
        charged, _ = runs.load(contender, bills, CLIENTS, seconds)
        served += charged.answered
        for mode in ("read", "replay"):
            job = Job(mode, bills.token, bills.prefix, 0, charged.answered, bills.period)
            served += runs.load(contender, job, CLIENTS, seconds)[0].answered
        warm = warm or resident_mib(contender.roots)
    after = resident_mib(contender.roots)
    report.sample(MEMORY, "kb-mcp up", MiB_fresh=fresh, MiB_warm=warm, MiB_at_the_end=after,
                  end_per_warm=after / warm, requests=served)  # fmt: skip


def touch_mcp(contender: Contender) -> None:
    """Have `/mcp` used once, so that both processes hold the SDK."""
    headers = {"Authorization": f"Bearer {contender.token}",
               "Accept": "application/json, text/event-stream"}  # fmt: skip
    answer = httpx.post(f"{contender.url}/mcp", json=MESSAGES[0], headers=headers, timeout=30,
                        trust_env=False)  # fmt: skip
    assert answer.status_code == 200, answer.text


def run(options: Options, report: Report, folder: Path) -> None:
    """Measure starts in rounds, then memory."""
    core, load_core = cores()
    usable = os.sched_getaffinity(0)
    # As pip leaves whatever it installs, and so the SDK too; a checkout may not be compiled.
    compileall.compile_dir(Path(package.__file__).parent, quiet=1)
    with ExitStack() as stack:
        up = stack.enter_context(upstream(folder, load_core))
        runs = Runs(up)
        house = stack.enter_context(kb_mcp(up, folder / "house", load_core))
        report.contender("kb-mcp up", house.config)
        report.contender("bare mcp server", "mcp.server.MCPServer, two tools, the same SDK")
        report.contender("naive handler, import stripe", "kb_mcp/demo/naive.py, as published")
        os.sched_setaffinity(0, {core})  # what is started here stays on the contenders' core
        for number in range(options.rounds):
            report.progress(f"round {number + 1} of {options.rounds}")
            measure_starts(report, house, up)
        os.sched_setaffinity(0, usable)
        bare = stack.enter_context(started([sys.executable, BARE, "http"], "port "))
        port = bare.said[0].split()[1]
        ready = Contender("bare", f"http://127.0.0.1:{port}", [bare.pid], "")
        touch_mcp(ready)
        second = stack.enter_context(kb_mcp(up, folder / "second", core))
        touch_mcp(second)
        measure_memory(options, report, runs, second, bare.pid)


def main() -> None:
    """Run, and print what was found."""
    with measured("start", "Starts and memory", __doc__, rounds=(15, 3, 1), within_s=1800) as (
        options,
        report,
        folder,
    ):
        run(options, report, folder)
        report.ratio_column(STDIO, "ms", "bare mcp server")
        report.ratio_column(LAMBDA, "ms", "naive handler, import stripe")
        stdio = report.ratios(STDIO, "ms", "kb-mcp mcp", "bare mcp server")
        cold = report.ratios(LAMBDA, "ms", "kb_mcp.lambda_entry", "naive handler, import stripe")
        memory = report.ratios(MEMORY, "MiB_fresh", "kb-mcp up", "bare ASGI + mcp")
        report.target("process start to tools/list / bare mcp server", stdio, "≤", 1.2)
        report.target("cold Lambda to first answer / naive handler", cold, "≤", 1.8)
        report.target("resident memory of up, fresh / bare ASGI + mcp", memory, "≤", 1.5)
        flat = report.samples(MEMORY, "kb-mcp up", "end_per_warm")
        requests = report.samples(MEMORY, "kb-mcp up", "requests")[0]
        report.target(f"the same after {requests:,.0f} requests / after the first", flat, "≤", 1.1)


if __name__ == "__main__":
    main()
