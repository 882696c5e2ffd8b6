"""An MCP client over HTTP: it lists the tools, and makes the same charge twice.

The vault key is the bearer token. It decides which tools there are.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

BILL = {
    "customer_id": "cus_Client1",
    "amount_cents": 2900,
    "billing_period": time.strftime("%Y-%m"),
}


URL = os.environ["KEYBRAKE_PROXY_URL"] + "/mcp"
KEY = Path(os.environ["KEYBRAKE_VAULT_KEY_BILLING_FILE"]).expanduser().read_text().strip()


async def main() -> None:
    """Charge twice."""
    async with (
        create_mcp_http_client(headers={"Authorization": f"Bearer {KEY}"}) as http,
        Client(streamable_http_client(URL, http_client=http)) as client,
    ):
        print([tool.name for tool in (await client.list_tools()).tools])
        for _ in range(2):
            answer = (await client.call_tool("charge", BILL)).structured_content or {}
            print(answer["charge_id"], answer["message"])


if __name__ == "__main__":
    asyncio.run(main())
