"""The door for AgentCore Gateway: a Lambda target whose event is the bare arguments.

Floor: wing A, a door. Pure framing. The tool's name comes beside the event, in the client
context, as `<target>___<tool>`.
Source: docs.aws.amazon.com/bedrock-agentcore/latest/devguide/gateway-add-target-lambda.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kb_mcp.agent.calls import (
    Answer,
    Body,
    Caller,
    Invalid,
    NotOffered,
    body_of,
    read_texts,
)
from kb_mcp.agent.catalogue import TOOLS
from kb_mcp.agent.client.line import CallContext, read_subject
from kb_mcp.traces import Trace, read_trace

TOOL_NAME: Final = "bedrockAgentCoreToolName"
GATEWAY_ID: Final = "bedrockAgentCoreGatewayId"
REQUEST_ID: Final = "bedrockAgentCoreMcpMessageId"
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
    return body_of(_answer(event, names, caller))


def _answer(event: Mapping[str, object], names: Mapping[str, object], caller: Caller) -> Answer:
    full_name = names.get(TOOL_NAME)
    name = full_name.rpartition(SEPARATOR)[2] if isinstance(full_name, str) else ""
    tool = next((tool for tool in TOOLS.values() if tool.name == name), None)
    if tool is None:
        return NotOffered()
    # Numbers arrive as JSON or, from some callers, as text.
    arguments = read_texts(tool, event.items())
    if isinstance(arguments, Invalid):
        return arguments
    subject = read_subject(names.get(HEADERS))
    context = CallContext(_text(names, GATEWAY_ID), trace=_trace(names), subject=subject)
    return caller(tool.name, arguments, context)


def _trace(names: Mapping[str, object]) -> Trace | None:
    # A gateway hands on the request headers that its target allows (allowedRequestHeaders).
    given = names.get(HEADERS)
    headers = given.items() if isinstance(given, Mapping) else ()
    return read_trace({name.lower(): value for name, value in headers if isinstance(name, str)})


def _text(names: Mapping[str, object], name: str) -> str | None:
    value = names.get(name)
    return value if isinstance(value, str) else None
