"""The Stripe surface over HTTP: raw ASGI in, Stripe-shaped answers out.

Floor: the top of wing B. No rule about money stands here: it reads a request within its limits,
hands it to the pipeline, and writes the reply. Every answer is JSON with a Request-Id; nothing
redirects.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from kb_mcp.in_process import Message, Receive, Send
from kb_mcp.proxy.access.authenticate import Admitted
from kb_mcp.proxy.edge.key_api import KeyApi
from kb_mcp.proxy.edge.pipeline import RequestPipeline
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.stripe.messages import Reply, Request, refused

BODY_MAX_BYTES = 64 * 1024
BODY_WITHIN_S = 10
IN_FLIGHT_MAX = 1_000
ADMITTED = "kb_mcp.admitted"
"""The ASGI extension that holds whose key a request carries, where that was just looked up."""
_HEALTH = frozenset({b"/healthz", b"/readyz"})
_BARE = frozenset({b"v1", b"stripe", b"keybrake"})
_FULL = refused(refuse(Code.OVERLOADED))
_log = logging.getLogger("kb_mcp.proxy")
_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>kb-mcp</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; font: 1rem/1.6 system-ui, sans-serif; }
body { margin: 12vh auto 2rem; max-width: 38rem; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; }
dd { margin: 0; }
</style></head>
<body>
<h1>kb-mcp</h1>
<p>It stands between AI agents and Stripe, so that every charge happens once and inside its caps.
This address is for agents, each with a vault key of its own:</p>
<dl>
<dt><code>/mcp</code></dt><dd>MCP over HTTP</dd>
<dt><code>/v1</code>, <code>/stripe/v1</code></dt><dd>Stripe's API, for any Stripe SDK</dd>
</dl>
<p>Are you looking for the dashboard? It has an address of its own, which <code>kb-mcp up</code>
prints as it starts: <code>http://127.0.0.1:8786</code> unless it was changed.</p>
</body>
</html>
"""
_GREETING = Reply(
    status=HTTPStatus.OK,
    body=_PAGE.encode(),
    headers={
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    },
)
ROOM = 64
BEGIN_AT_ONCE = 8
LOOK_AGAIN_S = 0.002
# A client that is told so comes back; one that waits longer has gone, and would be charged unseen.
WAIT_MAX_MS = 20_000


@dataclass(slots=True)
class ProxyApp:
    """The ASGI application of the agents' listener, without `/mcp`. `begin_drain` ends it."""

    pipeline: RequestPipeline
    own: KeyApi
    turns: AdmissionQueue
    draining: bool = False
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            return
        if self.free() <= 0 and _raw_path(scope) not in _HEALTH:
            await self._turn_away(send)
            return
        request = self._request(scope)
        if request.raw_path in _HEALTH:
            await _write(send, request.request_id, await self.own.health(request))
            return
        self.in_flight += 1
        try:
            if not await self.turns.acquire():
                await self._turn_away(send)
                return
            admitted = scope.get("extensions", {}).get(ADMITTED)
            await _write(send, request.request_id, await self._serve(request, receive, admitted))
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self.idle.set()

    def free(self) -> int:
        """Return how many requests more may wait; whoever comes then is turned away."""
        return IN_FLIGHT_MAX - self.in_flight

    async def drain(self, within_s: int) -> None:
        """Refuse new requests, and wait for those under way and their conclusions."""
        self.draining = True
        try:
            async with asyncio.timeout(within_s):
                while self.in_flight or self.pipeline.governor.tasks:
                    self.idle.clear()
                    if self.in_flight:
                        await self.idle.wait()
                    await asyncio.gather(*self.pipeline.governor.tasks, return_exceptions=True)
        except TimeoutError:
            # What is still open stays reserved; recovery finds out what became of it.
            return

    async def _turn_away(self, send: Send) -> None:
        """Answer before anything is read: it must cost next to nothing."""
        self.pipeline.refusal_counts.count(Code.OVERLOADED)
        await _write(send, self.pipeline.new_id("req"), _FULL)

    async def _serve(self, request: Request, receive: Receive, admitted: Admitted | None) -> Reply:
        if self.draining:
            return refused(refuse(Code.DRAINING))
        greeting = greet(request)
        if greeting is not None:
            return greeting
        try:
            if request.raw_path.startswith(b"/keybrake/"):
                return await self.own.serve(request)
            body = partial(_read_body, request, receive)
            reply = await self.pipeline.serve(request, body, admitted)
        except LedgerUnavailableError:
            _log.exception("the ledger is unavailable")
            return refused(refuse(Code.LEDGER_UNAVAILABLE))
        except Exception:  # noqa: BLE001 nothing may leave without an answer in Stripe's shape
            # A fault of ours: what was reserved stays reserved, and the caller is told "unknown".
            _log.exception("unexpected fault")
            return refused(refuse(Code.OUTCOME_UNKNOWN))
        if reply.status == HTTPStatus.UNAUTHORIZED and not _is_ours(request.raw_path):
            # A 401 would tell those who look for a registration that there is one, with a key.
            return refused(refuse(Code.PATH_UNKNOWN))
        return reply

    def _request(self, scope: Message) -> Request:
        return Request(
            method=scope["method"],
            raw_path=_raw_path(scope),
            query=scope["query_string"],
            headers=tuple(
                (name.decode("latin-1").lower(), value.decode("latin-1"))
                for name, value in scope["headers"]
            ),
            body=b"",
            request_id=self.pipeline.new_id("req"),
        )


