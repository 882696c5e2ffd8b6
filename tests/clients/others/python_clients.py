"""MCP clients for Python, each as its own documentation shows it: `python_clients.py NAME`.

Run by that client's own Python, with `steps.py` beside it. No model takes part: what a framework
would do with a model's tool call is done with a fixed one.
"""

# What a framework brings is in that client's environment, not in the one that checks types.
# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import Any

from steps import Case, case, done, make_steps

NAME = "kb-mcp"


async def python_sdk(at: Case) -> None:
    from mcp import Client, StdioServerParameters
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared._httpx_utils import create_mcp_http_client

    async with AsyncExitStack() as stack:
        server: Any = StdioServerParameters(command=at.command, args=at.args, env=at.env)
        if at.url:
            http = await stack.enter_async_context(create_mcp_http_client(headers=at.headers))
            server = streamable_http_client(at.url, http_client=http)
        client = await stack.enter_async_context(Client(server))

        async def names() -> list[str]:
            return [tool.name for tool in (await client.list_tools()).tools]

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            answer = await client.call_tool(tool, arguments)
            return answer.structured_content or answer.content

        await make_steps(names, call)


async def fastmcp(at: Case) -> None:
    from fastmcp import Client
    from fastmcp.client.transports import StdioTransport, StreamableHttpTransport

    transport: Any = (
        StreamableHttpTransport(at.url, headers=at.headers)
        if at.url
        else StdioTransport(at.command, at.args, env=at.env)
    )
    async with Client(transport) as client:

        async def names() -> list[str]:
            return [tool.name for tool in await client.list_tools()]

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return (await client.call_tool(tool, arguments)).structured_content

        await make_steps(names, call)


async def openai_agents(at: Case, *, strict: bool) -> None:
    from agents import Agent
    from agents.mcp import MCPServerStdio, MCPServerStreamableHttp, MCPUtil
    from agents.run_context import RunContextWrapper
    from agents.tool_context import ToolContext

    made: Any = (
        MCPServerStreamableHttp({"url": at.url, "headers": at.headers})
        if at.url
        else MCPServerStdio({"command": at.command, "args": at.args, "env": at.env})
    )
    async with made as server:
        agent = Agent(name="billing", mcp_servers=[server])
        context = RunContextWrapper(context=None)
        found = await MCPUtil.get_function_tools(server, strict, context, agent)
        tools: dict[str, Any] = {tool.name: tool for tool in found}

        async def names() -> list[str]:
            return list(tools)

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            schema = tools[tool].params_json_schema
            # Where all are required, a model has to write something for each.
            given = {name: arguments.get(name) for name in schema.get("required", ())} | arguments
            if given.get("currency", "usd") is None:
                given["currency"] = "usd"
            text = json.dumps(given)
            asked = ToolContext(
                context=None, tool_name=tool, tool_call_id="call_1", tool_arguments=text
            )
            return await tools[tool].on_invoke_tool(asked, text)

        await make_steps(names, call)


async def pydantic_ai(at: Case) -> None:
    from pydantic_ai.mcp import MCPToolset, StdioTransport, StreamableHttpTransport

    transport: Any = (
        StreamableHttpTransport(at.url, headers=at.headers)
        if at.url
        else StdioTransport(at.command, at.args, env=at.env)
    )
    async with MCPToolset(transport) as toolset:

        async def names() -> list[str]:
            return [tool.name for tool in await toolset.list_tools()]

        await make_steps(names, toolset.direct_call_tool)


async def google_adk(at: Case) -> None:
    from google.adk.tools.mcp_tool import (
        McpToolset,
        StdioConnectionParams,
        StreamableHTTPConnectionParams,
    )
    from mcp import StdioServerParameters

    params: Any = (
        StreamableHTTPConnectionParams(url=at.url, headers=at.headers)
        if at.url
        else StdioConnectionParams(
            server_params=StdioServerParameters(command=at.command, args=at.args, env=at.env),
            timeout=30,
        )
    )
    toolset = McpToolset(connection_params=params)
    tools = {tool.name: tool for tool in await toolset.get_tools()}

    async def names() -> list[str]:
        return list(tools)

    async def call(tool: str, arguments: dict[str, Any]) -> Any:
        # What the framework calls once a model's call is confirmed.
        return await tools[tool].run_async(args=arguments, tool_context=_adk_context())

    await make_steps(names, call)
    await toolset.close()


def _adk_context() -> Any:
    from google.adk.agents import LlmAgent
    from google.adk.agents.invocation_context import InvocationContext
    from google.adk.sessions import InMemorySessionService, Session
    from google.adk.tools.tool_context import ToolContext

    service = InMemorySessionService()
    session = Session(id="s", app_name="a", user_id="u")
    invocation = InvocationContext(
        session_service=service, session=session, invocation_id="i", agent=LlmAgent(name="billing")
    )
    return ToolContext(invocation)


async def mcp_use(at: Case) -> None:
    from mcp_use import MCPClient

    entry: dict[str, Any] = (
        {"url": at.url, "headers": at.headers}
        if at.url
        else {"command": at.command, "args": at.args, "env": at.env}
    )
    client = MCPClient.from_dict({"mcpServers": {NAME: entry}})
    session = await client.create_session(NAME)

    async def names() -> list[str]:
        return [tool.name for tool in await session.list_tools()]

    await make_steps(names, session.call_tool)
    await client.close_all_sessions()


