"""The tools that the conformance suite calls to see a server's framing, put beside the real ones.

The suite's `server-stateless` can look at a missing capability, at an unfinished result and at
logs only through tools of its own. What it then judges, statuses, headers and streams, is the real
server's; the real tools are listed and called as ever.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolRequestParams,
    CallToolResult,
    ClientCapabilities,
    ElicitRequest,
    ElicitRequestFormParams,
    InputRequiredResult,
    ListToolsResult,
    PaginatedRequestParams,
    SamplingCapability,
    TextContent,
    Tool,
)

from kb_mcp.agent.doors.mcp.server import Request

DONE = CallToolResult(content=[TextContent(type="text", text="done")])


async def need_sampling(request: Request) -> CallToolResult:
    """Need a capability that the client must have declared."""
    needed = ClientCapabilities(sampling=SamplingCapability())
    if not request.session.check_client_capability(needed):
        data = {"requiredCapabilities": needed.model_dump(by_alias=True, exclude_none=True)}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "sampling is needed", data)
    return DONE


async def need_an_answer(_: Request) -> InputRequiredResult:
    """Ask the person at the client, in the result."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    asked = ElicitRequest(params=ElicitRequestFormParams(message="Name?", requested_schema=schema))
    return InputRequiredResult(input_requests={"name": asked})


async def log(request: Request) -> CallToolResult:
    """Log to the client, which is sent where the request asked for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MCPDeprecationWarning)
        await request.session.send_log_message(
            "info", "working", related_request_id=request.request_id
        )
    return DONE


Run = Callable[[Request], Awaitable[CallToolResult | InputRequiredResult]]
TOOLS: dict[str, Run] = {
    "test_missing_capability": need_sampling,
    "test_streaming_elicitation": need_an_answer,
    "test_logging_tool": log,
}


def with_diagnostics(server: Server[Any]) -> Server[Any]:
    """Put the suite's tools beside those of `server`."""
    listing = server.get_request_handler("tools/list")
    calling = server.get_request_handler("tools/call")
    assert listing is not None
    assert calling is not None

    async def list_tools(request: Request, params: PaginatedRequestParams) -> ListToolsResult:
        real = await listing.handler(request, params)
        assert isinstance(real, ListToolsResult)
        added = [
            Tool(name=name, description=inspect.getdoc(run), input_schema={"type": "object"})
            for name, run in TOOLS.items()
        ]
        return real.model_copy(update={"tools": [*real.tools, *added]})

    async def call(request: Request, params: CallToolRequestParams) -> Any:
        run = TOOLS.get(params.name)
        return await (calling.handler(request, params) if run is None else run(request))

    server.add_request_handler("tools/list", PaginatedRequestParams, list_tools)
    server.add_request_handler("tools/call", CallToolRequestParams, call)
    return server
