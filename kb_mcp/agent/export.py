"""The exports: the catalogue as the artefacts that other systems take in.

Floor: wing A, above the catalogue. Pure: text comes out, nobody writes a file here. `plain` is the
one dialect of JSON schema that all of Bedrock accepts: flat, with type, properties, required and
description alone. `full` adds what MCP clients can use. Neither forbids further arguments:
converters for Nova and Gemini choke on that, and the server refuses them anyway.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import BaseModel

from kb_mcp.agent.catalogue import JSON, Tool

Json = dict[str, Any]  # JSON schema: any shape

_PLAIN: Final = ("type", "description")
_FULL: Final = (*_PLAIN, "enum", "pattern", "minimum", "exclusiveMinimum", "maxLength", "default")


def arguments_schema(tool: Tool, *, full: bool = False) -> Json:
    """Return the schema of what `tool` takes, without what is hidden."""
    schema = _schema(tool.arguments, tool.hidden, full=full)
    for name, text in tool.texts.items():
        schema["properties"][name]["description"] = text
    return schema


def result_schema(tool: Tool, *, full: bool = False) -> Json:
    """Return the schema of what `tool` answers."""
    return _schema(tool.result, frozenset(), full=full)


def properties(schema: Json) -> dict[str, Json]:
    """Return the properties of a schema made here."""
    found: dict[str, Json] = schema["properties"]
    return found


def _schema(model: type[BaseModel], hidden: frozenset[str], *, full: bool) -> Json:
    return _object(whole := model.model_json_schema(), whole.get("$defs", {}), hidden, full=full)


def _object(whole: Json, shared: Json, hidden: frozenset[str], *, full: bool) -> Json:
    """Return an object's schema; `shared` are the schemas that it names, which are inlined."""
    kept = _FULL if full else _PLAIN
    schema: Json = {
        "type": "object",
        "properties": {
            name: _flat(field, kept, shared, full=full, required=name in whole.get("required", ()))
            for name, field in whole["properties"].items()
            if name not in hidden
        },
    }
    if "required" in whole:
        schema["required"] = whole["required"]
    return schema


def _flat(field: Json, kept: tuple[str, ...], shared: Json, *, full: bool, required: bool) -> Json:
    """Take the one alternative that is not null: what may be left out need not be null too.

    It may be empty instead: a client that makes every argument required can then say nothing.
    """
    choices = [choice for choice in field.get("anyOf", ()) if choice.get("type") != "null"]
    merged = {**field, **(choices[0] if choices else {})}
    flat = {key: merged[key] for key in kept if merged.get(key) is not None}
    if not required and "pattern" in flat:
        flat["pattern"] = "^(" + flat["pattern"].removeprefix("^").removesuffix("$") + ")?$"
    named = merged.get("items", {}).get("$ref", "").rpartition("/")[2]
    if named:
        flat["items"] = _object(shared[named], shared, frozenset(), full=full)
    return flat


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


def functions(tools: Sequence[Tool], *, confirmation: bool = True) -> Json:
    """Return the `functionSchema` of an action group, which with `confirmation` asks its user.

    Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_agent_FunctionSchema.html.
    """
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


def gateway(tools: Sequence[Tool]) -> Json:
    """Return the `toolSchema` of an AgentCore Gateway target: `{"inlinePayload": [definitions]}`.

    Source: docs.aws.amazon.com/bedrock-agentcore-control, API_ToolDefinition.
    """
    return {"inlinePayload": [_definition(tool) for tool in tools]}


def _definition(tool: Tool) -> Json:
    return {
        "name": str(tool.name),
        "description": tool.description,
        "inputSchema": arguments_schema(tool),
        "outputSchema": result_schema(tool),
    }


Profile = Literal["default", "strict"]


def tool_config(tools: Sequence[Tool], *, profile: Profile = "default") -> Json:
    """Return the `toolConfig` of a Converse request.

    `default` suits every model (Nova rejects anything but type, properties and required at the
    top); `strict` is for models that hold arguments to the schema.
    Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ToolSpecification.html.
    """
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


def mcp_tools(tools: Sequence[Tool]) -> Json:
    """Return `{"tools": [...]}` as `tools/list` answers it; the MCP door serves exactly this.

    Source: modelcontextprotocol.io/specification, Tools.
    """
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


ExportName = Literal["openapi", "functions", "gateway", "converse", "mcp"]
FILE_NAMES: Final[Mapping[ExportName, str]] = MappingProxyType(
    {
        "openapi": "bedrock-openapi.json",
        "functions": "bedrock-functions.json",
        "gateway": "agentcore-gateway.json",
        "converse": "converse-toolconfig.json",
        "mcp": "mcp-tools.json",
    }
)
_MAKERS: Final[Mapping[ExportName, Callable[[Sequence[Tool], bool], Json]]] = MappingProxyType(
    {
        "openapi": lambda tools, confirmation: openapi(tools, confirmation=confirmation),
        "functions": lambda tools, confirmation: functions(tools, confirmation=confirmation),
        "gateway": lambda tools, _: gateway(tools),
        "converse": lambda tools, _: tool_config(tools),
        "mcp": lambda tools, _: mcp_tools(tools),
    }
)


def render(name: ExportName, tools: Sequence[Tool], *, confirmation: bool = True) -> str:
    """Render one artefact: JSON in the catalogue's order, two spaces deep, ending in a newline.

    `confirmation` says whether Bedrock asks its user before a charge; other targets have no such
    switch.
    """
    document = _MAKERS[name](tools, confirmation)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
