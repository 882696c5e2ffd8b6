"""JSON schemas of the catalogue's models, in the dialects that targets take.

Floor: wing A, below the exports. Pure. `plain` is the one dialect that all of Bedrock accepts:
flat, with type, properties, required and description alone. `full` adds what MCP clients can use.
Neither forbids further arguments: converters for Nova and Gemini choke on that, and the server
refuses them anyway.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from kb_mcp.agent.catalogue import Tool

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
