"""The Lambda handler: tells events apart, and answers whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ToolName
from kb_mcp.agent.client.network import NetworkLine
from kb_mcp.lambda_entry import handler
from kb_mcp.settings import load_settings
from kb_mcp.wiring.agent import connect_billing
from tests.agent.conftest import Says, StubProxy, charge, refusal, serve_stub

BILL = {"customer_id": "cus_Abc123", "amount_cents": "2900", "billing_period": "2026-06"}
PROPERTIES = [{"name": name, "type": "string", "value": value} for name, value in BILL.items()]
API = {
    "actionGroup": "Billing",
    "apiPath": "/charge",
    "httpMethod": "POST",
    "requestBody": {"content": {"application/json": {"properties": PROPERTIES}}},
}
FUNCTION = {"actionGroup": "Billing", "function": "charge", "parameters": PROPERTIES}
LAMBDA = {"AWS_LAMBDA_FUNCTION_NAME": "billing"}
GATEWAY = SimpleNamespace(
    client_context=SimpleNamespace(custom={"bedrockAgentCoreToolName": "t___charge"})
)


def unanswered() -> Billing:
    """Return billing over a line to a proxy whose answers are lost."""

    def lose(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("no answer", request=request)

    line = NetworkLine("http://127.0.0.1", transport=httpx.MockTransport(lose))
    return Billing(dict.fromkeys(ToolName, "vk_test_x"), line)


def test_events_reach_the_door_of_their_shape() -> None:
    api = handler(API, None, billing=unanswered())
    function = handler(FUNCTION, None, billing=unanswered())
    gateway = handler(BILL, GATEWAY, billing=unanswered())

    assert api["response"]["httpStatusCode"] == 202
    assert "functionResponse" in function["response"]
    assert gateway["status"] == "unknown"


@pytest.mark.parametrize(
    "event", [None, {}, [], {"actionGroup": "x"}, {"messageVersion": "1.0"}], ids=str
)
def test_an_event_of_no_known_shape_is_answered(event: Any) -> None:
    assert handler(event, None, billing=unanswered())["status"] == "unknown_tool"


def test_settings_that_cannot_be_meant_are_an_outage_that_shows_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEYBRAKE_PROXY_URL", "ftp://user:hunter2@proxy")

    api, function = handler(API, None), handler(FUNCTION, None)
    gateway = handler(BILL, GATEWAY)

    assert api["response"]["httpStatusCode"] == 503
    assert function["response"]["functionResponse"]["responseState"] == "FAILURE"
    assert gateway["status"] == "unavailable"
    assert "hunter2" not in json.dumps([api, function, gateway])


ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:billing-AbCdEf"


@contextmanager
def secrets_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubProxy]:
    """Serve a Secrets Manager that botocore takes for its own."""
    with serve_stub() as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", aws.url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        yield aws


def test_a_key_from_secrets_manager_is_fetched_again_when_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with secrets_at(monkeypatch) as aws, serve_stub() as proxy:
        aws.on("POST /", Says(200, secret("vk_test_old")), Says(200, secret("vk_test_new")))
        proxy.on(
            "POST /stripe/v1/charges",
            Says(401, refusal("vault_key_expired")),
            Says(200, charge()),
        )
        named = {"KEYBRAKE_PROXY_URL": proxy.url, "KEYBRAKE_VAULT_KEY_BILLING": ARN}
        billing = connect_billing(load_settings({**LAMBDA, **named}))

        answers = [handler(API, None, billing=billing) for _ in range(2)]
        billing.close()

    assert [answer["response"]["httpStatusCode"] for answer in answers] == [200, 200]
    used = [seen.headers["authorization"].removeprefix("Bearer ") for seen in proxy.seen]
    assert used == ["vk_test_old", "vk_test_new", "vk_test_new"]
    # Asked for by its ARN and in its own region, once at first and once when refused.
    assert len(aws.seen) == 2
    assert all("/eu-west-1/secretsmanager/" in seen.headers["authorization"] for seen in aws.seen)
    assert "vk_test" not in json.dumps(answers)


def test_a_secret_that_cannot_be_read_is_an_outage_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with secrets_at(monkeypatch) as aws, serve_stub() as proxy:
        aws.on("POST /", Says(400, {"__type": "AccessDeniedException", "message": f"not {ARN}"}))
        named = {"KEYBRAKE_PROXY_URL": proxy.url, "KEYBRAKE_VAULT_KEY_BILLING": ARN}
        billing = connect_billing(load_settings({**LAMBDA, **named}))

        api, function = (handler(event, None, billing=billing) for event in (API, FUNCTION))
        billing.close()

    assert api["response"]["httpStatusCode"] == 503
    assert function["response"]["functionResponse"]["responseState"] == "FAILURE"
    assert "arn:" not in json.dumps([api, function])
    assert proxy.seen == []


@pytest.mark.parametrize(
    ("suffix", "held", "used"),
    [
        ("", '{"token": "vk_test_1"}', ["vk_test_1"]),
        ("", '"vk_test_1"', ["vk_test_1"]),
        (":billing::", '{"billing": "vk_test_1", "audit": "vk_test_2"}', ["vk_test_1"]),
        (":billing:AWSPREVIOUS:", '{"billing": "vk_test_1"}', ["vk_test_1"]),
        ("", '{"billing": "vk_test_1", "audit": "vk_test_2"}', []),
        (":refunds::", '{"billing": "vk_test_1"}', []),
        (":billing::", "vk_test_1", []),
        ("", '{"password": "hush"}', []),
        ("", "hush", []),
    ],
)
def test_a_secret_is_understood_or_refused_by_name_and_never_sent_as_it_is(
    suffix: str,
    held: str,
    used: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with secrets_at(monkeypatch) as aws, serve_stub() as proxy:
        aws.on("POST /", Says(200, {"ARN": ARN, "Name": "billing", "SecretString": held}))
        proxy.on("POST /stripe/v1/charges", Says(200, charge()))
        named = {"KEYBRAKE_PROXY_URL": proxy.url, "KEYBRAKE_VAULT_KEY_BILLING": ARN + suffix}
        billing = connect_billing(load_settings({**LAMBDA, **named}))

        status = handler(API, None, billing=billing)["response"]["httpStatusCode"]
        billing.close()

    bearers = [seen.headers["authorization"].removeprefix("Bearer ") for seen in proxy.seen]
    assert (status, bearers) == (200 if used else 503, used)
    asked = json.loads(aws.seen[0].body)
    assert asked["SecretId"] == ARN
    assert asked.get("VersionStage") == ("AWSPREVIOUS" if "PREVIOUS" in suffix else None)
    assert "hush" not in caplog.text
    assert "vk_test" not in caplog.text
    assert ("KEYBRAKE_VAULT_KEY_BILLING names a secret that" in caplog.text) == (not used)


def secret(token: str) -> dict[str, str]:
    return {"ARN": ARN, "Name": "billing", "SecretString": f"{token}\n"}


names = st.sampled_from(
    "actionGroup apiPath httpMethod function parameters requestBody content application/json name "
    "properties value type agent sessionId sessionAttributes messageVersion customer_id id alias "
    "amount_cents billing_period".split()
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["/charge", "POST", "charge", "cus_Abc123", "2900", "2026-06"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=6),
    max_leaves=12,
)


@given(json_values | st.dictionaries(names, json_values), st.sampled_from([None, GATEWAY]))
def test_any_event_is_answered_with_json(event: Any, context: Any) -> None:
    answer = handler(event, context, billing=unanswered())

    json.dumps(answer)
    if isinstance(event, dict) and "actionGroup" in event and "apiPath" in event:
        echoed = answer["response"]
        # As text, since not-a-number is not equal to itself.
        for name in ("actionGroup", "apiPath", "httpMethod"):
            assert repr(echoed[name]) == repr(event.get(name))


def test_a_cold_start_does_not_import_mcp_or_the_stripe_sdk() -> None:
    code = (
        "import sys, kb_mcp.lambda_entry; "
        "print({'mcp', 'stripe', 'starlette', 'uvicorn'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
