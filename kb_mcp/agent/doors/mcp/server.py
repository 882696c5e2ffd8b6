"""The MCP door: one server for both protocol eras, on stdio and on streamable HTTP.

Floor: wing A, a door. The low-level server is used since it lets arguments through as they came:
the catalogue checks them, strictly, and nothing is dropped or coerced before that.
Over HTTP an ordinary tool call is read and written here without the SDK's streams, tasks and
models, which take several times what a call costs otherwise. What is read is judged by the SDK's
own tables, and a test holds the answers against the SDK's; whatever is out of the ordinary is left
to the SDK: other versions, other members, wrong headers, tools that are not offered.
Source: modelcontextprotocol.io/specification (2025-11-25 and 2026-07-28), Tools, Streamable HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http import check_accept_headers
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import InboundModernRoute, classify_inbound_request
from mcp_types import (
    CLIENT_INFO_META_KEY,
    DEFAULT_NEGOTIATED_VERSION,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    SERVER_INFO_META_KEY,
    CallToolRequestParams,
    CallToolResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    Tool,
)
from mcp_types.methods import validate_client_request
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from kb_mcp import __version__
from kb_mcp.agent import wording
from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import (
    Answer,
    Answered,
    NotOffered,
    body_of,
    call_tool,
    call_tool_on_loop,
    is_error,
)
from kb_mcp.agent.catalogue import TOOLS, ToolName, select_tools
from kb_mcp.agent.client.line import SUBJECT, CallContext, read_subject
from kb_mcp.agent.doors.mcp.messages import (
    HANDSHAKE_VERSIONS,
    INSTRUCTIONS,
    NAME,
    SERVER_INFO,
    STATELESS_VERSION,
    TITLE,
    Json,
)
from kb_mcp.agent.export import arguments_schema, mcp_tools
from kb_mcp.agent.outcomes import ProxyUnavailableError, RateLimitedError
from kb_mcp.traces import PARENT, STATE, read_trace

R = TypeVar("R")
Request = ServerRequestContext[Any, Any]  # the SDK's own parameters: lifespan and HTTP request
BillingFor = Callable[[Request], Billing]
"""Whose keys serve this request: on stdio the environment's, over HTTP the bearer's."""

# A call holds a thread while Stripe is asked; those beyond wait for one.
CALLS_AT_ONCE: Final = 100
LIST_TTL_MS: Final = 60_000
URI_LENGTH_MAX: Final = 2048
CALL: Final = "tools/call"
_NOTHING: Final[Mapping[str, Any]] = {}
_UNNAMED: Final = "mcp"  # the Python SDK's name for a client that its program gives none
_VERSION: Final = "mcp-protocol-version"
_MEMBERS: Final = frozenset({"jsonrpc", "id", "method", "params"})
_PARAMS: Final = frozenset({"name", "arguments", "_meta"})
_JSON: Final = "application/json"
_ACCEPTS: Final = frozenset({b"application/json", b"application/json, text/event-stream"})


def create_server(billing_for: BillingFor) -> Server[Any]:
    """Make the server; `billing_for` is asked on every request, and decides the tools."""
    in_thread = partial(anyio.to_thread.run_sync, limiter=CapacityLimiter(CALLS_AT_ONCE))

    async def list_tools(
        request: Request, _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        billing = billing_for(request)
        try:
            # One key for all tools: the proxy has to be asked what it grants.
            offered = billing.offered()
            names, kinds = await (offered if billing.on_loop else in_thread(billing.wait, offered))
        except (ProxyUnavailableError, RateLimitedError) as error:
            raise MCPError(code=INTERNAL_ERROR, message=str(error)) from error
        return ListToolsResult(tools=[*_offered(names, billing.allow_reference, kinds)])

    async def call(request: Request, params: CallToolRequestParams) -> CallToolResult:
        billing, context = billing_for(request), _context(request)
        asked = (billing, params.name, params.arguments, context)
        if billing.on_loop:
            # The proxy sees a send through by itself, whoever goes away.
            return _result(await call_tool_on_loop(*asked))
        # A thread is not cancelled with its caller, and is waited for: a disconnect, a
        # notifications/cancelled or the end of stdin can not cut a send off from its outcome.
        return _result(await in_thread(call_tool, *asked))

    return Server(
        NAME,
        version=__version__,
        title=TITLE,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call,
        on_list_resources=_always(ListResourcesResult(resources=[])),
        on_list_resource_templates=_always(ListResourceTemplatesResult(resource_templates=[])),
        on_read_resource=_no_such_resource,
        on_list_prompts=_always(ListPromptsResult(prompts=[])),
        get_tool_input_schema=lambda name: _input_schemas().get(name),
        # What is listed depends on the key that asks.
        cache_hints={"tools/list": CacheHint(ttl_ms=LIST_TTL_MS, scope="private")},
    )


# Clients ask for these whatever is announced, and show an error where there is no answer.
def _always(result: R) -> Callable[[Request, PaginatedRequestParams | None], Awaitable[R]]:
    async def answer(_request: Request, _params: PaginatedRequestParams | None) -> R:
        return result

    return answer


async def _no_such_resource(_: Request, params: ReadResourceRequestParams) -> ReadResourceResult:
    # Since resources are listed, none is the one that was asked for (SEP-2164: -32602 and the uri).
    raise MCPError(
        code=INVALID_PARAMS, message="Resource not found", data={"uri": params.uri[:URI_LENGTH_MAX]}
    )


# The catalogue does not change while a process runs, and pydantic takes its time over schemas.
@cache
def _offered(
    names: frozenset[ToolName],
    allow_reference: bool,  # noqa: FBT001 part of the cache's key
    period_kinds: tuple[str, ...],
) -> tuple[Tool, ...]:
    tools = select_tools(names, allow_reference=allow_reference, period_kinds=period_kinds)
    return tuple(Tool.model_validate(tool) for tool in mcp_tools(tools)["tools"])


@cache
def _input_schemas() -> Mapping[str, Mapping[str, Any]]:
    return {tool.name: arguments_schema(tool, full=True) for tool in TOOLS.values()}


def _result(answer: Answer) -> CallToolResult:
    if isinstance(answer, NotOffered):
        raise MCPError(code=INVALID_PARAMS, message=f"Unknown tool. {wording.USE_ANOTHER}")
    return CallToolResult.model_validate(_written(answer))


def _written(answer: Answer) -> Json:
    body = body_of(answer)
    result: Json = {"content": [{"type": "text", "text": json.dumps(body)}]}
    if isinstance(answer, Answered):
        # A body that is no result would not fit the tool's output schema.
        result["structuredContent"] = body
    return {**result, "isError": is_error(answer)}


def _context(request: Request) -> CallContext:
    client = request.session.client_params
    name = None if client is None else client.client_info.name
    headers = getattr(request.request, "headers", Headers())
    return context_of(headers, dict(request.meta or {}), name)


def context_of(
    headers: Headers, meta: Mapping[str, Any] = _NOTHING, client: str | None = None
) -> CallContext:
    """Return what headers and `_meta` of a call by the program `client` say of its caller.

    A header that was sent twice says nothing. What the client says of this message is nearer than
    what its HTTP library says of the line.
    """
    given = {name: headers.getlist(name) for name in (PARENT, STATE, SUBJECT)}
    once = {name: each[0] for name, each in given.items() if len(each) == 1}
    return CallContext(
        agent_id=None if client == _UNNAMED else client,
        session_id=headers.get("mcp-session-id"),
        trace=read_trace(meta) or read_trace(once),
        subject=read_subject(meta) or once.get(SUBJECT) or None,
    )


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that is well-formed in its era."""

    request_id: str | int
    name: str
    arguments: Mapping[str, object] | None
    context: CallContext
    modern: bool


def read_call(request: HttpRequest, message: Json) -> Call | None:
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
    context = context_of(request.headers, meta, client)
    return Call(message["id"], params["name"], params.get("arguments"), context, modern)


def write_result(call: Call, answer: Answer) -> Response:
    """Write what the SDK would write for `call`: the result of a tool that is offered."""
    result = _written(answer)
    if call.modern:
        result |= {"resultType": "complete", "_meta": {SERVER_INFO_META_KEY: SERVER_INFO}}
    document = {"jsonrpc": "2.0", "id": call.request_id, "result": result}
    text = json.dumps(document, separators=(",", ":"))
    return Response(text, media_type=_JSON)


def _is_plain(request: HttpRequest) -> bool:
    """Say whether the headers are those of an ordinary request with JSON, each sent once."""
    sent = request.scope["headers"]
    named = dict(sent)
    return (
        len(named) == len(sent)
        and named.get(b"content-type", b"").partition(b";")[0].strip() == _JSON.encode()
        and (named.get(b"accept") in _ACCEPTS or check_accept_headers(request)[0])
        and b" mcp-param-" not in b" " + b" ".join(named)
    )
