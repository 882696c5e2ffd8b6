"""An httpx transport into an ASGI application that runs on the event loop of another thread."""

from __future__ import annotations

import asyncio
import concurrent.futures

import httpx
from typing_extensions import override

from kb_mcp.in_process import AsgiApp, Exchange


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
