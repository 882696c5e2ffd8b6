"""The exported artefacts, held against validators of other people."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV30SpecValidator

from kb_mcp.agent.catalogue import ToolName, select_tools
from kb_mcp.agent.export import FILE_NAMES, ExportName, mcp_tools, openapi, render, tool_config

SCHEMAS = Path(__file__).parents[3] / "schemas"
ALL = select_tools(frozenset(ToolName), allow_reference=False)
WITH_REFERENCE = select_tools(frozenset(ToolName), allow_reference=True)
SUPERVISOR = select_tools(frozenset({ToolName.CHARGE_STATUS}), allow_reference=False)
# What some target of Bedrock rejects, or is known to ignore.
UNSAFE = frozenset(
    "enum const $ref $defs anyOf oneOf allOf nullable minimum maximum exclusiveMinimum minLength "
    "maxLength pattern title default additionalProperties format".split()
)
NAME = re.compile(r"[A-Za-z]([A-Za-z0-9]|_(?!_))*(?<!_)")


def document(name: ExportName, **more: Any) -> Any:
    return json.loads(render(name, **{"tools": ALL, **more}))


def schemas_in(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema node: objects with a `type` that is text."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node
        for value in node.values():
            yield from schemas_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from schemas_in(value)


def problems(service: str, shape: str, value: Any) -> list[str]:
    """Check by botocore's validator, and walk the lengths, patterns, enums that it leaves out."""
    model = botocore.session.get_session().get_service_model(service).shape_for(shape)
    report = ParamValidator().validate(value, model)
    found = [report.generate_report()] if report.has_errors() else []
    return found + list(walk(model, value))


def walk(shape: Any, value: Any) -> Iterator[str]:
    if shape.type_name == "structure" and not getattr(shape, "is_document_type", False):
        for name, member in shape.members.items():
            if name in value:
                yield from walk(member, value[name])
    elif shape.type_name == "list":
        for entry in value:
            yield from walk(shape.member, entry)
    elif shape.type_name == "map":
        for key, entry in value.items():
            yield from walk(shape.key, key)
            yield from walk(shape.value, entry)
    elif shape.type_name == "string":
        yield from walk_text(shape, value)


def walk_text(shape: Any, value: str) -> Iterator[str]:
    rules = shape.metadata
    if not rules.get("min", 0) <= len(value) <= rules.get("max", 10**6):
        yield f"{shape.name}: length {len(value)}"
    if "enum" in rules and value not in rules["enum"]:
        yield f"{shape.name}: {value} is none of {rules['enum']}"
    if "pattern" in rules and not re.fullmatch(rules["pattern"], value):
        yield f"{shape.name}: {value} does not match"


def bedrock_problems(name: ExportName, value: Any) -> list[str]:
    match name:
        case "openapi":
            return [str(error) for error in OpenAPIV30SpecValidator(value).iter_errors()]
        case "functions":
            return problems("bedrock-agent", "FunctionSchema", value)
        case "gateway":
            return problems("bedrock-agentcore-control", "ToolSchema", value)
        case "converse":
            return problems("bedrock-runtime", "ToolConfiguration", value)
        case "mcp":
            for tool in value["tools"]:
                Draft202012Validator.check_schema(tool["inputSchema"])
                Draft202012Validator.check_schema(tool["outputSchema"])
            return []


@pytest.mark.parametrize("name", FILE_NAMES)
@pytest.mark.parametrize(
    "tools", [ALL, WITH_REFERENCE, SUPERVISOR], ids=["all", "reference", "supervisor"]
)
@pytest.mark.parametrize("confirmation", [True, False])
def test_every_artefact_is_accepted(name: ExportName, tools: Any, confirmation: bool) -> None:
    made = document(name, tools=tools, confirmation=confirmation)

    assert bedrock_problems(name, made) == []


@pytest.mark.parametrize("name", FILE_NAMES)
def test_the_committed_file_is_what_is_rendered(name: ExportName) -> None:
    committed = (SCHEMAS / FILE_NAMES[name]).read_text(encoding="utf-8")

    assert committed == render(name, ALL)
    assert committed.endswith("}\n")
    assert committed.isascii()


@pytest.mark.parametrize("name", ["openapi", "functions", "gateway", "converse"])
def test_schemas_for_bedrock_hold_only_what_every_target_takes(name: ExportName) -> None:
    nodes = list(schemas_in(document(name)))

    assert nodes
    assert all(not UNSAFE & set(node) for node in nodes)


Spoil = Callable[[Any], None]


def spoil_description(value: Any) -> None:
    value["functions"][0]["description"] = "x" * 1201


def spoil_name(value: Any) -> None:
    value["functions"][0]["name"] = "charge__now"


def spoil_type(value: Any) -> None:
    value["functions"][0]["parameters"]["amount_cents"]["type"] = "object"


def spoil_confirmation(value: Any) -> None:
    value["functions"][0]["requireConfirmation"] = "YES"


def spoil_gateway(value: Any) -> None:
    value["inlinePayload"][0]["inputSchema"]["additionalProperties"] = False


def spoil_gateway_description(value: Any) -> None:
    del value["inlinePayload"][0]["description"]


def spoil_converse(value: Any) -> None:
    value["tools"][0]["toolSpec"]["name"] = "charge now"


