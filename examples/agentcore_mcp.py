"""An AgentCore Gateway target without Lambda: the gateway calls the proxy's own /mcp.

`python examples/agentcore_mcp.py` sends what the gateway sends, twice.
`python examples/agentcore_mcp.py GATEWAY_ID PROVIDER_ARN` adds the target to a gateway of yours,
with boto3 and your AWS credentials. PROVIDER_ARN is the API key credential provider that holds the
vault key, or an OAuth2 one whose client has a grant (docs/identities.md); KEYBRAKE_PROXY_URL must
then be the https address at which AWS reaches the proxy.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

BILL = {
    "customer_id": "cus_Gateway2",
    "amount_cents": 2900,
    "billing_period": time.strftime("%Y-%m"),
}


def target(proxy_url: str, provider_arn: str) -> dict[str, Any]:
    """Return what the gateway is told: where the tools are, and what it presents there."""
    return {
        "name": "billing",
        "targetConfiguration": {"mcp": {"mcpServer": {"endpoint": f"{proxy_url}/mcp"}}},
        "credentialProviderConfigurations": [credential(proxy_url, provider_arn)],
    }


def credential(proxy_url: str, provider_arn: str) -> dict[str, Any]:
    """Return how the gateway presents the vault key, or the token of a client of its own."""
    if "/oauth2credentialprovider/" in provider_arn:
        token = {
            "providerArn": provider_arn,
            "grantType": "CLIENT_CREDENTIALS",
            "scopes": ["charge", "charge_status"],
            "customParameters": {"resource": f"{proxy_url}/mcp"},  # what the token is meant for
        }
        return {
            "credentialProviderType": "OAUTH",
            "credentialProvider": {"oauthCredentialProvider": token},
        }
    key = {
        "providerArn": provider_arn,
        "credentialLocation": "HEADER",
        "credentialParameterName": "Authorization",
        "credentialPrefix": "Bearer",
    }
    return {
        "credentialProviderType": "API_KEY",
        "credentialProvider": {"apiKeyCredentialProvider": key},
    }


def attach(agentcore: Any, gateway_id: str, proxy_url: str, provider_arn: str) -> str:
    """Add the target to the gateway; return its id."""
    made = agentcore.create_gateway_target(
        gatewayIdentifier=gateway_id, **target(proxy_url, provider_arn)
    )
    return str(made["targetId"])


async def call_as_the_gateway_does(proxy_url: str, vault_key: str) -> None:
    """Charge twice, with the endpoint and the header that the target names."""
    configured = target(proxy_url, "arn")
    provider = configured["credentialProviderConfigurations"][0]["credentialProvider"]
    key = provider["apiKeyCredentialProvider"]
    header = {key["credentialParameterName"]: f"{key['credentialPrefix']} {vault_key}"}
    endpoint = configured["targetConfiguration"]["mcp"]["mcpServer"]["endpoint"]
    async with (
        create_mcp_http_client(headers=header) as http,
        Client(streamable_http_client(endpoint, http_client=http)) as client,
    ):
        for _ in range(2):
            answer = (await client.call_tool("charge", BILL)).structured_content or {}
            print(answer["charge_id"], answer["message"])


def main() -> None:
    """Attach, or call as the gateway does."""
    proxy_url = os.environ["KEYBRAKE_PROXY_URL"]
    if sys.argv[1:]:
        import boto3

        agentcore = boto3.client("bedrock-agentcore-control")
        print(attach(agentcore, sys.argv[1], proxy_url, sys.argv[2]))
        return
    key = Path(os.environ["KEYBRAKE_VAULT_KEY_BILLING_FILE"]).expanduser().read_text().strip()
    asyncio.run(call_as_the_gateway_does(proxy_url, key))


if __name__ == "__main__":
    main()