def _raw_path(scope: Message) -> bytes:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw


def _is_ours(raw_path: bytes) -> bool:
    """Say whether a path is of Stripe's or of the proxy's own, in whatever way it is written."""
    path = unquote_to_bytes(raw_path).lstrip(b"/")
    return path.startswith((b"v1/", b"stripe/", b"keybrake/")) or path in _BARE


async def _read_body(request: Request, receive: Receive) -> bytes | Refusal:
    declared = request.header("content-length") or ""
    # Digits beyond those of the limit are not worth reading as a number.
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > BODY_MAX_BYTES:
        return refuse(Code.BODY_TOO_LARGE)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return refuse(Code.BODY_INVALID, reason="the connection ended before the body")
                body += message.get("body", b"")
                if len(body) > BODY_MAX_BYTES:
                    return refuse(Code.BODY_TOO_LARGE)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        return refuse(Code.BODY_INVALID, reason="the body did not arrive in time")


async def _write(send: Send, request_id: str, reply: Reply) -> None:
    headers = {
        "content-type": "application/json",
        "content-length": str(len(reply.body)),
        "request-id": request_id,
        "cache-control": "no-store",
    } | {name.lower(): value for name, value in reply.headers.items()}
    raw = [(name.encode(), text.encode("latin-1", "replace")) for name, text in headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": raw})
    await send({"type": "http.response.body", "body": reply.body})


def greet(request: Request) -> Reply | None:
    """Return the page, where a browser asks for `/`; None for every other request."""
    asks = request.method == "GET" and request.raw_path == b"/"
    return _GREETING if asks and "text/html" in (request.header("accept") or "") else None


@dataclass(slots=True)
class AdmissionQueue:
    """Who waits to begin, first come first served; where there is room, nobody waits.

    Requests begin while `queued()`, the steps that wait for the ledger, are few. `_begun` have in
    this pass of the loop: what they ask of the ledger is not queued yet.
    """

    queued: Callable[[], int]
    wait_max_ms: int = WAIT_MAX_MS
    _waiting: deque[asyncio.Future[None]] = field(default_factory=deque, init=False)
    _begun: int = field(default=0, init=False)

    async def acquire(self) -> bool:
        """Return True when it is the caller's turn, or False once it has waited too long."""
        loop = asyncio.get_running_loop()
        if not self._waiting and self._room() > 0:
            self._begin(loop)
            return True
        turn = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            loop.call_later(LOOK_AGAIN_S, self._look, loop)
        try:
            async with asyncio.timeout(self.wait_max_ms / 1000):
                await turn
        except TimeoutError:
            return False
        return True

    def _room(self) -> int:
        return ROOM - self._begun - self.queued()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._begun == 0:
            loop.call_soon(self._pass_over)
        self._begun += 1

    def _pass_over(self) -> None:
        self._begun = 0

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        room = min(self._room(), BEGIN_AT_ONCE)
        while self._waiting and room > 0:
            turn = self._waiting.popleft()
            if not turn.done():  # or nobody waits for it any more
                turn.set_result(None)
                self._begin(loop)
                room -= 1
        if self._waiting:
            loop.call_later(LOOK_AGAIN_S, self._look, loop)
