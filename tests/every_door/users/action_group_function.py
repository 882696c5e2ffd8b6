"""An action group with a function schema: its event, to the Lambda handler."""

from __future__ import annotations

import json

from kb_mcp.lambda_entry import handler
from tests.every_door.users.line import Json, serve, texts


def charge(bill: Json) -> Json:
    event = {
        "messageVersion": "1.0",
        "agent": {"name": "billing", "id": "AGENT", "alias": "ALIAS", "version": "1"},
        "inputText": "Charge it.",
        "sessionId": "session-1",
        "actionGroup": "billing",
        "function": "charge",
        "parameters": texts(bill),
    }
    response = handler(event, None)["response"]["functionResponse"]
    body: Json = json.loads(response["responseBody"]["TEXT"]["body"])
    return body


serve(charge)
