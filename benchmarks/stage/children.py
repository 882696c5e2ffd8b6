"""Child processes that end with the script, whatever ends it, and never outstay their time."""

from __future__ import annotations

import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

STOP_WITHIN_S = 45
# The kernel ends a child when the script is gone, so that even a kill leaves nothing behind.
TIED = ["setpriv", "--pdeathsig", "TERM", "--"]


class TooSlowError(Exception):
    """Something did not come within its time; the message says what was heard until then."""


@dataclass
class Child:
    """A running process; `said` is what it has written so far."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid


@contextmanager
def started(
    command: list[str], ready: str, *, env: dict[str, str] | None = None, within_s: float = 30
) -> Iterator[Child]:
    """Start `command`, wait until it says `ready`, and end it after the block.

    Raises: TooSlowError.
    """
    process = subprocess.Popen(
        [*TIED, *command], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    child = Child(process)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    hearer = threading.Thread(target=_hear, args=(child, lines), daemon=True)
    hearer.start()
    try:
        _await_line(lines, ready, command, child, time.monotonic() + within_s)
        yield child
    finally:
        end(process)
        hearer.join(5)


def end(process: subprocess.Popen[str]) -> None:
    """Ask a process to end; after a while, end it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def await_port(port: int, within_s: float = 30) -> None:
    """Wait until something listens on a port of this machine. Raises: TooSlowError."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise TooSlowError(f"nothing listens on port {port}")


def free_port() -> int:
    """Return a port that was free just now, for programs that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bounded(seconds: int) -> None:
    """End this script, and with it its children, after `seconds`, or when it is asked to end."""

    def stop(number: int, _frame: FrameType | None) -> None:
        why = f"not done after {seconds} s" if number == signal.SIGALRM else "ended from outside"
        raise SystemExit(f"benchmark: {why}")

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.alarm(seconds)


def _hear(child: Child, lines: queue.SimpleQueue[str | None]) -> None:
    assert child.process.stdout is not None
    for line in child.process.stdout:
        child.said.append(line)
        lines.put(line)
    lines.put(None)


def _await_line(
    lines: queue.SimpleQueue[str | None], ready: str, command: list[str], child: Child, until: float
) -> None:
    while True:
        try:
            line = lines.get(timeout=max(until - time.monotonic(), 0.001))
        except queue.Empty:
            line = None
        if line is None:
            raise TooSlowError(f"{command} did not say {ready!r}: {''.join(child.said)}")
        if ready in line:
            return
