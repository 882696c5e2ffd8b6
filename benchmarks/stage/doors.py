"""Doors that a process beside the agent calls: MCP over stdio, and callers within a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stage import bare_tools
from stage.children import TIED, end, started
from stage.contenders import Contender
from stage.house import House
from stage.machine import pinned
from stage.upstream import UPSTREAM_KEY, Upstream

_PROGRAM = str(Path(bare_tools.__file__))
_INITIALIZE = {"protocolVersion": "2025-11-25", "capabilities": {},
               "clientInfo": {"name": "bench", "version": "1"}}  # fmt: skip


@dataclass
class Door:
    """A running process that is called over its pipe."""

    contender: Contender
    process: subprocess.Popen[str]
    speaks: Literal["mcp", "jobs"]
    last_id: int = 0

    def times_us(self, prefix: str, period: str, seconds: float) -> list[float]:
        """Charge one bill after the other for `seconds`; return how long each took."""
        if self.speaks == "jobs":
            job = {"prefix": prefix, "period": period, "seconds": seconds}
            return [float(took) for took in json.loads(self.ask(json.dumps(job)))]
        took: list[float] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            wanted = {"customer_id": f"cus_{prefix}n{len(took) + 1}",
                      "amount_cents": bare_tools.AMOUNT, "billing_period": period}  # fmt: skip
            line = self.message("tools/call", {"name": "charge", "arguments": wanted})
            begun = time.perf_counter()
            said = self.ask(line)
            took.append((time.perf_counter() - begun) * 1e6)
            assert "succeeded" in said, said
        return took

    def message(self, method: str, params: dict[str, Any]) -> str:
        """Return the line of the next request."""
        self.last_id += 1
        asked = {"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}
        return json.dumps(asked)

    def ask(self, line: str) -> str:
        """Send a line and return the one that answers it."""
        assert self.process.stdout is not None
        self.tell(line)
        return self.process.stdout.readline()

    def tell(self, line: str) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()


@contextmanager
def bare_tool_server(upstream: Upstream, name: str, client: str, core: int) -> Iterator[Contender]:
    """Run the bare MCP server over HTTP."""
    command = pinned(core, [sys.executable, _PROGRAM, "http", client, upstream.url])
    with started(command, "port ", env=environ_of()) as child:
        address = f"http://127.0.0.1:{child.said[0].split()[1]}"
        yield Contender(name, address, [child.pid], bare_tools.CONFIG, mode="tool")


@contextmanager
def bare_stdio(upstream: Upstream, name: str, client: str, core: int) -> Iterator[Door]:
    """Run the bare MCP server over stdio."""
    command = [sys.executable, _PROGRAM, "stdio", client, upstream.url]
    bare = Contender(name, "", [], bare_tools.CONFIG)
    with _greeted(bare, pinned(core, command), environ_of()) as door:
        yield door


@contextmanager
def network_stdio(house: Contender, core: int) -> Iterator[Door]:
    """Run `kb-mcp mcp` in front of a running proxy."""
    environ = environ_of(KEYBRAKE_PROXY_URL=house.url, KEYBRAKE_VAULT_KEY_BILLING=house.token)
    contender = Contender("kb-mcp mcp", house.url, list(house.roots), "", house=house.house)
    command = pinned(core, [sys.executable, "-m", "kb_mcp", "mcp"])
    with _greeted(contender, command, environ) as door:
        yield door


@contextmanager
def embedded_stdio(upstream: Upstream, folder: Path, core: int) -> Iterator[Door]:
    """Run `kb-mcp mcp` with a proxy and a store of its own."""
    folder.mkdir()
    house = House(folder, upstream.url)
    environ = house.environ() | {"KEYBRAKE_VAULT_KEY_BILLING": house.issue()}
    contender = Contender("kb-mcp mcp, embedded", "", [], "", house=house)
    command = pinned(core, [sys.executable, "-m", "kb_mcp", "mcp"])
    with _greeted(contender, command, environ) as door:
        yield door


@contextmanager
def callers(house: Contender, upstream: Upstream, core: int) -> Iterator[list[Door]]:
    """Run the callers: Lambda's handler, Converse, a plain POST, and that POST past the proxy."""
    wanted = [
        ("Lambda handler", "lambda", house.url),
        ("Converse handle", "converse", house.url),
        ("POST to the proxy", "surface", house.url),
        ("POST to the upstream", "surface", upstream.url),
    ]
    with ExitStack() as stack:
        doors = []
        for name, kind, where in wanted:
            governed = where == house.url
            token = house.token if governed else UPSTREAM_KEY
            environ = environ_of(KEYBRAKE_PROXY_URL=where, KEYBRAKE_VAULT_KEY_BILLING=token)
            contender = Contender(
                name, where, list(house.roots) if governed else [], "", token=token,
                house=house.house if governed else None,
            )  # fmt: skip
            command = pinned(core, [sys.executable, _PROGRAM, kind, token])
            door = stack.enter_context(_piped(contender, command, environ, "jobs"))
            assert door.process.stdout is not None
            assert door.process.stdout.readline() == "ready\n"
            doors.append(door)
        yield doors


def environ_of(**values: str) -> dict[str, str]:
    """Return an environment without any setting but `values`."""
    inherited = os.environ.items()  # noqa: TID251 - for a child process
    return {name: value for name, value in inherited if "KEYBRAKE" not in name} | values


@contextmanager
def _greeted(contender: Contender, command: list[str], environ: dict[str, str]) -> Iterator[Door]:
    with _piped(contender, command, environ, "mcp") as door:
        door.ask(door.message("initialize", _INITIALIZE))
        door.tell(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))
        yield door


@contextmanager
def _piped(
    contender: Contender,
    command: list[str],
    environ: dict[str, str],
    speaks: Literal["mcp", "jobs"],
) -> Iterator[Door]:
    process = subprocess.Popen(
        [*TIED, *command], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    contender.roots.append(process.pid)
    try:
        yield Door(contender, process, speaks)
    finally:
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
        end(process)
