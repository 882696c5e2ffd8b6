"""A small Stripe on a real socket that can be told to misbehave, byte by byte.

It knows charges, their list, idempotency keys and the account of each API key. `script` sees every
request first, and may answer in Stripe's place with bytes of its own, or close the line.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from typing_extensions import override

from kb_mcp.serving.machine import host_ms

KEY = "rk_test_first"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: `form` is the body's, `query` the path's."""

    method: str
    path: str
    query: dict[str, str]
    form: dict[str, str]
    api_key: str
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class Raw:
    """What goes back: `head` is written as it is, where it is given; None as body hangs up."""

    status: int
    body: bytes | None
    headers: dict[str, str] = field(default_factory=dict)
    head: bytes | None = None


Script = Callable[[Asked], Raw | None]


@dataclass(slots=True)
class RawStripe:
    """The account and its objects. `accounts` says which key reaches which account."""

    url: str = ""
    accounts: dict[str, str] = field(default_factory=lambda: {KEY: "acct_1"})
    may_read_account: bool = True
    charges: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    stored: dict[tuple[str, str], Raw] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    script: Script = lambda _: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def made(self, account: str = "acct_1") -> list[dict[str, Any]]:
        """Return what was charged in an account, oldest first."""
        return self.charges.get(account, [])

    def answer(self, asked: Asked) -> Raw:
        """Answer as Stripe does, unless the script has something else in mind."""
        with self.lock:
            self.asked.append(asked)
            return self.script(asked) or self.behave(asked)

    def behave(self, asked: Asked) -> Raw:
        """Answer as Stripe does."""
        account = self.accounts.get(asked.api_key)
        if account is None:
            return error(401, "api_key_expired")
        if asked.path == "/v1/account":
            body = {"id": account, "object": "account"}
            return okay(body) if self.may_read_account else error(403, "more_permissions_required")
        if asked.method == "POST" and asked.path == "/v1/charges":
            return self._charge(account, asked)
        if asked.path == "/v1/charges":
            return self._list(account, asked)
        found = [each for each in self.made(account) if asked.path.endswith(f"/{each['id']}")]
        return okay(found[0]) if found else error(404, "resource_missing")

    def _charge(self, account: str, asked: Asked) -> Raw:
        name = (account, asked.idempotency_key or "")
        if name not in self.stored:
            metadata = {k[9:-1]: v for k, v in asked.form.items() if k.startswith("metadata[")}
            charge = {
                "id": f"ch_{account[5:]}x{len(self.made(account)) + 1}",
                "object": "charge",
                "amount": int(asked.form["amount"]),
                "amount_captured": int(asked.form["amount"]),
                "currency": asked.form["currency"],
                "customer": asked.form.get("customer"),
                "description": asked.form.get("description"),
                "status": "succeeded",
                "captured": True,
                "refunded": False,
                "livemode": False,
                "created": host_ms() // 1000,
                "metadata": metadata,
            }
            self.charges.setdefault(account, []).append(charge)
            self.stored[name] = okay(charge)
        return self.stored[name]

    def _list(self, account: str, asked: Asked) -> Raw:
        listed = [
            each
            for each in reversed(self.made(account))
            if each["customer"] == asked.query.get("customer", each["customer"])
            and each["created"] >= int(asked.query.get("created[gte]", 0))
        ]
        ids = [each["id"] for each in listed]
        if "starting_after" in asked.query:
            listed = listed[ids.index(asked.query["starting_after"]) + 1 :]
        size = int(asked.query.get("limit", 10))
        page = {"object": "list", "data": listed[:size], "has_more": len(listed) > size}
        return okay(page)


def okay(body: Any) -> Raw:
    """Return 200 with `body` as JSON."""
    return Raw(200, json.dumps(body).encode())


def error(status: int, code: str) -> Raw:
    """Return an error in Stripe's shape."""
    told = {"type": "invalid_request_error", "code": code, "message": f"No: {code}."}
    return Raw(status, json.dumps({"error": told}).encode())


@contextmanager
def raw_stripe() -> Iterator[RawStripe]:
    """Serve one on a free port of loopback until the block ends."""
    stripe = RawStripe()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            parts = urlsplit(self.path)
            raw = stripe.answer(
                Asked(
                    self.command,
                    parts.path,
                    dict(parse_qsl(parts.query)),
                    dict(parse_qsl(body)),
                    (self.headers.get("authorization") or "").removeprefix("Bearer "),
                    self.headers.get("idempotency-key"),
                )
            )
            if raw.body is None:
                self.close_connection = True
                return
            if raw.head is not None:
                self.wfile.write(raw.head + raw.body)
                self.close_connection = True
                return
            self.send_response(raw.status)
            for name, value in raw.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(raw.body)))
            self.end_headers()
            self.wfile.write(raw.body)

        do_GET = _serve  # noqa: N815 the name that http.server calls
        do_POST = _serve  # noqa: N815 as above

        @override
        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stripe.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stripe
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
