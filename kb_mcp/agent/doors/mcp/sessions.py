"""The session id that a client of the handshake era is given: a label, and nothing behind it.

Floor: wing A, part of the MCP door over HTTP. A client sends it with every later request, and the
audit tells its sessions apart; no request is served differently for it. Clients that bring an id
of their platform's keep that one, and the stateless era has none.
Source: modelcontextprotocol.io/specification/2025-11-25/basic/transports, Session Management.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from starlette.types import Message, Send

HEADER: Final = b"mcp-session-id"


def opens_session(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
    """Say whether `body` is an `initialize` whose sender has no session id yet."""
    if b'"initialize"' not in body or any(name == HEADER for name, _ in headers):
        return False
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(message, dict) and message.get("method") == "initialize"


def labelled(send: Send, session_id: str) -> Send:
    """Return `send`, which puts `session_id` into an answer of success."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            headers = [*message.get("headers", ()), (HEADER, session_id.encode("ascii"))]
            message = {**message, "headers": headers}
        await send(message)

    return sending
