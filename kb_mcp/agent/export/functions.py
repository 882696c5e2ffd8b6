"""The catalogue as the function schema of a Bedrock action group.

Floor: wing A, an export. Pure.
Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_agent_FunctionSchema.html.
"""

from __future__ import annotations

from collections.abc import Sequence

from kb_mcp.agent.catalogue import Tool
from kb_mcp.agent.export.schemas import Json, arguments_schema, properties


def functions(tools: Sequence[Tool], *, confirmation: bool = True) -> Json:
    """Return the `functionSchema`; with `confirmation`, Bedrock asks before it charges."""
    return {"functions": [_function(tool, confirmation=confirmation) for tool in tools]}


def _function(tool: Tool, *, confirmation: bool) -> Json:
    schema = arguments_schema(tool)
    return {
        "name": str(tool.name),
        "description": tool.description,
        "parameters": {
            name: {**field, "required": name in schema.get("required", ())}
            for name, field in properties(schema).items()
        },
        "requireConfirmation": "ENABLED" if confirmation and not tool.read_only else "DISABLED",
    }
