"""The sandbox as an ASGI application, and the server that can really drop a connection.

Floor: sandbox. Driven in process, a drop raises `ConnectionDropped`. The Date header is the
sandbox's own, so the server adds none.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

import uvicorn
from starlette import requests
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kb_mcp.sandbox.exchange import BODY_MAX_BYTES, Request, Respond, exchange
from kb_mcp.sandbox.steering import ConnectionDropped
from kb_mcp.sandbox.store import Store

DROP_EXTENSION: Final = "kb_mcp.sandbox.drop"
"""The ASGI extension under which a server offers a function that aborts the connection."""


class Sandbox:
    """The ASGI application. It keeps its objects in the file `state`, or in memory when None.

    `clock` gives the host's time in ms UTC, `new_id` the random part of an id.
    Raises: sqlite3.Error, when the file cannot be opened or is no database of ours.
    """

    def __init__(
        self, state: Path | None, *, clock: Callable[[], int], new_id: Callable[[], str]
    ) -> None:
        """Open the file."""
        self._store, self._new_id = Store(state, clock), new_id
        self._delays: set[asyncio.Event] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises: ConnectionDropped, when a fault drops the connection and no server can.
        """
        if scope["type"] != "http":
            raise RuntimeError(f"The sandbox speaks HTTP only, not {scope['type']}.")
        request = await _read(scope, receive)
        if request is None:
            return
        outcome = exchange(self._store, self._new_id, request)
        if outcome is not None:
            if outcome.delay_ms:
                await self._wait(outcome)
            await Response(outcome.body, outcome.status, outcome.headers)(scope, receive, send)
        elif DROP_EXTENSION in (scope.get("extensions") or {}):
            scope["extensions"][DROP_EXTENSION]()
        else:
            raise ConnectionDropped("The sandbox dropped the connection, as a fault asked for.")

    def release(self) -> None:
        """End all delays now; called in their loop. A server does so when it stops."""
        for delay in self._delays:
            delay.set()

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._store.close()

    async def _wait(self, outcome: Respond) -> None:
        released = asyncio.Event()
        self._delays.add(released)
        try:
            with suppress(TimeoutError):  # the delay is over
                await asyncio.wait_for(released.wait(), outcome.delay_ms / 1000)
        finally:
            self._delays.discard(released)
            if outcome.frees is not None:
                with self._store.transaction() as records:
                    records.run("free_key", *outcome.frees)


async def _read(scope: Scope, receive: Receive) -> Request | None:
    """Return the request, or None when the client went away before it was complete."""
    body, given = bytearray(), requests.Request(scope, receive)
    try:
        async for part in given.stream():
            if len(body) <= BODY_MAX_BYTES:
                body += part
    except requests.ClientDisconnect:
        return None
    return Request(
        scope["method"], scope["path"], scope["query_string"], given.headers, bytes(body)
    )


def serve(app: Sandbox, host: str, port: int, *, on_bound: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `on_bound` is told the address. Port 0 takes a free one.

    Raises: OSError, when the address can't be bound.
    """
    server = _Server(app, host, port, alone=True)
    on_bound(server.url)
    server.run(sockets=[server.listener])


@asynccontextmanager
async def running(app: Sandbox, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve from the running loop, yield the URL, and stop at the end.

    Raises: OSError, when the address can't be bound.
    """
    server = _Server(app, host, port)
    task = asyncio.create_task(server.serve(sockets=[server.listener]))
    try:
        yield server.url
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
    """A server that ends all delays when it stops. Where it runs `alone`, it stops on signals.

    Raises: OSError, when the address can't be bound.
    """

    def __init__(self, app: Sandbox, host: str, port: int, *, alone: bool = False) -> None:
        self._sandbox, self._alone, ipv6 = app, alone, ":" in host
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        self.listener = socket.create_server((host, port), family=family)
        bound = self.listener.getsockname()[:2]
        self.url = ("http://[{}]:{}" if ipv6 else "http://{}:{}").format(*bound)
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            date_header=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._sandbox.release()
        await super().shutdown(sockets)

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals() if self._alone else nullcontext():
            yield
