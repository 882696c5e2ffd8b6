"""A Bedrock agent's action group, and the Lambda function that answers it.

`python examples/bedrock_agent.py` calls the function with the event that Bedrock sends, twice.
`python examples/bedrock_agent.py AGENT_ID FUNCTION_ARN` adds the action group to an agent of yours,
with boto3 and your AWS credentials. `make lambda` builds the function's zip.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from kb_mcp.lambda_entry import handler  # the handler to set in Lambda

EVENT = {
    "messageVersion": "1.0",
    "agent": {"name": "billing", "id": "AGENT", "alias": "LIVE", "version": "1"},
    "sessionId": "session-1",
    "inputText": "Charge it.",
    "actionGroup": "billing",
    "apiPath": "/charge",
    "httpMethod": "POST",
    "requestBody": {
        "content": {
            "application/json": {
                "properties": [
                    {"name": "customer_id", "type": "string", "value": "cus_Bedrock1"},
                    {"name": "amount_cents", "type": "integer", "value": "2900"},
                    {"name": "billing_period", "type": "string", "value": time.strftime("%Y-%m")},
                ]
            }
        }
    },
}


def schema() -> str:
    """Return the OpenAPI document of the two tools, as JSON."""
    export = [
        sys.executable,
        "-m",
        "kb_mcp",
        "export",
        "openapi",
        "--tools",
        "charge,charge_status",
    ]
    return subprocess.run(export, check=True, capture_output=True, text=True).stdout


def attach(bedrock: Any, agent_id: str, function_arn: str) -> str:
    """Add the action group to the agent's draft; return its id."""
    group = bedrock.create_agent_action_group(
        agentId=agent_id,
        agentVersion="DRAFT",
        actionGroupName="billing",
        description="Charges a bill once, and looks charges up.",
        actionGroupExecutor={"lambda": function_arn},
        apiSchema={"payload": schema()},
    )
    return str(group["agentActionGroup"]["actionGroupId"])


def main() -> None:
    """Attach, or call the function twice."""
    if sys.argv[1:]:
        import boto3

        print(attach(boto3.client("bedrock-agent"), sys.argv[1], sys.argv[2]))
        return
    for _ in range(2):
        response = handler(EVENT, None)["response"]
        answer = json.loads(response["responseBody"]["application/json"]["body"])
        print(response["httpStatusCode"], answer["charge_id"], answer["message"])


if __name__ == "__main__":
    main()
