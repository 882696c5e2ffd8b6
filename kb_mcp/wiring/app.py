"""The agents' listener: Stripe's surface and `/mcp` on one address, behind the host check.

Floor: wiring.
The MCP door has to know whose a bearer token is before it reads a request. Asked here it is one
look at the store, where a request of the door's own would be counted, written to the audit, and
answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import tools_granted
from kb_mcp.agent.client.line import InProcessLine
from kb_mcp.agent.doors.mcp.bearer import Bearer, Known, Refused, Resource, describe
from kb_mcp.in_process import AsgiApp
from kb_mcp.proxy.access.grants import check_scopes
from kb_mcp.proxy.edge.app import ADMITTED
from kb_mcp.proxy.errors.refusals import Refusal
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.serving.host_check import guard_hosts
from kb_mcp.serving.machine import new_id
from kb_mcp.serving.tracing import traced
from kb_mcp.settings import Settings, load_settings
from kb_mcp.wiring.proxy import Proxy

if TYPE_CHECKING:
    from kb_mcp.agent.doors.mcp.http import HttpDoor


def mcp_door(proxy: Proxy, app: AsgiApp, resource: Resource | None) -> HttpDoor:
    """Return the MCP door in front of `app`, which is `proxy` behind its traces."""
    # `mcp` takes a second to import: only those who serve pay.
    from kb_mcp.agent.doors.mcp.http import HttpDoor

    settings, line = proxy.settings, InProcessLine(app)
    api = settings.charge_api
    base = Billing({}, line, charge_api=api, allow_reference=settings.allow_reference)

    async def identify(token: str) -> Bearer:
        try:
            admitted = await proxy.app.pipeline.admit(token)
        except LedgerUnavailableError:
            return Refused(503)
        if isinstance(admitted, Refusal):
            return Refused(admitted.status, admitted.code.value, admitted.message)
        allow = frozenset(admitted.policy.allow)
        reached = {entry for entry in allow if check_scopes(admitted.scopes, entry) is None}
        tools = tools_granted(frozenset(reached), api)
        keys, kinds = dict.fromkeys(tools, token), tuple(admitted.policy.period_kinds or ())
        live = admitted.key.mode == "live"
        own = replace(line, extensions={ADMITTED: admitted}, livemode=live)
        return Known(base.with_keys(keys, kinds, own), tools_granted(allow, api) - tools)

    return HttpDoor(
        base,
        partial(new_id, "mcp"),
        allowed_hosts=settings.allowed_hosts,
        identify=identify,
        resource=resource,
    )


Scope = MutableMapping[str, Any]


class Agents:
    """Hands `/mcp` to the door, what it says of itself to anyone, and the rest to the proxy.

    As an application of its own (`create_app`) it also lives through ASGI's lifespan: timers run
    between start-up and shutdown. The sessions of the door live in a task of their own, to end
    where they began.
    """

    def __init__(self, proxy: Proxy) -> None:
        """Serve `proxy`."""
        self._proxy = proxy
        self._traced = traced(proxy.app, proxy.span)
        address, issuers = proxy.settings.oauth_address, proxy.settings.oauth_issuers
        # What this server is to OAuth clients: nothing where vault keys alone are accepted.
        self._resource = Resource(address, issuers) if address and issuers else None
        self._door: HttpDoor | None = None
        self._opened, self._closing = asyncio.Event(), asyncio.Event()
        self._sessions: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http" and scope["path"] in {"/mcp", "/mcp/"}:
            door = self.open()
            await self._opened.wait()
            await door(scope, receive, send)
        elif self._resource is not None and self._resource.serves(scope.get("path", "")):
            await describe(self._resource, scope)(scope, receive, send)
        else:
            await self._traced(scope, receive, send)

    def open(self) -> HttpDoor:
        """Open the door, once, on the running loop.

        Whoever serves opens it before: what it imports would hold up every other request.
        """
        if self._door is None:
            # What the door asks of the proxy belongs to its caller's trace, too.
            self._door = mcp_door(self._proxy, self._traced, self._resource)
            self._sessions = asyncio.create_task(self._hold_open(self._door))
        return self._door

    async def close(self) -> None:
        """Close the door, where it was opened."""
        self._closing.set()
        if self._sessions is not None:
            await self._sessions

    async def _hold_open(self, door: HttpDoor) -> None:
        async with door.running():
            self._opened.set()
            await self._closing.wait()

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        self.open()
        await self._proxy.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._proxy.stop()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})


def create_app(settings: Settings | None = None) -> AsgiApp:
    """Return the ASGI application of the agents' listener, for a server of your own.

    Raises: SettingsError, StoreError, BindingError, SchemaError, EgressError.
    """
    loaded = settings or load_settings()
    return guard_hosts(Agents(Proxy(loaded)), loaded.allowed_hosts)
