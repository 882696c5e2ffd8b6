"""MCP over streamable HTTP: whose key it is decides, on every request."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.agent.conftest import Says, Seen, StubProxy, charge, refusal
from tests.agent.doors.conftest import BILL, BOTH, KEY, MODERN, POST, ask, either_era, grants

SNAPSHOT = Path(__file__).parents[3] / "schemas" / "mcp-tools.json"


def call(door: httpx.Client, arguments: dict[str, Any], *, modern: bool) -> Any:
    return ask(door, "tools/call", {"name": "charge", "arguments": arguments}, modern=modern)


@either_era
def test_the_bearer_charges_with_its_own_key(
    proxy: StubProxy, door: httpx.Client, modern: bool
) -> None:
    proxy.on(POST, Says(200, charge()))

    result = call(door, BILL, modern=modern)["result"]

    assert result["structuredContent"]["status"] == "succeeded"
    assert proxy.seen[-1].headers["authorization"] == "Bearer vk_test_x"


@either_era
@pytest.mark.parametrize(
    ("allow", "tools"),
    [
        (BOTH, ["charge", "charge_status"]),
        (BOTH[:1], ["charge"]),
        (BOTH[1:], ["charge_status"]),
        (["POST /v1/payment_intents", "GET /v1/charges"], []),
    ],
    ids=["both", "billing", "audit", "neither"],
)
def test_the_key_decides_which_tools_there_are(
    proxy: StubProxy, door: httpx.Client, modern: bool, allow: list[str], tools: list[str]
) -> None:
    proxy.on(KEY, grants(*allow))

    listed = ask(door, "tools/list", {}, modern=modern)["result"]["tools"]

    assert [tool["name"] for tool in listed] == tools


@either_era
def test_what_is_listed_is_the_committed_snapshot(
    door: httpx.Client, proxy: StubProxy, modern: bool
) -> None:
    proxy.on(KEY, grants(*BOTH, "POST /v1/refunds"))
    snapshot = json.loads(SNAPSHOT.read_text(encoding="utf-8"))

    assert ask(door, "tools/list", {}, modern=modern)["result"]["tools"] == snapshot["tools"]


@either_era
def test_answers_under_one_number_do_not_cross_between_keys(
    proxy: StubProxy, door: httpx.Client, modern: bool
) -> None:
    both = threading.Barrier(2, timeout=60)

    def named_after_its_key(seen: Seen) -> Says:
        both.wait()
        return Says(200, charge(id="ch_" + seen.headers["authorization"][-1]))

    proxy.on(POST, named_after_its_key)

    def charged(key: str) -> str:
        headers = {**door.headers, "authorization": f"Bearer vk_test_{key}"}
        with httpx.Client(base_url=door.base_url, headers=headers, timeout=60) as client:
            answer = call(client, BILL, modern=modern)
            return str(answer["result"]["structuredContent"]["charge_id"])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(charged, "AB")) == ["ch_A", "ch_B"]


@either_era
def test_the_audit_key_calls_charge_as_an_unknown_tool(
    proxy: StubProxy, door: httpx.Client, modern: bool
) -> None:
    proxy.on(KEY, grants(*BOTH[1:]))

    withheld = call(door, BILL, modern=modern)["error"]
    unknown = ask(door, "tools/call", {"name": "x", "arguments": {}}, modern=modern)["error"]

    assert withheld == unknown
    assert unknown["code"] == -32602
    assert {seen.path for seen in proxy.seen} == {"/keybrake/v1/key"}


def test_blanks_around_a_header_are_no_part_of_it(proxy: StubProxy, door: httpx.Client) -> None:
    proxy.on(POST, Says(200, charge()))
    body = {"name": "charge", "arguments": BILL, "_meta": MODERN}
    sent = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": body}
    port = door.base_url.port
    with socket.create_connection(("127.0.0.1", port)) as line:
        text = json.dumps(sent)
        line.sendall(
            f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer vk_test_x\r\n"
            "Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n"
            "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name:  charge  \r\n"
            f"Connection: close\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
        )
        answer = line.makefile("rb").read()

    assert b'"status":"succeeded"' in answer


@either_era
def test_a_key_is_asked_about_on_every_request(
    proxy: StubProxy, door: httpx.Client, modern: bool
) -> None:
    # A list asks twice: whose the bearer is, and then as a request of its own.
    proxy.on(KEY, grants(*BOTH), grants(*BOTH), Says(401, refusal("vault_key_revoked")))

    assert "result" in ask(door, "tools/list", {}, modern=modern)
    assert ask(door, "tools/list", {}, modern=modern)["error"] == "invalid_token"


@pytest.mark.parametrize(
    ("says", "status"),
    [
        (Says(401, refusal("vault_key_unknown")), 401),
        (Says(429, refusal("rate_limited")), 429),
        (Says(503, refusal("draining")), 503),
        (Says(500, "no json"), 503),
        (Says(drop=True), 503),
        (Says(200, {"policy": {}}), 503),
        (Says(200, "[]"), 503),
    ],
    ids=str,
)
def test_a_key_that_cannot_be_looked_up_is_not_served(
    proxy: StubProxy, door: httpx.Client, says: Says, status: int
) -> None:
    proxy.on(KEY, says)

    response = door.post("/mcp", json={})

    assert response.status_code == status
    assert ("WWW-Authenticate" in response.headers) is (status == 401)


@pytest.mark.parametrize("value", ["", "Basic dmsK", "Bearer", "Bearer \xe9", "vk_test_x"])
def test_without_a_bearer_nobody_is_asked(proxy: StubProxy, door: httpx.Client, value: str) -> None:
    response = door.post("/mcp", json={}, headers={b"Authorization": value.encode("latin-1")})

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert "resource_metadata" not in response.headers["WWW-Authenticate"]
    assert proxy.seen == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "pinned.example:1"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "mcp.example"}, 200),
        ({"Host": "mcp.example:1234", "Origin": "https://mcp.example"}, 200),
        ({"Host": "pinned.example:8443"}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
    ],
    ids=str,
)
def test_host_and_origin_are_checked_before_the_key(
    proxy: StubProxy, door: httpx.Client, headers: dict[str, str], status: int
) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}

    response = door.post("/mcp", json=body, headers=headers)

    assert response.status_code == status
    assert bool(proxy.seen) is (status == 200)


def test_a_body_over_four_mebibytes_is_413(door: httpx.Client) -> None:
    big = b'"' + b"x" * (4 * 1024 * 1024) + b'"'

    response = door.post("/mcp", content=big, headers={"Content-Type": "application/json"})

    assert response.status_code == 413


@either_era
def test_a_repeated_name_is_refused(proxy: StubProxy, door: httpx.Client, modern: bool) -> None:
    version = "2026-07-28" if modern else "2025-11-25"
    body = (
        '{"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "charge", '
        '"arguments": {"customer_id": "cus_A", "customer_id": "cus_B", "amount_cents": 1, '
        '"billing_period": "2026-06"}}}'
    )
    headers = {"Content-Type": "application/json", "MCP-Protocol-Version": version}

    response = door.post("/mcp", content=body, headers=headers)

    assert response.status_code == 400
    assert (response.json()["id"], response.json()["error"]["code"]) == (9, -32602)
    assert {seen.path for seen in proxy.seen} == {"/keybrake/v1/key"}


@either_era
@pytest.mark.parametrize(
    "arguments",
    [{**BILL, "amount_cents": "2900"}, {**BILL, "amount_cents": 2900.0}, {**BILL, "x": 1}],
    ids=str,
)
def test_bad_arguments_are_told_to_the_model(
    proxy: StubProxy, door: httpx.Client, modern: bool, arguments: dict[str, Any]
) -> None:
    result = call(door, arguments, modern=modern)["result"]

    assert result["isError"] is True
    assert "Nothing was done." in result["content"][0]["text"]
    assert {seen.path for seen in proxy.seen} == {"/keybrake/v1/key"}


@either_era
def test_a_client_that_hangs_up_does_not_cut_a_charge_off(
    proxy: StubProxy, door: httpx.Client, modern: bool
) -> None:
    arrived, release, answered = threading.Event(), threading.Event(), threading.Event()

    def slowly(_: Seen) -> Says:
        arrived.set()
        release.wait(60)
        answered.set()
        return Says(200, charge())

    proxy.on(POST, slowly)

    def hang_up() -> None:
        with (
            httpx.Client(base_url=door.base_url, headers=door.headers, timeout=0.5) as hasty,
            pytest.raises(httpx.ReadTimeout),
        ):
            call(hasty, BILL, modern=modern)

    caller = threading.Thread(target=hang_up)
    caller.start()
    assert arrived.wait(60)
    caller.join()

    release.set()

    assert answered.wait(60)
    assert "result" in ask(door, "tools/list", {}, modern=modern)
