"""Callers that hang up, are cancelled or wait too long: the send and its conclusion go on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.in_process_proxy import InProcessProxy, Issued, error_of
from tests.months import lately
from tests.scenarios.acts import Aside, broken_invariants, hasten

BILL = {
    "customer": "cus_A1",
    "amount": "2900",
    "currency": "usd",
    "metadata[billing_period]": lately("2026-11"),
}


def delay(in_process: InProcessProxy) -> None:
    """Let the next charge be made, and its answer held until `sandbox.release()`."""
    fault = {"match": "POST /v1/charges", "kind": "delay", "seconds": 600}
    in_process.stripe.post("/_sandbox/faults", json=[fault])


def until_charged(in_process: InProcessProxy) -> None:
    while not in_process.charges():
        pass  # the sandbox shows the charge as soon as it is made


def under_way(in_process: InProcessProxy) -> int:
    return len(in_process.proxy.app.pipeline.governor.tasks)


async def ask(in_process: InProcessProxy, key: Issued, sent: list[dict[str, Any]]) -> None:
    """Charge as one ASGI connection, without anything between the test and the proxy."""
    body = urlencode(BILL).encode()
    headers = {
        "authorization": f"Bearer {key.token}",
        "content-type": "application/x-www-form-urlencoded",
    }
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/charges",
        "raw_path": b"/v1/charges",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await in_process.proxy.app(scope, receive, send)


def test_a_cancelled_caller_changes_nothing_about_the_charge(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key, sent = in_process.issue(), list[dict[str, Any]]()
        delay(in_process)
        caller = asyncio.run_coroutine_threadsafe(ask(in_process, key, sent), in_process.loop)
        until_charged(in_process)
        caller.cancel()
        assert (under_way(in_process), sent) == (1, [])
        in_process.sandbox.release()
        answer = in_process.charge(key, period="2026-11")
        assert (answer.status_code, answer.json()["id"]) == (200, in_process.charges()[0]["id"])
        assert answer.headers["idempotent-replayed"] == "true"
        assert len(in_process.charges()) == 1
        assert broken_invariants(in_process) == []


def test_a_caller_that_comes_back_while_it_is_being_sent_joins_it(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        delay(in_process)
        first = Aside(lambda: in_process.charge(key, period="2026-11"))
        until_charged(in_process)
        second = Aside(lambda: in_process.charge(key, period="2026-11"))
        in_process.sandbox.release()
        assert first.result().json()["id"] == second.result().json()["id"]
        assert "idempotent-replayed" not in first.result().headers
        assert second.result().headers["idempotent-replayed"] == "true"


def test_a_join_is_bounded_and_says_so_in_stripes_words(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        delay(in_process)
        first = Aside(lambda: in_process.charge(key, period="2026-11"))
        until_charged(in_process)
        hasten(in_process, times=50)  # ten seconds of waiting are 200 ms
        joined = in_process.charge(key, period="2026-11")
        assert (joined.status_code, error_of(joined)) == (409, "idempotency_key_in_use")
        assert joined.headers["stripe-should-retry"] == "true"
        in_process.sandbox.release()
        made = first.result().json()["id"]
        assert in_process.charge(key, period="2026-11").json()["id"] == made
        assert len(in_process.charges()) == 1


def test_draining_finishes_what_is_under_way_and_refuses_what_comes(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        delay(in_process)
        first = Aside(lambda: in_process.charge(key, period="2026-11"))
        until_charged(in_process)
        drained = asyncio.run_coroutine_threadsafe(in_process.proxy.app.drain(60), in_process.loop)
        while not in_process.proxy.app.draining:
            pass  # it is set at once, on the loop's own thread
        late = in_process.charge(key, customer="cus_B2", period="2026-11")
        assert (late.status_code, error_of(late)) == (503, "draining")
        in_process.sandbox.release()
        assert first.result().status_code == 200
        drained.result(60)
        assert len(in_process.charges()) == 1
