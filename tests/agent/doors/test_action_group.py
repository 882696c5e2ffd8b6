"""Bedrock action groups, in API form and in function form."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from typing_extensions import override

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import call_tool
from kb_mcp.agent.catalogue import Arguments, ToolName
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.client.network import NetworkLine
from kb_mcp.agent.doors.bedrock import answer_action_group, is_action_group_event
from kb_mcp.agent.results import Result
from tests.agent.conftest import BILLING_KEY, TRACE, Says, StubProxy, charge, refusal

POST = "POST /stripe/v1/charges"
BILL = {"customer_id": "cus_Abc123", "amount_cents": "2900", "billing_period": "2026-06"}
SHARED = {
    "messageVersion": "1.0",
    "actionGroup": "Billing",
    "sessionId": "s-1",
    "inputText": "bill them",
    "agent": {"id": "AGENT", "alias": "PROD", "name": "n", "version": "1"},
    "sessionAttributes": {},
    "promptSessionAttributes": {},
}


def listed(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "type": "string", "value": value} for name, value in values.items()]


def api_event(
    body: dict[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
    path: str = "/charge",
    method: str = "POST",
) -> dict[str, Any]:
    event: dict[str, Any] = {**SHARED, "apiPath": path, "httpMethod": method}
    if body is not None:
        event["requestBody"] = {"content": {"application/json": {"properties": listed(body)}}}
    if parameters is not None:
        event["parameters"] = listed(parameters)
    return event


def function_event(parameters: dict[str, Any], function: str = "charge") -> dict[str, Any]:
    return {**SHARED, "function": function, "parameters": listed(parameters)}


def ask(billing: Billing, event: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answer `event`; return the response part and its body."""
    answer = answer_action_group(event, partial(call_tool, billing))
    assert answer["messageVersion"] == "1.0"
    response: dict[str, Any] = answer["response"]  # type: ignore[assignment]  # JSON of any shape
    framed = response.get("functionResponse", response)["responseBody"]
    (content,) = framed.values()
    assert len(content["body"]) < 25_000
    return response, json.loads(content["body"])


@pytest.mark.parametrize(
    ("body", "parameters"),
    [
        (BILL, None),
        (None, BILL),
        (BILL, {"customer_id": "cus_Abc123"}),
        ({"amount_cents": "2900"}, {k: BILL[k] for k in ("customer_id", "billing_period")}),
    ],
)
def test_the_same_charge_by_body_or_parameters_is_the_same_call(
    proxy: StubProxy,
    billing: Billing,
    body: dict[str, Any] | None,
    parameters: dict[str, Any] | None,
) -> None:
    proxy.on(POST, Says(200, charge()))

    response, result = ask(billing, api_event(body, parameters))

    assert response["httpStatusCode"] == 200
    assert result["idempotency_key"] == "38de2d05855909930dc2287649e68ba3"
    assert proxy.seen[0].form["amount"] == "2900"
    assert proxy.seen[0].headers["keybrake-agent"] == "AGENT/PROD"
    assert proxy.seen[0].headers["keybrake-session"] == "s-1"


@pytest.mark.parametrize(
    ("attributes", "trace"),
    [
        ({"sessionAttributes": TRACE}, TRACE),
        ({"promptSessionAttributes": TRACE, "sessionAttributes": {"traceparent": "x"}}, TRACE),
        ({"sessionAttributes": {"traceparent": "x\r\nCookie: y"}}, {}),
        ({"sessionAttributes": {"tracestate": "vendor=1"}}, {}),
        ({"sessionAttributes": "traceparent", "promptSessionAttributes": None}, {}),
    ],
    ids=["session", "prompt", "malformed", "half", "broken"],
)
def test_a_trace_in_session_attributes_is_handed_on(
    proxy: StubProxy, billing: Billing, attributes: dict[str, Any], trace: dict[str, str]
) -> None:
    proxy.on(POST, Says(200, charge()))

    for event in (api_event(BILL), function_event(BILL)):
        ask(billing, event | attributes)

    assert [seen.trace for seen in proxy.seen] == [trace, trace]


@pytest.mark.parametrize(
    ("attributes", "subject"),
    [
        ({"sessionAttributes": {"keybrake_subject": "maria"}}, "maria"),
        ({"promptSessionAttributes": {"keybrake_subject": "maria"}}, "maria"),
        (
            {
                "promptSessionAttributes": {"keybrake_subject": "maria"},
                "sessionAttributes": {"keybrake_subject": "eve"},
            },
            "maria",
        ),
        ({"sessionAttributes": {"keybrake_subject": "maria\r\nCookie: y"}}, "mariaCookie: y"),
        ({"sessionAttributes": "keybrake_subject", "promptSessionAttributes": None}, None),
    ],
    ids=["session", "prompt", "both", "malformed", "broken"],
)
def test_for_whom_a_call_is_stands_in_session_attributes(
    proxy: StubProxy, billing: Billing, attributes: dict[str, Any], subject: str | None
) -> None:
    proxy.on(POST, Says(200, charge()))

    for event in (api_event(BILL), function_event(BILL)):
        ask(billing, event | attributes)

    said = [seen.headers.get("keybrake-subject") for seen in proxy.seen]
    assert said == [subject, subject]


