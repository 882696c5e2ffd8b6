"""The door for AgentCore Gateway: a Lambda target whose event is the bare arguments.

Floor: wing A, a door. Pure framing. The tool's name comes beside the event, in the client
context, as `<target>___<tool>`.
Source: docs.aws.amazon.com/bedrock-agentcore/latest/devguide/gateway-add-target-lambda.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kb_mcp.agent.calls import Body, Caller, body_of, call_with_texts
from kb_mcp.agent.catalogue import find_tool
from kb_mcp.agent.client.line import CallContext, read_subject
from kb_mcp.traces import Trace, read_trace

TOOL_NAME: Final = "bedrockAgentCoreToolName"
GATEWAY_ID: Final = "bedrockAgentCoreGatewayId"
HEADERS: Final = "bedrockAgentCorePropagatedHeaders"
SEPARATOR: Final = "___"


def gateway_names(context: object) -> Mapping[str, object]:
    """Return what the Gateway says beside the event, from a Lambda `context`."""
    custom = getattr(getattr(context, "client_context", None), "custom", None)
    return custom if isinstance(custom, Mapping) else {}


def answer_gateway(
    event: Mapping[str, object], names: Mapping[str, object], caller: Caller
) -> Body:
    """Answer one invocation with the result object itself."""
    full_name = names.get(TOOL_NAME)
    name = full_name.rpartition(SEPARATOR)[2] if isinstance(full_name, str) else ""
    headers, gateway = names.get(HEADERS), names.get(GATEWAY_ID)
    context = CallContext(
        gateway if isinstance(gateway, str) else None,
        trace=_trace(headers),
        subject=read_subject(headers),
    )
    # Numbers arrive as JSON or, from some callers, as text.
    tool = find_tool(name, allow_reference=True)
    return body_of(call_with_texts(caller, tool, context, event.items()))


def _trace(headers: object) -> Trace | None:
    # A gateway hands on the request headers that its target allows (allowedRequestHeaders).
    given = headers.items() if isinstance(headers, Mapping) else ()
    return read_trace({name.lower(): value for name, value in given if isinstance(name, str)})
