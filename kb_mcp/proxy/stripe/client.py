"""Stripe over HTTP: one send, one answer, and the difference between "never" and "maybe sent".

Floor: wing B; clients are built in wiring alone. Holds the only Stripe key. Nothing of the
environment changes where the key goes: no proxies, no .netrc, no redirects, no cookies. Why
pyreqwest, and what it proves when it fails: benchmarks/README.md.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import PoolTimeoutError, RequestError
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response
from typing_extensions import override

from kb_mcp.environment import is_private_line
from kb_mcp.in_process import AsgiApp, Exchange
from kb_mcp.proxy.stripe.forms import FORM_TYPE
from kb_mcp.proxy.stripe.messages import (
    Answered,
    Lost,
    NotSent,
    Upstream,
    UpstreamAnswer,
    UpstreamRequest,
)
from kb_mcp.settings import STRIPE_API_BASE

CONNECT_TIMEOUT_MS: Final = 5_000
POOL_TIMEOUT_MS: Final = 5_000
POOL_IDLE_MS: Final = 30_000
CONNECTIONS_MAX: Final = 256
ANSWER_MAX_BYTES: Final = 4 * 1024 * 1024

PASSED_ON: Final = (
    "request-id idempotent-replayed original-request stripe-should-retry stripe-version "
    "retry-after date content-type"
).split()
"""What of Stripe's headers is of use behind the wall; everything else stays outside."""

_log = logging.getLogger(__name__)

# hyper-util's name for a failure to get a connection: name, route, TCP or TLS. It is the one
# proof there is: pyreqwest also raises ConnectError for a connection that was reset, and
# ConnectTimeoutError for an answer that did not come, both with the request long gone.
# Were the words to change, these failures would count as lost: the safe side.
_NO_CONNECTION: Final = "client error (Connect)"
# What a URL parser would rewrite, or cut off as a fragment, is no path of ours.
_PATH: Final = re.compile(r"/[\w\-.~:/?\[\]@!$&'()*+,;=%]*", re.ASCII)
_BASE_URL: Final = re.compile(r"https?://(?:[\w.-]+|\[[\da-fA-F:.]+\])(?::\d{1,5})?/?", re.ASCII)
_TEST_KEY: Final = re.compile(r"(?:rk|sk)_test_\w+", re.ASCII)
_TRACE_HEADERS: Final = frozenset({"traceparent", "tracestate"})


class EgressError(ValueError):
    """The Stripe key would go where it must not. The message says why, and never names the key."""


@dataclass(slots=True, kw_only=True)
class StripeUpstream(Upstream):
    """Stripe, or a stand-in, at `base_url` over HTTP/1.1, with `api_key`. Raises: EgressError.

    `timeout_ms` bounds a send from hand-off to answer. The client sends a request again on its own
    in one case: its idle connection was closed before the first byte was written. So nothing
    arrives twice.
    """

    base_url: str
    api_key: str = field(repr=False)
    timeout_ms: int
    boottime_ms: Callable[[], int]
    allow_http: bool = False
    _client: Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_egress(self.base_url, self.api_key, allow_http=self.allow_http)
        self._client = open_client(self.timeout_ms)

    @override
    async def send(self, request: UpstreamRequest, *, deadline_ms: int) -> UpstreamAnswer:
        """Send once, unless `deadline_ms` has passed."""
        built = self._build(request)
        if built is None:
            return NotSent("request_invalid")
        # A process that was stopped and goes on hours later must not send what it once meant to.
        if self.boottime_ms() > deadline_ms:
            return NotSent("deadline_passed")
        try:
            async with built as response:
                return await _read(response)
        except Exception as error:  # noqa: BLE001 - handed over: whatever broke, it may be sent
            return _judge(error)

    @override
    async def aclose(self) -> None:
        """Close the connections; what is still under way is lost."""
        await self._client.close()

    def _build(self, request: UpstreamRequest) -> StreamRequest | None:
        if not _PATH.fullmatch(request.path):
            return None
        try:
            builder = self._client.request(request.method, self.base_url.rstrip("/") + request.path)
            for name, value in _headers_of(request, self.api_key).items():
                builder = builder.header(name, value, is_sensitive=name == "authorization")
            if request.body is not None:
                builder = builder.body_bytes(request.body)
            return builder.build_streamed()
        except ValueError:  # a method or a header that HTTP cannot carry
            return None


