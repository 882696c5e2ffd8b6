"""A listener: how uvicorn carries HTTP here, and what of HTTP it takes.

Floor: serving, below serve. One request at a time on a connection, read in exactly one way and
within limits; what the parser refuses is answered in Stripe's error shape, too. llhttp (httptools)
is strict by default; what it leaves open is closed in `head_fault`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, Final, cast

import httptools
import uvicorn
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.stripe.messages import Reply, refused
from kb_mcp.serving.overload import OverloadGate, stays_after

Note = Callable[[str], None]
NewId = Callable[[str], str]

FILES_WANTED: Final = 8_192
ACCEPTED_AT_ONCE: Final = 64
# Of the files a process may open, these are left to the store, the upstream, the sandbox and the
# copies of the listeners' sockets.
FILES_KEPT: Final = 200 + 2 * ACCEPTED_AT_ONCE
_FULL = refused(refuse(Code.OVERLOADED))
_TARGET = re.compile(rb"/[!\"$-~]*")  # origin form; no fragment, nothing that is not ASCII


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one listener takes. `unread_bytes` may still arrive after an answer went out."""

    head_bytes: int = 32 * 1024
    headers: int = 100
    head_within_ms: int = 10_000
    # Above the proxy's own limit on a body, which answers and leaves an audit row.
    body_within_ms: int = 15_000
    answer_within_ms: int = 30_000
    idle_ms: int = 75_000
    unread_bytes: int = 1024 * 1024
    linger_ms: int = 1_000
    connections: int = 2_000


class Listener(uvicorn.Server):
    """A uvicorn server that leaves signals to its owner."""

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def unbounded() -> int:
    """Say that an application has room for every request."""
    return sys.maxsize


def listen(
    app: Any,
    *,
    note: Note,
    new_id: NewId,
    free: Callable[[], int] = unbounded,
    limits: Limits | None = None,
) -> Listener:
    """Return a server for `app`; `note` counts what is refused before a key is known.

    `new_id` makes the Request-Id of answers that never reach `app`, `free` says how many requests
    more it takes.
    """
    held = limits or Limits(connections=room(Limits().connections))
    protocol = partial(Conversation, limits=held, note=note, new_id=new_id, gate=OverloadGate(free))
    config = uvicorn.Config(
        app,
        # uvicorn only ever calls it.
        http=cast("type[asyncio.Protocol]", protocol),
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=held.idle_ms // 1000,
        timeout_graceful_shutdown=5,
    )
    return Listener(config)


def accepting(sock: socket.socket) -> list[socket.socket]:
    """Return `sock` several times over: libuv takes one connection a socket in a turn of its loop.

    Source: libuv 1.45, "don't accept() connections in a loop".
    """
    return [sock, *(sock.dup() for _ in range(ACCEPTED_AT_ONCE - 1))]


def room(wanted: int) -> int:
    """Return how many connections fit, at most `wanted`, after asking for more open files."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < FILES_WANTED:
        more = FILES_WANTED if hard == resource.RLIM_INFINITY else min(FILES_WANTED, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    return max(min(wanted, soft - FILES_KEPT), 16)


def head_fault(url: bytes, headers: list[tuple[bytes, bytes]], version: str) -> Refusal | None:
    """Return why a request head is not taken, or None: what a strict parser leaves open."""
    if not _TARGET.fullmatch(url):
        # Absolute form would bring a second Host; a fragment would be cut off unseen.
        return refuse(Code.PATH_INVALID, reason="the request target must begin with a slash")
    encodings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if version not in {"1.0", "1.1"}:
        reason = "it is neither HTTP/1.1 nor HTTP/1.0"
    elif encodings and version == "1.0":
        reason = "HTTP/1.0 has no transfer encodings"
    elif encodings not in ([], [b"chunked"]):
        reason = "the only transfer encoding taken is chunked"
    elif any(name == b"upgrade" for name, _ in headers):
        reason = "it asks for another protocol"
    else:
        return None
    return refuse(Code.BODY_INVALID, reason=reason)


class Part(Enum):
    """What of a request is being read."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()


class UntakenError(Exception):
    """Raised in a callback of the parser, to stop it."""


