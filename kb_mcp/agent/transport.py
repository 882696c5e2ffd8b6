"""How wing A reaches the proxy: one httpx client, over the network or into this process.

Floor: wing A, above address. Importing it imports httpx, so that billing does it late. Nothing of
the environment changes where a vault key goes: no proxies, no .netrc, no redirects; plain http
only to loopback unless it is allowed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ssl
import threading
from collections.abc import Callable
from typing import Final

import httpx
from typing_extensions import override

from kb_mcp.agent.address import check_address
from kb_mcp.agent.trust import Trust
from kb_mcp.in_process import AsgiApp, Exchange

CONNECT_TIMEOUT_S: Final = 5
# Above the proxy's own wait for Stripe (25 s) and for another caller (10 s).
ANSWER_TIMEOUT_S: Final = 60
MAX_CONNECTIONS: Final = 100


def open_client(
    proxy_url: str,
    *,
    transport: httpx.BaseTransport | None = None,
    allow_http: bool = False,
    trust: Trust | None = None,
) -> httpx.Client:
    """Open the client for `proxy_url`; `transport` replaces the network, for an embedded proxy.

    Raises: AddressError, TrustError.
    """
    if transport is None:
        check_address(proxy_url, allow_http=allow_http)
    return httpx.Client(
        transport=transport,
        verify=_trusting_nobody()
        if proxy_url.startswith("http://")
        else (trust or Trust()).context(),
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
    )


def _trusting_nobody() -> ssl.SSLContext:
    # Plain http never asks whom to trust, and redirects are off: loading every authority there is
    # would be a twentieth of a cold start for nothing.
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class AsgiTransport(httpx.BaseTransport):
    """Carries requests to an ASGI app that runs on the event loop of another thread.

    A caller that stops waiting does not stop the app: the request runs to its end there.
    """

    def __init__(self, app: AsgiApp, loop: asyncio.AbstractEventLoop) -> None:
        """Reach `app`, whose home is the running `loop`."""
        self._app = app
        self._loop = loop

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        exchange = Exchange(
            request.method,
            request.url.raw_path,
            [(name.lower(), value) for name, value in request.headers.raw],
            request.read(),
            scheme=request.url.scheme,
            server=(request.url.host, request.url.port),
        )
        work = exchange.run(self._app)
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise httpx.ConnectError("the embedded proxy has stopped", request=request) from None
        try:
            future.result(request.extensions.get("timeout", {}).get("read"))
        except concurrent.futures.TimeoutError:
            raise httpx.ReadTimeout("no answer in time", request=request) from None
        except (Exception, concurrent.futures.CancelledError) as error:
            # The app broke or was stopped on the way: as on a network, it may have acted.
            raise httpx.ReadError("the connection broke", request=request) from error
        if exchange.status == 0:
            raise httpx.ReadError("the connection broke", request=request)
        return httpx.Response(
            exchange.status, headers=exchange.headers, content=bytes(exchange.body)
        )


def start_loop() -> tuple[asyncio.AbstractEventLoop, Callable[[], None]]:
    """Start an event loop on a thread of its own; return it and the function that ends it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="kb-mcp loop", daemon=True)
    thread.start()

    def stop() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    return loop, stop
