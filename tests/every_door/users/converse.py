"""A loop over Bedrock's Converse API: botocore makes and checks the requests, its Stubber answers.

Every request is checked against the service's own model, the toolConfig and the toolResult too.
"""

from __future__ import annotations

import json

import botocore.session
from botocore.stub import ANY, Stubber

from kb_mcp.converse import ConverseTools
from tests.every_door.users.line import Json, serve

MODEL = "amazon.nova-pro-v1:0"


def charge(bill: Json) -> Json:
    bedrock = botocore.session.get_session().create_client(
        "bedrock-runtime",
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
    )
    use = {"toolUseId": "use-1", "name": "charge", "input": bill}
    with Stubber(bedrock) as model:
        says(model, {"role": "assistant", "content": [{"toolUse": use}]}, "tool_use")
        says(model, {"role": "assistant", "content": [{"text": "Done."}]}, "end_turn")
        messages: list[Json] = [{"role": "user", "content": [{"text": "Charge it."}]}]
        while True:
            answer = bedrock.converse(
                modelId=MODEL, messages=messages, toolConfig=TOOLS.tool_config()
            )
            messages.append(answer["output"]["message"])
            results = TOOLS.handle(answer["output"]["message"], answer["stopReason"])
            if results is None:
                break
            messages.append(results)
    (content,) = messages[2]["content"][0]["toolResult"]["content"]
    found: Json = content["json"] if "json" in content else json.loads(content["text"])
    return found


def says(model: Stubber, message: Json, reason: str) -> None:
    usage = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
    body = {
        "output": {"message": message},
        "stopReason": reason,
        "usage": usage,
        "metrics": {"latencyMs": 1},
    }
    model.add_response("converse", body, {"modelId": MODEL, "messages": ANY, "toolConfig": ANY})


TOOLS = ConverseTools()
serve(charge)
