"""Drives a sandbox in process, as an HTTP client would, with a host clock that stands still."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from anyio.from_thread import start_blocking_portal

from kb_mcp.sandbox.app import Sandbox, running

KEY = "rk_test_sandbox"
START_MS = 1_790_000_000_000
AUTHORIZED = {"authorization": f"Bearer {KEY}"}
CHARGE = {"amount": "2900", "currency": "usd", "customer": "cus_Abc123"}


@contextmanager
def start_in_thread(app: Sandbox, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve from a thread of its own, yield the URL, and stop at the end."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running(app, host, port)) as url,
    ):
        yield url


def new_sandbox(state: Path | None = None, prefix: str = "a") -> Sandbox:
    """Make a sandbox with a still clock and ids in order, which start with `prefix`."""
    numbers = itertools.count(1)
    return Sandbox(state, clock=lambda: START_MS, new_id=lambda: f"{prefix}{next(numbers):06d}")


class Driver:
    """One client of one sandbox."""

    def __init__(self, app: Sandbox) -> None:
        self.app = app

    def send(self, method: str, path: str, *args: Any, **more: Any) -> httpx.Response:
        return asyncio.run(self.asend(method, path, *args, **more))

    async def asend(
        self,
        method: str,
        path: str,
        data: Mapping[str, str] | None = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] = AUTHORIZED,
        json: object = None,
    ) -> httpx.Response:
        sent = dict(headers) if key is None else {**headers, "idempotency-key": key}
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://sandbox") as client:
            return await client.request(method, path, data=data, json=json, headers=sent)

    def get(self, path: str) -> Any:
        return self.send("GET", path).json()

    def post(self, path: str, data: Mapping[str, str] | None = None, **more: Any) -> httpx.Response:
        return self.send("POST", path, data, **more)

    def charge(self, key: str | None = None, **changes: str) -> httpx.Response:
        return self.post("/v1/charges", CHARGE | changes, key=key)

    async def until_charged(self) -> None:
        """Wait until the list shows a charge, as a client that polls would."""
        while not (await self.asend("GET", "/v1/charges")).json()["data"]:  # noqa: ASYNC110  the list is the only event a client has
            await asyncio.sleep(0)

    def fault(self, kind: str, match: str = "POST /v1/charges", **more: object) -> None:
        response = self.post("/_sandbox/faults", json=[{"match": match, "kind": kind} | more])
        assert response.status_code == 200, response.text

    def advance(self, seconds: int) -> None:
        response = self.post("/_sandbox/clock", json={"advance_seconds": seconds})
        assert response.status_code == 200, response.text

    def state(self) -> Any:
        return self.get("/_sandbox/state")


@contextmanager
def driving(app: Sandbox) -> Iterator[Driver]:
    """Drive `app` and close it at the end."""
    try:
        yield Driver(app)
    finally:
        app.close()
