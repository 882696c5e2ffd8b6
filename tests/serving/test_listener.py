"""A listener: its limits, made small, and an application that never answers by itself."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from kb_mcp.in_process import start_loop
from kb_mcp.proxy.errors.refusals import Code, Refusal
from kb_mcp.serving.listener import Limits, head_fault, listen, room, unbounded
from kb_mcp.wiring.serve import bind
from tests.attacks.wire import Wire, ask

GET = b"GET /v1/charges HTTP/1.1\r\nHost: localhost\r\n\r\n"
SMALL = Limits(
    head_bytes=300, headers=5, head_within_ms=200, body_within_ms=200, idle_ms=1000, connections=3
)
NEVER = 600_000


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Answer at once, without reading the body."""
    body = scope["raw_path"] + b"|" + scope["query_string"]
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def read(scope: Any, receive: Any, send: Any) -> None:
    """Read the body, and answer it."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    await answer(scope, receive, send)


App = Callable[[Any, Any, Any], Awaitable[None]]


@contextmanager
def listening(
    app: App, limits: Limits | None = None, free: Callable[[], int] = unbounded
) -> Iterator[tuple[tuple[str, int], Counter[str]]]:
    noted: Counter[str] = Counter()

    def note(code: str) -> None:
        noted[code] += 1

    loop, stop_loop = start_loop()
    sock = bind("127.0.0.1", 0)
    server = listen(app, note=note, new_id=lambda kind: f"{kind}_1", free=free, limits=limits)
    serving = asyncio.run_coroutine_threadsafe(server.serve(sockets=[sock]), loop)
    sock.listen()  # from here on a connection waits for the server instead of being refused
    try:
        yield sock.getsockname(), noted
    finally:
        server.should_exit = True
        serving.result(30)
        stop_loop()


@pytest.mark.parametrize("sent", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: lo"])
def test_a_head_that_does_not_arrive_is_answered(sent: bytes) -> None:
    with listening(answer, SMALL) as (address, noted):
        late = ask(address, sent, closes=True)
        assert (late.status, late.code) == (400, "body_invalid")
        assert late.headers["request-id"] == "req_1"
        assert noted == {"body_invalid": 1}


def test_a_body_that_does_not_arrive_is_answered_for_any_application() -> None:
    with listening(read, SMALL) as (address, noted):
        late = ask(address, b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na", closes=True)
        assert (late.status, late.code) == (400, "body_invalid")
        assert noted == {"body_invalid": 1}


def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    with listening(answer, SMALL) as (address, noted), Wire(address) as wire:
        assert wire.rest() == b""
        assert noted == {}


def test_a_connection_that_waits_for_nothing_more_is_closed() -> None:
    with listening(answer, SMALL) as (address, _), Wire(address) as wire:
        wire.send(GET)
        assert wire.answer() is not None
        assert wire.rest() == b""


@pytest.mark.parametrize("extra", [b"X-A: " + b"y" * 300 + b"\r\n", b"X: y\r\n" * 5])
def test_a_large_head_is_refused_whole_or_cut(extra: bytes) -> None:
    with listening(answer, SMALL) as (address, noted):
        for end in (b"\r\n", b""):
            head = GET.removesuffix(b"\r\n") + extra + end
            refused = ask(address, head, closes=True)
            assert refused.code == ("body_too_large" if end or len(head) > 300 else "body_invalid")
        assert sum(noted.values()) == 2


def test_one_connection_too_many_is_told_to_come_back() -> None:
    limits = Limits(connections=3, head_within_ms=NEVER)
    with listening(answer, limits) as (address, noted), ExitStack() as stack:
        for _ in range(3):
            wire = stack.enter_context(Wire(address))
            wire.send(GET)
            assert wire.answer() is not None
        refused = ask(address, b"", closes=True)
        assert (refused.status, refused.code) == (503, "overloaded")
        assert refused.headers["stripe-should-retry"] == "true"
        assert noted == {"overloaded": 1}


def test_who_does_not_read_answers_is_cut_off() -> None:
    ended = threading.Event()

    async def much(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1_000):
            await send({"type": "http.response.body", "body": b"a" * 65_536, "more_body": True})
        ended.set()

    with listening(much, Limits(answer_within_ms=200)) as (address, _), Wire(address) as wire:
        wire.send(GET)
        assert ended.wait(30), "it still waits for its reader"
        assert len(wire.rest()) < 1_000 * 65_536


def test_target_and_query_arrive_as_they_were_sent() -> None:
    with listening(answer, SMALL) as (address, _):
        target = b"/stripe//v1/%63harges?a=%zz?b"
        got = ask(address, GET.replace(b"/v1/charges", target))
        assert got.body == b"/stripe//v1/%63harges|a=%zz?b"


HOST = (b"host", b"localhost")


@pytest.mark.parametrize(
    ("url", "headers", "version", "code"),
    [
        (b"/v1", [HOST], "1.1", None),
        (b"/v1", [HOST], "1.0", None),
        (b"/v1?a=b", [HOST, (b"transfer-encoding", b"Chunked")], "1.1", None),
        (b"*", [HOST], "1.1", Code.PATH_INVALID),
        (b"http://localhost/v1", [HOST], "1.1", Code.PATH_INVALID),
        (b"/v1#x", [HOST], "1.1", Code.PATH_INVALID),
        (b"/v1\x7f", [HOST], "1.1", Code.PATH_INVALID),
        (b"/v1", [HOST], "2.0", Code.BODY_INVALID),
        (b"/v1", [HOST], "0.9", Code.BODY_INVALID),
        (b"/v1", [(b"transfer-encoding", b"gzip, chunked")], "1.1", Code.BODY_INVALID),
        (b"/v1", [(b"transfer-encoding", b"chunked")] * 2, "1.1", Code.BODY_INVALID),
        (b"/v1", [(b"transfer-encoding", b"chunked")], "1.0", Code.BODY_INVALID),
        (b"/v1", [(b"upgrade", b"h2c")], "1.1", Code.BODY_INVALID),
    ],
)
def test_a_head_is_taken_or_refused(
    url: bytes, headers: list[tuple[bytes, bytes]], version: str, code: Code | None
) -> None:
    fault = head_fault(url, headers, version)
    assert (fault.code if isinstance(fault, Refusal) else None) == code


def test_connections_leave_files_for_the_store() -> None:
    assert room(16) == 16
    assert 16 <= room(10**9) < 10**9
