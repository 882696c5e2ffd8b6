"""Reads JSON-RPC messages strictly, and says what is wrong with those that are none.

Floor: wing A, below the MCP door's two transports. Pure, and imports nothing of the SDK, whose
parser keeps the last of two equal names, takes a request whose id is no id for a notification,
and drops what it cannot read without an answer.
Source: jsonrpc.org/specification, 4 and 5.1; modelcontextprotocol.io/specification, Messages (an
id is a string or an integer, params are an object, and there are no batches).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from kb_mcp.agent.strict_json import (
    LoneSurrogateError,
    RepeatedNameError,
    has_surrogate,
    read_json,
)

Json = dict[str, Any]  # JSON of any shape

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INVALID_PARAMS: Final = -32602

_BYTE_ORDER_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class NoMessage:
    """What cannot be a message: the JSON-RPC error that answers it."""

    code: int
    message: str
    request_id: str | int | None = None

    def document(self) -> Json:
        """Return the error as JSON; its id is null where the request's cannot be known."""
        error = {"code": self.code, "message": f"{self.message} Nothing was done."}
        return {"jsonrpc": "2.0", "id": self.request_id, "error": error}


def read_message(raw: bytes) -> Json | NoMessage:
    """Read one message from the bytes of a line or of a body."""
    if raw.startswith(_BYTE_ORDER_MARKS):
        return NoMessage(PARSE_ERROR, "The message begins with a byte order mark. Send UTF-8.")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return NoMessage(PARSE_ERROR, "The message is not UTF-8.")
    try:
        value = read_json(text)
    except RepeatedNameError:
        said = "A name stands twice in the message. Send every name once."
        return NoMessage(INVALID_PARAMS, said, _id_in(text))
    except LoneSurrogateError:
        said = "A text in the message holds half of a surrogate pair, which is no text."
        return NoMessage(INVALID_PARAMS, said, _id_in(text))
    except ValueError:
        return NoMessage(PARSE_ERROR, "The message is not JSON.")
    return _check(value)


def _check(value: object) -> Json | NoMessage:
    if isinstance(value, list):
        return NoMessage(INVALID_REQUEST, "Batches are not served. Send one message at a time.")
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        return NoMessage(INVALID_REQUEST, "The message is no JSON-RPC 2.0 object.")
    if "method" not in value:
        answers = "id" in value and ("result" in value or "error" in value)
        return value if answers else NoMessage(INVALID_REQUEST, "The message has no method.")
    if "id" in value and not _is_id(value["id"]):
        return NoMessage(INVALID_REQUEST, "The id must be a string or an integer.")
    known = value.get("id")
    if not isinstance(value["method"], str):
        return NoMessage(INVALID_REQUEST, "The method must be a string.", known)
    if not isinstance(value.get("params", {}), dict | None):
        return NoMessage(INVALID_REQUEST, "The params must be an object.", known)
    return value


def _id_in(text: str) -> str | int | None:
    value = json.loads(text)
    found = value.get("id") if isinstance(value, dict) else None
    return found if _is_id(found) and not has_surrogate(found) else None


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