def spoil_responses(value: Any) -> None:
    del value["paths"]["/charge"]["post"]["responses"]


def spoil_parameter(value: Any) -> None:
    value["paths"]["/charge-status"]["get"]["parameters"][0]["in"] = "nowhere"


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("functions", spoil_description),
        ("functions", spoil_name),
        ("functions", spoil_type),
        ("functions", spoil_confirmation),
        ("gateway", spoil_gateway),
        ("gateway", spoil_gateway_description),
        ("converse", spoil_converse),
        ("openapi", spoil_responses),
        ("openapi", spoil_parameter),
    ],
)
def test_a_spoilt_artefact_is_rejected(name: ExportName, spoil: Spoil) -> None:
    made = copy.deepcopy(document(name))
    spoil(made)

    assert bedrock_problems(name, made) != []


def test_the_openapi_is_exactly_what_bedrock_reads() -> None:
    made = openapi(ALL)

    assert made["openapi"] == "3.0.0"
    post, get = made["paths"]["/charge"]["post"], made["paths"]["/charge-status"]["get"]
    refund = made["paths"]["/refund"]["post"]
    assert (refund["operationId"], refund["x-requireConfirmation"]) == ("refund", "ENABLED")
    assert (post["operationId"], get["operationId"]) == ("charge", "charge_status")
    assert (post["x-requireConfirmation"], get["x-requireConfirmation"]) == ("ENABLED", "DISABLED")
    assert "requestBody" not in get
    for operation in (post, get):
        assert operation["description"]
        assert operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert len(f"GET__Billing__{operation['operationId']}") <= 64


def test_confirmation_is_asked_for_what_moves_money_and_can_be_switched_off() -> None:
    on, off = document("functions"), document("functions", confirmation=False)

    asked = {entry["name"]: entry["requireConfirmation"] for entry in on["functions"]}
    assert asked == {"charge": "ENABLED", "charge_status": "DISABLED", "refund": "ENABLED"}
    assert [entry["requireConfirmation"] for entry in off["functions"]] == ["DISABLED"] * 3


def test_limits_of_function_schemas_hold() -> None:
    for entry in document("functions")["functions"]:
        assert len(entry["parameters"]) <= 5
        assert all(1 <= len(p["description"]) <= 500 for p in entry["parameters"].values())


def test_the_supervisor_gets_no_tool_that_moves_money() -> None:
    for name in FILE_NAMES:
        assert '"charge"' not in render(name, SUPERVISOR)
        assert '"refund"' not in render(name, SUPERVISOR)


def test_what_a_tool_lists_is_inlined_in_every_dialect() -> None:
    answers = {each["name"]: each for each in document("mcp")["tools"]}
    refunds = answers["charge_status"]["outputSchema"]["properties"]["refunds"]

    assert refunds["type"] == "array"
    shown = {"refund_id", "amount_cents", "status", "created"}
    assert set(refunds["items"]["properties"]) == shown


def test_a_reference_is_exported_only_when_it_is_switched_on() -> None:
    for name in FILE_NAMES:
        assert '"reference"' not in render(name, ALL)
        assert '"reference"' in render(name, WITH_REFERENCE)


def test_names_are_good_for_every_target() -> None:
    for tool in WITH_REFERENCE:
        for name in (tool.name, *tool.argument_names()):
            assert NAME.fullmatch(name)
            assert len(name) <= 64


def test_the_strict_profile_closes_every_object_and_has_no_bounds() -> None:
    for entry in tool_config(ALL, profile="strict")["tools"]:
        spec = entry["toolSpec"]
        assert spec["strict"] is True
        nodes = list(schemas_in(spec["inputSchema"]["json"]))
        assert spec["inputSchema"]["json"]["additionalProperties"] is False
        assert all(not (UNSAFE - {"additionalProperties"}) & set(node) for node in nodes)


EXAMPLES = {"customer_id": "cus_Abc123", "charge_id": "ch_Abc123", "currency": "usd"}


def test_mcp_schemas_leave_out_what_converters_for_other_models_choke_on() -> None:
    for tool in mcp_tools(ALL)["tools"]:
        for name in ("inputSchema", "outputSchema"):
            assert set(tool[name]) == {"type", "properties", "required"} & set(tool[name])


@pytest.mark.parametrize("empty", [True, False])
def test_what_an_mcp_client_may_leave_out_it_may_also_send_empty(empty: bool) -> None:
    for tool in mcp_tools(ALL)["tools"]:
        schema = tool["inputSchema"]
        for name, field in schema["properties"].items():
            if "pattern" in field:
                optional = name not in schema.get("required", ())
                given = "" if empty else EXAMPLES[name]
                assert bool(re.search(field["pattern"], given)) is (optional or not empty)


def test_mcp_tools_are_annotated() -> None:
    charge, status, refund = mcp_tools(ALL)["tools"]

    for moving in (charge, refund):
        hints = moving["annotations"]
        assert (hints["readOnlyHint"], hints["destructiveHint"]) == (False, True)
        assert (hints["idempotentHint"], hints["openWorldHint"]) == (True, True)
    assert (status["annotations"]["readOnlyHint"], status["annotations"]["destructiveHint"]) == (
        True,
        False,
    )
