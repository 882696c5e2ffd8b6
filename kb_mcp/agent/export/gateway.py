"""The catalogue as the inline tool schema of an AgentCore Gateway target.

Floor: wing A, an export. Pure. The document is the value of `toolSchema`.
Source: docs.aws.amazon.com/bedrock-agentcore-control/latest/APIReference/API_ToolDefinition.html.
"""

from __future__ import annotations

from collections.abc import Sequence

from kb_mcp.agent.catalogue import Tool
from kb_mcp.agent.export.schemas import Json, arguments_schema, result_schema


def gateway(tools: Sequence[Tool]) -> Json:
    """Return `{"inlinePayload": [tool definitions]}`."""
    return {"inlinePayload": [_definition(tool) for tool in tools]}


def _definition(tool: Tool) -> Json:
    return {
        "name": str(tool.name),
        "description": tool.description,
        "inputSchema": arguments_schema(tool),
        "outputSchema": result_schema(tool),
    }
