"""JSON-RPC without the SDK: messages are read strictly, and a client's first ones are answered.

Floor: wing A, below the MCP door's two transports. Pure, and imports nothing of the SDK. Its parser
keeps the last of two equal names, takes a request whose id is no id for a notification, and drops
what it cannot read without an answer. Importing it takes most of a start over stdio: a client waits
for its greeting, and some wait for one second only. A test holds the first answers against the
SDK's; whatever is out of the ordinary is left to the SDK.
Source: jsonrpc.org/specification, 4 and 5.1; modelcontextprotocol.io/specification, Messages (an
id is a string or an integer, params are an object, and there are no batches), Lifecycle
(2025-11-25) and Discovery (2026-07-28).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kb_mcp import __version__
from kb_mcp.strict_json import (
    LoneSurrogateError,
    RepeatedNameError,
    has_surrogate,
    read_json,
)

Json = dict[str, Any]  # JSON of any shape

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INVALID_PARAMS: Final = -32602

NAME: Final = "kb-mcp"
TITLE: Final = "kb-mcp billing"
SERVER_INFO: Final = {"name": NAME, "title": TITLE, "version": __version__}
INSTRUCTIONS: Final = (
    "Charges Stripe customers exactly once per billing period, under spend caps, looks charges up "
    "and gives them back. For questions about a bill, a receipt or a complaint use charge_status; "
    "charge only when the user asks for a charge, and refund only when the user asks for a refund."
)
HANDSHAKE_VERSIONS: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
STATELESS_VERSION: Final = "2026-07-28"
_CAPABILITIES: Final = {
    "prompts": {"listChanged": False},
    "resources": {"listChanged": False, "subscribe": False},
    "tools": {"listChanged": False},
}
_META: Final = "io.modelcontextprotocol/"
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
    text = ""
    try:
        text = raw.decode()
        return _check(read_json(text))
    except UnicodeDecodeError:
        return NoMessage(PARSE_ERROR, "The message is not UTF-8.")
    except RepeatedNameError:
        said = "A name stands twice in the message. Send every name once."
        return NoMessage(INVALID_PARAMS, said, _id_in(text))
    except LoneSurrogateError:
        said = "A text in the message holds half of a surrogate pair, which is no text."
        return NoMessage(INVALID_PARAMS, said, _id_in(text))
    except ValueError:
        return NoMessage(PARSE_ERROR, "The message is not JSON.")


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


class Greeter:
    """Answers a client's first `initialize` and `server/discover`."""

    def __init__(self) -> None:
        """Begin with nothing answered."""
        self.answered: set[str | int] = set()

    def __call__(self, line: bytes) -> bytes | None:
        """Return the answer to `line`, or None where the SDK has to give it."""
        read = read_message(line)
        if isinstance(read, NoMessage) or "id" not in read:
            return None
        params = read.get("params")
        result = _greet(read.get("method"), params if isinstance(params, dict) else {})
        if result is None or read["id"] in self.answered:
            return None
        self.answered.add(read["id"])
        return json.dumps({"jsonrpc": "2.0", "id": read["id"], "result": result}).encode()


def _greet(method: object, params: Json) -> Json | None:
    common = {"capabilities": _CAPABILITIES, "instructions": INSTRUCTIONS}
    if method == "initialize" and _shakes_hands(params):
        wanted = params["protocolVersion"]
        agreed = wanted if wanted in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[-1]
        return {**common, "protocolVersion": agreed, "serverInfo": SERVER_INFO}
    if method == "server/discover" and _discovers(params):
        return {
            **common,
            "supportedVersions": [STATELESS_VERSION],
            "resultType": "complete",
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": {f"{_META}serverInfo": SERVER_INFO},
        }
    return None


def _shakes_hands(params: Json) -> bool:
    return (
        isinstance(params.get("protocolVersion"), str)
        and _are_plain(params.get("capabilities"))
        and _is_named(params.get("clientInfo"))
    )


def _discovers(params: Json) -> bool:
    meta = params.get("_meta")
    return (
        isinstance(meta, Mapping)
        and meta.get(f"{_META}protocolVersion") == STATELESS_VERSION
        and _are_plain(meta.get(f"{_META}clientCapabilities"))
        and (f"{_META}clientInfo" not in meta or _is_named(meta[f"{_META}clientInfo"]))
    )


def _are_plain(capabilities: object) -> bool:
    return isinstance(capabilities, Mapping) and all(
        isinstance(options, Mapping) for options in capabilities.values()
    )


def _is_named(client: object) -> bool:
    return isinstance(client, Mapping) and all(
        isinstance(client.get(name), str) for name in ("name", "version")
    )
