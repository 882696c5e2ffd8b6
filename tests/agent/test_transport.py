"""The line into an ASGI app of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import CallContext
from kb_mcp.agent.catalogue import ChargeArguments, ToolName
from kb_mcp.agent.outcomes import ProxyUnavailableError
from kb_mcp.in_process import AsgiTransport, start_loop
from tests.agent.conftest import charge

BILL = ChargeArguments(customer_id="cus_Abc123", amount_cents=2900, billing_period="2026-06")


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made, stop = start_loop()
    yield made
    stop()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    body = b" ".join(
        (scope["method"].encode(), scope["raw_path"], scope["query_string"], message["body"])
    )
    await send({"type": "http.response.start", "status": 201, "headers": [(b"x-a", b"1")]})
    await send({"type": "http.response.body", "body": body[:5], "more_body": True})
    await send({"type": "http.response.body", "body": body[5:]})


def test_a_request_arrives_and_its_answer_comes_back(loop: asyncio.AbstractEventLoop) -> None:
    with httpx.Client(transport=AsgiTransport(echo, loop)) as client:
        response = client.post("http://embedded/a%2Fb?c=d", content=b"body")

    assert (response.status_code, response.headers["x-a"]) == (201, "1")
    assert response.content == b"POST /a%2Fb c=d body"


def test_billing_speaks_to_an_embedded_app(loop: asyncio.AbstractEventLoop) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert scope["path"] == "/stripe/v1/charges"
        body = httpx.Response(200, json=charge()).content
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    transport = AsgiTransport(app, loop)
    billing = Billing({ToolName.CHARGE: "vk_test_x"}, "http://embedded", transport=transport)

    assert billing.charge(BILL, CallContext()).charge_id == "ch_1"
    billing.close()


@pytest.mark.parametrize("starts", [True, False])
def test_an_app_that_breaks_may_have_acted(loop: asyncio.AbstractEventLoop, starts: bool) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        if starts:
            raise ConnectionError(scope["path"], receive, send)

    with (
        httpx.Client(transport=AsgiTransport(broken, loop)) as client,
        pytest.raises(httpx.ReadError),
    ):
        client.get("http://embedded/")


def test_a_caller_that_stops_waiting_does_not_stop_the_app(
    loop: asyncio.AbstractEventLoop,
) -> None:
    release, ended = threading.Event(), threading.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        del scope, receive
        await asyncio.to_thread(release.wait, 60)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        ended.set()

    with httpx.Client(transport=AsgiTransport(slow, loop), timeout=0.01) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.get("http://embedded/")
        release.set()

        assert ended.wait(60)


def test_a_loop_that_has_stopped_sends_nothing() -> None:
    loop, stop = start_loop()
    stop()
    transport = AsgiTransport(echo, loop)
    billing = Billing({ToolName.CHARGE: "vk_test_x"}, "http://embedded", transport=transport)

    with pytest.raises(ProxyUnavailableError):
        billing.charge(BILL, CallContext())
    billing.close()
