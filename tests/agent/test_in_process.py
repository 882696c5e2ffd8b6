"""The line into an ASGI app of this process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import Unavailable, call_tool
from kb_mcp.agent.catalogue import ChargeArguments, ToolName
from kb_mcp.agent.client.line import CallContext, InProcessLine
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


def test_the_loop_of_the_app_is_not_asked_from_a_thread() -> None:
    asked: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append((scope, receive, send))

    with pytest.raises(ProxyUnavailableError):
        billing(app, None).charge(BILL, NOBODY)
    assert asked == []


FORKED = """
import os, signal, sys
from kb_mcp.agent.calls import call_tool
from kb_mcp.agent.client.line import CallContext, InProcessLine
from kb_mcp.settings import load_settings
from kb_mcp.wiring.agent import connect_billing

billing = connect_billing(load_settings())
bill = {"customer_id": "cus_A1", "amount_cents": 2900, "billing_period": "2026-06"}
child = os.fork()
if child == 0:
    signal.alarm(20)  # as long as the parent lives, nothing else would end it
    print(type(call_tool(billing, "charge", bill, CallContext())).__name__, flush=True)
    sys.exit()
print(os.waitpid(child, 0)[1])
"""


def test_a_fork_without_the_loop_sends_nothing_and_ends(tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if "KEYBRAKE" not in name}  # noqa: TID251 - for a child process
    named = {
        "KEYBRAKE_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db",
        "KEYBRAKE_VAULT_KEY_BILLING": "vk_test_x_y",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        env=plain | named,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["Unavailable", "0"]
    assert "this process was forked" in done.stderr


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
