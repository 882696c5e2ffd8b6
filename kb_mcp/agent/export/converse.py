"""The catalogue as the `toolConfig` of a Converse request.

Floor: wing A, an export. Pure. `default` suits every model (Nova rejects anything but type,
properties and required at the top); `strict` is for models that hold arguments to the schema.
Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolSpecification.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kb_mcp.agent.catalogue import Tool
from kb_mcp.agent.export.schemas import Json, arguments_schema

Profile = Literal["default", "strict"]


def tool_config(tools: Sequence[Tool], *, profile: Profile = "default") -> Json:
    """Return the `toolConfig`."""
    return {"tools": [{"toolSpec": _spec(tool, profile)} for tool in tools]}


def _spec(tool: Tool, profile: Profile) -> Json:
    schema = arguments_schema(tool)
    spec: Json = {"name": str(tool.name), "description": tool.description}
    if profile == "strict":
        return {
            **spec,
            "inputSchema": {"json": {**schema, "additionalProperties": False}},
            "strict": True,
        }
    return {**spec, "inputSchema": {"json": schema}}
