"""The sandbox behind a socket: a server that can really drop a connection.

Floor: sandbox. The Date header is the sandbox's own, so the server adds none.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kb_mcp.sandbox.app import DROP_EXTENSION, Sandbox

_SHUTDOWN_SECONDS = 5
_BACKLOG = 1024


def serve(
    app: Sandbox, host: str, port: int, *, on_bound: Callable[[str], None] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; `on_bound` is told the address. Port 0 takes a free one.

    Raises: OSError, when the address can't be bound.
    """
    listener = _listen(host, port)
    if on_bound is not None:
        on_bound(_url(listener))
    _Server(app).run(sockets=[listener])


@contextmanager
def start_in_thread(app: Sandbox, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve from a thread of its own, yield the URL, and stop at the end.

    Raises: OSError, when the address can't be bound.
    """
    listener = _listen(host, port)
    server = _Embedded(app)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="sandbox", daemon=True
    )
    thread.start()
    try:
        yield _url(listener)
    finally:
        server.should_exit = True
        thread.join()


@asynccontextmanager
async def running(app: Sandbox, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve from the running loop, yield the URL, and stop at the end.

    Raises: OSError, when the address can't be bound.
    """
    listener = _listen(host, port)
    server = _Embedded(app)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield _url(listener)
    finally:
        server.should_exit = True
        await task


class _Protocol(HttpToolsProtocol):
    """Offers the application a way to abort the connection."""

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {DROP_EXTENSION: self._abort}  # type: ignore[dict-item]  # a function, where uvicorn foresees plain data

    def _abort(self) -> None:
        # Uvicorn must not take the missing answer for a mistake and send a 500.
        self.cycle.disconnected = True
        self.transport.abort()


class _Server(uvicorn.Server):
    """Ends delays first when it stops."""

    def __init__(self, app: Sandbox) -> None:
        self._sandbox = app
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                date_header=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._sandbox.release()
        await super().shutdown(sockets)


class _Embedded(_Server):
    """Leaves signals to the process it lives in."""

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with contextlib.nullcontext():
            yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.setblocking(False)  # noqa: FBT003  positional only
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