def test_the_response_echoes_what_names_the_action(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(POST, Says(200, charge()))

    api, _ = ask(billing, api_event(BILL))
    function, _ = ask(billing, function_event(BILL))

    assert {k: api[k] for k in ("actionGroup", "apiPath", "httpMethod")} == {
        "actionGroup": "Billing",
        "apiPath": "/charge",
        "httpMethod": "POST",
    }
    assert set(function) == {"actionGroup", "function", "functionResponse"}
    assert (function["actionGroup"], function["function"]) == ("Billing", "charge")


DECLINE = {"error": {"type": "card_error", "code": "card_declined"}}
IN_USE = Says(409, refusal("idempotency_key_in_use"), {"Stripe-Should-Retry": "false"})
GONE = Says(504, refusal("outcome_unknown"), {"Stripe-Should-Retry": "false"})
DOWN = Says(503, refusal("ledger_unavailable"), {"Stripe-Should-Retry": "false"})


@pytest.mark.parametrize(
    ("says", "status", "http", "state"),
    [
        (Says(200, charge()), "succeeded", 200, None),
        (Says(200, charge(status="pending")), "pending", 200, None),
        (Says(402, DECLINE), "failed", 200, None),
        (Says(403, refusal("spend_cap_exceeded")), "refused", 200, None),
        (GONE, "unknown", 202, None),
        (IN_USE, "unknown", 202, None),
        (Says(429, refusal("rate_limited")), "rate_limited", 429, None),
        (DOWN, "unavailable", 503, "FAILURE"),
    ],
)
def test_the_table_of_outcomes(
    proxy: StubProxy, billing: Billing, says: Says, status: str, http: int, state: str | None
) -> None:
    proxy.on(POST, says)

    api, body = ask(billing, api_event(BILL))
    function, same = ask(billing, function_event(BILL))

    assert (body["status"], api["httpStatusCode"]) == (status, http)
    assert (same["status"], function["functionResponse"].get("responseState")) == (status, state)
    assert "next_step" in body


@pytest.mark.parametrize(
    "changed",
    [
        {"amount_cents": "12.5"},
        {"amount_cents": "1e3"},
        {"amount_cents": ""},
        {"amount_cents": "\uff11\uff12"},
        {"amount_cents": "true"},
        {"amount_cents": True},
        {"amount_cents": "-5"},
        {"billing_period": "June"},
        {"customer_id": "nobody"},
        {"surprise": "x"},
        {"reference": "second"},
    ],
)
def test_bad_input_is_asked_for_again_and_reaches_nobody(
    proxy: StubProxy, billing: Billing, changed: dict[str, Any]
) -> None:
    api, body = ask(billing, api_event({**BILL, **changed}))
    function, _ = ask(billing, function_event({**BILL, **changed}))

    assert api["httpStatusCode"] == 400
    assert function["functionResponse"]["responseState"] == "REPROMPT"
    assert body["status"] == "invalid"
    assert proxy.seen == []


def test_a_name_with_two_values_is_refused(proxy: StubProxy, billing: Billing) -> None:
    response, _ = ask(billing, api_event(BILL, {"amount_cents": "2901"}))

    assert response["httpStatusCode"] == 400
    assert proxy.seen == []


@pytest.mark.parametrize(
    ("path", "method"), [("/refund", "POST"), ("/charge", "GET"), ("", ""), (None, None)]
)
def test_an_unknown_path_is_404(billing: Billing, path: Any, method: Any) -> None:
    response, body = ask(billing, api_event(BILL, path=path, method=method))

    assert (response["httpStatusCode"], body["status"]) == (404, "unknown_tool")
    assert (response["apiPath"], response["httpMethod"]) == (path, method)


def test_a_tool_whose_key_is_not_held_looks_unknown(proxy: StubProxy) -> None:
    supervisor = Billing({ToolName.CHARGE_STATUS: "vk_test_a"}, NetworkLine(proxy.url))

    api, body = ask(supervisor, api_event(BILL))
    function, same = ask(supervisor, function_event(BILL))
    unknown, other = ask(supervisor, function_event(BILL, "refund"))

    assert api["httpStatusCode"] == 404
    assert body == same == other
    assert function["functionResponse"] == unknown["functionResponse"]
    assert proxy.seen == []
    supervisor.close()


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"requestBody": None, "parameters": None},
        {"requestBody": {"content": {}}},
        {"requestBody": {"content": {"application/json": {}}}},
        {"requestBody": "text", "parameters": "text"},
        {"parameters": ["text", {"value": "x"}, None]},
    ],
)
def test_absent_and_broken_parts_are_invalid_input(billing: Billing, parts: dict[str, Any]) -> None:
    response, _ = ask(billing, {**api_event(), **parts})

    assert response["httpStatusCode"] == 400


def test_a_look_up_takes_its_query(proxy: StubProxy, billing: Billing) -> None:
    proxy.on("GET /stripe/v1/charges/ch_1", Says(200, charge()))
    event = api_event(None, {"charge_id": "ch_1"}, "/charge-status", "GET")

    response, body = ask(billing, event)

    assert (response["httpStatusCode"], body["found"], body["status"]) == (200, True, "succeeded")


class Broken(Billing):
    """A biller that breaks with a secret in its text."""

    @override
    async def run(self, arguments: Arguments, context: CallContext) -> Result:
        raise RuntimeError(f"{BILLING_KEY} {arguments} {context}")


def test_no_secret_and_no_exception_text_is_in_a_body() -> None:
    response, body = ask(
        Broken({ToolName.CHARGE: BILLING_KEY}, NetworkLine("http://127.0.0.1")), api_event(BILL)
    )

    # Where it broke nobody knows: it may have been after the send.
    assert (response["httpStatusCode"], body["status"]) == (202, "unknown")
    assert BILLING_KEY not in json.dumps(response)
    assert "RuntimeError" not in json.dumps(response)


def test_events_are_told_apart_by_shape() -> None:
    assert is_action_group_event(api_event())
    assert is_action_group_event(function_event({}))
    assert not is_action_group_event(BILL)
