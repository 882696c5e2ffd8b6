"""Workers: further processes on the agents' socket, sharing the store like any other process.

Floor: wiring. A worker is started with the listening socket and a pipe; it ends on SIGTERM, or
when the pipe closes because the first process is gone. One that dies is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator

RESTART_AFTER_S = 1
WORKER_OPTION = "--worker-socket"


@contextlib.asynccontextmanager
async def workers_on(sock: socket.socket, count: int, log_format: str) -> AsyncIterator[None]:
    """Keep `count` workers running on `sock`; at the end, drain and await them."""
    stopping = asyncio.Event()
    keepers = [asyncio.create_task(_keep(sock, stopping, log_format)) for _ in range(count)]
    try:
        yield
    finally:
        stopping.set()
        await asyncio.gather(*keepers)


async def parent_gone() -> None:
    """Return when the process that started this worker has closed its pipe."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def _keep(sock: socket.socket, stopping: asyncio.Event, log_format: str) -> None:
    while not stopping.is_set():
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "kb_mcp", "up", WORKER_OPTION, str(sock.fileno()), "--log-format", log_format),
            pass_fds=(sock.fileno(),),
            stdin=asyncio.subprocess.PIPE,
        )
        ended = asyncio.create_task(process.wait())
        asked = asyncio.create_task(stopping.wait())
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set() and not ended.done():
            process.send_signal(signal.SIGTERM)
        asked.cancel()
        await ended
        if not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESTART_AFTER_S):
                    await stopping.wait()
