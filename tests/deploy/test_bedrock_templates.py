"""The CloudFormation templates: linted, made of the committed schemas, and spoilt on purpose."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cfnlint.api import ManualArgs, lint
from cfnlint.decode import decode_str

from deploy.bedrock.write_schemas import TEMPLATES, export, in_cloudformation
from kb_mcp.agent.client.line import ANSWER_TIMEOUT_S
from kb_mcp.agent.client.network import CONNECT_TIMEOUT_S
from kb_mcp.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "bedrock"
SCHEMAS = ROOT / "schemas"
Template = dict[str, Any]


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def template_of(name: str) -> Template:
    template, problems = decode_str(text_of(name))
    assert not problems
    return dict(template)


def linted(text: str) -> list[str]:
    """Return what cfn-lint says, by its rules: every error and every warning."""
    found = lint(text, config=ManualArgs(regions=["us-east-1"]))
    return [f"{each.rule.id} {each.message}" for each in found]


@pytest.mark.parametrize("name", [*TEMPLATES, "gateway-mcp.yaml"])
def test_a_template_passes_cfn_lint(name: str) -> None:
    assert linted(text_of(name)) == []


@pytest.mark.parametrize("name", [*TEMPLATES, "gateway-mcp.yaml"])
def test_a_template_uses_no_yaml_that_cloudformation_does_not_read(name: str) -> None:
    assert not re.search(r"(?m):\s+[&*]\w+\s*$|<<:", text_of(name))


def test_the_schemas_in_the_templates_are_those_of_the_catalogue() -> None:
    command = [sys.executable, "-m", "deploy.bedrock.write_schemas", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "nothing is stale\n")


def test_the_agents_take_their_schemas_from_the_exports_byte_for_byte() -> None:
    resources = template_of("agents.yaml")["Resources"]
    (charging,) = resources["BillingAgent"]["Properties"]["ActionGroups"]
    (status,) = resources["SupervisorAgent"]["Properties"]["ActionGroups"]
    payload = charging["ApiSchema"]["Payload"]
    committed = json.loads((SCHEMAS / "bedrock-openapi.json").read_text(encoding="utf-8"))
    functions = json.loads((SCHEMAS / "bedrock-functions.json").read_text(encoding="utf-8"))

    assert payload == export("openapi", "charge")
    assert json.loads(payload)["paths"] == {"/charge": committed["paths"]["/charge"]}
    look_up = [each for each in functions["functions"] if each["name"] == "charge_status"]
    assert status["FunctionSchema"] == in_cloudformation({"functions": look_up})


def test_the_gateway_takes_its_schemas_from_the_exports() -> None:
    resources = template_of("gateway.yaml")["Resources"]
    committed = json.loads((SCHEMAS / "agentcore-gateway.json").read_text(encoding="utf-8"))
    taken = [
        resources[target]["Properties"]["TargetConfiguration"]["Mcp"]["Lambda"]["ToolSchema"]
        for target in ("ChargeTarget", "StatusTarget")
    ]

    inline = [tool for schema in taken for tool in schema["InlinePayload"]]
    deployed = [tool for tool in committed["inlinePayload"] if tool["name"] != "refund"]
    assert inline == in_cloudformation(deployed)


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_function_holds_one_vault_key_and_no_stripe_key(name: str) -> None:
    template = template_of(name)
    functions = {
        key: value["Properties"]
        for key, value in template["Resources"].items()
        if value["Type"] == "AWS::Serverless::Function"
    }
    held = {
        key: {n for n in each["Environment"]["Variables"] if "KEY" in n.removeprefix("KEYBRAKE")}
        for key, each in functions.items()
    }

    assert held == {
        "ChargeFunction": {"KEYBRAKE_VAULT_KEY_BILLING"},
        "StatusFunction": {"KEYBRAKE_VAULT_KEY_AUDIT"},
    }
    for each in functions.values():
        (policy,) = each["Policies"]
        (variable,) = [n for n in each["Environment"]["Variables"] if "VAULT_KEY" in n]
        secret = policy["AWSSecretsManagerGetSecretValuePolicy"]["SecretArn"]
        assert secret == each["Environment"]["Variables"][variable]
    assert not re.search(r"[rs]k_(test|live)|STRIPE_KEY", text_of(name))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_function_outlives_what_it_waits_for(name: str) -> None:
    function = template_of(name)["Globals"]["Function"]
    upstream_s = Settings(database_url="sqlite:////x").upstream_timeout_ms // 1000

    assert function["Timeout"] > ANSWER_TIMEOUT_S + CONNECT_TIMEOUT_S > upstream_s
    assert function["Handler"] == "kb_mcp.lambda_entry.handler"


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_named_agent_or_gateway_may_invoke_a_function(name: str) -> None:
    permissions = [
        each["Properties"]
        for each in template_of(name)["Resources"].values()
        if each["Type"] == "AWS::Lambda::Permission"
    ]

    assert len(permissions) == 2
    for each in permissions:
        assert each["SourceAccount"] == {"Ref": "AWS::AccountId"}
        assert each["SourceArn"]["Fn::GetAtt"][1] in {"AgentArn", "GatewayArn"}


# What is spoilt: the template, what is replaced in it by what, and the rule that sees it. Into a
# gateway's schemas cfn-lint does not look; botocore does, in test_export_rules.
SPOILT = {
    "an agent's name with a space": (
        "agents.yaml", "AgentName: billing\n", "AgentName: bill ing\n", "E3031"),
    "a group's name with two underscores": (
        "agents.yaml", "ActionGroupName: status", "ActionGroupName: a__b", "E3031"),
    "a function's name with two underscores": (
        "agents.yaml", '"Name": "charge_status"', '"Name": "charge__status"', "E3031"),
    "a parameter that is an object": (
        "agents.yaml", '"Type": "string"', '"Type": "object"', "E3030"),
    "a confirmation of no known kind": ("agents.yaml", '"DISABLED"', '"NEVER"', "E3030"),
    "a description beyond 1200": (
        "agents.yaml", '"Description": "Looks up', '"Description": "' + "x" * 1200, "E3033"),
    "a collaboration of no known kind": (
        "agents.yaml", "Collaboration: SUPERVISOR", "Collaboration: BOSS", "E3030"),
    "an alias of no agent": ("agents.yaml", "      AgentId: !Ref BillingAgent\n", "", "E3003"),
    "a schema that is nowhere": ("agents.yaml", "Payload: |", "Text: |", "E3018"),
    "an alias's name for its ARN": (
        "agents.yaml", "BillingAlias.AgentAliasArn", "BillingAlias.Arn", "E1010"),
    "callers whom nobody checks": (
        "gateway.yaml", "AuthorizerType: AWS_IAM", "AuthorizerType: ANYONE", "E3030"),
    "credentials of no known kind": ("gateway.yaml", "GATEWAY_IAM_ROLE", "GATEWAY_ROLE", "E3030"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_template_is_rejected_by_cfn_lint(what: str) -> None:
    name, old, new, rule = SPOILT[what]
    text = text_of(name)
    assert old in text

    found = linted(text.replace(old, new, 1))

    assert [each for each in found if each.startswith(rule)], found
