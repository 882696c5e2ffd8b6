"""Connects to an MCP server as a configuration's entry says, and uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from tests.clients.installs import environ


def use(entry: Mapping[str, Any], *bills: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """Return the tools that are listed, and what `charge` answers to each bill."""
    return asyncio.run(_use(entry, bills))


async def _use(
    entry: Mapping[str, Any], bills: tuple[Mapping[str, Any], ...]
) -> tuple[list[str], list[Any]]:
    if "url" not in entry:
        # A client hands its server a few variables of its own, the path among them.
        own = {"PATH": environ()["PATH"], **entry.get("env", {})}
        server = StdioServerParameters(command=entry["command"], args=entry["args"], env=own)
        return await _talk(server, bills)
    async with create_mcp_http_client(headers=entry.get("headers", {})) as http:
        return await _talk(streamable_http_client(entry["url"], http_client=http), bills)


async def _talk(server: Any, bills: tuple[Mapping[str, Any], ...]) -> tuple[list[str], list[Any]]:
    async with Client(server) as client:
        listed = await client.list_tools()
        answers = [await client.call_tool("charge", dict(bill)) for bill in bills]
    return [tool.name for tool in listed.tools], [each.structured_content for each in answers]
