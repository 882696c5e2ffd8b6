"""Runs every example as its page says, against a real proxy; AWS is botocore's own validator."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.stub import Stubber

from examples import agentcore_lambda, agentcore_mcp, bedrock_agent, converse_loop
from tests.clients.page import blocks, printed
from tests.proxy_processes import ProxyProcesses, cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))
ARN = "arn:aws:lambda:eu-west-1:123456789012:function:billing"
VAULT = "arn:aws:bedrock-agentcore:eu-west-1:123456789012:token-vault/default"
PROVIDER = f"{VAULT}/apikeycredentialprovider/billing"
CLIENT = f"{VAULT}/oauth2credentialprovider/billing"

TARGET: dict[str, Any] = {
    "gatewayArn": "arn:aws:bedrock-agentcore:eu-west-1:123456789012:gateway/g",
    "targetId": "TARGET1234", "name": "billing", "status": "CREATING",
    "createdAt": "2026-11-28T00:00:00Z", "updatedAt": "2026-11-28T00:00:00Z",
    "targetConfiguration": {"mcp": {"mcpServer": {"endpoint": "https://billing.example.com/mcp"}}},
    "credentialProviderConfigurations": [{"credentialProviderType": "GATEWAY_IAM_ROLE"}],
}  # fmt: skip


@dataclass(frozen=True)
class Running:
    """A proxy, and the environment that examples/README.md sets."""

    cluster: ProxyProcesses
    environ: Mapping[str, str]

    def charges_of(self, customer: str) -> list[str]:
        return [each["id"] for each in self.cluster.charges() if each["customer"] == customer]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("examples")
    with cluster(folder) as built:
        variables = {"KEYBRAKE_PROXY_URL": built.start_proxy().url}
        for role in ("billing", "audit"):
            file = folder / f"keybrake.{role}.key"
            file.write_text(built.issue("--role", role))
            variables[f"KEYBRAKE_VAULT_KEY_{role.upper()}_FILE"] = str(file)
        yield Running(built, variables)


def python(running: Running, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the examples with the environment that their page sets."""
    plain = {n: v for n, v in running.cluster.environ().items() if "KEYBRAKE" not in n}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=plain | dict(running.environ), cwd=EXAMPLES.parent,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done


def client(service: str) -> Any:
    return botocore.session.get_session().create_client(
        service, region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_asks_twice_and_the_customer_pays_once(file: Path, running: Running) -> None:
    done = python(running, str(file))

    (customer,) = set(re.findall(r"cus_\w+", file.read_text()))
    (charge,) = running.charges_of(customer)
    answers = [line for line in done.stdout.splitlines() if charge in line]
    assert len(answers) == 2, done.stdout
    for block in blocks("example"):
        if block.text == f"python examples/{file.name}\n":
            assert printed(done.stdout) == printed(block.prints)


def test_the_page_lists_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    listed = re.findall(r"^\| \[`(\w+\.py)`\]", page, re.MULTILINE)
    assert sorted(listed) == [file.name for file in FILES]


STUBBED_LOOP = """
import json
import botocore.session
from botocore.stub import ANY, Stubber
from examples import converse_loop
bedrock = botocore.session.get_session().create_client(
    "bedrock-runtime", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
)
model, counts = converse_loop.ScriptedModel(), {"inputTokens": 1, "outputTokens": 1}
more = {"usage": counts | {"totalTokens": 2}, "metrics": {"latencyMs": 1}}
with Stubber(bedrock) as stub:
    for _ in range(3):
        sent = {"modelId": "amazon.nova-pro-v1:0", "messages": ANY, "toolConfig": ANY}
        stub.add_response("converse", model.converse() | more, sent)
    print(json.dumps(converse_loop.run(bedrock, "amazon.nova-pro-v1:0", "Charge it.")))
    stub.assert_no_pending_responses()
"""


def test_the_loop_says_to_bedrock_what_bedrock_takes(running: Running) -> None:
    done = python(running, "-c", STUBBED_LOOP)

    results = [
        block["toolResult"]["content"][0]["json"]
        for message in json.loads(done.stdout)
        for block in message["content"]
        if "toolResult" in block
    ]
    (charge,) = running.charges_of(str(converse_loop.BILL["customer_id"]))
    assert [each["charge_id"] for each in results] == [charge, charge]


def test_the_action_group_is_one_that_bedrock_takes() -> None:
    bedrock = client("bedrock-agent")
    with Stubber(bedrock) as stub:
        group = {
            "agentId": "AGENT12345", "agentVersion": "DRAFT", "actionGroupId": "GROUP12345",
            "actionGroupName": "billing", "actionGroupState": "ENABLED",
            "createdAt": "2026-11-28T00:00:00Z", "updatedAt": "2026-11-28T00:00:00Z",
        }  # fmt: skip
        stub.add_response("create_agent_action_group", {"agentActionGroup": group})
        assert bedrock_agent.attach(bedrock, "AGENT12345", ARN) == "GROUP12345"


@pytest.mark.parametrize("way", ["lambda", "mcp", "mcp with OAuth"])
def test_the_target_is_one_that_agentcore_takes(way: str) -> None:
    agentcore = client("bedrock-agentcore-control")
    with Stubber(agentcore) as stub:
        stub.add_response("create_gateway_target", TARGET)
        if way == "lambda":
            target = agentcore_lambda.attach(agentcore, "gateway-1", ARN)
        else:
            provider = CLIENT if way.endswith("OAuth") else PROVIDER
            target = agentcore_mcp.attach(
                agentcore, "gateway-1", "https://billing.example.com", provider
            )
    assert target == "TARGET1234"


@pytest.mark.parametrize(("provider", "kind"), [(PROVIDER, "API_KEY"), (CLIENT, "OAUTH")])
def test_the_gateway_presents_what_its_provider_holds(provider: str, kind: str) -> None:
    made = agentcore_mcp.credential("https://billing.example.com", provider)

    (held,) = made["credentialProvider"].values()
    assert made["credentialProviderType"] == kind
    assert held["providerArn"] == provider
    if kind == "OAUTH":
        assert held["customParameters"] == {"resource": "https://billing.example.com/mcp"}


def test_a_target_that_is_wrong_is_refused_by_the_same_validator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agentcore = client("bedrock-agentcore-control")
    monkeypatch.setattr(
        agentcore_mcp, "target", lambda *_: {"targetConfiguration": {"mcp": {"x": 1}}}
    )
    with Stubber(agentcore) as stub:
        stub.add_response("create_gateway_target", TARGET)
        with pytest.raises(botocore.exceptions.ParamValidationError):
            agentcore_mcp.attach(agentcore, "gateway-1", "https://billing.example.com", PROVIDER)