async def llama_index(at: Case) -> None:
    from llama_index.tools.mcp import BasicMCPClient, McpToolSpec

    client = (
        BasicMCPClient(at.url, headers=at.headers)
        if at.url
        else BasicMCPClient(at.command, args=at.args, env=at.env)
    )
    tools = {tool.metadata.name: tool for tool in await McpToolSpec(client).to_tool_list_async()}

    async def names() -> list[str]:
        return list(tools)

    async def call(tool: str, arguments: dict[str, Any]) -> Any:
        return await tools[tool].acall(**arguments)

    await make_steps(names, call)


def _mcp_parameters(at: Case) -> Any:
    from mcp import StdioServerParameters

    if at.url:
        return {"url": at.url, "transport": "streamable-http", "headers": at.headers}
    return StdioServerParameters(command=at.command, args=at.args, env=at.env)


async def crewai(at: Case) -> None:
    from crewai_tools import MCPServerAdapter

    with MCPServerAdapter(_mcp_parameters(at)) as found:
        tools = {tool.name: tool for tool in found}

        async def names() -> list[str]:
            return list(tools)

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return tools[tool].run(**arguments)

        await make_steps(names, call)


async def semantic_kernel(at: Case) -> None:
    from semantic_kernel.connectors.mcp import MCPStdioPlugin, MCPStreamableHttpPlugin

    made: Any = (
        MCPStreamableHttpPlugin(name=NAME, url=at.url, headers=at.headers)
        if at.url
        else MCPStdioPlugin(name=NAME, command=at.command, args=at.args, env=at.env)
    )
    async with made as plugin:

        async def names() -> list[str]:
            return [tool.name for tool in (await plugin.session.list_tools()).tools]

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return await plugin.call_tool(tool, **arguments)

        await make_steps(names, call)


async def autogen(at: Case) -> None:
    from autogen_core import CancellationToken
    from autogen_ext.tools.mcp import (
        StdioServerParams,
        StreamableHttpServerParams,
        mcp_server_tools,
    )

    params: Any = (
        StreamableHttpServerParams(url=at.url, headers=at.headers)
        if at.url
        else StdioServerParams(command=at.command, args=at.args, env=at.env)
    )
    tools = {tool.name: tool for tool in await mcp_server_tools(params)}

    async def names() -> list[str]:
        return list(tools)

    async def call(tool: str, arguments: dict[str, Any]) -> Any:
        return await tools[tool].run_json(arguments, CancellationToken())

    await make_steps(names, call)


async def agent_framework(at: Case) -> None:
    from agent_framework import MCPStdioTool, MCPStreamableHTTPTool

    made: Any = (
        MCPStreamableHTTPTool(NAME, at.url, static_headers=at.headers)
        if at.url
        else MCPStdioTool(NAME, at.command, args=at.args, env=at.env)
    )
    async with made as server:

        async def names() -> list[str]:
            return [function.name for function in server.functions]

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return await server.call_tool(tool, **arguments)

        await make_steps(names, call)


async def smolagents(at: Case) -> None:
    from smolagents import MCPClient

    with MCPClient(_mcp_parameters(at), structured_output=True) as found:
        tools = {tool.name: tool for tool in found}

        async def names() -> list[str]:
            return list(tools)

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return tools[tool](**arguments)

        await make_steps(names, call)


async def agno(at: Case) -> None:
    from agno.tools.mcp import MCPTools, StreamableHTTPClientParams
    from mcp import StdioServerParameters

    made: Any = (
        MCPTools(
            transport="streamable-http",
            server_params=StreamableHTTPClientParams(url=at.url, headers=at.headers),
        )
        if at.url
        else MCPTools(
            server_params=StdioServerParameters(command=at.command, args=at.args, env=at.env)
        )
    )
    async with made as server:
        functions: dict[str, Any] = server.functions

        async def names() -> list[str]:
            return list(functions)

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return await functions[tool].entrypoint(**arguments)

        await make_steps(names, call)


async def dspy(at: Case) -> None:
    import dspy as framework
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    async with AsyncExitStack() as stack:
        if at.url:
            from mcp.client.streamable_http import streamable_http_client
            from mcp.shared._httpx_utils import create_mcp_http_client

            http = await stack.enter_async_context(create_mcp_http_client(headers=at.headers))
            opened = streamable_http_client(at.url, http_client=http)
        else:
            opened = stdio_client(
                StdioServerParameters(command=at.command, args=at.args, env=at.env)
            )
        streams = await stack.enter_async_context(opened)
        session = await stack.enter_async_context(ClientSession(*streams[:2]))
        await session.initialize()
        listed = (await session.list_tools()).tools
        tools = {tool.name: framework.Tool.from_mcp_tool(session, tool) for tool in listed}

        async def names() -> list[str]:
            return list(tools)

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return await tools[tool].acall(**arguments)

        await make_steps(names, call)


async def stripe_python(at: Case) -> None:
    import stripe

    # Every release that is tried has this form; newer ones have StripeClient, too.
    stripe.api_base, stripe.api_key = at.url, at.headers["Authorization"].split()[1]
    bill = {
        "amount": at.bill["amount_cents"],
        "currency": "usd",
        "customer": at.bill["customer_id"],
        "metadata": {"billing_period": at.bill["billing_period"]},
    }
    charge: Any = stripe.Charge.create(**bill)
    done("charge", charge.id)
    done("again", stripe.Charge.create(**bill).id)
    done("status", stripe.Charge.retrieve(charge.id).status)


async def openai_agents_strict(at: Case) -> None:
    await openai_agents(at, strict=True)


async def openai_agents_plain(at: Case) -> None:
    await openai_agents(at, strict=False)


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](case()))
