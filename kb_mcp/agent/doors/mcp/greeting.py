"""The first answers over stdio, given while the SDK is still being imported.

Floor: wing A, part of the MCP door. Imports nothing of the SDK, which takes most of a start: a
client waits for its greeting, and some wait for one second only. A test holds what stands here
against what the SDK answers; whatever is out of the ordinary is left to the SDK.
Source: modelcontextprotocol.io/specification, Lifecycle (2025-11-25) and Discovery (2026-07-28).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from kb_mcp import __version__
from kb_mcp.agent.doors.mcp.messages import NoMessage, read_message

NAME: Final = "kb-mcp"
TITLE: Final = "kb-mcp billing"
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

Json = dict[str, Any]  # JSON of any shape


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
    server = {"name": NAME, "title": TITLE, "version": __version__}
    if method == "initialize" and _shakes_hands(params):
        wanted = params["protocolVersion"]
        agreed = wanted if wanted in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[-1]
        return {**common, "protocolVersion": agreed, "serverInfo": server}
    if method == "server/discover" and _discovers(params):
        return {
            **common,
            "supportedVersions": [STATELESS_VERSION],
            "resultType": "complete",
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": {f"{_META}serverInfo": server},
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
