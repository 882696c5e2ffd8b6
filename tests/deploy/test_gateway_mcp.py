"""The gateway without a Lambda: what its template asks AWS for, held against AWS's own models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from cfnlint.decode import decode_str

from kb_mcp.agent.doors.mcp.http import PATH

FILE = Path(__file__).resolve().parents[2] / "deploy" / "bedrock" / "gateway-mcp.yaml"
CREATES = {
    "VaultKeyProvider": "CreateApiKeyCredentialProvider",
    "ClientProvider": "CreateOauth2CredentialProvider",
    "Gateway": "CreateGateway",
    "Target": "CreateGatewayTarget",
    "Runtime": "CreateAgentRuntime",
}
ARN = "arn:aws:bedrock-agentcore:us-east-1:123456789012:token-vault/default/x/y"
SAMPLES = {
    "ProxyUrl": "https://keybrake.example",
    "DiscoveryUrl": "https://idp.example/.well-known/openid-configuration",
    "Audience": "https://keybrake.example/mcp",
    "ClientId": "client-1",
    "RuntimeImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/agent:1",
    "AWS::StackName": "billing",
    "VaultKeySecret": "arn:aws:secretsmanager:us-east-1:123456789012:secret:x",
    "ClientSecretSecret": "arn:aws:secretsmanager:us-east-1:123456789012:secret:y",
    "GatewayRole.Arn": "arn:aws:iam::123456789012:role/gateway",
    "RuntimeRole.Arn": "arn:aws:iam::123456789012:role/runtime",
    "Gateway.GatewayIdentifier": "billing-abcdefghij",
    "Gateway.GatewayUrl": "https://billing.gateway.example/mcp",
    "VaultKeyProvider.CredentialProviderArn": ARN,
    "ClientProvider.CredentialProviderArn": ARN,
}
CREDENTIALS = {"ByApiKey": "API_KEY", "ByOauth": "OAUTH", "ByToken": "JWT_PASSTHROUGH"}
MODEL = botocore.session.get_session().get_service_model("bedrock-agentcore-control")


def resources() -> dict[str, Any]:
    template, problems = decode_str(FILE.read_text(encoding="utf-8"))
    assert not problems
    found: dict[str, Any] = template["Resources"]
    return found


def resolved(value: Any, condition: str) -> Any:
    """Put samples in the place of CloudFormation's functions, where `condition` is the true one."""
    if isinstance(value, list):
        return [resolved(each, condition) for each in value]
    if not isinstance(value, dict):
        return value
    if "Ref" in value:
        return SAMPLES[value["Ref"]]
    if "Fn::GetAtt" in value:
        return SAMPLES[".".join(value["Fn::GetAtt"])]
    if "Fn::Sub" in value:
        return re.sub(r"\$\{([^}]+)\}", lambda found: SAMPLES[found[1]], value["Fn::Sub"])
    if "Fn::If" in value:
        name, yes, no = value["Fn::If"]
        return resolved(yes if name == condition else no, condition)
    return {name: resolved(each, condition) for name, each in value.items()}


def in_api_case(value: Any, *, names: bool = False) -> Any:
    """Write CloudFormation's names as the API does; those of environment variables stay."""
    if isinstance(value, list):
        return [in_api_case(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name if names else name[0].lower() + name[1:]: in_api_case(
            each, names=name == "EnvironmentVariables"
        )
        for name, each in value.items()
    }


def asked(name: str, condition: str) -> dict[str, Any]:
    """Return what creating the resource `name` asks the API for."""
    properties = in_api_case(resolved(resources()[name]["Properties"], condition))
    if name == "Runtime":
        # The API has for a choice between protocols what CloudFormation has for its name.
        protocol = properties.pop("protocolConfiguration")
        properties["protocolConfiguration"] = {"serverProtocol": protocol}
    asks: dict[str, Any] = properties
    return asks


@pytest.mark.parametrize("condition", CREDENTIALS)
@pytest.mark.parametrize("name", CREATES)
def test_aws_takes_what_the_template_asks_for(name: str, condition: str) -> None:
    shape = MODEL.operation_model(CREATES[name]).input_shape

    report = ParamValidator().validate(asked(name, condition), shape)

    assert not report.has_errors(), report.generate_report()


@pytest.mark.parametrize("condition", CREDENTIALS)
def test_the_target_is_the_proxys_own_mcp_with_the_credential_that_was_chosen(
    condition: str,
) -> None:
    target = asked("Target", condition)
    (credential,) = target["credentialProviderConfigurations"]

    assert target["targetConfiguration"]["mcp"]["mcpServer"]["endpoint"] == (
        SAMPLES["ProxyUrl"] + PATH
    )
    assert credential["credentialProviderType"] == CREDENTIALS[condition]
    if condition == "ByApiKey":
        presented = credential["credentialProvider"]["apiKeyCredentialProvider"]
        assert presented["credentialLocation"] == "HEADER"
        assert (presented["credentialParameterName"], presented["credentialPrefix"]) == (
            "Authorization",
            "Bearer",
        )


@pytest.mark.parametrize("name", ["Gateway", "Runtime"])
def test_callers_come_with_tokens_of_the_provider_alone(name: str) -> None:
    authorizer = asked(name, "ByToken")["authorizerConfiguration"]["customJWTAuthorizer"]

    assert authorizer == {
        "discoveryUrl": SAMPLES["DiscoveryUrl"],
        "allowedAudience": [SAMPLES["Audience"]],
    }


def test_no_secret_stands_in_what_the_gateway_is_made_of() -> None:
    for name in ("VaultKeyProvider", "ClientProvider", "Gateway", "Target", "Runtime"):
        text = str(resources()[name])
        assert "VaultKey'" not in text
        assert "ClientSecret'" not in text
