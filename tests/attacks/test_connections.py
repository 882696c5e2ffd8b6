"""Connections: slow clients, requests behind requests, and those who hang up."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.attacks.attack import BILL, Attack, octets
from tests.attacks.attacked_proxy import AttackedProxy, Issued
from tests.attacks.wire import Answer, Wire

FAMILY = "connections"
PACE_S = 0.5
_LINE = b"POST /v1/charges HTTP/1.1\r\nHost: localhost\r\n"
_FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"


def _head(key: Issued, more: bytes, path: bytes = b"/v1/charges") -> bytes:
    line = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
    return line + key.token.encode() + b"\r\n" + _FORM + more + b"\r\n"


def _bill(attacked: AttackedProxy, key: Issued, **headers: str) -> bytes:
    lines = tuple(f"{name}: {value}" for name, value in headers.items())
    return octets(
        attacked, Attack(family=FAMILY, name="", code=None, headers=lines, form=BILL), key
    )


def _trickle(wire: Wire, octet: bytes) -> None:
    """Send `octet` again and again, at a pace, until the peer answers or leaves."""
    wire.socket.settimeout(PACE_S)
    while True:
        try:
            arrived = wire.socket.recv(65_536, socket.MSG_PEEK)
        except TimeoutError:
            wire.send(octet)
        except ConnectionResetError:
            return
        else:
            del arrived
            wire.socket.settimeout(30)
            return


# What is sent at first, what is trickled after it, what answers, whether the key is on record.
_SLOW: dict[str, tuple[Callable[[Issued], bytes], bytes | None, str | None, bool]] = {
    "half a request line": (lambda _: b"POST /v1/char", None, "body_invalid", False),
    "headers without an end": (lambda _: _LINE, None, "body_invalid", False),
    "headers, a byte at a time": (lambda _: _LINE + b"X-A: ", b"y", "body_invalid", False),
    "a header at a time": (lambda _: _LINE, b"X-A: y\r\n", "body_invalid", False),
    "nothing at all": (lambda _: b"", None, None, False),
    "no body": (lambda key: _head(key, b"Content-Length: 9\r\n"), None, "body_invalid", True),
    "a body, a byte at a time": (
        lambda key: _head(key, b"Content-Length: 900\r\n"), b"a", "body_invalid", True),
    "a body behind a refusal": (
        lambda _: _LINE + b"Content-Length: 900\r\n\r\n", b"a", "vault_key_missing", False),
    "chunks without an end": (
        lambda key: _head(key, b"Transfer-Encoding: chunked\r\n"), b"1\r\na\r\n", "body_invalid",
        True),
}  # fmt: skip


@pytest.fixture(scope="module")
def slow(attacked: AttackedProxy) -> Iterator[dict[str, tuple[Issued, Future[Answer | None]]]]:
    """Let all slow clients be slow at the same time."""

    def dawdle(key: Issued, name: str) -> Answer | None:
        first, trickled, _, _ = _SLOW[name]
        with Wire(attacked.agents) as wire:
            wire.send(first(key))
            if trickled is not None:
                _trickle(wire, trickled)
            answer = wire.answer()
            wire.rest()
            return answer

    with ThreadPoolExecutor(len(_SLOW)) as pool:
        keys = {name: attacked.issue() for name in _SLOW}
        yield {name: (key, pool.submit(dawdle, key, name)) for name, key in keys.items()}


@pytest.mark.parametrize("name", _SLOW)
def test_a_slow_client_is_let_go(
    attacked: AttackedProxy, slow: dict[str, tuple[Issued, Future[Answer | None]]], name: str
) -> None:
    before = attacked.reached()
    _, _, code, on_record = _SLOW[name]
    key, future = slow[name]
    answer = future.result(60)
    assert (None if answer is None else answer.code) == code
    assert attacked.reached() == before
    if on_record:
        assert [row["code"] for row in attacked.rows(key)] == [code]
    elif code is not None:
        attacked.expected[code] += 1


@pytest.mark.parametrize("count", [2, 10])
def test_requests_behind_a_request_are_not_read(attacked: AttackedProxy, count: int) -> None:
    key = attacked.issue()
    requests, charges = attacked.reached()
    with Wire(attacked.agents) as wire:
        wire.send(b"".join(_bill(attacked, key) for _ in range(count)))
        answer = wire.answer()
        assert answer is not None
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert wire.rest() == b""
    assert attacked.reached() == (requests + 1, charges + 1)


def test_garbage_behind_a_request_does_not_answer_for_it(attacked: AttackedProxy) -> None:
    key = attacked.issue()
    charges = attacked.reached()[1]
    with Wire(attacked.agents) as wire:
        wire.send(_bill(attacked, key) + b"\x00garbage\r\n\r\n")
        answer = wire.answer()
        assert answer is not None
        assert answer.status == 200
        assert wire.rest() == b""
    assert attacked.reached()[1] == charges + 1


def test_a_request_sent_while_another_is_under_way_is_not_read(attacked: AttackedProxy) -> None:
    key = attacked.issue()
    charges = attacked.reached()[1]
    fault = {"match": "POST /v1/charges", "kind": "delay", "seconds": 1}
    assert attacked.stripe.post("/_sandbox/faults", json=[fault]).status_code == 200
    with Wire(attacked.agents) as wire:
        wire.send(_bill(attacked, key))
        wire.send(_bill(attacked, key))
        answer = wire.answer()
        assert answer is not None
        assert answer.status == 200
        assert wire.rest() == b""
    assert attacked.reached()[1] == charges + 1


def test_a_body_cut_short_charges_nothing(attacked: AttackedProxy) -> None:
    key = attacked.issue()
    before = attacked.reached()
    with Wire(attacked.agents) as wire:
        wire.send(_bill(attacked, key)[:-10])
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.answer() is None
    # Another request of the key is answered behind it, so that the row is there.
    assert _ask(attacked, key, b"GET /v1/charges/ch_1 HTTP/1.1").code == "vault_key_not_authorized"
    codes = {row["code"] for row in attacked.rows(key)}
    assert codes == {"body_invalid", "vault_key_not_authorized"}
    assert attacked.reached() == before


def test_who_hangs_up_after_a_charge_finds_it_made_once(attacked: AttackedProxy) -> None:
    key = attacked.issue()
    charges = attacked.reached()[1]
    fault = {"match": "POST /v1/charges", "kind": "delay", "seconds": 1}
    assert attacked.stripe.post("/_sandbox/faults", json=[fault]).status_code == 200
    request = _bill(attacked, key)
    with Wire(attacked.agents) as wire:
        wire.send(request)
    with Wire(attacked.agents) as wire:
        wire.send(request)
        answer = wire.answer()
    assert answer is not None
    assert answer.status == 200
    assert attacked.reached()[1] == charges + 1


@pytest.mark.parametrize("size", [65_537, 1_000_000, 50_000_000])
def test_a_large_body_is_refused_before_it_is_read(attacked: AttackedProxy, size: int) -> None:
    key = attacked.issue()
    before = attacked.reached()
    with Wire(attacked.agents) as wire:
        wire.send(_head(key, b"Content-Length: %d\r\n" % size))
        answer = wire.answer()
        assert answer is not None
        assert (answer.status, answer.code) == (413, "body_too_large")
        wire.send(b"a" * min(size, 4_000_000))
        if size > 1_048_576:
            assert wire.rest() == b""
    assert [row["code"] for row in attacked.rows(key)] == ["body_too_large"]
    assert attacked.reached() == before


def test_a_large_chunked_body_is_refused_while_it_is_read(attacked: AttackedProxy) -> None:
    key = attacked.issue()
    before = attacked.reached()
    with Wire(attacked.agents) as wire:
        wire.send(_head(key, b"Transfer-Encoding: chunked\r\n"))
        wire.send((b"4000\r\n" + b"a" * 0x4000 + b"\r\n") * 6)
        answer = wire.answer()
    assert answer is not None
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert [row["code"] for row in attacked.rows(key)] == ["body_too_large"]
    assert attacked.reached() == before


def test_who_asks_to_continue_is_told_so_only_with_a_key(attacked: AttackedProxy) -> None:
    with Wire(attacked.agents) as wire:
        wire.send(_LINE + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        answer = wire.answer()
    assert answer is not None
    assert (answer.status, answer.code) == (401, "vault_key_missing")
    attacked.expected["vault_key_missing"] += 1
    key = attacked.issue()
    charges = attacked.reached()[1]
    head, _, body = _bill(attacked, key, Expect="100-continue").partition(b"\r\n\r\n")
    with Wire(attacked.agents) as wire:
        wire.send(head + b"\r\n\r\n")
        assert wire.socket.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 100"
        wire.send(body)
        answer = wire.answer()
    assert answer is not None
    assert answer.status == 200
    assert attacked.reached()[1] == charges + 1


def _ask(attacked: AttackedProxy, key: Issued, line: bytes) -> Answer:
    with Wire(attacked.agents) as wire:
        head = line + b"\r\nHost: localhost\r\nAuthorization: Bearer "
        wire.send(head + key.token.encode() + b"\r\n\r\n")
        answer = wire.answer()
        assert answer is not None
        return answer
