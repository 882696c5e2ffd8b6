"""The sandbox as an ASGI application: reads requests, waits, answers or drops.

Floor: sandbox, ground. Behind `kb_mcp.sandbox.server` a drop ends the connection; driven in
process it raises `ConnectionDropped`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Final, assert_never

from starlette.types import Message, Receive, Scope, Send

from kb_mcp.sandbox.answers import Answer, error_answer
from kb_mcp.sandbox.exchange import Drop, Outcome, Request, Respond, exchange, free_key
from kb_mcp.sandbox.faults import ConnectionDropped
from kb_mcp.sandbox.steering import PREFIX, steer
from kb_mcp.sandbox.store import Store

DROP_EXTENSION: Final = "kb_mcp.sandbox.drop"
"""The ASGI extension under which a server offers a function that aborts the connection."""

BODY_MAX_BYTES: Final = 1_048_576


def create_sandbox(
    state: Path | None, *, clock: Callable[[], int], new_id: Callable[[], str]
) -> Sandbox:
    """Create a sandbox that keeps its objects in the file `state`, or in memory when None.

    `clock` gives the host's time in ms UTC, `new_id` the random part of an id.
    Raises: sqlite3.Error, when the file cannot be opened or is no database of ours.
    """
    return Sandbox(Store(state, clock), new_id)


class Sandbox:
    """The ASGI application."""

    def __init__(self, store: Store, new_id: Callable[[], str]) -> None:
        """Serve from `store`; see `create_sandbox`."""
        self._store = store
        self._new_id = new_id
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises: ConnectionDropped, when a fault drops the connection and no server can.
        """
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"The sandbox speaks HTTP only, not {scope['type']}.")
        request = await _read(scope, receive)
        if request is None:
            return
        await self._act(self._outcome(request), scope, send)

    def release(self) -> None:
        """End all delays now; callable from any thread. A server does so when it stops."""
        for loop, event in tuple(self._waiting):
            loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._store.close()

    def _outcome(self, request: Request) -> Outcome:
        if len(request.body) > BODY_MAX_BYTES:
            return self._plain(error_answer(413, "Request entity too large."))
        if request.path.startswith(PREFIX):
            return self._plain(steer(self._store, request.method, request.path, request.body))
        return exchange(self._store, self._new_id, request)

    def _plain(self, answer: Answer) -> Respond:
        headers = {
            "content-type": "application/json",
            "date": formatdate(self._store.now_ms() // 1000, usegmt=True),
            "request-id": f"req_{self._new_id()}",
        }
        return Respond(answer.status, json.dumps(answer.body, indent=2).encode(), headers)

    async def _act(self, outcome: Outcome, scope: Scope, send: Send) -> None:
        match outcome:
            case Drop():
                _drop(scope)
            case Respond():
                if outcome.delay_ms:
                    await self._wait(outcome)
                await _answer(outcome, send)
            case _:
                assert_never(outcome)

    async def _wait(self, outcome: Respond) -> None:
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        self._waiting.add(waiter)
        try:
            async with asyncio.timeout(outcome.delay_ms / 1000):
                await waiter[1].wait()
        except TimeoutError:
            pass  # the delay is over
        finally:
            self._waiting.discard(waiter)
            if outcome.frees is not None:
                free_key(self._store, outcome.frees)


async def _read(scope: Scope, receive: Receive) -> Request | None:
    """Return the request, or None when the client went away before it was complete."""
    body = bytearray()
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return None
        if len(body) <= BODY_MAX_BYTES:
            body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    headers = {name.decode("latin-1").lower(): value for name, value in scope["headers"]}
    return Request(
        method=scope["method"],
        path=scope["path"],
        query=scope.get("query_string", b""),
        headers={name: value.decode("latin-1") for name, value in headers.items()},
        body=bytes(body),
    )


async def _answer(outcome: Respond, send: Send) -> None:
    headers = {**outcome.headers, "content-length": str(len(outcome.body))}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": outcome.status, "headers": raw})
    await send({"type": "http.response.body", "body": outcome.body})


def _drop(scope: Scope) -> None:
    abort = (scope.get("extensions") or {}).get(DROP_EXTENSION)
    if abort is None:
        raise ConnectionDropped("The sandbox dropped the connection, as a fault asked for.")
    abort()


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
