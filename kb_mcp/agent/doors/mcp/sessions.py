"""The session id that a client of the handshake era is given: a label, and nothing behind it.

Floor: wing A, part of the MCP door over HTTP. A client sends it with every later request, and the
audit tells its sessions apart; no request is served differently for it. Clients that bring an id
of their platform's keep that one, and the stateless era has none.
Source: modelcontextprotocol.io/specification/2025-11-25/basic/transports, Session Management.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from starlette.types import Message, Send

HEADER: Final = b"mcp-session-id"


def opens_session(headers: Iterable[tuple[bytes, bytes]], message: Mapping[str, Any]) -> bool:
    """Say whether `message` is an `initialize` whose sender has no session id yet."""
    return message.get("method") == "initialize" and all(name != HEADER for name, _ in headers)


def labelled(send: Send, session_id: str) -> Send:
    """Return `send`, which puts `session_id` into an answer of success."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            headers = [*message.get("headers", ()), (HEADER, session_id.encode("ascii"))]
            message = {**message, "headers": headers}
        await send(message)

    return sending
