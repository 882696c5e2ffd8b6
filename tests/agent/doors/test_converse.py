"""Converse: one tool result for each tool use, in order, never empty."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import partial
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import call_tool
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.doors.bedrock import answer_message, answer_returned_control, read_stream
from tests.agent.conftest import Says, StubProxy, charge, refusal

POST = "POST /stripe/v1/charges"
BILL = {"customer_id": "cus_Abc123", "amount_cents": 2900, "billing_period": "2026-06"}
WHO = CallContext("converse", "s-1")


def use(name: str = "charge", given: Any = None, use_id: str = "t1", **more: Any) -> dict[str, Any]:
    given = BILL if given is None else given
    return {"toolUse": {"toolUseId": use_id, "name": name, "input": given, **more}}


def message(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def results(answer: Any) -> list[dict[str, Any]]:
    assert answer is not None
    return [block["toolResult"] for block in answer["content"]]


def test_every_tool_use_is_answered_in_order(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(POST, Says(200, charge()), Says(403, refusal("spend_cap_exceeded")))
    asked = message(
        {"text": "Let me."},
        use(use_id="a"),
        use("refund", {}, "b"),
        use(given={**BILL, "amount_cents": "2900"}, use_id="c"),
        use(use_id="d"),
    )

    answer = answer_message(asked, partial(call_tool, billing), WHO)

    found = results(answer)
    assert [result["toolUseId"] for result in found] == ["a", "b", "c", "d"]
    assert [result["status"] for result in found] == ["success", "error", "error", "success"]
    assert [result["content"][0]["json"]["status"] for result in found] == [
        "succeeded",
        "unknown_tool",
        "invalid",
        "refused",
    ]
    assert answer is not None
    assert set(answer) == {"role", "content"}
    assert all(set(block) == {"toolResult"} for block in answer["content"])  # type: ignore[attr-defined]  # it is JSON


def test_the_answer_is_a_message_that_the_service_takes(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(POST, Says(200, charge()))
    answer = answer_message(message(use()), partial(call_tool, billing), WHO)
    model = botocore.session.get_session().get_service_model("bedrock-runtime")

    report = ParamValidator().validate(answer, model.shape_for("Message"))

    assert not report.has_errors(), report.generate_report()


@pytest.mark.parametrize(
    "blocks",
    [[], [{"text": "hello"}], [use(type="server_tool_use")], [{"text": "x"}, {"reasoning": {}}]],
)
def test_nothing_to_answer_is_none(
    proxy: StubProxy, billing: Billing, blocks: list[dict[str, Any]]
) -> None:
    assert answer_message(message(*blocks), partial(call_tool, billing), WHO) is None
    assert proxy.seen == []


def test_only_what_the_client_must_run_is_run(proxy: StubProxy, billing: Billing) -> None:
    proxy.on(POST, Says(200, charge()))
    searched = use("web_search", {"query": "x"}, "s", type="server_tool_use")

    found = results(answer_message(message(searched, use()), partial(call_tool, billing), WHO))

    assert [result["toolUseId"] for result in found] == ["t1"]
    assert len(proxy.seen) == 1


def test_a_decimal_of_a_stored_history_is_refused_in_json(
    proxy: StubProxy, billing: Billing
) -> None:
    stored = use(given={**BILL, "amount_cents": Decimal("2900.5")})

    answer = answer_message(message(stored), partial(call_tool, billing), WHO)

    assert results(answer)[0]["status"] == "error"
    assert json.loads(json.dumps(answer)) == answer
    assert proxy.seen == []


@pytest.mark.parametrize(
    "reason",
    [
        "malformed_tool_use",
        "malformed_model_output",
        "max_tokens",
        "model_context_window_exceeded",
        "guardrail_intervened",
        "content_filtered",
        "stream_ended",
        "a_reason_of_next_year",
    ],
)
def test_nothing_runs_on_an_answer_that_was_cut_off_blocked_or_malformed(
    proxy: StubProxy, billing: Billing, reason: str
) -> None:
    (result,) = results(answer_message(message(use()), partial(call_tool, billing), WHO, reason))

    assert result["status"] == "error"
    assert result["content"]
    assert proxy.seen == []


@pytest.mark.parametrize("reason", [None, "tool_use", "end_turn", "stop_sequence"])
def test_a_whole_tool_use_runs_whatever_the_model_calls_its_end(
    proxy: StubProxy, billing: Billing, reason: str | None
) -> None:
    proxy.on(POST, Says(200, charge()))

    (result,) = results(answer_message(message(use()), partial(call_tool, billing), WHO, reason))

    assert result["content"][0]["json"]["status"] == "succeeded"
    assert len(proxy.seen) == 1


def stream(*inputs: str, stop: str = "tool_use") -> list[dict[str, Any]]:
    thought = {"reasoningContent": {"text": "hm", "signature": "sig"}}
    return [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"contentBlockIndex": 0, "delta": thought}},
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"text": "I "}}},
        {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"text": "will"}}},
        {
            "contentBlockStart": {
                "contentBlockIndex": 2,
                "start": {"toolUse": {"toolUseId": "t1", "name": "charge"}},
            }
        },
        *(
            {"contentBlockDelta": {"contentBlockIndex": 2, "delta": {"toolUse": {"input": part}}}}
            for part in inputs
        ),
        {"contentBlockStop": {"contentBlockIndex": 2}},
        {"messageStop": {"stopReason": stop}},
        {"metadata": {"usage": {}}},
    ]


def test_a_stream_is_put_together() -> None:
    text = json.dumps(BILL)

    assembled, reason = read_stream(stream(text[:10], text[10:]))

    assert reason == "tool_use"
    assert assembled["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "sig"}}},
        {"text": "I will"},
        use(),
    ]


@pytest.mark.parametrize(
    "inputs",
    [
        ('{"customer_id": "cus_A',),
        ('{"amount_cents": 1, "amount_cents": 2}',),
        ("[1]",),
        ('"{}"',),
        ('{"amount_cents": NaN}',),
        ('{"amount_cents": 1e999}',),
        ('{"description": "\\ud800"}',),
        ("[" * 100_000,),
    ],
)
def test_a_broken_or_doubled_input_runs_nothing(
    proxy: StubProxy, billing: Billing, inputs: tuple[str, ...]
) -> None:
    assembled, reason = read_stream(stream(*inputs))

    (result,) = results(answer_message(assembled, partial(call_tool, billing), WHO, reason))

    assert (result["status"], result["content"][0]["json"]["status"]) == ("error", "invalid")
    assert "Ask for it again" in result["content"][0]["json"]["message"]
    assert proxy.seen == []


def test_a_stream_that_broke_off_runs_nothing(proxy: StubProxy, billing: Billing) -> None:
    events = [event for event in stream(json.dumps(BILL)) if "messageStop" not in event]
    assembled, reason = read_stream(events)

    (result,) = results(answer_message(assembled, partial(call_tool, billing), WHO, reason))

    assert result["status"] == "error"
    assert proxy.seen == []


def test_returned_control_is_answered_in_the_shape_the_service_takes(
    proxy: StubProxy, billing: Billing
) -> None:
    proxy.on(POST, Says(200, charge()))
    properties = [
        {"name": name, "type": "string", "value": str(value)} for name, value in BILL.items()
    ]
    control = {
        "invocationId": "i-1",
        "invocationInputs": [
            {
                "apiInvocationInput": {
                    "actionGroup": "Billing",
                    "apiPath": "/charge",
                    "httpMethod": "POST",
                    "requestBody": {"content": {"application/json": {"properties": properties}}},
                }
            },
            {
                "functionInvocationInput": {
                    "actionGroup": "Billing",
                    "function": "charge",
                    "parameters": properties[1:],
                }
            },
        ],
    }

    answers: Any = answer_returned_control(control, partial(call_tool, billing), WHO)

    assert answers[0]["apiResult"]["httpStatusCode"] == 200
    assert answers[1]["functionResult"]["responseState"] == "REPROMPT"
    model = botocore.session.get_session().get_service_model("bedrock-agent-runtime")
    shape = model.shape_for("ReturnControlInvocationResults")
    report = ParamValidator().validate(answers, shape)
    assert not report.has_errors(), report.generate_report()
