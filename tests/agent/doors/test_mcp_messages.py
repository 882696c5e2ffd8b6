"""What is no JSON-RPC message is answered as JSON-RPC says, over both transports."""

from __future__ import annotations

import json

import httpx
import pytest

from kb_mcp.agent.doors.mcp.messages import NoMessage, read_message
from tests.agent.conftest import StubProxy
from tests.agent.doors.conftest import either_era

GOOD = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'
PARSE, REQUEST, PARAMS = -32700, -32600, -32602
WRONG: list[tuple[bytes, int, str | int | None]] = [
    (b"\xef\xbb\xbf" + GOOD, PARSE, None),
    (GOOD.decode().encode("utf-16"), PARSE, None),
    (b"{broken", PARSE, None),
    (b"", PARSE, None),
    (b"\xff\xfe\xff", PARSE, None),
    (b'{"jsonrpc": "2.0", "id": 1, "method": "\xe9"}', PARSE, None),
    (b"[" * 100_000, PARSE, None),
    (b'{"jsonrpc": "2.0", "id": NaN, "method": "tools/list"}', PARSE, None),
    (b'{"jsonrpc": "2.0", "id": 1e999, "method": "tools/list"}', PARSE, None),
    (b"[" + GOOD + b"]", REQUEST, None),
    (b"[]", REQUEST, None),
    (b"null", REQUEST, None),
    (b'"tools/list"', REQUEST, None),
    (b"{}", REQUEST, None),
    (b'{"id": 1, "method": "tools/list"}', REQUEST, None),
    (b'{"jsonrpc": "1.0", "id": 1, "method": "tools/list"}', REQUEST, None),
    (b'{"jsonrpc": "2.0", "id": 1}', REQUEST, None),
    (b'{"jsonrpc": "2.0", "id": 2.5, "method": "tools/list"}', REQUEST, None),
    (b'{"jsonrpc": "2.0", "id": 2.0, "method": "tools/list"}', REQUEST, None),
    (b'{"jsonrpc": "2.0", "id": null, "method": "tools/list"}', REQUEST, None),
    (b'{"jsonrpc": "2.0", "id": true, "method": "tools/list"}', REQUEST, None),
    (b'{"jsonrpc": "2.0", "id": [1], "method": "tools/list"}', REQUEST, None),
    (b'{"jsonrpc": "2.0", "id": "a", "method": 5}', REQUEST, "a"),
    (b'{"jsonrpc": "2.0", "id": 7, "method": "tools/list", "params": [1]}', REQUEST, 7),
    (b'{"jsonrpc": "2.0", "id": 7, "method": "x", "params": {"a": "\\ud800"}}', PARAMS, 7),
    (b'{"jsonrpc": "2.0", "id": 7, "method": "x", "params": {"\\udfff": 1}}', PARAMS, 7),
    (b'{"jsonrpc": "2.0", "id": "\\ud800", "method": "x"}', PARAMS, None),
    (b'{"jsonrpc": "2.0", "id": 7, "method": "x", "params": {"a": 1, "a": 2}}', PARAMS, 7),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_is_no_message_is_answered_without_what_it_said(number: int) -> None:
    raw, code, request_id = WRONG[number]

    read = read_message(raw)

    assert isinstance(read, NoMessage)
    assert (read.code, read.request_id) == (code, request_id)
    assert read.document()["id"] == request_id
    json.dumps(read.document(), ensure_ascii=False).encode()
    assert "tools/list" not in read.message


@pytest.mark.parametrize(
    "raw",
    [
        GOOD,
        b" " + GOOD + b"\r",
        b'{"jsonrpc": "2.0", "id": "x", "method": "tools/list", "params": null}',
        b'{"jsonrpc": "2.0", "method": "notifications/initialized"}',
        b'{"jsonrpc": "2.0", "id": 1, "result": {}}',
        b'{"jsonrpc": "2.0", "id": null, "error": {"code": 1, "message": "x"}}',
        '{"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"a": "\\ud83d\\ude00 é"}}'.encode(),
    ],
)
def test_a_message_is_read(raw: bytes) -> None:
    assert isinstance(read_message(raw), dict)


@either_era
def test_over_http_it_is_a_400_with_the_same_error(
    proxy: StubProxy, door: httpx.Client, modern: bool
) -> None:
    version = "2026-07-28" if modern else "2025-11-25"
    headers = {"Content-Type": "application/json", "MCP-Protocol-Version": version}

    for raw, code, request_id in WRONG:
        # In two pieces: a body need not arrive in one.
        pieces = iter([raw[:10], raw[10:]])
        response = door.post("/mcp", content=pieces, headers=headers)

        assert response.status_code == 400
        assert (response.json()["error"]["code"], response.json()["id"]) == (code, request_id)
    assert {seen.path for seen in proxy.seen} == {"/keybrake/v1/key"}
