"""MCP over streamable HTTP: sessions that are labels, traces, and what is not served."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.agent.conftest import TRACE, Says, StubProxy, charge
from tests.agent.doors.conftest import BILL, KEY, MODERN, POST, ask, either_era, grants


def test_a_session_id_of_the_platform_is_accepted_and_recorded(
    proxy: StubProxy, door: httpx.Client
) -> None:
    proxy.on(POST, Says(200, charge()))
    given = {"name": "charge", "arguments": BILL}

    answer = ask(door, "tools/call", given, modern=False, **{"Mcp-Session-Id": "platform-7"})

    assert answer["result"]["isError"] is False
    assert proxy.seen[-1].headers["keybrake-session"] == "platform-7"


OTHER = {"traceparent": TRACE["traceparent"].replace("0af7", "beef")}


@either_era
@pytest.mark.parametrize(
    ("headers", "meta", "trace"),
    [
        (TRACE, {}, TRACE),
        ({}, TRACE, TRACE),
        (OTHER, TRACE, TRACE),
        (TRACE, {"traceparent": "x"}, TRACE),
        (TRACE, {"traceparent": 7, "tracestate": ["x"]}, TRACE),
        ({"traceparent": "x", "tracestate": "vendor=1"}, {}, {}),
    ],
    ids=["header", "meta", "both", "bad meta", "meta of other types", "bad header"],
)
def test_a_trace_is_handed_on(
    proxy: StubProxy,
    door: httpx.Client,
    modern: bool,
    headers: dict[str, str],
    meta: dict[str, Any],
    trace: dict[str, str],
) -> None:
    proxy.on(POST, Says(200, charge()))
    given = {"name": "charge", "arguments": BILL, "_meta": meta}

    answer = ask(door, "tools/call", given, modern=modern, **headers)

    assert answer["result"]["isError"] is False
    assert proxy.seen[-1].trace == trace


def test_a_trace_that_is_named_twice_is_none(proxy: StubProxy, door: httpx.Client) -> None:
    proxy.on(POST, Says(200, charge()))
    call = {"name": "charge", "arguments": BILL}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    twice = [("traceparent", TRACE["traceparent"]), ("traceparent", OTHER["traceparent"])]

    door.post("/mcp", json=body, headers=[*door.headers.multi_items(), *twice])

    assert [seen.trace for seen in proxy.seen] == [{}, {}]


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "tester", "version": "1"},
    },
}


def test_an_initialized_client_gets_a_session_id_of_its_own(
    proxy: StubProxy, door: httpx.Client
) -> None:
    proxy.on(POST, Says(200, charge()))

    opened = [door.post("/mcp", json=INITIALIZE) for _ in range(2)]
    ids = [answer.headers["mcp-session-id"] for answer in opened]
    given = {"name": "charge", "arguments": BILL}
    ask(door, "tools/call", given, modern=False, **{"Mcp-Session-Id": ids[1]})

    assert [answer.status_code for answer in opened] == [200, 200]
    assert ids == ["session-1", "session-2"]
    assert proxy.seen[-1].headers["keybrake-session"] == "session-2"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (INITIALIZE, {"Mcp-Session-Id": "platform-7"}),
        ({**INITIALIZE, "method": "tools/list", "params": {"_meta": {"x": "initialize"}}}, {}),
        ({**INITIALIZE, "params": {"_meta": MODERN}}, {"MCP-Protocol-Version": "2026-07-28"}),
        ([INITIALIZE], {}),
        ('"initialize"', {}),
        ("initialize", {}),
    ],
    ids=["platform", "another method", "modern era", "a batch", "a text", "no json"],
)
def test_nobody_else_is_given_one(door: httpx.Client, body: Any, headers: dict[str, str]) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    sent = {"Content-Type": "application/json", **headers}

    assert "mcp-session-id" not in door.post("/mcp", content=content, headers=sent).headers


def test_a_session_id_carries_nobodys_rights(proxy: StubProxy, door: httpx.Client) -> None:
    opened = door.post("/mcp", json=INITIALIZE).headers["mcp-session-id"]
    proxy.on(KEY, grants("GET /v1/charges/*"))
    given = {"name": "charge", "arguments": BILL}

    answer = ask(door, "tools/call", given, modern=False, **{"Mcp-Session-Id": opened})

    assert answer["error"]["code"] == -32602
    assert {seen.path for seen in proxy.seen} == {"/keybrake/v1/key"}


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
def test_there_is_no_stream_to_open_and_no_session_to_end(
    door: httpx.Client, method: str, version: str
) -> None:
    headers = {"MCP-Protocol-Version": version, "Mcp-Session-Id": "session-1"}

    answer = door.request(method, "/mcp", headers=headers)

    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


def test_the_list_may_be_cached_only_by_the_key_that_asked(door: httpx.Client) -> None:
    result = ask(door, "tools/list", {}, modern=True)["result"]

    assert result["cacheScope"] == "private"
    assert result["resultType"] == "complete"


@either_era
@pytest.mark.parametrize("kind", ["resources", "prompts"])
def test_there_are_no_resources_and_no_prompts(door: httpx.Client, modern: bool, kind: str) -> None:
    assert ask(door, f"{kind}/list", {}, modern=modern)["result"][kind] == []


@either_era
def test_a_resource_that_is_read_is_none_of_ours(door: httpx.Client, modern: bool) -> None:
    uri = "file:///etc/passwd"
    named = {"Mcp-Name": uri} if modern else {}

    error = ask(door, "resources/read", {"uri": uri}, modern=modern, **named)["error"]

    assert error == {"code": -32602, "message": "Resource not found", "data": {"uri": uri}}


@pytest.mark.parametrize("method", ["prompts/get", "completion/complete"])
def test_what_is_not_served_is_method_not_found(door: httpx.Client, method: str) -> None:
    given: dict[str, dict[str, Any]] = {
        "prompts/get": {"name": "x"},
        "completion/complete": {
            "ref": {"type": "ref/prompt", "name": "x"},
            "argument": {"name": "x", "value": ""},
        },
    }

    assert ask(door, method, given[method], modern=False)["error"]["code"] == -32601
