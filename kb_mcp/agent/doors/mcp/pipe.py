"""stdin and stdout as one line-wise pipe, read and written by threads of its own.

Floor: wing A, part of the MCP door. Imports nothing of the SDK. A thread that waits in a read
cannot be interrupted, so both are daemons: the process ends without waiting for the client.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 65_536
_LINES_AHEAD: Final = 64
_FLUSH_WITHIN_S: Final = 5.0

Line = bytes | None
"""A line without its newline; None is the end of the pipe."""
Greet = Callable[[bytes], bytes | None]
"""Answers a line before anyone else is there to do it, or returns None."""


class Pipe:
    """The two ends of one client. `take_over` makes it of the process's own streams."""

    def __init__(self, stdin: int, stdout: int) -> None:
        """Read lines from descriptor `stdin`, write them to `stdout`; both are the pipe's now."""
        self._stdin, self._stdout = stdin, stdout
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(_LINES_AHEAD)
        self._lock = threading.Lock()
        self._early: list[Line] = []
        self._sink: Callable[[Line], None] | None = None
        self._greet: Greet | None = None
        self._writer = threading.Thread(target=self._write_all, daemon=True, name="stdout")

    def start(self, greet: Greet | None = None) -> None:
        """Begin to read and write.

        Until `deliver_to` is called, `greet` may answer a line on the reading thread; every line
        is kept and delivered, whether it was answered or not.
        """
        self._greet = greet
        self._writer.start()
        threading.Thread(target=self._read_all, daemon=True, name="stdin").start()

    def deliver_to(self, sink: Callable[[Line], None]) -> None:
        """Hand every line to `sink`, on the reading thread, those that came before it first."""
        with self._lock:
            for line in self._early:
                sink(line)
            self._early.clear()
            self._sink = sink

    def taken(self) -> None:
        """Say that one delivered line was taken up: only so many are read ahead."""
        self._room.release()

    def write(self, line: bytes) -> None:
        """Write `line` and a newline, in the order of the calls; does not wait."""
        self._answers.put(line)

    def end(self) -> None:
        """Write out what is waiting, for a bounded time, and take the pipe as ended."""
        self._answers.put(None)
        self._writer.join(_FLUSH_WITHIN_S)

    def _read_all(self) -> None:
        kept = b""
        try:
            while chunk := os.read(self._stdin, _CHUNK_BYTES):
                *whole, kept = (kept + chunk).split(b"\n")
                for line in whole:
                    self._hand_on(line)
        except OSError as error:
            logger.error("stdin cannot be read: %s", error.strerror)  # noqa: TRY400 - one line
        if kept:
            self._hand_on(kept)
        self._give(None)

    def _hand_on(self, line: bytes) -> None:
        if line.strip():
            self._room.acquire()
            self._give(line)

    def _give(self, line: Line) -> None:
        with self._lock:
            if self._sink is not None:
                self._sink(line)
                return
            answer = self._greet(line) if self._greet is not None and line is not None else None
            if answer is not None:
                self.write(answer)
            self._early.append(line)

    def _write_all(self) -> None:
        while (line := self._answers.get()) is not None:
            rest = memoryview(line + b"\n")
            try:
                while rest:
                    rest = rest[os.write(self._stdout, rest) :]
            except OSError as error:
                logger.error("stdout cannot be written: %s", error.strerror)  # noqa: TRY400 - one line
                # Nobody reads any more. What is under way still runs to its end.
                self._give(None)
                return


def take_over() -> Pipe:
    """Make a pipe of the process's own stdin and stdout, for good.

    What is printed by accident goes to stderr, and not into the protocol.
    """
    stdin, stdout = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # stderr is closed
        os.dup2(nothing, 1)
    os.close(nothing)
    return Pipe(stdin, stdout)
