"""Bills, and the events in which a Bedrock agent's runtime asks for them.

Floor: the demo, ground. Pure. Source of the shape:
docs.aws.amazon.com/bedrock/latest/userguide/agents-lambda.html; every value is text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bill:
    """What an agent is asked to charge; the amount in minor units of USD."""

    customer_id: str
    billing_period: str
    amount_cents: int = 2900


def charge_event(bill: Bill, *, session: str, said: str, agent: str = "billing") -> dict[str, Any]:
    """Return the event in which `agent` asks for `bill` after the user `said` something."""
    properties = [
        {"name": "customer_id", "type": "string", "value": bill.customer_id},
        {"name": "amount_cents", "type": "integer", "value": str(bill.amount_cents)},
        {"name": "billing_period", "type": "string", "value": bill.billing_period},
    ]
    return _event("/charge", properties, session, said, agent)


def refund_event(
    charge_id: str, amount_cents: int, *, session: str, said: str, agent: str = "billing"
) -> dict[str, Any]:
    """Return the event in which `agent` asks to give a part of a charge back."""
    properties = [
        {"name": "charge_id", "type": "string", "value": charge_id},
        {"name": "amount_cents", "type": "integer", "value": str(amount_cents)},
    ]
    return _event("/refund", properties, session, said, agent)


def _event(
    path: str, properties: list[dict[str, str]], session: str, said: str, agent: str
) -> dict[str, Any]:
    return {
        "messageVersion": "1.0",
        "agent": {"name": agent, "id": agent.upper(), "alias": "DEMO", "version": "1"},
        "inputText": said,
        "sessionId": session,
        "actionGroup": "billing",
        "apiPath": path,
        "httpMethod": "POST",
        "requestBody": {"content": {"application/json": {"properties": properties}}},
        "sessionAttributes": {},
        "promptSessionAttributes": {},
    }
