"""Refuses JSON-RPC messages in which a name stands twice, before the SDK parses them.

Floor: wing A, below the MCP door's two transports. Pure.
"""

from __future__ import annotations

import json
from typing import Final

from mcp_types import INVALID_PARAMS, ErrorData, JSONRPCError

from kb_mcp.agent.strict_json import has_repeated_names

MESSAGE: Final = "A name stands twice in the message. Nothing was done. Send every name once."


def refuse_repeats(message: str | bytes) -> JSONRPCError | None:
    """Return the error that answers `message` if a name stands twice in it, else None."""
    if not has_repeated_names(message):
        return None
    decoded = json.loads(message)
    request_id = decoded.get("id") if isinstance(decoded, dict) else None
    known = isinstance(request_id, str | int) and not isinstance(request_id, bool)
    return JSONRPCError(
        jsonrpc="2.0",
        id=request_id if known else None,
        error=ErrorData(code=INVALID_PARAMS, message=MESSAGE),
    )
