"""MCP over stdio, in a process of its own, in both protocol eras."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.agent.conftest import (
    BILLING_KEY,
    TRACE,
    Says,
    Seen,
    StubProxy,
    charge,
    refusal,
    serve_stub,
)

POST = "POST /stripe/v1/charges"
BILL = {"customer_id": "cus_Abc123", "amount_cents": 2900, "billing_period": "2026-06"}
SERVER = """
import sys, anyio
from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ToolName
from kb_mcp.agent.client.network import NetworkLine
from kb_mcp.agent.doors.mcp.server import create_server
from kb_mcp.agent.doors.mcp.stdio import serve_stdio
billing = Billing({ToolName(name): sys.argv[2] for name in sys.argv[3:]}, NetworkLine(sys.argv[1]))
# What a handler prints by accident must not reach the client.
anyio.run(serve_stdio, create_server(lambda request: print("stray") or billing))
"""
PING = b'{"jsonrpc": "2.0", "id": 5, "method": "ping", "params": {}}'
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "tester", "version": "1"},
}


class Client:
    """Speaks lines of JSON-RPC with a server process."""

    def __init__(self, proxy: StubProxy, *tools: str, modern: bool = False) -> None:

        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, proxy.url, BILLING_KEY, *tools],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.modern = modern
        self.count = 0
        if not modern:
            client = {"name": "tester", "version": "1"}
            hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
            self.ask("initialize", hello)
            self.write('{"jsonrpc": "2.0", "method": "notifications/initialized"}')

    def write(self, line: str | bytes) -> None:
        assert self.process.stdin is not None
        raw = line if isinstance(line, bytes) else line.encode()
        self.process.stdin.write(raw + b"\n")
        self.process.stdin.flush()

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, method: str, params: dict[str, Any] | None = None) -> Any:
        self.count += 1
        params = dict(params or {})
        if self.modern:
            params["_meta"] = {**params.get("_meta", {}), **MODERN}
        self.write(
            json.dumps({"jsonrpc": "2.0", "id": self.count, "method": method, "params": params})
        )
        answer = self.read()
        assert answer["id"] == self.count
        return answer

    def call(self, name: str, arguments: dict[str, Any]) -> Any:
        return self.ask("tools/call", {"name": name, "arguments": arguments})

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def stub() -> Iterator[StubProxy]:
    with serve_stub() as made:
        yield made


@pytest.fixture
def proxy(stub: StubProxy) -> StubProxy:
    stub.seen.clear()
    stub.answers.clear()
    return stub


@pytest.fixture(scope="module", params=["legacy", "modern"])
def modern(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "modern")


# A process is dear, so that tests which leave it as it was share one.
@pytest.fixture(scope="module")
def client(stub: StubProxy, modern: bool) -> Iterator[Client]:
    made = Client(stub, "charge", "charge_status", modern=modern)
    yield made
    made.close()


def test_tools_are_listed_and_charge(proxy: StubProxy, client: Client) -> None:
    proxy.on(POST, Says(200, charge()))

    listed = client.ask("tools/list")["result"]["tools"]
    result = client.call("charge", BILL)["result"]

    assert [tool["name"] for tool in listed] == ["charge", "charge_status"]
    assert result["isError"] is False
    assert result["structuredContent"]["charge_id"] == "ch_1"
    assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
    assert proxy.seen[0].headers["keybrake-agent"] == "tester"


@pytest.mark.parametrize(
    "arguments",
    [{**BILL, "amount_cents": "2900"}, {**BILL, "amount_cents": 2900.0}, {**BILL, "x": 1}, {}],
)
def test_bad_arguments_are_told_to_the_model_and_reach_nobody(
    proxy: StubProxy, client: Client, arguments: dict[str, Any]
) -> None:
    result = client.call("charge", arguments)["result"]

    assert result["isError"] is True
    assert "structuredContent" not in result
    assert "Nothing was done." in result["content"][0]["text"]
    assert "pydantic" not in result["content"][0]["text"]
    assert proxy.seen == []


def test_a_repeated_name_is_refused_before_the_last_one_wins(
    proxy: StubProxy, client: Client
) -> None:
    meta = f', "_meta": {json.dumps(MODERN)}' if client.modern else ""
    client.write(
        '{"jsonrpc": "2.0", "id": "dup", "method": "tools/call", "params": {"name": "charge", '
        '"arguments": {"customer_id": "cus_A", "amount_cents": 1, "amount_cents": 2, '
        f'"billing_period": "2026-06"}}{meta}}}}}'
    )

    answer = client.read()

    assert (answer["id"], answer["error"]["code"]) == ("dup", -32602)
    assert proxy.seen == []


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"\xef\xbb\xbf" + PING, -32700, None),
        (b"{broken", -32700, None),
        (b"\xff", -32700, None),
        (b"[" + PING + b"]", -32600, None),
        (PING.replace(b"5", b"2.5"), -32600, None),
        (PING.replace(b"{}", b'{"a": "\\ud800"}'), -32602, 5),
    ],
)
def test_a_line_that_is_no_message_is_answered(
    client: Client, line: bytes, code: int, request_id: int | None
) -> None:
    client.write(line)

    answer = client.read()

    assert (answer["error"]["code"], answer["id"]) == (code, request_id)
    assert "result" in client.ask("tools/list")


def test_an_empty_line_is_no_line(client: Client) -> None:
    client.write(" \r\n")

    assert "result" in client.ask("tools/list")


HELLO: dict[str, Any] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "tester", "version": "1"},
}
DISCOVER = {"jsonrpc": "2.0", "id": "d", "method": "server/discover", "params": {"_meta": MODERN}}


@pytest.mark.parametrize("discoveries", [1, 3])
def test_a_handshake_after_a_discovery_opens_the_older_era(
    proxy: StubProxy, discoveries: int
) -> None:
    proxy.on(POST, Says(200, charge()))
    client = Client(proxy, "charge", modern=True)

    # All at once: a client that has waited for long does not wait for the late answer.
    for number in range(discoveries):
        client.write(json.dumps({**DISCOVER, "id": f"d{number}"}))
    cancelled = {"requestId": "d0", "reason": "timeout"}
    client.write(
        json.dumps({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancelled})
    )
    client.modern = False
    client.write(json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}))
    answers = {}
    while 0 not in answers:
        answer = client.read()
        answers[answer["id"]] = answer
    client.write('{"jsonrpc": "2.0", "method": "notifications/initialized"}')
    charged = client.call("charge", BILL)

    assert answers[0]["result"]["protocolVersion"] == "2025-11-25"
    assert charged["result"]["structuredContent"]["status"] == "succeeded"
    client.close()


def test_a_handshake_after_a_call_of_the_newer_era_is_refused(proxy: StubProxy) -> None:
    client = Client(proxy, "charge", modern=True)
    client.ask("server/discover")
    client.ask("tools/list")

    answer = client.ask("initialize", HELLO)

    assert answer["error"]["data"]["supported"] == ["2026-07-28"]
    client.close()


def test_a_client_that_ends_its_input_still_gets_the_answers(proxy: StubProxy) -> None:
    proxy.on(POST, Says(200, charge()))
    client = Client(proxy, "charge", modern=True)
    assert client.process.stdin is not None

    params = {"name": "charge", "arguments": BILL, "_meta": MODERN}
    sent = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    client.process.stdin.write(json.dumps(sent).encode())  # without a newline
    client.process.stdin.close()

    assert client.read()["result"]["structuredContent"]["status"] == "succeeded"
    client.close()
    assert client.process.returncode == 0


def test_a_tool_whose_key_is_missing_is_an_unknown_tool(proxy: StubProxy) -> None:
    client = Client(proxy, "charge_status")

    listed = client.ask("tools/list")["result"]["tools"]
    withheld, unknown = client.call("charge", BILL), client.call("refund", {})

    assert [tool["name"] for tool in listed] == ["charge_status"]
    assert withheld["error"] == unknown["error"]
    assert unknown["error"]["code"] == -32602
    assert proxy.seen == []
    client.close()


@pytest.mark.parametrize(("meta", "trace"), [(TRACE, TRACE), ({"traceparent": "x"}, {})])
def test_a_trace_is_handed_on(
    proxy: StubProxy, client: Client, meta: dict[str, str], trace: dict[str, str]
) -> None:
    proxy.on(POST, Says(200, charge()))

    client.ask("tools/call", {"name": "charge", "arguments": BILL, "_meta": meta})

    assert proxy.seen[0].trace == trace


def test_a_refusal_is_an_answer_and_an_outage_an_error(proxy: StubProxy, client: Client) -> None:
    down = Says(503, refusal("draining"), {"Stripe-Should-Retry": "false"})
    proxy.on(POST, Says(403, refusal("spend_cap_exceeded")), down)

    refused = client.call("charge", BILL)["result"]
    outage = client.call("charge", BILL)["result"]

    assert (refused["isError"], refused["structuredContent"]["status"]) == (False, "refused")
    assert (outage["isError"], "structuredContent" in outage) == (True, False)


@pytest.mark.parametrize("how", ["cancelled", "eof"])
def test_a_charge_under_way_is_not_cut_off(proxy: StubProxy, modern: bool, how: str) -> None:
    arrived, release, answered = threading.Event(), threading.Event(), threading.Event()

    def slowly(_: Seen) -> Says:
        arrived.set()
        release.wait(60)
        answered.set()
        return Says(200, charge())

    proxy.on(POST, slowly)
    client = Client(proxy, "charge", modern=modern)
    meta = {"_meta": MODERN} if modern else {}
    params = {"name": "charge", "arguments": BILL, **meta}
    client.write(json.dumps({"jsonrpc": "2.0", "id": 77, "method": "tools/call", "params": params}))
    assert arrived.wait(60)
    if how == "cancelled":
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 77}}
        client.write(json.dumps(note))
    assert client.process.stdin is not None
    assert client.process.stdout is not None
    client.process.stdin.close()
    assert client.process.poll() is None

    release.set()

    assert client.process.wait(60) == 0
    assert answered.is_set()
    assert [seen.path for seen in proxy.seen] == ["/stripe/v1/charges"]
    client.process.stdout.close()
