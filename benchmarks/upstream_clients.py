"""Which HTTP client carries a charge to Stripe: how fast it is, and what it proves when it fails.

Floor: outside the package. Part one sends the same charge through each client in interleaved
rounds to a server in another process. Part two lets one request fail in ten ways and compares
what each client's errors say with what arrived. Clients that are not installed are left out.

    python benchmarks/upstream_clients.py [--rounds 10] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles
from typing import Any, Final

from upstream_failures import failure_table
from upstream_senders import CHARGE, SENDERS, Post, Sender

REQUESTS: Final = {1: 100, 32: 640}  # per round, by concurrency
ROUNDS_MIN: Final = 3
BUDGET_S: Final = 30  # no further round begins after it, however slow the machine
ANSWER: Final = json.dumps({"id": "ch_1", "object": "charge", "pad": "x" * 980}).encode()
Figures = dict[str, dict[str, float]]


async def stripe(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with 1 KB of JSON, as bare as ASGI allows."""
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(ANSWER)).encode()),
        (b"request-id", b"req_1"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


def serve() -> None:
    """Serve `stripe` on a free port, whose number is the first line of output."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(stripe, log_level="error", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])


def present() -> tuple[list[Sender], dict[str, str]]:
    """Return the clients that are installed, and why the others are left out."""
    found, absent = [], {}
    for sender in SENDERS:
        try:
            version(sender.package)
            found.append(sender)
        except PackageNotFoundError:
            absent[sender.name] = f"{sender.package} is not installed"
    return found, absent


async def measure(url: str, senders: list[Sender], rounds: int) -> dict[int, Figures]:
    """Return figures by concurrency and client; each round begins with another client."""
    walls: dict[tuple[str, int], list[float]] = {}
    cpus: dict[tuple[str, int], list[float]] = {}
    async with AsyncExitStack() as stack:
        posts = [(s.name, await stack.enter_async_context(s.open(url))) for s in senders]
        for _, post in posts:
            assert await post(CHARGE) == (200, ANSWER)
        began = time.perf_counter()
        for number in range(rounds):
            if number >= ROUNDS_MIN and time.perf_counter() - began > BUDGET_S:
                break
            first = number % len(posts)
            for name, post in posts[first:] + posts[:first]:
                for width, count in REQUESTS.items():
                    wall, cpu = await _timed(post, width, count)
                    walls.setdefault((name, width), []).append(wall)
                    cpus.setdefault((name, width), []).append(cpu)
    base = senders[0].name
    return {
        width: {
            s.name: _figures(walls[s.name, width], cpus[s.name, width], walls[base, width])
            for s in senders
        }
        for width in REQUESTS
    }


async def _timed(post: Post, width: int, count: int) -> tuple[float, float]:
    async def worker() -> None:
        for _ in range(count // width):
            await post(CHARGE)

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(width)))
    scale = 1e6 / (count // width * width)
    return (time.perf_counter() - wall) * scale, (time.process_time() - cpu) * scale


def _figures(walls: list[float], cpus: list[float], base: list[float]) -> dict[str, float]:
    low, _, high = quantiles(walls, n=4)
    return {
        "wall_us": round(median(walls), 1),
        "wall_us_q1": round(low, 1),
        "wall_us_q3": round(high, 1),
        "cpu_us": round(median(cpus), 1),
        "rounds": len(walls),
        "times_base": round(median(w / b for w, b in zip(walls, base, strict=True)), 2),
    }


def show(report: dict[str, Any]) -> None:
    """Print both tables."""
    for name, reason in report["left_out"].items():
        print(f"{name}: left out, {reason}")
    for width, figures in report["speed"].items():
        rounds = next(iter(figures.values()))["rounds"]
        print(
            f"\nMicroseconds per request, {width} at a time, median of {rounds} rounds (quartiles)"
        )
        for name, row in figures.items():
            spread = f"{row['wall_us_q1']:.0f}-{row['wall_us_q3']:.0f}"
            print(
                f"  {name:30} {row['wall_us']:6.0f}  ({spread:>9})"
                f"   cpu {row['cpu_us']:5.0f}   x{row['times_base']:.2f}"
            )
    print(
        "\nWhat a failure proves by the client's error; WRONG: it arrived, and the error says never"
    )
    for row in report["failures"]:
        print(f"  {row['case']:28} {row['client']:30} {row['says']:6} arrived {row['arrived']}"
              f"  {row['verdict']:8} {row['error']}")  # fmt: skip


def main() -> None:
    """Run both parts against servers that this run starts and ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    import uvloop

    senders, absent = present()
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            speed = uvloop.run(measure(url, senders, max(options.rounds, ROUNDS_MIN)))
        finally:
            server.terminate()
    report = {
        "versions": {s.package: version(s.package) for s in senders},
        "python": platform.python_version(),
        "left_out": absent,
        "speed": speed,
        "failures": asyncio.run(failure_table(senders)),
    }
    print(json.dumps(report, indent=2)) if options.json else show(report)


if __name__ == "__main__":
    main()
