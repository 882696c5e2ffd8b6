"""One request into an ASGI application of this process, and its answer.

Floor: the ground. Both wings reach an application in their own process with it: the agent its
embedded proxy, and the proxy its sandbox.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any
from urllib.parse import unquote

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
