"""The catalogue as the OpenAPI schema of a Bedrock action group.

Floor: wing A, an export. Pure. Exactly 3.0.0, everything inlined, no enum and no bounds: what
the target cannot hold stands in the descriptions and is enforced by the server.
Source: docs.aws.amazon.com/bedrock/latest/userguide/agents-api-schema.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kb_mcp.agent.catalogue import JSON, Tool
from kb_mcp.agent.export.schemas import Json, arguments_schema, properties, result_schema


def openapi(tools: Sequence[Tool], *, confirmation: bool = True) -> Json:
    """Return the document; with `confirmation`, Bedrock asks its user before it charges."""
    return {
        "openapi": "3.0.0",
        "info": {
            "title": "kb-mcp billing",
            "version": "1.0.0",
            "description": "Charge a customer exactly once for a period, look charges up, and "
            "give them back.",
        },
        "paths": {
            tool.http_path: {tool.http_method.lower(): _operation(tool, confirmation=confirmation)}
            for tool in tools
        },
    }


def _operation(tool: Tool, *, confirmation: bool) -> Json:
    asks = confirmation and not tool.read_only
    operation: Json = {
        "operationId": str(tool.name),
        "summary": tool.title,
        "description": tool.description,
        "x-requireConfirmation": "ENABLED" if asks else "DISABLED",
    }
    schema = arguments_schema(tool)
    if tool.http_method == "POST":
        content = {JSON: {"schema": schema}}
        operation["requestBody"] = {
            "description": "The arguments.",
            "required": True,
            "content": content,
        }
    else:
        operation["parameters"] = _query(schema)
    operation["responses"] = {
        "200": {
            "description": "The outcome: status, message and next_step say what to do.",
            "content": {JSON: {"schema": result_schema(tool)}},
        }
    }
    return operation


def _query(schema: Json) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "query",
            "description": field["description"],
            "required": name in schema.get("required", ()),
            "schema": {"type": field["type"]},
        }
        for name, field in properties(schema).items()
    ]
