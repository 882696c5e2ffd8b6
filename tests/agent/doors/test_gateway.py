"""AgentCore Gateway: bare arguments in, the result object out."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import call_tool
from kb_mcp.agent.doors.bedrock import answer_gateway, gateway_names
from tests.agent.conftest import TRACE, Says, StubProxy, charge

POST = "POST /stripe/v1/charges"
BILL = {"customer_id": "cus_Abc123", "amount_cents": 2900, "billing_period": "2026-06"}


def ask(billing: Billing, event: dict[str, Any], tool: object = "target___charge") -> Any:
    return answer_gateway(event, {"bedrockAgentCoreToolName": tool}, partial(call_tool, billing))


@pytest.mark.parametrize("amount", [2900, "2900"], ids=["number", "text"])
def test_a_charge_answers_the_result_itself(
    proxy: StubProxy, billing: Billing, amount: object
) -> None:
    proxy.on(POST, Says(200, charge()))

    result = ask(billing, {**BILL, "amount_cents": amount})

    assert (result["status"], result["charge_id"]) == ("succeeded", "ch_1")


def test_a_target_name_may_hold_the_separator(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(POST, Says(200, charge()))

    assert ask(billing, BILL, "my___target___charge")["status"] == "succeeded"


@pytest.mark.parametrize("tool", ["target___refund", "target___", "", None, 7, "charge_status_"])
def test_an_unknown_tool_is_told_so(proxy: StubProxy, billing: Billing, tool: object) -> None:
    assert ask(billing, BILL, tool)["status"] == "unknown_tool"
    assert proxy.seen == []


@pytest.mark.parametrize("changed", [{"amount_cents": 29.0}, {"x": 1}, {"amount_cents": True}])
def test_bad_arguments_are_invalid(
    proxy: StubProxy, billing: Billing, changed: dict[str, Any]
) -> None:
    assert ask(billing, {**BILL, **changed})["status"] == "invalid"
    assert proxy.seen == []


@pytest.mark.parametrize(
    ("headers", "trace"),
    [
        (TRACE, TRACE),
        ({name.title(): value for name, value in TRACE.items()}, TRACE),
        ({**TRACE, "traceparent": "x"}, {}),
        ({"authorization": "Bearer x", 7: "x"}, {}),
        ("traceparent", {}),
        (None, {}),
    ],
    ids=["given", "in capitals", "malformed", "none", "a text", "null"],
)
def test_a_trace_in_propagated_headers_is_handed_on(
    proxy: StubProxy, billing: Billing, headers: object, trace: dict[str, str]
) -> None:
    proxy.on(POST, Says(200, charge()))
    names = {"bedrockAgentCoreToolName": "t___charge", "bedrockAgentCorePropagatedHeaders": headers}

    answer_gateway(BILL, names, partial(call_tool, billing))

    assert proxy.seen[0].trace == trace
    assert "keybrake-subject" not in proxy.seen[0].headers
    assert "Bearer x" not in proxy.seen[0].headers.values()


def test_for_whom_a_call_is_stands_in_a_propagated_header(
    proxy: StubProxy, billing: Billing
) -> None:
    proxy.on(POST, Says(200, charge()))
    headers = {"Keybrake-Subject": "maria"}
    names = {"bedrockAgentCoreToolName": "t___charge", "bedrockAgentCorePropagatedHeaders": headers}

    answer_gateway(BILL, names, partial(call_tool, billing))

    assert proxy.seen[0].headers["keybrake-subject"] == "maria"


@pytest.mark.parametrize(
    "context", [None, SimpleNamespace(client_context=None), SimpleNamespace(client_context={})]
)
def test_a_context_that_names_nothing_is_no_error(context: object) -> None:
    assert gateway_names(context) == {}
