"""An action group with an OpenAPI schema: the event of a POST, to the Lambda handler."""

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
        "apiPath": "/charge",
        "httpMethod": "POST",
        "requestBody": {"content": {"application/json": {"properties": texts(bill)}}},
        "sessionAttributes": {},
        "promptSessionAttributes": {},
    }
    response = handler(event, None)["response"]
    body: Json = json.loads(response["responseBody"]["application/json"]["body"])
    return body


serve(charge)
