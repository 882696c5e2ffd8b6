"""An application in Stripe's place, driven in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kb_mcp.in_process import AsgiApp
from kb_mcp.proxy.stripe.client import InProcessUpstream
from kb_mcp.proxy.stripe.messages import Answered, Lost, UpstreamAnswer, UpstreamRequest
from kb_mcp.sandbox.app import Sandbox

KEY = "rk_test_51Secret"
TIMEOUT_MS = 10_000
CREATE = UpstreamRequest("POST", "/v1/customers", b"name=A", None, None)


def app_that(*messages: dict[str, Any], error: Exception | None = None) -> AsgiApp:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope
        await receive()
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    return app


START = {"type": "http.response.start", "status": 200, "headers": []}
HALF = {"type": "http.response.body", "body": b"{", "more_body": True}


@pytest.mark.parametrize(
    ("app", "outcome"),
    [
        (app_that(START, HALF, HALF | {"more_body": False}), Answered(200, b"{{", {})),
        (app_that(START, HALF), Lost("connection_broke")),
        (app_that(START), Lost("connection_broke")),
        (app_that(), Lost("connection_broke")),
        (app_that(START, HALF, error=ConnectionResetError()), Lost("connection_broke")),
        (app_that(error=ValueError("a bug")), Lost("connection_broke")),
    ],
)
def test_an_app_in_process_is_judged_like_a_peer(app: AsgiApp, outcome: UpstreamAnswer) -> None:
    assert (
        asyncio.run(InProcessUpstream(app, KEY, TIMEOUT_MS).send(CREATE, deadline_ms=1)) == outcome
    )


def test_an_app_in_process_that_never_answers_times_out() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope, send
        while True:  # the second message never comes: the caller does not hang up
            await receive()

    assert asyncio.run(InProcessUpstream(app, KEY, 50).send(CREATE, deadline_ms=1)) == Lost(
        "timeout"
    )


def test_the_sandbox_in_process_charges_and_drops() -> None:
    async def scenario() -> None:
        ids = iter(range(1000))
        sandbox = Sandbox(None, clock=lambda: 0, new_id=lambda: f"{next(ids):014d}")
        upstream = InProcessUpstream(sandbox, KEY, TIMEOUT_MS)
        made = await upstream.send(CREATE, deadline_ms=1)
        assert isinstance(made, Answered)
        assert made.status == 200
        assert made.headers.keys() >= {"request-id", "date", "content-type"}
        fault = UpstreamRequest(
            "POST",
            "/_sandbox/faults",
            b'[{"match": "POST /v1/customers", "kind": "drop_after", "times": 1}]',
            None,
            None,
        )
        assert isinstance(await upstream.send(fault, deadline_ms=1), Answered)
        assert await upstream.send(CREATE, deadline_ms=1) == Lost("connection_broke")
        assert isinstance(await upstream.send(CREATE, deadline_ms=1), Answered)
        await upstream.aclose()
        sandbox.close()

    asyncio.run(scenario())
