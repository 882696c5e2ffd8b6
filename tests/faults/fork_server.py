"""Processes that start fast: forked from one that has imported everything, then run as users do.

What runs in a fork is `kb-mcp up …` from its command line on; only Python's own start is saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]
_URL = re.compile(r"http://127\.0\.0\.1:\d+")
_LAST = {"up": "MCP client configuration", "sandbox": "listening on"}
_PRELOADED = ("kb_mcp.wiring.serve", "kb_mcp.cli.serve", "kb_mcp.sandbox.app", "uvloop",
              "uvicorn.protocols.http.httptools_impl", "kb_mcp.wiring.proxy")  # fmt: skip


@dataclass
class Child:
    """A process of ours that has printed its address."""

    pid: int
    url: str
    said: list[str]
    hearing: threading.Thread

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """End it at once, as a power cut would, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            while True:
                os.kill(self.pid, 0)  # until its parent has reaped it, which is at once


class ForkServer:
    """Forks processes on demand, all with one environment."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fork_server"], cwd=ROOT, env=dict(environ),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.children: list[Child] = []

    def start(self, *arguments: str) -> Child:
        """Start `kb-mcp` with `arguments`, and return it once it serves."""
        self._count += 1
        pipe = self._folder / f"voice{self._count}"
        os.mkfifo(pipe)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([list(arguments), str(pipe)]) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        voice = pipe.open()
        said: list[str] = []
        for line in voice:
            said.append(line)
            if _LAST[arguments[0]] in line:
                break
        else:
            raise AssertionError(f"{arguments} ended: {''.join(said)}")
        url = next(match[0] for line in said if (match := _URL.search(line)))
        hearing = threading.Thread(target=_hear, args=(voice, said))
        hearing.start()
        child = Child(pid, url, said, hearing)
        self.children.append(child)
        return child

    def close(self) -> None:
        """End every child, and the nursery."""
        for child in self.children:
            child.kill()
            child.hearing.join()
        self._process.terminate()
        self._process.wait(30)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def _hear(voice: TextIO, said: list[str]) -> None:
    """Keep what a process says later on, so that it never waits for a reader."""
    with voice:
        said.extend(voice)


@contextmanager
def fork_server(folder: Path, environ: Mapping[str, str]) -> Iterator[ForkServer]:
    """Open a nursery, and end it with all its children."""
    made = ForkServer(folder, environ)
    try:
        yield made
    finally:
        made.close()


def _serve() -> None:
    """Fork one process a line of stdin: its arguments, and the pipe it speaks to."""
    import gc
    import importlib

    for name in _PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever ends is reaped at once
    for line in sys.stdin:
        arguments, pipe = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(arguments, pipe)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def _become(arguments: list[str], pipe: str) -> None:
    from kb_mcp.cli import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    voice = os.open(pipe, os.O_WRONLY)
    os.dup2(voice, 1)
    os.dup2(voice, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        main(arguments)
    finally:
        os._exit(1)


if __name__ == "__main__":
    _serve()
