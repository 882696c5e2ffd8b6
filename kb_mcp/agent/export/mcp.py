"""The catalogue as the tools of an MCP server, in wire form.

Floor: wing A, an export. Pure; the MCP door serves exactly this.
Source: modelcontextprotocol.io/specification, Tools.
"""

from __future__ import annotations

from collections.abc import Sequence

from kb_mcp.agent.catalogue import Tool
from kb_mcp.agent.export.schemas import Json, arguments_schema, result_schema


def mcp_tools(tools: Sequence[Tool]) -> Json:
    """Return `{"tools": [...]}` as `tools/list` answers it."""
    return {"tools": [_tool(tool) for tool in tools]}


def _tool(tool: Tool) -> Json:
    return {
        "name": str(tool.name),
        "title": tool.title,
        "description": tool.description,
        "inputSchema": arguments_schema(tool, full=True),
        "outputSchema": result_schema(tool, full=True),
        "annotations": {
            "title": tool.title,
            "readOnlyHint": tool.read_only,
            "destructiveHint": not tool.read_only,
            "idempotentHint": True,
            "openWorldHint": True,
        },
    }
