"""What a tool call costs without any rule: an MCP server, and callers in a process, of one tool.

bare_tools.py http CLIENT UPSTREAM | stdio CLIENT UPSTREAM: a server of the same SDK release, over
HTTP stateless and with JSON answers, on uvloop. Its one tool posts to the upstream under an
idempotency key, through one pooled CLIENT: httpx, which tools are written with, or pyreqwest, the
faster one that kb-mcp has. It answers with the charge as it came, 1 KB.

bare_tools.py KIND TOKEN, KIND of CALLERS: warm calls in this process. A line on stdin says which
bills to charge and for how long; the answer is a line with the time that each call took.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

CONFIG = (
    "MCPServer of the same SDK release, stateless, JSON answers, uvicorn on uvloop; one tool that "
    "posts to the upstream with an idempotency key, through one pooled client, and answers with "
    "the charge as it came"
)
AMOUNT = 100
_TIMEOUT_S = 25

Post = Callable[[bytes, dict[str, str]], Awaitable[bytes]]
Call = Callable[[str, str], str]  # a customer and a period in; what was said, as text, out


def server(client: str, upstream: str) -> Any:
    """Return the MCP server."""
    from mcp.server import MCPServer

    bare, post = MCPServer("bare", log_level="ERROR"), POSTS[client](f"{upstream}/v1/charges")

    @bare.tool()
    async def charge(customer_id: str, amount_cents: int, billing_period: str) -> dict[str, Any]:
        """Charge a customer."""
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Idempotency-Key": f"{customer_id}-{billing_period}",
        }
        form = form_of(customer_id, amount_cents, billing_period)
        found: dict[str, Any] = json.loads(await post(form.encode(), headers))
        return found

    return bare


def _by_httpx(url: str) -> Post:
    import httpx

    client = httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S)

    async def post(body: bytes, headers: dict[str, str]) -> bytes:
        return (await client.post(url, content=body, headers=headers)).content

    return post


def _by_pyreqwest(url: str) -> Post:
    from kb_mcp.proxy.stripe.client import open_client

    client = open_client(_TIMEOUT_S * 1000)

    async def post(body: bytes, headers: dict[str, str]) -> bytes:
        request = client.request("POST", url).headers(headers).body_bytes(body)
        async with request.build_streamed() as response:
            return bytes(await response.bytes())

    return post


POSTS = {"httpx": _by_httpx, "pyreqwest": _by_pyreqwest}


def form_of(customer_id: str, amount_cents: int, billing_period: str) -> str:
    """Return a charge as Stripe's API takes it."""
    return urlencode(
        {
            "amount": amount_cents,
            "currency": "usd",
            "customer": customer_id,
            "metadata[billing_period]": billing_period,
        }
    )


def serve_http(client: str, upstream: str) -> None:
    """Serve over HTTP on a free port, whose number is said first."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"port {listener.getsockname()[1]}", flush=True)
    app = server(client, upstream).streamable_http_app(stateless_http=True, json_response=True)
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", log_level="error", access_log=False
    )
    uvicorn.Server(config).run(sockets=[listener])


def _lambda(_token: str) -> Call:
    """Call kb-mcp's handler for Lambda."""
    from kb_mcp.demo.scenarios import charging
    from kb_mcp.lambda_entry import handler

    return lambda customer, period: json.dumps(
        handler(charging(customer, period, AMOUNT).event("bench", "bill"), None)
    )


def _converse(_token: str) -> Call:
    """Call ConverseTools.handle."""
    from kb_mcp.converse import ConverseTools

    tools = ConverseTools()

    def call(customer: str, period: str) -> str:
        wanted = {"customer_id": customer, "amount_cents": AMOUNT, "billing_period": period}
        use = {"toolUse": {"toolUseId": "tooluse_1", "name": "charge", "input": wanted}}
        return json.dumps(tools.handle({"role": "assistant", "content": [use]}))

    return call


def _surface(token: str) -> Call:
    """Post to the proxy, or to whatever stands in its place."""
    import os

    return surface(os.environ["KEYBRAKE_PROXY_URL"], token)  # noqa: TID251 - a process of its own


def surface(where: str, token: str) -> Call:
    """Return what posts to `where` over one connection, without any SDK."""
    line = HTTPConnection(urlsplit(where).netloc)

    def call(customer: str, period: str) -> str:
        head = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/x-www-form-urlencoded",
            "Idempotency-Key": f"{customer}-{period}",
        }
        line.request("POST", "/v1/charges", form_of(customer, AMOUNT, period), head)
        return line.getresponse().read().decode()

    return call


CALLERS: dict[str, Callable[[str], Call]] = {
    "lambda": _lambda,
    "converse": _converse,
    "surface": _surface,
}


def call_in_turn(caller: Callable[[str], Call], token: str) -> None:
    """Answer one line of stdin after the other, as the module says."""
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        call = caller(token)  # anew: between two jobs a server may have closed the connection
        took: list[int] = []
        until = time.monotonic() + job["seconds"]
        while time.monotonic() < until:
            begun = time.perf_counter_ns()
            said = call(f"cus_{job['prefix']}n{len(took) + 1}", job["period"])
            took.append((time.perf_counter_ns() - begun) // 1000)
            if "succeeded" not in said:
                sys.exit(said)
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["http", client, upstream]:
            serve_http(client, upstream)
        case ["stdio", client, upstream]:
            server(client, upstream).run("stdio")
        case [kind, token] if kind in CALLERS:
            call_in_turn(CALLERS[kind], token)
        case _:
            sys.exit(__doc__)
