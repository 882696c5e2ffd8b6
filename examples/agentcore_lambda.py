"""An AgentCore Gateway target that is a Lambda function.

`python examples/agentcore_lambda.py` calls the function as the gateway does, twice.
`python examples/agentcore_lambda.py GATEWAY_ID FUNCTION_ARN` adds the target to a gateway of yours,
with boto3 and your AWS credentials. `make lambda` builds the function's zip.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

from kb_mcp.lambda_entry import handler  # the handler to set in Lambda

# The gateway sends the bare arguments, and names target and tool in the context.
EVENT = {
    "customer_id": "cus_Gateway1",
    "amount_cents": 2900,
    "billing_period": time.strftime("%Y-%m"),
}
CONTEXT = SimpleNamespace(
    client_context=SimpleNamespace(custom={"bedrockAgentCoreToolName": "billing___charge"})
)


def tool_schema() -> dict[str, Any]:
    """Return the tool schema of the two tools."""
    export = [
        sys.executable,
        "-m",
        "kb_mcp",
        "export",
        "gateway",
        "--tools",
        "charge,charge_status",
    ]
    exported = subprocess.run(export, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(exported))


def attach(agentcore: Any, gateway_id: str, function_arn: str) -> str:
    """Add the target to the gateway; return its id."""
    target = agentcore.create_gateway_target(
        gatewayIdentifier=gateway_id,
        name="billing",
        description="Charges a bill once, and looks charges up.",
        targetConfiguration={
            "mcp": {"lambda": {"lambdaArn": function_arn, "toolSchema": tool_schema()}}
        },
        credentialProviderConfigurations=[{"credentialProviderType": "GATEWAY_IAM_ROLE"}],
    )
    return str(target["targetId"])


def main() -> None:
    """Attach, or call the function twice."""
    if sys.argv[1:]:
        import boto3

        print(attach(boto3.client("bedrock-agentcore-control"), sys.argv[1], sys.argv[2]))
        return
    for _ in range(2):
        answer = handler(EVENT, CONTEXT)
        print(answer["charge_id"], answer["message"])


if __name__ == "__main__":
    main()
