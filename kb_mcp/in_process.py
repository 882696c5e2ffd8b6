"""One request into an ASGI application of this process, and its answer.

Floor: the ground. Both wings reach an application in their own process with it: the agent its
embedded proxy, and the proxy its sandbox.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import unquote

import httpx
from typing_extensions import override

Message = MutableMapping[str, Any]  # ASGI's own type: values differ by key
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]


class Exchange:
    """A request and what came of it: `whole` once the answer has ended. Header names as sent."""

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        *,
        scheme: str = "http",
        server: tuple[str, int | None] = ("127.0.0.1", 80),
        extensions: Mapping[str, object] | None = None,
    ) -> None:
        """Ask for `target`, path and query as they stand in a request line.

        `extensions` go beside the headers, where no client can put anything.
        """
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.whole = False
        self._messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        path, _, query = target.partition(b"?")
        self._scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": scheme,
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(headers),
            "client": ("127.0.0.1", 0),
            "server": server,
            "extensions": extensions or {},
        }

    async def run(self, app: AsgiApp) -> None:
        """Let `app` answer. Raises: what `app` raises."""
        await app(self._scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if not self._messages:
            await asyncio.Event().wait()  # for ever: in here the caller does not hang up
        return self._messages.pop()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            self.whole = not message.get("more_body", False)


class AsgiTransport(httpx.BaseTransport):
    """Carries requests to an ASGI app that runs on the event loop of another thread.

    A caller that stops waiting does not stop the app: the request runs to its end there.
    """

    def __init__(self, app: AsgiApp, loop: asyncio.AbstractEventLoop) -> None:
        """Reach `app`, whose home is the running `loop`."""
        self._app = app
        self._loop = loop

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        exchange = Exchange(
            request.method,
            request.url.raw_path,
            [(name.lower(), value) for name, value in request.headers.raw],
            request.read(),
            scheme=request.url.scheme,
            server=(request.url.host, request.url.port),
        )
        work = exchange.run(self._app)
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise httpx.ConnectError("the embedded proxy has stopped", request=request) from None
        try:
            future.result(request.extensions.get("timeout", {}).get("read"))
        except concurrent.futures.TimeoutError:
            raise httpx.ReadTimeout("no answer in time", request=request) from None
        except (Exception, concurrent.futures.CancelledError) as error:
            # The app broke or was stopped on the way: as on a network, it may have acted.
            raise httpx.ReadError("the connection broke", request=request) from error
        if exchange.status == 0:
            raise httpx.ReadError("the connection broke", request=request)
        return httpx.Response(
            exchange.status, headers=exchange.headers, content=bytes(exchange.body)
        )


def start_loop() -> tuple[asyncio.AbstractEventLoop, Callable[[], None]]:
    """Start an event loop on a thread of its own; return it and the function that ends it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="kb-mcp loop", daemon=True)
    thread.start()

    def stop() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    return loop, stop
