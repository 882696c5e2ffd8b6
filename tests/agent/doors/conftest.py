"""The MCP door on a real socket, and a client that speaks either era."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.doors.mcp.bearer import Bearer, look_up
from kb_mcp.agent.doors.mcp.http import HttpDoor
from tests.agent.conftest import Says, StubProxy, in_process

POST = "POST /stripe/v1/charges"
KEY = "GET /keybrake/v1/key"
BILL = {"customer_id": "cus_Abc123", "amount_cents": 2900, "billing_period": "2026-06"}
BOTH = ["POST /v1/charges", "GET /v1/charges/*"]
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "tester", "version": "1"},
}


def grants(*allow: str) -> Says:
    return Says(200, {"id": "k1", "role": "r", "mode": "test", "policy": {"allow": list(allow)}})


@pytest.fixture
def door(proxy: StubProxy) -> Iterator[httpx.Client]:
    """Serve the door on a real socket; the client sends a good key unless told otherwise."""
    proxy.on(KEY, grants(*BOTH))
    billing = Billing({}, in_process(proxy))
    numbers = itertools.count(1)
    hosts = ["mcp.example", "pinned.example:8443"]

    async def identify(token: str) -> Bearer:
        return await look_up(billing, token, CallContext())

    app = HttpDoor(
        billing, lambda: f"session-{next(numbers)}", identify=identify, allowed_hosts=hosts
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="on"))
    # Listening before the server runs: a client that comes first waits instead of being refused.
    sock = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    headers = {"Authorization": "Bearer vk_test_x", "Accept": "application/json, text/event-stream"}
    base = f"http://127.0.0.1:{sock.getsockname()[1]}"
    with httpx.Client(base_url=base, headers=headers, timeout=60, trust_env=False) as client:
        yield client
    server.should_exit = True
    thread.join()
    sock.close()


def ask(
    door: httpx.Client, method: str, params: dict[str, Any], *, modern: bool, **headers: str
) -> Any:
    sent: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    if modern:
        sent["params"] = {**params, "_meta": {**params.get("_meta", {}), **MODERN}}
        headers |= {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method}
        if "name" in params:
            headers["Mcp-Name"] = params["name"]
    else:
        headers["MCP-Protocol-Version"] = "2025-11-25"
    response = door.post("/mcp", json=sent, headers=headers)
    text = response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        text = next(line for line in text.splitlines() if line.startswith("data: {"))[6:]
    return json.loads(text)


either_era = pytest.mark.parametrize("modern", [False, True], ids=["legacy", "modern"])
