"""Host and Origin: which names a listener answers to (DNS rebinding).

Floor: wiring, around an ASGI app. Loopback names always pass; anything else must be named in
KEYBRAKE_ALLOWED_HOSTS, on a loopback address too.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_MISDIRECTED, _FORBIDDEN = 421, 403


class HostGuard:
    """Answers 421 to an unknown Host and 403 to an unknown Origin; hands on what is left."""

    def __init__(self, app: App, allowed: tuple[str, ...]) -> None:
        """Guard `app`; `allowed` are hosts with or without port, lower-case."""
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Check one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if len(hosts) != 1 or not self._known(hosts[0].decode("latin-1")):
            await _refuse(send, _MISDIRECTED, "host_unknown", "This server does not answer to that "
                          "Host. Add it to KEYBRAKE_ALLOWED_HOSTS.")  # fmt: skip
        elif any(not self._known(_host_of(origin.decode("latin-1"))) for origin in origins):
            await _refuse(send, _FORBIDDEN, "origin_not_allowed", "This Origin is not allowed.")
        else:
            await self._app(scope, receive, send)

    def _known(self, host: str) -> bool:
        lowered = host.lower()
        name = (
            lowered.rpartition(":")[0] if not lowered.endswith("]") and ":" in lowered else lowered
        )
        return name in _LOOPBACK or lowered in self._allowed or name in self._allowed


def _host_of(origin: str) -> str:
    return urlsplit(origin).netloc


async def _refuse(send: Any, status: int, code: str, message: str) -> None:
    error = {"type": "invalid_request_error", "code": code, "message": message}
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"stripe-should-retry", b"false"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
