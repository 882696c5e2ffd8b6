"""A loop over Bedrock's Converse API in which the model may charge.

`python examples/converse_loop.py MODEL_ID` asks a real model, with boto3 and your AWS credentials.
Without MODEL_ID a scripted model stands in, which asks for the same charge twice.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from kb_mcp.converse import ConverseTools

PERIOD = time.strftime("%Y-%m")
BILL = {"customer_id": "cus_Converse1", "amount_cents": 2900, "billing_period": PERIOD}


def run(bedrock: Any, model_id: str, prompt: str) -> list[dict[str, Any]]:
    """Talk until the model uses no more tools; return all messages."""
    tools = ConverseTools(session_id="example-1")
    messages = [{"role": "user", "content": [{"text": prompt}]}]
    while True:
        answer = bedrock.converse(
            modelId=model_id, messages=messages, toolConfig=tools.tool_config()
        )
        messages.append(answer["output"]["message"])
        results = tools.handle(answer["output"]["message"], answer["stopReason"])
        if results is None:
            return messages
        messages.append(results)


class ScriptedModel:
    """Stands in for Bedrock: asks for the charge twice, then ends its turn."""

    def __init__(self) -> None:
        """Begin with the first answer."""
        use = {"toolUseId": "use-1", "name": "charge", "input": BILL}
        again = use | {"toolUseId": "use-2"}
        self._answers = iter(
            [
                ("tool_use", {"toolUse": use}),
                ("tool_use", {"toolUse": again}),
                ("end_turn", {"text": "The customer was charged once."}),
            ]
        )

    def converse(self, **_request: Any) -> dict[str, Any]:
        """Answer as Bedrock does."""
        reason, block = next(self._answers)
        return {
            "stopReason": reason,
            "output": {"message": {"role": "assistant", "content": [block]}},
        }


def shown(block: dict[str, Any]) -> str:
    """Return one block as a line."""
    if "toolUse" in block:
        return f"{block['toolUse']['name']} {block['toolUse']['input']}"
    if "toolResult" in block:
        answer = block["toolResult"]["content"][0]["json"]
        return f"{answer.get('charge_id')} {answer['message']}"
    return str(block.get("text", block))


def main() -> None:
    """Print the conversation."""
    bedrock: Any = ScriptedModel()
    if sys.argv[1:]:
        import boto3

        bedrock = boto3.client("bedrock-runtime")
    prompt = f"Charge the customer {BILL['customer_id']} 29.00 USD for {PERIOD}."
    for message in run(bedrock, (sys.argv[1:] or ["scripted"])[0], prompt):
        for block in message["content"]:
            print(f"{message['role']}: {shown(block)}")


if __name__ == "__main__":
    main()
