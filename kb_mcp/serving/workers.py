"""Workers: further processes on the agents' socket, sharing the store like any other process.

Floor: serving. A worker is started with the listening socket and a line to the first process; it
ends on SIGTERM, or when the line closes because the first process is gone. One that dies is
started again. Over the line the first process asks what a worker has measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from kb_mcp.proxy.meters import Measured, Meters

RESTART_AFTER_S = 1
ANSWER_WITHIN_S = 1
WORKER_OPTION = "--worker-socket"
_BROKEN = (OSError, ValueError, KeyError, TypeError)


@dataclass(slots=True)
class _Line:
    """The first process's end of the line to one worker."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    asked: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ask(self) -> Measured | None:
        """Return what the worker has measured, or None if it does not say so in time."""
        async with self.turn:
            self.asked += 1
            number = b"%d" % self.asked
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    self.writer.write(number + b"\n")
                    await self.writer.drain()
                    # An answer to an earlier question may have come too late for it.
                    while (line := await self.reader.readline()) != number + b"\n":
                        if not line:
                            return None
                    return Measured.load(await self.reader.readline())
            except (TimeoutError, *_BROKEN):
                return None


@dataclass(slots=True)
class Workers:
    """The workers of this process, by their numbers, which begin at 1."""

    lines: dict[int, _Line] = field(default_factory=dict)

    async def readings(self) -> dict[str, Measured]:
        """Return what each worker has measured; one that does not answer is left out."""
        lines = sorted(self.lines.items())
        found = await asyncio.gather(*(line.ask() for _, line in lines))
        pairs = zip(lines, found, strict=True)
        return {str(number): each for (number, _), each in pairs if each is not None}


@contextlib.asynccontextmanager
async def workers_on(sock: socket.socket, count: int, log_format: str) -> AsyncIterator[Workers]:
    """Keep `count` workers running on `sock`; at the end, drain and await them."""
    workers = Workers()
    keepers = [
        asyncio.create_task(_keep(workers, number, sock, log_format))
        for number in range(1, count + 1)
    ]
    try:
        yield workers
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.wait(keepers)


async def answer_first(meters: Meters) -> None:
    """Answer the process that started this worker, until it has closed the line."""
    line = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    reader, writer = await asyncio.open_unix_connection(sock=line)
    with contextlib.suppress(ConnectionError):
        while question := await reader.readline():
            writer.write(question + meters.read().dump())
            await writer.drain()
    writer.close()


async def _keep(workers: Workers, number: int, sock: socket.socket, log_format: str) -> None:
    """Start a worker, and another whenever it has died; cancelled, end the last and await it."""
    while True:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "kb_mcp", "up", WORKER_OPTION, str(sock.fileno())),
                *("--log-format", log_format),
                pass_fds=(sock.fileno(),),
                stdin=theirs.fileno(),
            )
        line = workers.lines[number] = _Line(*await asyncio.open_unix_connection(sock=ours))
        try:
            await process.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            raise
        finally:
            del workers.lines[number]
            line.writer.close()
        await asyncio.sleep(RESTART_AFTER_S)
