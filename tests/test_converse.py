"""The public face for Converse loops and for agents that return control."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ToolName
from kb_mcp.agent.client.network import NetworkLine
from kb_mcp.converse import ConverseTools, answer_return_control
from tests.agent.conftest import TRACE, Says, StubProxy, charge, serve_stub

POST = "POST /stripe/v1/charges"
BILL = {"customer_id": "cus_Abc123", "amount_cents": 2900, "billing_period": "2026-06"}
LISTED = [{"name": name, "type": "string", "value": str(v)} for name, v in BILL.items()]
USE = {"toolUse": {"toolUseId": "t1", "name": "charge", "input": BILL}}


@pytest.fixture
def proxy() -> Iterator[StubProxy]:
    with serve_stub() as stub:
        stub.on(POST, Says(200, charge()))
        yield stub


@pytest.fixture
def billing(proxy: StubProxy) -> Iterator[Billing]:
    made = Billing({ToolName.CHARGE: "vk_test_x"}, NetworkLine(proxy.url))
    yield made
    made.close()


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_the_tool_config_holds_the_tools_whose_key_is_set(billing: Billing, profile: Any) -> None:
    config = ConverseTools(billing=billing).tool_config(profile)

    assert [tool["toolSpec"]["name"] for tool in config["tools"]] == ["charge"]
    assert ("strict" in config["tools"][0]["toolSpec"]) is (profile == "strict")


def test_a_message_is_answered_and_its_session_recorded(proxy: StubProxy, billing: Billing) -> None:
    tools = ConverseTools(billing=billing, session_id="s-7")

    answer = tools.handle({"role": "assistant", "content": [USE]})

    assert answer is not None
    assert answer["content"][0]["toolResult"]["status"] == "success"
    assert proxy.seen[0].headers["keybrake-session"] == "s-7"


def test_a_stream_is_answered_as_its_message_would_be(billing: Billing) -> None:
    start = {"toolUse": {"toolUseId": "t1", "name": "charge"}}
    delta = {"toolUse": {"input": json.dumps(BILL)}}
    events: list[dict[str, Any]] = [
        {"contentBlockStart": {"contentBlockIndex": 0, "start": start}},
        {"contentBlockDelta": {"contentBlockIndex": 0, "delta": delta}},
        {"messageStop": {"stopReason": "tool_use"}},
    ]
    tools = ConverseTools(billing=billing)

    message, reason = tools.read_stream(events)

    assert (message["content"], reason) == ([USE], "tool_use")
    assert tools.handle_stream(events) == tools.handle(message, reason)


def test_a_trace_is_handed_on_with_every_call_and_kept_for_none(
    proxy: StubProxy, billing: Billing
) -> None:
    tools = ConverseTools(billing=billing)
    message = {"role": "assistant", "content": [USE]}
    function = {"actionGroup": "g", "function": "charge", "parameters": LISTED}
    returned = {"invocationInputs": [{"functionInvocationInput": function}]}

    tools.handle(message, trace=TRACE)
    tools.handle(message, trace={"traceparent": "x", "tracestate": "vendor=1"})
    tools.handle_stream([], trace=TRACE)
    tools.handle(message)
    answer_return_control(returned, billing=billing, trace=TRACE)

    assert [seen.trace for seen in proxy.seen] == [TRACE, {}, {}, TRACE]


def test_for_whom_a_turn_is_goes_with_its_calls(proxy: StubProxy, billing: Billing) -> None:
    tools = ConverseTools(billing=billing, subject="maria")
    message = {"role": "assistant", "content": [USE]}
    function = {"actionGroup": "g", "function": "charge", "parameters": LISTED}
    returned = {"invocationInputs": [{"functionInvocationInput": function}]}

    tools.handle(message)
    tools.handle(message, subject="eve")
    tools.handle(message)
    answer_return_control(returned, billing=billing, subject="mallory")
    answer_return_control(returned, billing=billing)

    said = [seen.headers.get("keybrake-subject") for seen in proxy.seen]
    assert said == ["maria", "eve", "maria", "mallory", None]


def test_returned_control_is_answered(billing: Billing) -> None:
    call = {"actionGroup": "B", "function": "charge", "parameters": LISTED}
    control = {"invocationId": "i", "invocationInputs": [{"functionInvocationInput": call}]}

    (answer,) = answer_return_control(control, billing=billing)

    body = json.loads(answer["functionResult"]["responseBody"]["TEXT"]["body"])
    assert body["status"] == "succeeded"
