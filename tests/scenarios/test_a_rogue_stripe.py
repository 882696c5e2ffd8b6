"""A Stripe on a real socket that charges, and then says it as badly as bytes allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.in_process_proxy import InProcessProxy
from tests.raw_stripe import KEY, Asked, Raw, RawStripe, error, raw_stripe
from tests.scenarios.acts import broken_invariants


@pytest.fixture
def stripe() -> Iterator[RawStripe]:
    with raw_stripe() as stripe:
        yield stripe


@pytest.fixture
def proxy(stripe: RawStripe, tmp_path: Path) -> Iterator[InProcessProxy]:
    environ = {"KEYBRAKE_STRIPE_KEY": KEY, "KEYBRAKE_STRIPE_API_BASE": stripe.url}
    with InProcessProxy(tmp_path, **environ) as proxy:
        proxy.begin_day()
        yield proxy


def head(*lines: str, status: str = "200 OK") -> Callable[[bytes], bytes]:
    """Return a head of these lines; LENGTH stands for the body's."""

    def written(body: bytes) -> bytes:
        text = "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""])
        return text.replace("LENGTH", str(len(body))).encode("latin-1")

    return written


LENGTH = "Content-Length: LENGTH"
HEADS: dict[str, Callable[[bytes], bytes]] = {
    "a date of the year 99999": head(LENGTH, "Date: Mon, 01 Jan 99999 00:00:00 GMT"),
    "a date that is none": head(LENGTH, "Date: yesterday"),
    "an empty date": head(LENGTH, "Date: "),
    "a date of numbers": head(LENGTH, "Date: 1 2 3 4 5 6 7 8"),
    "a request id of 20 kB": head(LENGTH, "Request-Id: " + "r" * 20_000),
    "a request id in latin-1": head(LENGTH, "Request-Id: \xe9\xff"),
    "a replay that is none": head(LENGTH, "Idempotent-Replayed: maybe"),
    "a retry that is none": head(LENGTH, "Retry-After: never", "Stripe-Should-Retry: x"),
    "gzip that is none": head(LENGTH, "Content-Encoding: gzip"),
    "a type of its own": head(LENGTH, "Content-Type: text/html; charset=utf-7"),
    "a cookie": head(LENGTH, "Set-Cookie: a=b"),
    "201": head(LENGTH, status="201 Created"),
    "203": head(LENGTH, status="203 Non-Authoritative Information"),
    "no length": head(),
    "a redirect": head(LENGTH, "Location: http://127.0.0.1:1/", status="302 Found"),
    "308": head(LENGTH, "Location: /v1/charges", status="308 Permanent Redirect"),
    "418": head(LENGTH, status="418 Teapot"),
    "999": head(LENGTH, status="999 Odd"),
    "HTTP/0.9": lambda _: b"",
    "two lengths": head(LENGTH, "Content-Length: 3"),
    "too long": head("Content-Length: 99999"),
    "chunks that are none": head("Transfer-Encoding: chunked"),
    "a header without an end": lambda _: b"HTTP/1.1 200 OK\r\nX",
}


@pytest.mark.parametrize("what", HEADS)
def test_however_an_answer_is_written_there_is_one_charge_and_no_lease_is_kept(
    proxy: InProcessProxy, stripe: RawStripe, what: str
) -> None:
    key = proxy.issue(daily={"usd": 2900})

    def script(asked: Asked) -> Raw | None:
        if asked.method != "POST":
            return None
        body = stripe.behave(asked).body or b""
        return Raw(200, body, head=HEADS[what](body))

    stripe.script = script
    first = proxy.charge(key, period="2026-11")
    (operation,) = proxy.operations()
    assert operation.lease_owner is None
    state = "unknown" if first.status_code == 504 else "succeeded"
    assert first.status_code in {200, 201, 203, 504}
    assert operation.state == state
    assert operation.held == 2900
    stripe.script = lambda _: None
    proxy.run(proxy.proxy.recovery.run())
    again = proxy.charge(key, period="2026-11")
    assert again.json()["id"] == stripe.made()[0]["id"]
    assert len(stripe.made()) == 1
    assert broken_invariants(proxy) == []


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 429, 500])
@pytest.mark.parametrize(
    "code", ["", "x" * 10_000, "a\0b", "\x1b[2J", None, 7, ["x"], {"a": {}}, "\N{SNOWMAN}"]
)
def test_an_error_of_any_code_is_kept_and_told_without_a_fault(
    proxy: InProcessProxy, stripe: RawStripe, status: int, code: object
) -> None:
    key = proxy.issue()

    def script(asked: Asked) -> Raw | None:
        return error(status, code) if asked.method == "POST" else None  # type: ignore[arg-type] # as wrong as it may be

    stripe.script = script
    answer = proxy.charge(key, period="2026-11")
    assert answer.status_code in {status, 502, 504}
    (operation,) = proxy.operations()
    assert operation.lease_owner is None
    assert operation.state.value in {"failed", "unknown"}
    assert operation.code is None or len(operation.code) <= 100
    assert stripe.made() == []
    assert broken_invariants(proxy) == []
