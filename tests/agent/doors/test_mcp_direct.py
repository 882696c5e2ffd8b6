"""An ordinary tool call is answered without the SDK's machinery, and as the SDK would answer it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.requests import Request

from kb_mcp.agent.doors.mcp.server import read_call
from tests.agent.conftest import Says, StubProxy, charge, refusal
from tests.agent.doors.conftest import BILL, KEY, MODERN, POST, grants

CALL = {"jsonrpc": "2.0", "id": 7, "method": "tools/call"}
MODERN_HEADERS = {
    "MCP-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/call",
    "Mcp-Name": "charge",
}
OLDER = {"MCP-Protocol-Version": "2025-06-18"}
ORDINARY: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "2025-03-26": ({"name": "charge", "arguments": BILL}, {}),
    "older": ({"name": "charge", "arguments": BILL}, OLDER),
    "progress": ({"name": "charge", "arguments": BILL, "_meta": {"progressToken": 1}}, OLDER),
    "2026-07-28": ({"name": "charge", "arguments": BILL, "_meta": MODERN}, MODERN_HEADERS),
    "bad arguments": ({"name": "charge", "arguments": {**BILL, "amount_cents": "x"}}, OLDER),
    "no arguments": ({"name": "charge"}, OLDER),
    "bad, 2026-07-28": ({"name": "charge", "arguments": {}, "_meta": MODERN}, MODERN_HEADERS),
}
BARE_META = {name: value for name, value in MODERN.items() if "clientInfo" not in name}
ODD: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "another tool": ({"name": "x", "arguments": {}}, OLDER),
    "no name": ({"arguments": BILL}, OLDER),
    "arguments in a list": ({"name": "charge", "arguments": [1]}, OLDER),
    "a version of tomorrow": ({"name": "charge", "arguments": BILL}, {**OLDER,
        "MCP-Protocol-Version": "2099-01-01"}),
    "no json wanted": ({"name": "charge", "arguments": BILL}, {**OLDER, "Accept": "text/html"}),
    "no json sent": ({"name": "charge", "arguments": BILL}, {**OLDER, "Content-Type": "text/x"}),
    "a list as progress": (
        {"name": "charge", "arguments": BILL, "_meta": {"progressToken": []}}, OLDER),
    "no envelope": ({"name": "charge", "arguments": BILL}, MODERN_HEADERS),
    "a client without a name": ({"name": "charge", "arguments": BILL, "_meta": {
        **MODERN, "io.modelcontextprotocol/clientInfo": {"version": "1"}}}, MODERN_HEADERS),
    "capabilities of another type": ({"name": "charge", "arguments": BILL, "_meta": {
        **BARE_META, "io.modelcontextprotocol/clientCapabilities": {"sampling": 7}}},
        MODERN_HEADERS),
    "another method named": ({"name": "charge", "arguments": BILL, "_meta": MODERN},
        {**MODERN_HEADERS, "Mcp-Method": "tools/list"}),
    "another tool named": ({"name": "charge", "arguments": BILL, "_meta": MODERN},
        {**MODERN_HEADERS, "Mcp-Name": "refund"}),
}  # fmt: skip


def said(answer: httpx.Response) -> object:
    in_json = answer.headers.get("content-type") == "application/json"
    return answer.json() if in_json else answer.text


def answers(
    door: httpx.Client, params: Any, headers: dict[str, str]
) -> tuple[httpx.Response, httpx.Response]:
    """Return what the door answers, and what the SDK does: a member of no meaning is left to it."""
    sent = {**CALL, "params": params}
    direct = door.post("/mcp", json=sent, headers=headers)
    return direct, door.post("/mcp", json={**sent, "x": 1}, headers=headers)


@pytest.mark.parametrize("case", [*ORDINARY, *ODD])
def test_a_call_is_answered_as_the_sdk_would(
    proxy: StubProxy, door: httpx.Client, case: str
) -> None:
    proxy.on(POST, Says(200, charge()))

    direct, by_sdk = answers(door, *(ORDINARY | ODD)[case])

    assert direct.status_code == by_sdk.status_code
    assert direct.headers.get("content-type") == by_sdk.headers.get("content-type")
    assert said(direct) == said(by_sdk)


@pytest.mark.parametrize(
    "says",
    [Says(402, refusal("card_declined")), Says(429, refusal("rate_limited")),
     Says(503, refusal("draining"), {"Stripe-Should-Retry": "false"}), Says(200, "no json")],
    ids=["declined", "limited", "draining", "unreadable"],
)  # fmt: skip
@pytest.mark.parametrize("era", ["older", "2026-07-28"])
def test_what_the_proxy_refuses_is_told_as_by_the_sdk(
    proxy: StubProxy, door: httpx.Client, says: Says, era: str
) -> None:
    proxy.on(POST, says)

    direct, by_sdk = answers(door, *ORDINARY[era])

    assert direct.json() == by_sdk.json()


def test_a_key_without_the_tool_is_told_as_by_the_sdk(proxy: StubProxy, door: httpx.Client) -> None:
    proxy.on(KEY, grants("GET /v1/charges/*"))

    direct, by_sdk = answers(door, *ORDINARY["older"])

    assert direct.json() == by_sdk.json()
    assert direct.json()["error"]["code"] == -32602


@pytest.mark.parametrize("case", [*ORDINARY, *ODD])
def test_only_an_ordinary_call_is_taken_from_the_sdk(case: str) -> None:
    params, headers = (ORDINARY | ODD)[case]
    named = {"Accept": "application/json", "Content-Type": "application/json", **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in named.items()]

    read = read_call(Request({"type": "http", "headers": raw}), {**CALL, "params": params})

    assert (read is None) is (case in ODD and case != "another tool")
    assert read_call(Request({"type": "http", "headers": []}), {**CALL, "params": params}) is None
