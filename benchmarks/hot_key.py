"""One hot vault key against many: charges a second and their tail, through the whole proxy.

Usage: hot_key.py [SECONDS]   The upstream answers at once, so that the ledger is what is measured.
PostgreSQL is the wheel's, on this machine; fsync is on for both stores.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

sys.path.insert(0, str(Path(__file__).parents[1]))

from kb_mcp.operators.actions.keys import NewKey, issue_key
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.serving.machine import random_bytes
from kb_mcp.settings import load_settings
from kb_mcp.wiring.proxy import Proxy
from tests.postgres import have_postgres, make_database, postgres

CLIENTS = (1, 8, 32, 128)
KEYS = 64
_numbers = itertools.count(1)


async def stripe_at_once(scope: Any, receive: Any, send: Any) -> None:
    """Answer every charge with success, and the sandbox's clock with none."""
    if scope["type"] != "http":
        return
    body = b""
    while (message := await receive()).get("more_body") or not body:
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    form = dict(parse_qsl(body.decode()))
    charge = {"id": f"ch_{next(_numbers)}", "object": "charge", "status": "succeeded",
              "captured": True, "amount": int(form.get("amount", 0)), "currency": "usd",
              "customer": form.get("customer"), "livemode": False}  # fmt: skip
    status = 200 if scope["method"] == "POST" else 404
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(charge).encode()})


async def charge(app: Any, token: str) -> int:
    """Send one new bill through the proxy; return the status."""
    number = next(_numbers)
    form = {"customer": f"cus_{number}", "amount": 100, "currency": "usd",
            "metadata[billing_period]": time.strftime("%Y-%m", time.gmtime())}  # fmt: skip
    body = urlencode(form).encode()
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    headers = [(b"authorization", f"Bearer {token}".encode()), (b"host", b"localhost"),
               (b"content-type", b"application/x-www-form-urlencoded"),
               (b"content-length", str(len(body)).encode())]  # fmt: skip
    scope = {"type": "http", "method": "POST", "path": "/v1/charges", "raw_path": b"/v1/charges",
             "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1)}  # fmt: skip
    await app(scope, receive, send)
    return status


async def measure(proxy: Proxy, tokens: list[str], clients: int, seconds: int) -> tuple[int, float]:
    """Return charges a second and the 99th percentile in ms."""
    waits: list[float] = []
    ends = time.perf_counter() + seconds

    async def client(number: int) -> None:
        while time.perf_counter() < ends:
            began = time.perf_counter()
            assert await charge(proxy.app, tokens[number % len(tokens)]) == 200
            waits.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    took = time.perf_counter() - began
    return round(len(waits) / took), sorted(waits)[int(len(waits) * 0.99)]


async def run(store: str, environ: dict[str, str], seconds: int) -> None:
    """Measure one store with every number of clients."""
    proxy = Proxy(load_settings(environ), stripe_at_once)
    policy = built_in("billing").model_copy(update={"rate": 1_000_000})
    wanted = NewKey(policy=policy, mode="test", uncapped=True)
    ledger = proxy.store.ledger
    minted = [(await issue_key(ledger, wanted, random_bytes, "bench"))[1] for _ in range(KEYS)]
    tokens = [each.token for each in minted]
    await measure(proxy, tokens, 8, 1)
    for clients in CLIENTS:
        spread = await measure(proxy, tokens, clients, seconds)
        hot = await measure(proxy, tokens[:1], clients, seconds)
        print(f"{store:10} {clients:7} {spread[0]:9} {spread[1]:8.1f} {hot[0]:9} {hot[1]:8.1f} "
              f"{hot[0] / spread[0]:8.2f}")  # fmt: skip
    await proxy.stop(0)


@contextmanager
def stores() -> Iterator[dict[str, dict[str, str]]]:
    """Build the stores that there are."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder  # noqa: TID251 this host's files go to the folder
        found = {"sqlite": {"KEYBRAKE_DATABASE_URL": f"sqlite:///{folder}/ledger.db"}}
        if not have_postgres():
            yield found
            return
        with postgres(fsync="on") as server:
            yield found | {"postgresql": make_database(server, "bench").environ}


def main() -> None:
    """Print the table."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print("store      clients  spread/s   p99 ms     hot/s   p99 ms      hot/spread")
    with stores() as found:
        for name, environ in found.items():
            asyncio.run(run(name, environ, seconds))


if __name__ == "__main__":
    main()
