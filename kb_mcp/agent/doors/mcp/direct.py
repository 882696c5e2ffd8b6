"""A tool call over HTTP in its ordinary form, answered without the SDK's machinery.

Floor: wing A, part of the MCP door over HTTP. The SDK makes streams, tasks and models for each
request, several times what a call costs otherwise. What is read here is judged by the SDK's own
tables, and a test holds the answers against the SDK's; whatever is out of the ordinary is left to
the SDK: other versions, other members, wrong headers, tools that are not offered.
Source: modelcontextprotocol.io/specification (2025-11-25 and 2026-07-28), Streamable HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcp.server.streamable_http import check_accept_headers
from mcp.shared.inbound import InboundModernRoute, classify_inbound_request
from mcp_types import CLIENT_INFO_META_KEY, DEFAULT_NEGOTIATED_VERSION, SERVER_INFO_META_KEY
from mcp_types.methods import validate_client_request
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from kb_mcp import __version__
from kb_mcp.agent.calls import Answer, Answered, body_of, is_error
from kb_mcp.agent.doors.mcp.greeting import HANDSHAKE_VERSIONS, NAME, STATELESS_VERSION, TITLE
from kb_mcp.agent.doors.mcp.messages import Json

CALL: Final = "tools/call"
_VERSION: Final = "mcp-protocol-version"
_MEMBERS: Final = frozenset({"jsonrpc", "id", "method", "params"})
_PARAMS: Final = frozenset({"name", "arguments", "_meta"})
_JSON: Final = "application/json"
_ACCEPTS: Final = frozenset({b"application/json", b"application/json, text/event-stream"})


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that is well-formed in its era; `client` is the calling program's name."""

    request_id: str | int
    name: str
    arguments: Mapping[str, object] | None
    meta: Mapping[str, Any]
    client: str | None
    modern: bool


def read_call(request: Request, message: Json) -> Call | None:
    """Return the call that `message` is, or None where the SDK has to judge."""
    params = message.get("params")
    if not (
        message.get("method") == CALL
        and message.keys() == _MEMBERS
        and isinstance(params, dict)
        and params.keys() <= _PARAMS
        and _is_plain(request)
    ):
        return None
    version = request.headers.get(_VERSION, DEFAULT_NEGOTIATED_VERSION)
    modern = version == STATELESS_VERSION
    if modern:
        verdict = classify_inbound_request(message, headers=request.headers)
        if not isinstance(verdict, InboundModernRoute):
            return None
    elif version not in HANDSHAKE_VERSIONS:
        return None
    try:
        validate_client_request(CALL, version, params)
    except ValidationError:
        return None
    meta = params.get("_meta") or {}
    client = (meta.get(CLIENT_INFO_META_KEY) or {}).get("name") if modern else None
    return Call(message["id"], params["name"], params.get("arguments"), meta, client, modern)


def write_result(call: Call, answer: Answer) -> Response:
    """Write what the SDK would write: the result of a tool that is offered."""
    body = body_of(answer)
    result: Json = {"content": [{"type": "text", "text": json.dumps(body)}]}
    if isinstance(answer, Answered):
        # A body that is no result would not fit the tool's output schema.
        result["structuredContent"] = body
    result["isError"] = is_error(answer)
    if call.modern:
        server = {"name": NAME, "title": TITLE, "version": __version__}
        result |= {"resultType": "complete", "_meta": {SERVER_INFO_META_KEY: server}}
    document = {"jsonrpc": "2.0", "id": call.request_id, "result": result}
    text = json.dumps(document, separators=(",", ":"))
    return Response(text, media_type=_JSON)


def _is_plain(request: Request) -> bool:
    """Say whether the headers are those of an ordinary request with JSON, each sent once."""
    sent = request.scope["headers"]
    named = dict(sent)
    return (
        len(named) == len(sent)
        and named.get(b"content-type", b"").partition(b";")[0].strip() == _JSON.encode()
        and (named.get(b"accept") in _ACCEPTS or check_accept_headers(request)[0])
        and b" mcp-param-" not in b" " + b" ".join(named)
    )
