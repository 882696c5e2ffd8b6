"""An AgentCore Gateway target: the bare arguments, the tool's name beside them."""

from __future__ import annotations

from types import SimpleNamespace

from kb_mcp.lambda_entry import handler
from tests.every_door.users.line import Json, serve

CUSTOM = {
    "bedrockAgentCoreToolName": "billing___charge",
    "bedrockAgentCoreGatewayId": "gateway-1",
    "bedrockAgentCoreMcpMessageId": "1",
}


def charge(bill: Json) -> Json:
    context = SimpleNamespace(client_context=SimpleNamespace(custom=CUSTOM))
    return handler(bill, context)


serve(charge)
