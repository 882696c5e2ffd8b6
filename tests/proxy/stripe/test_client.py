"""What a send to Stripe proves, over real sockets, and that nothing is sent twice or elsewhere."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.proxy.stripe.client import StripeUpstream
from kb_mcp.proxy.stripe.messages import Answered, Lost, NotSent, UpstreamAnswer, UpstreamRequest
from tests.proxy.peer import (
    OK,
    Call,
    Script,
    answer,
    flood,
    hang_up,
    peer,
    reset,
    reset_in_the_body,
    say_nothing,
    self_signed,
    speak_no_http,
    stall_in_the_body,
    stop_in_a_chunk,
    stop_in_the_body,
    stop_in_the_head,
)  # fmt: skip

KEY = "rk_test_51Secret"
TIMEOUT_MS = 10_000  # no test waits for it, except those that say so


def upstream_to(base_url: str, timeout_ms: int = TIMEOUT_MS, now_ms: int = 0) -> StripeUpstream:
    return StripeUpstream(
        base_url=base_url, api_key=KEY, timeout_ms=timeout_ms, boottime_ms=lambda: now_ms
    )


def charge(key: str = "k", path: str = "/v1/charges") -> UpstreamRequest:
    return UpstreamRequest(
        method="POST",
        path=path,
        body=b"amount=2900&currency=usd",
        stripe_version="2026-10-28.endive",
        idempotency_key=key,
    )


async def send_once(
    upstream: StripeUpstream, request: UpstreamRequest | None = None
) -> UpstreamAnswer:
    try:
        return await upstream.send(request or charge(), deadline_ms=1)
    finally:
        await upstream.aclose()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_a_request_arrives_whole_and_as_it_was_given() -> None:
    async def scenario() -> None:
        async with peer(answer) as stripe:
            request = UpstreamRequest(
                method="POST",
                path="/v1/charges?expand[]=customer",
                body=b"amount=2900&metadata[a]=%20b",
                stripe_version="2026-10-28.endive",
                idempotency_key="38de2d05",
                trace={"traceparent": "00-1-2-01", "authorization": "Bearer other"},
            )
            await send_once(upstream_to(stripe.url), request)
        (call,) = stripe.calls
        assert call.line == "POST /v1/charges?expand[]=customer HTTP/1.1"
        assert call.body == b"amount=2900&metadata[a]=%20b"
        assert call.headers == {
            "host": stripe.url.removeprefix("http://"),
            "authorization": f"Bearer {KEY}",
            "content-type": "application/x-www-form-urlencoded",
            "content-length": str(len(call.body)),
            "idempotency-key": "38de2d05",
            "stripe-version": "2026-10-28.endive",
            "traceparent": "00-1-2-01",
            "user-agent": "kb-mcp",
            "accept": "*/*",
        }

    run(scenario())


def test_a_read_has_no_body_and_no_key() -> None:
    async def scenario() -> None:
        async with peer(answer) as stripe:
            request = UpstreamRequest("GET", "/v1/charges/ch_1", None, None, None)
            assert await send_once(upstream_to(stripe.url), request) == Answered(200, b"{}", {})
        sent = stripe.calls[0].headers.keys()
        assert sent == {"host", "authorization", "user-agent", "accept"}

    run(scenario())


def test_of_the_answers_headers_only_the_useful_ones_pass() -> None:
    async def with_headers(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 402 Payment Required\r\nRequest-Id: req_1\r\nSet-Cookie: a=b\r\n"
            b"Stripe-Should-Retry: false\r\nOriginal-Request: r\xe9q\r\nContent-Length: 2\r\n\r\n{}"
        )

    async def scenario() -> None:
        async with peer(with_headers) as stripe:
            upstream = upstream_to(stripe.url)
            await upstream.send(charge(), deadline_ms=1)
            found = await send_once(upstream)
        kept = {"request-id": "req_1", "stripe-should-retry": "false"}
        assert found == Answered(402, b"{}", kept)
        assert "cookie" not in stripe.calls[1].headers

    run(scenario())


def test_a_compressed_answer_stays_as_it_came() -> None:
    async def compressed(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08"
        )

    async def scenario() -> None:
        async with peer(compressed) as stripe:
            assert await send_once(upstream_to(stripe.url)) == Answered(200, b"\x1f\x8b\x08", {})

    run(scenario())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_is_not_followed(status: int) -> None:
    async def scenario() -> None:
        async with peer(answer) as elsewhere:

            async def redirect(call: Call) -> None:
                await call.write(
                    b"HTTP/1.1 %d Moved\r\nLocation: %s/v1/charges\r\nContent-Length: 0\r\n\r\n"
                    % (status, elsewhere.url.encode())
                )

            async with peer(redirect) as stripe:
                assert await send_once(upstream_to(stripe.url)) == Answered(status, b"", {})
            assert elsewhere.connections == 0

    run(scenario())


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (reset, "connection_broke"),
        (hang_up, "connection_broke"),
        (stop_in_the_head, "connection_broke"),
        (stop_in_the_body, "connection_broke"),
        (reset_in_the_body, "connection_broke"),
        (stop_in_a_chunk, "connection_broke"),
        (speak_no_http, "connection_broke"),
        (flood, "answer_too_large"),
    ],
)
def test_a_request_that_arrived_is_lost_when_the_answer_breaks(script: Script, reason: str) -> None:
    async def scenario() -> None:
        async with peer(script) as stripe:
            assert await send_once(upstream_to(stripe.url)) == Lost(reason)
        assert len(stripe.calls) == 1

    run(scenario())


@pytest.mark.parametrize("script", [say_nothing, stall_in_the_body])
def test_a_request_that_arrived_is_lost_when_the_answer_takes_too_long(script: Script) -> None:
    async def scenario() -> None:
        async with peer(script) as stripe:
            assert await send_once(upstream_to(stripe.url, timeout_ms=1_000)) == Lost("timeout")
        assert len(stripe.calls) == 1

    run(scenario())


def test_a_refused_connection_proves_that_nothing_was_sent() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        found = asyncio.run(_send_to(url))
    assert found == NotSent("upstream_unreachable")


def test_a_name_that_does_not_resolve_proves_that_nothing_was_sent() -> None:
    found = asyncio.run(_send_to("https://stripe.invalid"))
    assert found == NotSent("upstream_unreachable")


def test_a_handshake_that_takes_too_long_proves_that_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system connects, nobody speaks
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        found = asyncio.run(send_once(upstream_to(url, timeout_ms=3_000)))
    assert found == NotSent("upstream_unreachable")


async def _send_to(url: str) -> UpstreamAnswer:
    return await send_once(upstream_to(url))


def test_an_authority_that_is_named_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "peer.pem"))

    async def scenario() -> None:
        async with peer(answer, tls=tls) as stripe:
            assert isinstance(await send_once(upstream_to(stripe.url)), Answered)

    run(scenario())


def test_a_certificate_nobody_vouches_for_proves_that_nothing_was_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        async with peer(answer, tls=self_signed(tmp_path)) as stripe:
            assert await send_once(upstream_to(stripe.url)) == NotSent("upstream_unreachable")
        assert stripe.calls == []

    run(scenario())
    assert "Stripe cannot be reached: invalid peer certificate" in caplog.text


def test_a_full_pool_proves_that_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kb_mcp.proxy.stripe.client.CONNECTIONS_MAX", 1)
    monkeypatch.setattr("kb_mcp.proxy.stripe.client.POOL_TIMEOUT_MS", 100)

    async def scenario() -> None:
        arrived, leave = asyncio.Event(), asyncio.Event()

        async def wait(call: Call) -> None:
            arrived.set()
            await leave.wait()
            await call.write(OK)

        async with peer(wait) as stripe:
            upstream = upstream_to(stripe.url)
            first = asyncio.create_task(upstream.send(charge("first"), deadline_ms=1))
            await arrived.wait()
            second = await upstream.send(charge("second"), deadline_ms=1)
            leave.set()
            assert second == NotSent("pool_timeout")
            assert await first == Answered(200, b"{}", {})
            await upstream.aclose()
        assert [call.headers["idempotency-key"] for call in stripe.calls] == ["first"]

    run(scenario())


def test_nothing_is_sent_after_the_deadline() -> None:
    async def scenario() -> None:
        async with peer(answer) as stripe:
            upstream = upstream_to(stripe.url, now_ms=2)
            assert await send_once(upstream) == NotSent("deadline_passed")
        assert stripe.connections == 0

    run(scenario())


@pytest.mark.parametrize(
    "request_",
    [
        charge(path="v1/charges"),
        charge(path="/v1/charges#ch_1"),
        charge(path="/v1/charges\r\nHost: evil.example"),
        charge(path="/v1\\charges"),
        charge(path="/v1/charges?a=ü"),
        charge(key="two\r\nlines"),
    ],
)
def test_what_http_cannot_carry_unchanged_is_not_sent(request_: UpstreamRequest) -> None:
    async def scenario() -> None:
        async with peer(answer) as stripe:
            upstream = upstream_to(stripe.url)
            assert await send_once(upstream, request_) == NotSent("request_invalid")
        assert stripe.connections == 0

    run(scenario())


def test_an_idle_connection_that_was_closed_is_replaced() -> None:
    async def last_answer(call: Call) -> None:
        await call.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        call.close()

    async def scenario() -> None:
        async with peer(last_answer) as stripe:
            upstream = upstream_to(stripe.url)
            for _ in range(3):
                assert await upstream.send(charge(), deadline_ms=1) == Answered(200, b"{}", {})
            await upstream.aclose()
        assert (len(stripe.calls), stripe.connections) == (3, 3)

    run(scenario())


@pytest.mark.parametrize("end", [Call.close, Call.reset])
def test_no_request_arrives_twice_when_idle_connections_die(end: Callable[[Call], None]) -> None:
    async def answer_and_end(call: Call) -> None:
        await call.write(OK)  # it promises to stay, and goes: the next request races with that
        end(call)

    async def scenario() -> None:
        keys = [f"k{number}" for number in range(300)]
        async with peer(answer_and_end) as stripe:
            upstream = upstream_to(stripe.url)
            found = [await upstream.send(charge(key), deadline_ms=1) for key in keys]
            await upstream.aclose()
        copies = Counter(call.headers["idempotency-key"] for call in stripe.calls)
        for key, outcome in zip(keys, found, strict=True):
            match outcome:
                case Answered():
                    assert copies[key] == 1
                case NotSent():
                    assert copies[key] == 0
                case Lost():
                    assert copies[key] <= 1

    run(scenario())


def test_a_kept_connection_that_breaks_under_a_request_is_not_tried_again() -> None:
    async def first_only(call: Call) -> None:
        if call.headers["idempotency-key"] == "first":
            await call.write(OK)
        else:
            call.reset()

    async def scenario() -> None:
        async with peer(first_only) as stripe:
            upstream = upstream_to(stripe.url)
            await upstream.send(charge("first"), deadline_ms=1)
            found = await upstream.send(charge("second"), deadline_ms=1)
            await upstream.aclose()
        assert found == Lost("connection_broke")
        assert [call.headers["idempotency-key"] for call in stripe.calls] == ["first", "second"]
        assert stripe.connections == 1

    run(scenario())


def test_the_environment_leads_the_key_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login someone password else\n")

    async def scenario() -> None:
        async with peer(answer) as proxy, peer(answer) as stripe:
            for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, proxy.url)
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.setenv("NETRC", str(netrc))
            monkeypatch.setenv("HOME", str(tmp_path))
            assert await send_once(upstream_to(stripe.url)) == Answered(200, b"{}", {})
            assert proxy.connections == 0
        assert stripe.calls[0].headers["authorization"] == f"Bearer {KEY}"

    run(scenario())


def test_the_key_shows_in_no_text() -> None:
    upstream = upstream_to("http://127.0.0.1:1")
    assert KEY not in f"{upstream!r} {upstream}"
    asyncio.run(upstream.aclose())
