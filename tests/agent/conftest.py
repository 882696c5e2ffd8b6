"""A proxy of our contract's shape on a real socket, scripted by each test."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from typing_extensions import override

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ToolName
from kb_mcp.agent.client.line import InProcessLine
from kb_mcp.agent.client.network import NetworkLine

BILLING_KEY = "vk_test_bill_secret"
AUDIT_KEY = "vk_test_audit_secret"
TRACE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=1",
}


@dataclass
class Seen:
    """One request as the stub received it; header names in lower case."""

    method: str
    path: str
    query: dict[str, str]
    form: dict[str, str]
    headers: dict[str, str]
    body: str = ""

    @property
    def trace(self) -> dict[str, str]:
        """The trace that came with it."""
        return {name: self.headers[name] for name in TRACE if name in self.headers}


@dataclass
class Says:
    """An answer; `drop` closes the line instead, after the request was read."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


@dataclass
class StubProxy:
    """Answers by `method path`; a list is used up from the left, its last entry stays."""

    url: str = ""
    answers: dict[str, list[Says | Callable[[Seen], Says]]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    def on(self, request: str, *says: Says | Callable[[Seen], Says]) -> None:
        self.answers[request] = list(says)

    def answer(self, seen: Seen) -> Says:
        self.seen.append(seen)
        says = self.answers.get(f"{seen.method} {seen.path}")
        if not says:
            return Says(404, refusal("path_unknown"))
        first = says.pop(0) if len(says) > 1 else says[0]
        return first(seen) if callable(first) else first


def refusal(code: str, message: str = "No.", **facts: Any) -> dict[str, Any]:
    kind = "invalid_request_error"
    return {"error": {"type": kind, "code": code, "message": message, "keybrake": facts}}


def charge(**fields: Any) -> dict[str, Any]:
    return {
        "id": "ch_1",
        "object": "charge",
        "status": "succeeded",
        "amount": 2900,
        "amount_refunded": 0,
        "currency": "usd",
        "customer": "cus_Abc123",
        "created": 1_780_000_000,
        "livemode": False,
        "description": "Subscription 2026-06",
        "metadata": {"billing_period": "2026-06"},
        "receipt_url": "https://receipts.example/1",
        "disputed": False,
        **fields,
    }


@pytest.fixture
def proxy() -> Iterator[StubProxy]:
    with serve_stub() as stub:
        yield stub


@contextmanager
def serve_stub(tls: ssl.SSLContext | None = None) -> Iterator[StubProxy]:
    """Serve a stub proxy on a free port of loopback until the block ends, over TLS if given."""
    stub = StubProxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            parts = urlsplit(self.path)
            says = stub.answer(
                Seen(
                    self.command,
                    parts.path,
                    {name: values[0] for name, values in parse_qs(parts.query).items()},
                    {name: values[0] for name, values in parse_qs(body).items()},
                    {name.lower(): value for name, value in self.headers.items()},
                    body,
                )
            )
            if says.drop:
                self.close_connection = True
                return
            is_text = isinstance(says.body, str)
            payload = (says.body if is_text else json.dumps(says.body)).encode()
            self.send_response(says.status)
            for name, value in says.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = _serve  # noqa: N815 - names that http.server looks for

        @override
        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    stub.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def in_process(stub: StubProxy) -> InProcessLine:
    """Return the line into `stub` as an application of this process; `drop` lets it break."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"].decode()
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode()))
        seen = Seen(scope["method"], scope["path"], query, dict(parse_qsl(body)), headers, body)
        says = await asyncio.to_thread(stub.answer, seen)
        if says.drop:
            raise ConnectionError
        text = says.body if isinstance(says.body, str) else json.dumps(says.body)
        raw = [(name.encode(), value.encode("latin-1")) for name, value in says.headers.items()]
        await send({"type": "http.response.start", "status": says.status, "headers": raw})
        await send({"type": "http.response.body", "body": text.encode()})

    return InProcessLine(app)


@pytest.fixture
def billing(proxy: StubProxy) -> Iterator[Billing]:
    keys = {ToolName.CHARGE: BILLING_KEY, ToolName.CHARGE_STATUS: AUDIT_KEY}
    made = Billing(keys, NetworkLine(proxy.url))
    yield made
    made.close()
