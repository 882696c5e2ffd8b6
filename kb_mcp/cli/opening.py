"""Opening what commands work on: the store, and Stripe where a command reads it.

Floor: above wiring, below the commands. Several processes may share a store: a serving one goes
on beside a command.
What a shell completes is read here too: it never fails aloud, waits for no network and changes
nothing; what cannot be read at once is not offered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import click
from click.shell_completion import CompletionItem

from kb_mcp.environment import SettingsError
from kb_mcp.instants import past_ms
from kb_mcp.settings import Settings, load_settings

if TYPE_CHECKING:
    from kb_mcp.operators.actions.resolve import StripeActs
    from kb_mcp.operators.reports.views import Views
    from kb_mcp.proxy.stores.admin import StoreAdmin
    from kb_mcp.proxy.stripe.reader import StripeReads
    from kb_mcp.wiring.proxy import Proxy
    from kb_mcp.wiring.stores.store import Store


T = TypeVar("T")
P = ParamSpec("P")
OPERATOR = "cli"


@dataclass(frozen=True, slots=True)
class OpenStore:
    """The open store, and beside it what no decision touches: facts and operators."""

    settings: Settings
    store: Store
    store_admin: StoreAdmin

    def now(self) -> int:
        """Return the store's time in ms UTC, which never runs behind its high-water mark."""
        return self.store.clock.now(int(self.store_admin.facts().get("high_water_ms", "0")))

    @property
    def views(self) -> Views:
        """What people look at in the store."""
        from kb_mcp.operators.reports.views import Views

        return Views(ledger=self.store.ledger, records=self.store.records, now_ms=self.now)

    def past_ms(self, text: str) -> int:
        """Read a time, a day or an age as ms UTC. Raises: BadParameter."""
        try:
            return past_ms(text, self.now())
        except ValueError as error:
            raise click.BadParameter(f"{error}, not {text!r}") from None

    async def note(self, decision: str, text: str, code: str | None = None) -> None:
        """Leave an audit row of an operator's act. Raises: LedgerUnavailableError."""
        from kb_mcp.operators.actions.operations import note
        from kb_mcp.proxy.ledger.records import AuditDraft

        row = AuditDraft(kind="admin", decision=decision, code=code, agent_id=OPERATOR, note=text)
        await note(self.store.ledger, row)


@dataclass(frozen=True, slots=True)
class OpenProxy(OpenStore):
    """The books, and the way to Stripe."""

    proxy: Proxy
    reads: StripeReads

    @property
    def acts(self) -> StripeActs:
        """What an operator can do that is looked up at Stripe."""
        from kb_mcp.operators.actions.resolve import StripeActs

        return StripeActs(self.store.ledger, self.reads, self.proxy.recovery)


def with_store(work: Callable[[OpenStore], Awaitable[T]], *, lenient: bool = False) -> T:
    """Run `work` on the open store, for which no Stripe key is needed.

    `lenient` opens a store whose ceiling or times differ from this process's environment: so
    that a command can show and change them. Raises: SettingsError, StoreError, BindingError.
    """
    return asyncio.run(_on_store(load_settings(), work, lenient=lenient))


def with_proxy(work: Callable[[OpenProxy], Awaitable[T]]) -> T:
    """Run `work` on the open store with a way to Stripe; nothing is served meanwhile.

    Raises: SettingsError, StoreError, BindingError, EgressError.
    """
    return asyncio.run(on_proxy(load_settings(), work))


def in_store(command: Callable[Concatenate[OpenStore, P], Awaitable[None]]) -> Callable[P, None]:
    """Run a command on the open store, as `with_store` does."""

    @wraps(command)
    def run(*args: P.args, **options: P.kwargs) -> None:
        with_store(lambda opened: command(opened, *args, **options))

    return run


def at_stripe(command: Callable[Concatenate[OpenProxy, P], Awaitable[None]]) -> Callable[P, None]:
    """Run a command on the open store with a way to Stripe, as `with_proxy` does."""

    @wraps(command)
    def run(*args: P.args, **options: P.kwargs) -> None:
        with_proxy(lambda opened: command(opened, *args, **options))

    return run


async def on_proxy(
    settings: Settings, work: Callable[[OpenProxy], Awaitable[T]], *, looks_only: bool = False
) -> T:
    """Run `work` as `with_proxy` does, on the running loop.

    `looks_only` leaves a new store unbound. How long a send may take is never for a command to say,
    which serves nobody.
    """
    from kb_mcp.proxy.stores.binding import Binds
    from kb_mcp.proxy.stripe.reader import StripeReads
    from kb_mcp.serving.machine import boottime_ms
    from kb_mcp.wiring.proxy import build_proxy
    from kb_mcp.wiring.upstream import build_sandbox

    sandbox = build_sandbox(settings) if settings.upstream_base is None else None
    binds = Binds.NOTHING if looks_only else Binds.ACCOUNT
    proxy = build_proxy(settings, sandbox, binds=binds)
    store_admin = proxy.store.open_store_admin()
    reads = StripeReads(proxy.upstream, proxy.store.clock, boottime_ms)
    try:
        # The sandbox's clock may have been turned: the store follows it.
        await proxy.app.pipeline.follow()
        return await work(OpenProxy(settings, proxy.store, store_admin, proxy, reads))
    finally:
        await proxy.stop(0)
        store_admin.close()
        if sandbox is not None:
            sandbox.close()


async def _on_store(
    settings: Settings, work: Callable[[OpenStore], Awaitable[T]], *, lenient: bool
) -> T:
    from kb_mcp.proxy.stores.binding import BindingError, Binds
    from kb_mcp.wiring.stores import open_store

    # A new store is bound to the account of this process's Stripe key, if any.
    binds = Binds.NOTHING if settings.stripe_key is None else Binds.ACCOUNT
    try:
        store = open_store(settings, binds=binds)
    except BindingError:
        if not lenient:
            raise
        # What differs may be the ceiling or a time: those give way. Another account still refuses.
        plain = replace(
            settings,
            account_daily_cap=(),
            account_daily_refund_cap=(),
            upstream_timeout_ms=25_000,
            recovery_grace_ms=600_000,
        )
        store = open_store(plain, binds=binds)
    store_admin = store.open_store_admin()
    try:
        return await work(OpenStore(settings, store, store_admin))
    finally:
        await store.close()
        store_admin.close()


IDS_MAX = 100


def roles(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the built-in roles, each with what it may do."""
    from kb_mcp.proxy.access.roles import ROLES, describe

    return [
        CompletionItem(name, help=describe(policy)[0])
        for name, policy in ROLES.items()
        if name.startswith(incomplete)
    ]


def codes(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Offer the codes of our refusals."""
    from kb_mcp.proxy.errors.refusal_codes import Code

    return [code.value for code in Code if code.value.startswith(incomplete)]


def key_ids(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the keys of an embedded store, the newest first, each with its role and label."""
    from kb_mcp.proxy.audit.chain import clean_text
    from kb_mcp.wiring.stores import keys_in

    try:
        found = keys_in(load_settings())
    except SettingsError:
        return []
    return [
        CompletionItem(key.id, help=clean_text(f"{key.role} {key.label or ''}".strip(), 60))
        for key in reversed(found)
        if key.id.startswith(incomplete)
    ][:IDS_MAX]