@dataclass(frozen=True, slots=True)
class InProcessUpstream(Upstream):
    """An ASGI application in this process (the sandbox) in Stripe's place."""

    app: AsgiApp
    api_key: str = field(repr=False)
    timeout_ms: int

    @override
    async def send(self, request: UpstreamRequest, *, deadline_ms: int) -> UpstreamAnswer:
        """Call the application once. The deadline does not matter: no money moves in here."""
        if not _PATH.fullmatch(request.path):
            return NotSent("request_invalid")
        body = request.body or b""
        headers = _headers_of(request, self.api_key) | {"content-length": str(len(body))}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        exchange = Exchange(request.method, request.path.encode(), raw, body)
        try:
            async with asyncio.timeout(self.timeout_ms / 1000):
                await exchange.run(self.app)
        except TimeoutError:
            return Lost("timeout")
        except ConnectionError:
            return Lost("connection_broke")
        except Exception:  # noqa: BLE001 - as over a network, a broken server has maybe acted
            _log.exception("The application in Stripe's place broke.")
            return Lost("connection_broke")
        if not exchange.whole:
            return Lost("connection_broke")
        named = {n.decode("latin-1").lower(): v.decode("latin-1") for n, v in exchange.headers}
        kept = {name: named[name] for name in PASSED_ON if name in named}
        return Answered(exchange.status, bytes(exchange.body), kept)

    @override
    async def aclose(self) -> None:
        """Do nothing: there are no connections."""


def check_egress(base_url: str, api_key: str, *, allow_http: bool) -> None:
    """Check that `api_key` may be sent to `base_url`: scheme, host and port, nothing else.

    Only a key that is plainly a test key goes anywhere but to Stripe's own host, and plain http
    stays on this machine unless `allow_http`.
    Raises: EgressError.
    """
    if not _BASE_URL.fullmatch(base_url):
        raise EgressError("The upstream address must be scheme, host and port and nothing else.")
    if not _TEST_KEY.fullmatch(api_key) and base_url.rstrip("/") != STRIPE_API_BASE:
        raise EgressError(f"A key that is no test key is sent to {STRIPE_API_BASE} alone.")
    if not allow_http and not is_private_line(base_url):
        raise EgressError("The upstream address must be https beyond this machine.")


def open_client(timeout_ms: int) -> Client:
    """Return the connections to one address, with nothing of the environment in them."""
    # Below the total, so that a connection that never comes is proven, and not merely timed out.
    half_ms = timeout_ms // 2
    return (
        ClientBuilder()
        .no_proxy()
        .follow_redirects(enable=False)
        .default_cookie_store(enable=False)
        .referer(enable=False)
        .gzip(enable=False)
        .brotli(enable=False)
        .zstd(enable=False)
        .deflate(enable=False)
        .http1_only()
        .user_agent("kb-mcp")
        .timeout(timedelta(milliseconds=timeout_ms))
        .connect_timeout(timedelta(milliseconds=min(CONNECT_TIMEOUT_MS, half_ms)))
        .max_connections(CONNECTIONS_MAX)
        .pool_timeout(timedelta(milliseconds=min(POOL_TIMEOUT_MS, half_ms)))
        .pool_idle_timeout(timedelta(milliseconds=POOL_IDLE_MS))
        .build()
    )


def _headers_of(request: UpstreamRequest, api_key: str) -> dict[str, str]:
    headers = {
        **{name: value for name, value in request.trace.items() if name in _TRACE_HEADERS},
        "authorization": f"Bearer {api_key}",
        "content-type": None if request.body is None else FORM_TYPE,
        "stripe-version": request.stripe_version,
        "idempotency-key": request.idempotency_key,
    }
    return {name: value for name, value in headers.items() if value is not None}


async def _read(response: Response) -> Answered | Lost:
    body = bytearray()
    while (chunk := await response.body_reader.read_chunk()) is not None:
        body += chunk
        if len(body) > ANSWER_MAX_BYTES:
            return Lost("answer_too_large")
    found = ((name, _header(response, name)) for name in PASSED_ON)
    headers = {name: value for name, value in found if value is not None}
    return Answered(response.status, bytes(body), headers)


def _header(response: Response, name: str) -> str | None:
    try:
        return response.get_header(name)
    except ValueError:  # bytes that are no text: as good as absent, and no reason to lose an answer
        return None


def _judge(error: Exception) -> NotSent | Lost:
    if isinstance(error, PoolTimeoutError):
        return NotSent("pool_timeout")
    if isinstance(error, RequestError):
        causes = list(error.details["causes"] or ())
        if any(cause["message"] == _NO_CONNECTION for cause in causes):
            # The innermost cause names what broke (a certificate, a name, a port), and no request.
            _log.warning("Stripe cannot be reached: %s", causes[-1]["message"])
            return NotSent("upstream_unreachable")
    return Lost("timeout" if isinstance(error, TimeoutError) else "connection_broke")
