"""One charge through each HTTP client, set up alike: no proxies, redirects, cookies or decoding.

Floor: outside the package; used by upstream_clients.py. Each sender says by the type of its error
alone whether it claims that nothing was sent; kb-mcp's own says it by the cause (upstream.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from kb_mcp.proxy.stripe import client as upstream

CHARGE: Final = (
    b"amount=2900&currency=usd&customer=cus_Abc123&description=Subscription+2026-06"
    b"&metadata[billing_period]=2026-06&metadata[keybrake_operation]=op_0123456789abcdef01234567"
)
HEADERS: Final = {
    "authorization": "Bearer rk_test_1",
    "content-type": "application/x-www-form-urlencoded",
    "idempotency-key": "38de2d05855909930dc2287649e68ba3",
    "stripe-version": "2026-10-28.endive",
    "user-agent": "kb-mcp",
}
PATH: Final = "/v1/charges"
TOTAL_S: Final = 25
CONNECT_S: Final = 5

Answer = tuple[int, bytes]
Post = Callable[[bytes], Coroutine[Any, Any, Answer]]


class NothingSentError(Exception):
    """kb-mcp's own client: it claims that nothing was sent."""


class LostError(Exception):
    """kb-mcp's own client: it may have been sent."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one client, so that failures come soon; seconds."""

    total: float = TOTAL_S
    connect: float = CONNECT_S
    pool: float = CONNECT_S
    connections: int = 100


@dataclass(frozen=True, slots=True)
class Sender:
    """One client: how it is opened on an address, and when it claims that nothing was sent."""

    name: str
    package: str
    open: Callable[..., AbstractAsyncContextManager[Post]]
    says_never: Callable[[Exception], bool]


@asynccontextmanager
async def _ours(url: str, limits: Limits = Limits()) -> AsyncIterator[Post]:
    upstream.CONNECTIONS_MAX = limits.connections  # type: ignore[misc] # a benchmark turns it down
    upstream.CONNECT_TIMEOUT_MS = int(limits.connect * 1000)  # type: ignore[misc] # as above
    upstream.POOL_TIMEOUT_MS = int(limits.pool * 1000)  # type: ignore[misc] # as above
    client = upstream.StripeUpstream(
        base_url=url,
        api_key="rk_test_1",
        timeout_ms=int(limits.total * 1000),
        boottime_ms=lambda: 0,
    )

    async def post(body: bytes) -> Answer:
        request = upstream.UpstreamRequest(
            "POST", PATH, body, HEADERS["stripe-version"], HEADERS["idempotency-key"]
        )
        found = await client.send(request, deadline_ms=1)
        if isinstance(found, upstream.NotSent):
            raise NothingSentError(found.reason)
        if isinstance(found, upstream.Lost):
            raise LostError(found.reason)
        return found.status, found.body

    yield post
    await client.aclose()


def _pyreqwest(limits: Limits) -> Any:
    from pyreqwest.client import ClientBuilder

    builder = ClientBuilder().no_proxy().follow_redirects(enable=False).http1_only()
    builder = builder.gzip(enable=False).brotli(enable=False).zstd(enable=False)
    builder = builder.deflate(enable=False).max_connections(limits.connections)
    builder = builder.pool_timeout(timedelta(seconds=limits.pool))
    builder = builder.connect_timeout(timedelta(seconds=limits.connect))
    return builder.timeout(timedelta(seconds=limits.total)).build()


@asynccontextmanager
async def _plain(url: str, limits: Limits = Limits()) -> AsyncIterator[Post]:
    client = _pyreqwest(limits)

    async def post(body: bytes) -> Answer:
        request = client.post(url + PATH).headers(HEADERS).body_bytes(body).build()
        response = await request.send()
        return response.status, bytes(await response.bytes())

    yield post
    await client.close()


@asynccontextmanager
async def _streamed(url: str, limits: Limits = Limits()) -> AsyncIterator[Post]:
    """The body is handed over only once a connection asks for it: what that would cost."""
    client = _pyreqwest(limits)

    async def post(body: bytes) -> Answer:
        async def chunks() -> AsyncIterator[bytes]:
            yield body

        headers = {**HEADERS, "content-length": str(len(body))}
        request = client.post(url + PATH).headers(headers).body_stream(chunks()).build()
        response = await request.send()
        return response.status, bytes(await response.bytes())

    yield post
    await client.close()


@asynccontextmanager
async def _aiohttp(url: str, limits: Limits = Limits()) -> AsyncIterator[Post]:
    import aiohttp

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=limits.connections),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(
            total=limits.total, connect=limits.pool, sock_connect=limits.connect
        ),
    ) as session:

        async def post(body: bytes) -> Answer:
            async with session.post(
                url + PATH, data=body, headers=HEADERS, allow_redirects=False
            ) as response:
                return response.status, await response.read()

        yield post


@asynccontextmanager
async def _httpx(url: str, limits: Limits = Limits()) -> AsyncIterator[Post]:
    import httpx

    async with httpx.AsyncClient(
        trust_env=False,
        timeout=httpx.Timeout(limits.total, connect=limits.connect, pool=limits.pool),
        limits=httpx.Limits(max_connections=limits.connections),
    ) as client:

        async def post(body: bytes) -> Answer:
            response = await client.post(url + PATH, content=body, headers=HEADERS)
            return response.status_code, response.content

        yield post


def _pyreqwest_says_never(error: Exception) -> bool:
    from pyreqwest.exceptions import ConnectError, ConnectTimeoutError, PoolTimeoutError

    return isinstance(error, ConnectError | ConnectTimeoutError | PoolTimeoutError)


def _aiohttp_says_never(error: Exception) -> bool:
    import aiohttp

    return isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)


def _httpx_says_never(error: Exception) -> bool:
    import httpx

    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


SENDERS: Final = (
    Sender("kb-mcp (pyreqwest, by cause)", "pyreqwest", _ours,
           lambda error: isinstance(error, NothingSentError)),
    Sender("pyreqwest, by type", "pyreqwest", _plain, _pyreqwest_says_never),
    Sender("pyreqwest, streamed body", "pyreqwest", _streamed, _pyreqwest_says_never),
    Sender("aiohttp, by type", "aiohttp", _aiohttp, _aiohttp_says_never),
    Sender("httpx, by type", "httpx", _httpx, _httpx_says_never),
)  # fmt: skip
