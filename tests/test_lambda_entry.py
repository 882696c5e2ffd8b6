"""The Lambda handler: tells events apart, and answers whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from kb_mcp.agent.calls import CallContext
from kb_mcp.agent.catalogue import (
    ChargeArguments,
    ChargeResult,
    ChargeStatusArguments,
    ChargeStatusResult,
    ToolName,
)
from kb_mcp.agent.outcomes import lost
from kb_mcp.lambda_entry import handler

BILL = {"customer_id": "cus_Abc123", "amount_cents": "2900", "billing_period": "2026-06"}
PROPERTIES = [{"name": name, "type": "string", "value": value} for name, value in BILL.items()]
API = {
    "actionGroup": "Billing",
    "apiPath": "/charge",
    "httpMethod": "POST",
    "requestBody": {"content": {"application/json": {"properties": PROPERTIES}}},
}
FUNCTION = {"actionGroup": "Billing", "function": "charge", "parameters": PROPERTIES}
GATEWAY = SimpleNamespace(
    client_context=SimpleNamespace(custom={"bedrockAgentCoreToolName": "t___charge"})
)


class Unanswered:
    """A line to a proxy whose answers are lost."""

    tools = frozenset(ToolName)
    allow_reference = False

    def charge(self, arguments: ChargeArguments, context: CallContext) -> ChargeResult:
        del context
        return lost(arguments, livemode=False)

    def charge_status(
        self, arguments: ChargeStatusArguments, context: CallContext
    ) -> ChargeStatusResult:
        raise NotImplementedError(arguments, context)


def test_events_reach_the_door_of_their_shape() -> None:
    api = handler(API, None, billing=Unanswered())
    function = handler(FUNCTION, None, billing=Unanswered())
    gateway = handler(BILL, GATEWAY, billing=Unanswered())

    assert api["response"]["httpStatusCode"] == 202
    assert "functionResponse" in function["response"]
    assert gateway["status"] == "unknown"


@pytest.mark.parametrize(
    "event", [None, {}, [], {"actionGroup": "x"}, {"messageVersion": "1.0"}], ids=str
)
def test_an_event_of_no_known_shape_is_answered(event: Any) -> None:
    assert handler(event, None, billing=Unanswered())["status"] == "unknown_tool"


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


def test_a_cold_start_does_not_import_mcp_or_the_stripe_sdk() -> None:
    code = (
        "import sys, kb_mcp.lambda_entry; "
        "print({'mcp', 'stripe', 'starlette', 'uvicorn'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
