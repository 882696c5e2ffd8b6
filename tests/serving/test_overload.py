"""Requests that are turned away unread: which, and what their connections come to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from kb_mcp.serving.listener import Conversation, Limits
from kb_mcp.serving.overload import OverloadGate, stays_after
from tests.attacks.wire import Wire, ask
from tests.serving.test_listener import answer, listening

HEAD = b"POST /v1/charges HTTP/1.1\r\nHost: localhost\r\n"
CHARGE = HEAD + b"Content-Length: 8\r\n\r\namount=1"
GET = b"GET /stripe/v1/charges/ch_1?expand=a HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "stays"),
    [
        (CHARGE, True),
        (GET, True),
        (GET.replace(b"1.1", b"1.0"), False),
        (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), False),
        # Not whole, or more than one: the listener reads on, or closes after the first.
        (CHARGE[:-1], None),
        (HEAD, None),
        (HEAD[:20], None),
        (CHARGE * 2, None),
        (CHARGE + b"G", None),
        # Framed in a way that is for the listener to judge.
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None),
        (HEAD + b"TRANSFER-Encoding: chunked\r\nContent-Length: 8\r\n\r\namount=1", None),
        (GET.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"), None),
        (CHARGE.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"), None),
        (HEAD + b"Content-Length: 8\r\nContent-Length: 8\r\n\r\namount=1", None),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", None),
        # Not Stripe's surface: health is told, whatever the crowd.
        (GET.replace(b"/stripe/v1/charges/ch_1?expand=a", b"/healthz"), None),
        (CHARGE.replace(b"/v1/charges", b"/mcp"), None),
        (GET.replace(b"/stripe/v1", b"http://localhost/v1"), None),
    ],
)  # fmt: skip
def test_only_what_is_plainly_one_whole_request_can_be_turned_away_unread(
    data: bytes, stays: bool | None
) -> None:
    assert stays_after(data) is stays


def test_who_entered_counts_until_the_application_has_seen_it() -> None:
    queued: list[Callable[[], None]] = []

    class Loop:
        call_soon = queued.append

    loop = cast("asyncio.AbstractEventLoop", Loop())
    free = 2
    gate = OverloadGate(lambda: free)
    for shut in (False, False, True):
        assert gate.shut() is shut
        gate.enter(loop)
    assert len(queued) == 1
    queued.pop()()
    free = 1  # the application has counted one of them
    assert not gate.shut()
    gate.enter(loop)
    assert (gate.shut(), len(queued)) == (True, 1)


async def never(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError(f"it was asked for {scope['raw_path']!r}")


def test_a_crowd_is_turned_away_and_may_ask_again_on_its_connection() -> None:
    free = 0
    with listening(answer, free=lambda: free) as (address, noted), Wire(address) as wire:
        for _ in range(3):
            wire.send(CHARGE)
            away = wire.answer()
            assert away is not None
            assert (away.status, away.code) == (503, "overloaded")
            assert away.headers["stripe-should-retry"] == "true"
            assert away.headers["request-id"] == "req_1"
        free = 1
        wire.send(CHARGE)
        taken = wire.answer()
        assert taken is not None
        assert taken.body == b"/v1/charges|"
        assert noted == {"overloaded": 3}


def test_who_would_close_is_turned_away_and_closed() -> None:
    closing = CHARGE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with listening(never, free=lambda: 0) as (address, noted):
        away = ask(address, closing, closes=True)
        assert (away.code, away.headers["connection"]) == ("overloaded", "close")
        assert noted == {"overloaded": 1}


def test_what_is_not_for_the_crowd_is_served_all_the_same() -> None:
    with listening(answer, free=lambda: 0) as (address, noted):
        health = ask(address, GET.replace(b"/stripe/v1/charges/ch_1?expand=a", b"/healthz"))
        assert (health.status, health.body) == (200, b"/healthz|")
        assert noted == {}


def test_a_request_in_two_pieces_is_judged_by_the_application() -> None:
    with listening(answer, free=lambda: 0) as (address, noted), Wire(address) as wire:
        wire.send(CHARGE[:60])
        wire.send(CHARGE[60:])
        told = wire.answer()
        assert told is not None
        assert (told.status, noted) in [(200, {}), (503, {"overloaded": 1})]  # or it came as one


@dataclass(eq=False)
class Timer:
    when: float
    what: Callable[[], None]
    timers: list[Timer]

    def cancel(self) -> None:
        self.timers.remove(self)


class Idle:
    """The loop and the transport of one connection, with a clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.written: list[bytes] = []
        self.closed = False

    def time(self) -> float:
        return self.now

    def call_later(self, after_s: float, what: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + after_s, what, self.timers))
        return self.timers[-1]

    def pass_to(self, now: float) -> None:
        self.now = now
        for timer in [each for each in self.timers if each.when <= now]:
            timer.cancel()
            timer.what()

    def get_extra_info(self, _name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True


def test_a_connection_is_idle_from_when_it_was_last_turned_away() -> None:
    idle = Idle()
    limits = Limits(idle_ms=75_000)
    config = uvicorn.Config(never, http="httptools", lifespan="off", log_config=None)
    config.timeout_keep_alive = limits.idle_ms // 1000
    talk = Conversation(
        config, ServerState(), {}, cast("Any", idle),
        limits=limits, note=lambda _: None, new_id=lambda kind: f"{kind}_1",
        gate=OverloadGate(lambda: 0),
    )  # fmt: skip
    talk.connection_made(cast("Any", idle))
    for now in (1.0, 40.0, 70.0):
        idle.pass_to(now)
        talk.data_received(CHARGE)
    assert (len(idle.written), len(idle.timers)) == (3, 1)
    idle.pass_to(76.0)
    assert (idle.closed, [each.when for each in idle.timers]) == (False, [145.0])
    idle.pass_to(145.0)
    assert (idle.closed, idle.timers) == (True, [])
