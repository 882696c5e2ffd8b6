"""The exports: the catalogue as the artefacts that other systems take in.

Floor: wing A, above the catalogue. Pure: text comes out, nobody writes a file here. `plain` is the
one dialect of JSON schema that all of Bedrock accepts: flat, with type, properties, required and
description alone. `full` adds what MCP clients can use. Neither forbids further arguments:
converters for Nova and Gemini choke on that, and the server refuses them anyway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from kb_mcp.agent.catalogue import JSON, Tool

Json = dict[str, Any]  # JSON schema: any shape

_PLAIN: Final = ("type", "description")
_FULL: Final = (*_PLAIN, "enum", "pattern", "minimum", "exclusiveMinimum", "maxLength", "default")


def arguments_schema(tool: Tool, *, full: bool = False) -> Json:
    """Return the schema of what `tool` takes, without what is hidden."""
    schema = _object(tool.arguments.model_json_schema(), full=full, hidden=tool.hidden)
    for name, text in tool.texts.items():
        schema["properties"][name]["description"] = text
    return schema


def result_schema(tool: Tool, *, full: bool = False) -> Json:
    """Return the schema of what `tool` answers."""
    return _object(tool.result.model_json_schema(), full=full)


def _object(whole: Json, *, full: bool, hidden: frozenset[str] = frozenset()) -> Json:
    """Return an object's schema; those that it names by `$ref` are inlined."""
    required = whole.get("required", [])
    fields: dict[str, Json] = {}
    for name, field in whole["properties"].items():
        if name in hidden:
            continue
        # Of alternatives the one that is not null: what may be left out need not be null too.
        choices = [choice for choice in field.get("anyOf", ()) if choice.get("type") != "null"]
        merged = {**field, **(choices[0] if choices else {})}
        flat = {key: merged[key] for key in (_FULL if full else _PLAIN) if key in merged}
        if flat.get("default", "") is None:
            del flat["default"]
        if name not in required and "pattern" in flat:
            # It may be empty: a client that makes every argument required can then say nothing.
            flat["pattern"] = "^(" + flat["pattern"].removeprefix("^").removesuffix("$") + ")?$"
        if reference := merged.get("items", {}).get("$ref"):
            flat["items"] = _object(whole["$defs"][reference.rpartition("/")[2]], full=full)
        fields[name] = flat
    schema: Json = {"type": "object", "properties": fields}
    return {**schema, "required": required} if required else schema


def _named(tool: Tool) -> Json:
    return {"name": str(tool.name), "description": tool.description}


def _asks(tool: Tool, *, confirmation: bool) -> str:
    """Say whether Bedrock asks its user before it calls `tool`, as its schemas say it."""
    return "ENABLED" if confirmation and not tool.read_only else "DISABLED"


def openapi(tools: Sequence[Tool], *, confirmation: bool = True) -> Json:
    """Return the OpenAPI schema of a Bedrock action group, which with `confirmation` asks its user.

    Exactly 3.0.0, everything inlined, no enum and no bounds: what the target cannot hold stands in
    the descriptions and is enforced by the server.
    Source: docs.aws.amazon.com/bedrock/latest/userguide/agents-api-schema.html.
    """
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
    schema, answer = arguments_schema(tool), {JSON: {"schema": result_schema(tool)}}
    operation: Json = {
        "operationId": str(tool.name),
        "summary": tool.title,
        "description": tool.description,
        "x-requireConfirmation": _asks(tool, confirmation=confirmation),
    }
    if tool.http_method == "POST":
        content = {JSON: {"schema": schema}}
        body = {"description": "The arguments.", "required": True, "content": content}
        operation["requestBody"] = body
    else:
        operation["parameters"] = [
            {
                "name": name,
                "in": "query",
                "description": field["description"],
                "required": name in schema.get("required", ()),
                "schema": {"type": field["type"]},
            }
            for name, field in schema["properties"].items()
        ]
    said = "The outcome: status, message and next_step say what to do."
    operation["responses"] = {"200": {"description": said, "content": answer}}
    return operation


def _function(tool: Tool, *, confirmation: bool) -> Json:
    """Return one of the `functions` of an action group's `functionSchema`.

    Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_agent_FunctionSchema.html.
    """
    schema = arguments_schema(tool)
    return {
        **_named(tool),
        "parameters": {
            name: {**field, "required": name in schema.get("required", ())}
            for name, field in schema["properties"].items()
        },
        "requireConfirmation": _asks(tool, confirmation=confirmation),
    }


def _definition(tool: Tool) -> Json:
    """Return one of the definitions in the `toolSchema` of an AgentCore Gateway target.

    Source: docs.aws.amazon.com/bedrock-agentcore-control, API_ToolDefinition.
    """
    schemas = {"inputSchema": arguments_schema(tool), "outputSchema": result_schema(tool)}
    return _named(tool) | schemas


Profile = Literal["default", "strict"]


def tool_config(tools: Sequence[Tool], *, profile: Profile = "default") -> Json:
    """Return the `toolConfig` of a Converse request.

    `default` suits every model (Nova rejects anything but type, properties and required at the
    top); `strict` is for models that hold arguments to the schema.
    Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolSpecification.html.
    """

    def spec(tool: Tool) -> Json:
        schema = arguments_schema(tool)
        if profile == "default":
            return {**_named(tool), "inputSchema": {"json": schema}}
        closed = {**schema, "additionalProperties": False}
        return {**_named(tool), "inputSchema": {"json": closed}, "strict": True}

    return {"tools": [{"toolSpec": spec(tool)} for tool in tools]}


def mcp_tools(tools: Sequence[Tool]) -> Json:
    """Return `{"tools": [...]}` as `tools/list` answers it; the MCP door serves exactly this.

    Source: modelcontextprotocol.io/specification, Tools.
    """
    return {
        "tools": [
            {
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
            for tool in tools
        ]
    }


ExportName = Literal["openapi", "functions", "gateway", "converse", "mcp"]
FILE_NAMES: Final[Mapping[ExportName, str]] = {
    "openapi": "bedrock-openapi.json",
    "functions": "bedrock-functions.json",
    "gateway": "agentcore-gateway.json",
    "converse": "converse-toolconfig.json",
    "mcp": "mcp-tools.json",
}


def render(name: ExportName, tools: Sequence[Tool], *, confirmation: bool = True) -> str:
    """Render one artefact: JSON in the catalogue's order, two spaces deep, ending in a newline.

    `confirmation` says whether Bedrock asks its user before a charge; other targets have no such
    switch.
    """
    documents: Mapping[ExportName, Json] = {
        "openapi": openapi(tools, confirmation=confirmation),
        "functions": {"functions": [_function(t, confirmation=confirmation) for t in tools]},
        "gateway": {"inlinePayload": [_definition(tool) for tool in tools]},
        "converse": tool_config(tools),
        "mcp": mcp_tools(tools),
    }
    return json.dumps(documents[name], indent=2, ensure_ascii=False) + "\n"
