"""Opening what commands work on: the store, its office, and Stripe where a command reads it.

Floor: above wiring, below the commands. Several processes may share a store: a serving one goes
on beside a command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from kb_mcp.proxy.ops.office import Office
    from kb_mcp.proxy.ops.stripe_reads import StripeReads
    from kb_mcp.settings import Settings
    from kb_mcp.wiring.proxy import Proxy
    from kb_mcp.wiring.store import Store

T = TypeVar("T")
OPERATOR = "cli"


@dataclass(frozen=True, slots=True)
class Books:
    """The open store, and beside it what no decision touches: facts and operators."""

    settings: Settings
    store: Store
    office: Office

    def now(self) -> int:
        """Return the store's time in ms UTC, which never runs behind its high-water mark."""
        return self.store.clock.now(int(self.office.facts().get("high_water_ms", "0")))


@dataclass(frozen=True, slots=True)
class Desk(Books):
    """The books, and the way to Stripe."""

    proxy: Proxy
    reads: StripeReads


def with_books(work: Callable[[Books], Awaitable[T]], *, lenient: bool = False) -> T:
    """Run `work` on the open store.

    `lenient` opens a store whose ceiling or times differ from this process's environment: so
    that a command can show and change them. Raises: SettingsError, StoreError, BindingError.
    """
    from kb_mcp.settings import load_settings

    settings = load_settings()
    return asyncio.run(_on_books(settings, work, lenient=lenient))


def with_desk(work: Callable[[Desk], Awaitable[T]]) -> T:
    """Run `work` on the open store with a way to Stripe; nothing is served meanwhile.

    Raises: SettingsError, StoreError, BindingError, EgressError.
    """
    from kb_mcp.settings import load_settings

    return asyncio.run(on_desk(load_settings(), work))


async def on_desk(settings: Settings, work: Callable[[Desk], Awaitable[T]]) -> T:
    """Run `work` as `with_desk` does, on the running loop."""
    from kb_mcp.proxy.ops.stripe_reads import StripeReads
    from kb_mcp.wiring.machine import boottime_ms
    from kb_mcp.wiring.proxy import build_proxy, build_sandbox

    sandbox = build_sandbox(settings) if settings.upstream_base is None else None
    proxy = build_proxy(settings, sandbox)
    office = proxy.store.open_office()
    reads = StripeReads(proxy.upstream, proxy.store.clock, boottime_ms)
    try:
        # The sandbox's clock may have been turned: the store follows it.
        await proxy.app.desk.follow()
        return await work(Desk(settings, proxy.store, office, proxy, reads))
    finally:
        await proxy.stop(0)
        office.close()
        if sandbox is not None:
            sandbox.close()


async def _on_books(
    settings: Settings, work: Callable[[Books], Awaitable[T]], *, lenient: bool
) -> T:
    from kb_mcp.wiring.store import open_store

    store = _open_leniently(settings) if lenient else open_store(settings)
    office = store.open_office()
    try:
        return await work(Books(settings, store, office))
    finally:
        await store.close()
        office.close()


def _open_leniently(settings: Settings) -> Store:
    from kb_mcp.wiring.store import open_store

    try:
        return open_store(settings)
    except Exception as error:
        if type(error).__name__ != "BindingError":
            raise
    # What differs may be the ceiling or a time: those give way. Another account still refuses.
    plain = replace(
        settings, account_daily_cap=(), upstream_timeout_ms=25_000, recovery_grace_ms=600_000
    )
    return open_store(plain)
