"""The line into an ASGI app of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import Unavailable, call_tool
from kb_mcp.agent.catalogue import ChargeArguments, ToolName
from kb_mcp.agent.client.in_process import InProcessLine
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.outcomes import ProxyUnavailableError
from kb_mcp.in_process import start_loop
from tests.agent.conftest import charge

BILL = ChargeArguments(customer_id="cus_Abc123", amount_cents=2900, billing_period="2026-06")
NOBODY = CallContext()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made, stop = start_loop()
    yield made
    stop()


def billing(app: Any, loop: asyncio.AbstractEventLoop | None) -> Billing:
    return Billing({ToolName.CHARGE: "vk_test_x"}, InProcessLine(app, loop))


async def charging(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    assert scope["path"] == "/stripe/v1/charges"
    body = httpx.Response(200, json=charge()).content
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body[:5], "more_body": True})
    await send({"type": "http.response.body", "body": body[5:]})


def test_a_thread_is_answered_by_the_app_on_its_loop(loop: asyncio.AbstractEventLoop) -> None:
    assert billing(charging, loop).charge(BILL, NOBODY).charge_id == "ch_1"


def test_the_loop_of_the_app_is_asked_without_a_thread() -> None:
    made = billing(charging, None)

    assert made.on_loop
    assert asyncio.run(made.run(BILL, NOBODY)).status == "succeeded"


@pytest.mark.parametrize("starts", [True, False])
def test_an_app_that_breaks_may_have_acted(loop: asyncio.AbstractEventLoop, starts: bool) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        if starts:
            raise ConnectionError(scope["path"], receive, send)

    assert billing(broken, loop).charge(BILL, NOBODY).status == "unknown"


def test_a_loop_that_has_stopped_sends_nothing() -> None:
    loop, stop = start_loop()
    stop()
    made = billing(charging, loop)

    with pytest.raises(ProxyUnavailableError):
        made.charge(BILL, NOBODY)
    answer = call_tool(made, "charge", BILL.model_dump(exclude_none=True), NOBODY)
    assert isinstance(answer, Unavailable)
