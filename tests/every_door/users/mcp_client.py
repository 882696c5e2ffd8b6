"""An MCP client: over stdio it starts `kb-mcp mcp` itself, over HTTP it sends the key as bearer."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from tests.every_door.users.line import say

HANDED_ON = ("KEYBRAKE_PROXY_URL", "KEYBRAKE_VAULT_KEY_BILLING", "PYTHONPATH")


async def main() -> None:
    """Open the door, then charge a bill for every line on stdin."""
    async with AsyncExitStack() as stack:
        server: Any
        if sys.argv[1] == "stdio":
            environ = {name: os.environ[name] for name in HANDED_ON if name in os.environ}  # noqa: TID251 - as a client does
            server = StdioServerParameters(
                command=sys.executable, args=["-m", "kb_mcp", "mcp"], env=environ
            )
        else:
            key = os.environ["KEYBRAKE_VAULT_KEY_BILLING"]  # noqa: TID251 - as above
            http = create_mcp_http_client(headers={"Authorization": f"Bearer {key}"})
            await stack.enter_async_context(http)
            url = os.environ["KEYBRAKE_PROXY_URL"]  # noqa: TID251 - as above
            server = streamable_http_client(f"{url}/mcp", http_client=http)
        client = await stack.enter_async_context(Client(server))
        await client.list_tools()
        say("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            result = await client.call_tool("charge", json.loads(line))
            say(json.dumps(result.structured_content))


asyncio.run(main())