class Conversation(HttpToolsProtocol):
    """One connection. `_over` means that nothing more of it is read."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
        note: Note,
        new_id: NewId,
        gate: OverloadGate,
    ) -> None:
        """Begin; uvicorn gives the first four arguments."""
        super().__init__(config, server_state, app_state, _loop)
        self._limits, self._note, self._new_id, self._gate = limits, note, new_id, gate
        self._stage = Part.IDLE
        self._head_bytes = self._unread_bytes = 0
        self._fault: Refusal | None = None
        self._over = False
        self._arrival: asyncio.TimerHandle | None = None
        self._within = {
            Part.IDLE: None, Part.HEAD: limits.head_within_ms, Part.BODY: limits.body_within_ms
        }  # fmt: skip
        self._timed: Part | None = None  # what `_arrival` is for; at first, whatever comes
        self._turned_away_at = -float(limits.idle_ms)
        self._leaving: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._end(refuse(Code.OVERLOADED))
        else:
            self._expect(self._limits.head_within_ms)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        self.resume_writing()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self._over or self._answering():
            self._drop(data)
            return
        if self._stage is Part.IDLE:
            if self._gate.shut() and self._turned_away(data):
                return
            self._stage, self._head_bytes = Part.HEAD, 0
        self._unset_keepalive_if_required()
        if self._stage is Part.HEAD:
            self._head_bytes += len(data)
        elif self.cycle.response_complete:
            self._drop(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._over:
                self._end(self._fault or refuse(Code.BODY_INVALID, reason="it is not valid HTTP"))
        if self._stage is Part.HEAD and self._head_bytes > self._limits.head_bytes:
            self._end(refuse(Code.BODY_TOO_LARGE))
        if not self._over:
            self._time()

    @override
    def on_message_begin(self) -> None:
        if self._answering():
            # A second request behind the first would be answered out of turn if it were bad.
            self._leave()
            raise UntakenError
        super().on_message_begin()

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage is Part.BODY:
            # Trailers would arrive as headers, past whoever checked those.
            self._stop(refuse(Code.BODY_INVALID, reason="it has trailers"))
        super().on_header(name, value)
        if len(self.headers) > self._limits.headers:
            self._stop(refuse(Code.BODY_TOO_LARGE))

    @override
    def on_headers_complete(self) -> None:
        if (
            sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url)
            > self._limits.head_bytes
        ):
            self._stop(refuse(Code.BODY_TOO_LARGE))
        fault = head_fault(self.url, self.headers, self.parser.get_http_version())
        if fault is not None:
            self._stop(fault)
        self._gate.enter(self.loop)
        super().on_headers_complete()
        # As it came: uvicorn's URL parser takes liberties.
        path, _, query = self.url.partition(b"?")
        self.scope["raw_path"], self.scope["query_string"] = path, query
        self._stage = Part.BODY
        self._unread_bytes = 0

    @override
    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stage = Part.IDLE

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        if self._leaving is None:
            # A client that does not read its answer must not hold a place for ever.
            after = self._limits.answer_within_ms / 1000
            self._leaving = self.loop.call_later(after, self.transport.abort)

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self._leaving is not None and not self._over:
            self._leaving.cancel()
            self._leaving = None

    @override
    def timeout_keep_alive_handler(self) -> None:
        left_s = self._turned_away_at + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._keep_alive_for(left_s)
            return
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def _answering(self) -> bool:
        """Say whether a request was read whole and its answer is still to come."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and self._stage is Part.IDLE

    def _stop(self, fault: Refusal) -> None:
        self._fault = fault
        raise UntakenError

    def _time(self) -> None:
        """Bound how long what is being read may take, unless that is done: most comes whole."""
        if self._timed is not self._stage:
            self._timed = self._stage
            self._expect(self._within[self._stage])

    def _expect(self, within_ms: int | None) -> None:
        """Let what is being read arrive `within_ms` from now, or take as long as it likes."""
        if self._arrival is not None:
            self._arrival.cancel()
        self._arrival = (
            None if within_ms is None else self.loop.call_later(within_ms / 1000, self._late)
        )

    def _late(self) -> None:
        if self._stage is Part.IDLE or (self._stage is Part.BODY and self.cycle.response_complete):
            self.transport.abort()  # nothing was asked, or everything was answered
        else:
            self._end(refuse(Code.BODY_INVALID, reason="it did not arrive in time"))

    def _drop(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        if self._answering():
            self._leave()
        if self._unread_bytes > self._limits.unread_bytes:
            self.transport.abort() if not self._answering() else self.flow.pause_reading()

    def _leave(self) -> None:
        """Read nothing more, and close once the answer under way has gone out."""
        self._over = True
        self.cycle.keep_alive = False

    def _end(self, refusal: Refusal) -> None:
        """Answer with `refusal` and close, a little later, so that the answer is still read."""
        if self._over or self.transport.is_closing():
            return
        self._over = True
        self._expect(None)
        self._note(refusal.code)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            # The application was reading this very request, and is told that the client left.
            begun = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
            if begun:
                self.transport.abort()
                return
        self._part(refused(refusal))

    def _turned_away(self, data: bytes) -> bool:
        """Answer `data` unread, where that can be: whoever reads no answers gets none of these."""
        stays = None if self.flow.write_paused else stays_after(data)
        if stays is None:
            return False
        self._time()
        self._note(Code.OVERLOADED)
        if stays:
            self.transport.write(self._written(_FULL, "keep-alive"))
            # The timer of a connection that was idle goes on, and looks at this when it ends.
            self._turned_away_at = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._keep_alive_for(self.timeout_keep_alive)
        else:
            self._over = True
            self._part(_FULL)
        return True

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _part(self, reply: Reply) -> None:
        """Send the last answer of this connection, and close when it can have been read."""
        self.transport.write(self._written(reply, "close"))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        after = self._limits.linger_ms / 1000
        self._leaving = self.loop.call_later(after, self.transport.abort)

    def _written(self, reply: Reply, connection: str) -> bytes:
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(reply.body)),
            "Request-Id": self._new_id("req"),
            "Cache-Control": "no-store",
            "Connection": connection,
            **reply.headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return STATUS_LINE[reply.status] + head.encode("ascii") + b"\r\n" + reply.body
