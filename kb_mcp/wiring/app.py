"""The agents' listener: Stripe's surface and `/mcp` on one address, behind the host check.

Floor: wiring.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from kb_mcp.serving.host_check import App, HostGuard
from kb_mcp.serving.tracing import Traced
from kb_mcp.settings import Settings, load_settings
from kb_mcp.wiring.agent import mcp_door
from kb_mcp.wiring.proxy import Proxy, build_proxy

Scope = MutableMapping[str, Any]


class LazyDoor:
    """The MCP door, opened by its first request: `mcp` takes 0.7 s to import.

    Its sessions live in a task of their own, since they must end where they began.
    """

    def __init__(self, settings: Settings, app: App) -> None:
        """Open in front of the proxy `app`, on the running loop."""
        self._opened = asyncio.Event()
        self._closing = asyncio.Event()
        self._door = mcp_door(settings, app, asyncio.get_running_loop())
        self._home = asyncio.create_task(self._live())

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one request."""
        await self._opened.wait()
        await self._door(scope, receive, send)

    async def close(self) -> None:
        """End the sessions."""
        self._closing.set()
        await self._home

    async def _live(self) -> None:
        async with self._door.running():
            self._opened.set()
            await self._closing.wait()


class Agents:
    """Hands `/mcp` to the door, which is made on the first request, and the rest to the proxy.

    As an application of its own (`create_app`) it also lives through ASGI's lifespan: timers run
    between start-up and shutdown.
    """

    def __init__(self, settings: Settings, proxy: Proxy) -> None:
        """Serve `proxy`."""
        self._settings = settings
        self._proxy = proxy
        self._traced = Traced(proxy.app, proxy.span)
        self._door: LazyDoor | None = None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http" and scope["path"] in {"/mcp", "/mcp/"}:
            if self._door is None:
                # What the door asks of the proxy belongs to its caller's trace, too.
                self._door = LazyDoor(self._settings, self._traced)
            await self._door(scope, receive, send)
        else:
            await self._traced(scope, receive, send)

    async def close(self) -> None:
        """Close the door, where it was opened."""
        if self._door is not None:
            await self._door.close()

    async def _live(self, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._proxy.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._proxy.stop()
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def create_app(settings: Settings | None = None) -> App:
    """Return the ASGI application of the agents' listener, for a server of your own.

    Raises: SettingsError, StoreError, BindingError, SchemaError, EgressError.
    """
    loaded = settings or load_settings()
    return HostGuard(Agents(loaded, build_proxy(loaded)), loaded.allowed_hosts)
