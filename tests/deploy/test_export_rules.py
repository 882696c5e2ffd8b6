"""Every rule of a target, broken in an artefact, and the oracle that sees it.

`ORACLES` names those of other people: botocore's ParamValidator and the shape metadata that it
leaves out, the OpenAPI 3.0 validator, JSON Schema's own metaschema. What none of them sees is
`ours`, a check that this file holds the committed artefacts against too.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import botocore.session
import jsonschema
import pytest
from botocore.validate import ParamValidator
from openapi_spec_validator import OpenAPIV30SpecValidator

from kb_mcp.agent.catalogue import ToolName, select_tools
from kb_mcp.agent.export import ExportName, render, tool_config
from tests.agent.export.test_exports import UNSAFE, schemas_in, walk

Document = Any  # JSON
NAME: Final = re.compile(r"[A-Za-z]([A-Za-z0-9]|_(?!_))*(?<!_)")
SHAPES: Final = {
    "functions": ("bedrock-agent", "FunctionSchema"),
    "gateway": ("bedrock-agentcore-control", "ToolSchema"),
    "converse": ("bedrock-runtime", "ToolConfiguration"),
    "strict": ("bedrock-runtime", "ToolConfiguration"),
}
ALL = select_tools(frozenset(ToolName), allow_reference=False)


def document(name: str) -> Document:
    if name == "strict":
        return tool_config(ALL, profile="strict")
    exports: dict[str, ExportName] = {
        each: each for each in ("openapi", "functions", "gateway", "converse", "mcp")
    }
    return json.loads(render(exports[name], ALL))


def botocore_params(name: str, value: Document) -> list[str]:
    report = ParamValidator().validate(value, shape(name))
    return [report.generate_report()] if report.has_errors() else []


def botocore_metadata(name: str, value: Document) -> list[str]:
    return list(walk(shape(name), value))


def shape(name: str) -> Any:
    service, structure = SHAPES[name]
    return botocore.session.get_session().get_service_model(service).shape_for(structure)


def openapi_validator(name: str, value: Document) -> list[str]:
    del name
    try:
        return [str(error) for error in OpenAPIV30SpecValidator(value).iter_errors()]
    except KeyError as error:
        return [f"it cannot go on without {error}"]


def metaschema(name: str, value: Document) -> list[str]:
    del name
    found = []
    for tool in value["tools"]:
        for schema in (tool["inputSchema"], tool["outputSchema"]):
            try:
                jsonschema.Draft202012Validator.check_schema(schema)
            except jsonschema.SchemaError as error:
                found.append(error.message)
    return found


def ours(name: str, value: Document) -> list[str]:
    return list(OURS[name](value))


def our_openapi(value: Document) -> Iterator[str]:
    if value["openapi"] != "3.0.0":
        yield "openapi is not exactly 3.0.0"
    yield from unsafe(value["paths"])
    for item in value["paths"].values():
        for method, operation in item.items():
            yield from our_operation(method, operation)


def our_operation(method: str, operation: Document) -> Iterator[str]:
    name = operation.get("operationId", "")
    described = [operation, *operation.get("parameters", ())]
    if not all(each.get("description") for each in described):
        yield "something without a description"
    if not NAME.fullmatch(name) or len(f"{method}__{'g' * 32}__{name}") > 64:
        yield f"operationId {name!r}"
    if method in {"get", "delete"} and "requestBody" in operation:
        yield "a body on a method that has none"
    if operation.get("x-requireConfirmation") not in {"ENABLED", "DISABLED"}:
        yield "x-requireConfirmation"
    if not all(each.get("content") for each in operation["responses"].values()):
        yield "a response without content"


def our_functions(value: Document) -> Iterator[str]:
    for function in value["functions"]:
        if len(function["parameters"]) > 5:
            yield "more than five parameters"


def our_gateway(value: Document) -> Iterator[str]:
    for tool in value["inlinePayload"]:
        if not NAME.fullmatch(tool["name"]):
            yield tool["name"]


def our_converse(value: Document) -> Iterator[str]:
    for tool in value["tools"]:
        schema = tool["toolSpec"]["inputSchema"]["json"]
        if schema.get("type") != "object" or set(schema) - {"type", "properties", "required"}:
            yield "Nova takes type, properties and required at the top, and nothing else"
        yield from unsafe(schema)


def our_strict(value: Document) -> Iterator[str]:
    for tool in value["tools"]:
        for schema in schemas_in(tool["toolSpec"]["inputSchema"]["json"]):
            if schema["type"] == "object" and schema.get("additionalProperties") is not False:
                yield "an object that is open"
            yield from sorted((UNSAFE - {"additionalProperties"}) & set(schema))


def our_mcp(value: Document) -> Iterator[str]:
    for tool in value["tools"]:
        for schema in (tool["inputSchema"], tool["outputSchema"]):
            if set(schema) - {"type", "properties", "required"}:
                yield "Nova and Gemini take type, properties and required at the top"
        hints = tool["annotations"]
        if hints["readOnlyHint"] == hints["destructiveHint"]:
            yield "a hint that contradicts another"


def unsafe(node: Document) -> Iterator[str]:
    for schema in schemas_in(node):
        yield from sorted(UNSAFE & set(schema))


OURS: Final[dict[str, Callable[[Document], Iterator[str]]]] = {
    "openapi": our_openapi,
    "functions": our_functions,
    "gateway": our_gateway,
    "converse": our_converse,
    "strict": our_strict,
    "mcp": our_mcp,
}
Oracle = Callable[[str, Document], list[str]]
ORACLES: Final[dict[str, tuple[Oracle, ...]]] = {
    "openapi": (openapi_validator, ours),
    "functions": (botocore_params, botocore_metadata, ours),
    "gateway": (botocore_params, botocore_metadata, ours),
    "converse": (botocore_params, botocore_metadata, ours),
    "strict": (botocore_params, botocore_metadata, ours),
    "mcp": (metaschema, ours),
}
POST, GET = "paths./charge.post", "paths./charge-status.get"
FIELD = f"{POST}.requestBody.content.application/json.schema.properties.amount_cents"
SPEC = "tools.0.toolSpec"
DELETED: Final = object()

# The rule: the artefact, where it is broken, what is put there, and who sees it first.
RULES: Final[dict[str, tuple[str, str, object, Oracle]]] = {
    "openapi is 3.0.0, not 3.1": ("openapi", "openapi", "3.1.0", openapi_validator),
    "openapi is 3.0.0, not 3.0.3": ("openapi", "openapi", "3.0.3", ours),
    "an operation has responses": ("openapi", f"{POST}.responses", DELETED, openapi_validator),
    "a response has a description": (
        "openapi", f"{POST}.responses.200.description", DELETED, openapi_validator),
    "a response has content": ("openapi", f"{POST}.responses.200.content", DELETED, ours),
    "an operation has a description": ("openapi", f"{POST}.description", DELETED, ours),
    "an operation has an id": ("openapi", f"{POST}.operationId", DELETED, ours),
    "an id has no double underscore": ("openapi", f"{POST}.operationId", "charge__now", ours),
    "an id fits beside verb and group": ("openapi", f"{POST}.operationId", "c" * 60, ours),
    "a GET has no body": ("openapi", f"{GET}.requestBody", {"content": {}}, ours),
    "a confirmation is one of two": ("openapi", f"{POST}.x-requireConfirmation", "YES", ours),
    "a parameter has a name": ("openapi", f"{GET}.parameters.0.name", DELETED, openapi_validator),
    "a parameter has a place": ("openapi", f"{GET}.parameters.0.in", "body", openapi_validator),
    "a parameter has a description": ("openapi", f"{GET}.parameters.0.description", DELETED, ours),
    "a type is JSON's": ("openapi", f"{FIELD}.type", "money", openapi_validator),
    **{
        f"no {word} in a schema for action groups": ("openapi", f"{FIELD}.{word}", value, ours)
        for word, value in {
            "enum": [2900], "minimum": 1, "maximum": 9, "default": 2900, "nullable": True,
            "title": "Amount", "format": "int64", "anyOf": [{"type": "integer"}], "pattern": "x",
            "oneOf": [{"type": "integer"}], "allOf": [{"type": "integer"}],
            "additionalProperties": False,
        }.items()
    },
    "a function's name has no double underscore": (
        "functions", "functions.0.name", "charge__now", botocore_metadata),
    "a function's description ends at 1200": (
        "functions", "functions.0.description", "x" * 1201, botocore_metadata),
    "a parameter's description ends at 500": (
        "functions", "functions.0.parameters.amount_cents.description", "x" * 501,
        botocore_metadata),
    "a parameter has a type": (
        "functions", "functions.0.parameters.amount_cents.type", DELETED, botocore_params),
    "a parameter is no object": (
        "functions", "functions.0.parameters.amount_cents.type", "object", botocore_metadata),
    "a function has a name": ("functions", "functions.0.name", DELETED, botocore_params),
    "a function's confirmation is one of two": (
        "functions", "functions.0.requireConfirmation", "YES", botocore_metadata),
    "a function has five parameters at most": (
        "functions", "functions.0.parameters.sixth", {"type": "string"}, ours),
    "a gateway's tool has a description": (
        "gateway", "inlinePayload.0.description", DELETED, botocore_params),
    "a gateway's schema has no bounds": (
        "gateway", "inlinePayload.0.inputSchema.properties.amount_cents.minimum", 1,
        botocore_params),
    "a gateway's schema is not closed": (
        "gateway", "inlinePayload.0.inputSchema.additionalProperties", False, botocore_params),
    "a gateway's schema has a known type": (
        "gateway", "inlinePayload.0.inputSchema.type", "money", botocore_metadata),
    "a gateway's tool has no separator in its name": (
        "gateway", "inlinePayload.0.name", "charge___now", ours),
    "a model's tool has a plain name": (
        "converse", f"{SPEC}.name", "charge now", botocore_metadata),
    "a model's tool has a short name": ("converse", f"{SPEC}.name", "c" * 65, botocore_metadata),
    "a model's tool says what it does": ("converse", f"{SPEC}.description", "", botocore_params),
    "a model's tool takes an object": (
        "converse", f"{SPEC}.inputSchema.json.type", "array", ours),
    "a schema for every model is not closed": (
        "converse", f"{SPEC}.inputSchema.json.additionalProperties", False, ours),
    "a tool list is a list of tools": ("converse", "tools.0.tool", {}, botocore_params),
    "a strict schema is closed": (
        "strict", f"{SPEC}.inputSchema.json.additionalProperties", DELETED, ours),
    "a strict schema has no bounds": (
        "strict", f"{SPEC}.inputSchema.json.properties.amount_cents.minimum", 1, ours),
    "strict is yes or no": ("strict", f"{SPEC}.strict", "yes", botocore_params),
    "an MCP schema is a schema": ("mcp", "tools.0.inputSchema.type", "money", metaschema),
    "what MCP takes is plain at the top": (
        "mcp", "tools.0.inputSchema.additionalProperties", False, ours),
    "what MCP answers is plain at the top": (
        "mcp", "tools.1.outputSchema.additionalProperties", False, ours),
    "a tool that charges is not read-only": ("mcp", "tools.0.annotations.readOnlyHint", True, ours),
}  # fmt: skip


@pytest.mark.parametrize("name", ORACLES)
def test_no_oracle_has_anything_against_what_is_exported(name: str) -> None:
    made = document(name)

    assert {oracle.__name__: oracle(name, made) for oracle in ORACLES[name]} == {
        oracle.__name__: [] for oracle in ORACLES[name]
    }


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_seen_by_its_oracle(rule: str) -> None:
    name, where, value, wanted = RULES[rule]
    made = copy.deepcopy(document(name))
    put(made, where.split("."), value)

    assert next(oracle for oracle in ORACLES[name] if oracle(name, made)) is wanted


def put(node: Document, path: list[str], value: object) -> None:
    *way, last = path
    for step in way:
        node = node[int(step) if isinstance(node, list) else step]
    if value is DELETED:
        del node[last]
    else:
        node[last] = value
