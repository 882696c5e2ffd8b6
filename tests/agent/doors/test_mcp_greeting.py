"""The greeting says what the SDK says, or leaves it to the SDK."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from kb_mcp.agent.doors.mcp.messages import HANDSHAKE_VERSIONS, STATELESS_VERSION, Greeter
from kb_mcp.agent.doors.mcp.server import create_server

CLIENT = {"name": "tester", "version": "1"}
META = "io.modelcontextprotocol/"


def hello(version: Any, capabilities: Any = None, client: Any = CLIENT) -> dict[str, Any]:
    capabilities = {} if capabilities is None else capabilities
    params = {"protocolVersion": version, "capabilities": capabilities, "clientInfo": client}
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


def discover(version: Any, capabilities: Any = None, **more: Any) -> dict[str, Any]:
    capabilities = {} if capabilities is None else capabilities
    meta = {f"{META}protocolVersion": version, f"{META}clientCapabilities": capabilities}
    named = {f"{META}{name}": value for name, value in more.items()}
    params = {"_meta": {**meta, **named}}
    return {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": params}


def sdk_says(message: dict[str, Any]) -> Any:
    said = []

    async def ask() -> None:
        server = create_server(lambda _: pytest.fail("nobody is asked"))
        inward, messages = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        answers, outward = anyio.create_memory_object_stream[SessionMessage](0)
        async with anyio.create_task_group() as group:
            options = server.create_initialization_options()
            group.start_soon(server.run, messages, answers, options)
            async with inward, outward:
                await inward.send(SessionMessage(jsonrpc_message_adapter.validate_python(message)))
                answer = await outward.receive()
                said.append(answer.message.model_dump_json(by_alias=True, exclude_unset=True))

    anyio.run(ask)
    return json.loads(said[0])


ORDINARY = [
    *(hello(version) for version in (*HANDSHAKE_PROTOCOL_VERSIONS, "2026-07-28", "1999-01-01", "")),
    hello("2025-11-25", {"roots": {"listChanged": True}, "sampling": {}, "elicitation": {}}),
    hello("2025-11-25", {}, {**CLIENT, "title": "T", "websiteUrl": "https://x.example"}),
    *(discover(version) for version in MODERN_PROTOCOL_VERSIONS),
    discover("2026-07-28", {"elicitation": {"form": {}}}, clientInfo=CLIENT),
]


@pytest.mark.parametrize("message", ORDINARY, ids=str)
def test_a_client_is_greeted_as_the_sdk_would_greet_it(message: dict[str, Any]) -> None:
    greeter = Greeter()

    answer = greeter(json.dumps(message).encode())

    assert answer is not None
    assert json.loads(answer) == sdk_says(message)
    assert greeter.answered == {1}


@pytest.mark.parametrize(
    "message",
    [
        hello(None),
        hello("2025-11-25", []),
        hello("2025-11-25", {"roots": True}),
        hello("2025-11-25", {}, {"name": "tester"}),
        hello("2025-11-25", {}, None),
        discover("2027-01-01"),
        discover("2026-07-28", "none"),
        discover("2026-07-28", {}, clientInfo="x"),
        {"jsonrpc": "2.0", "id": 1, "method": "server/discover"},
        {"jsonrpc": "2.0", "id": 1, "method": "initialize"},
        {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
        {"jsonrpc": "2.0", "method": "initialize", "params": hello("2025-11-25")["params"]},
        {"jsonrpc": "2.0", "id": 2.5, "method": "initialize"},
    ],
    ids=str,
)
def test_what_is_out_of_the_ordinary_is_left_to_the_sdk(message: dict[str, Any]) -> None:
    greeter = Greeter()

    assert greeter(json.dumps(message).encode()) is None
    assert greeter.answered == set()


def test_the_versions_are_those_of_the_sdk() -> None:
    assert HANDSHAKE_PROTOCOL_VERSIONS == HANDSHAKE_VERSIONS
    assert MODERN_PROTOCOL_VERSIONS == (STATELESS_VERSION,)
