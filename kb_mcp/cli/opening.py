"""Opening what commands work on: the store, and Stripe where a command reads it.

Floor: above wiring, below the commands. Several processes may share a store: a serving one goes
on beside a command.
What a shell completes is read here too: it never fails aloud, waits for no network and changes
nothing; what cannot be read at once is not offered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import click
from click.shell_completion import CompletionItem

from kb_mcp.cli.output import Failure, Output, example, json_option
from kb_mcp.environment import SettingsError
from kb_mcp.instants import past_ms
from kb_mcp.operators.actions.operations import NotDone, admin_row
from kb_mcp.operators.reports.views import Views
from kb_mcp.proxy.access.roles import ROLES, describe
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.errors.refusal_codes import Code
from kb_mcp.proxy.ledger.port import note
from kb_mcp.proxy.stores.binding import BindingError, Binds
from kb_mcp.proxy.stores.database import StoreAdmin
from kb_mcp.settings import Settings, load_settings
from kb_mcp.wiring.stores import Store, keys_in, open_store

if TYPE_CHECKING:  # what only those need that read Stripe
    from kb_mcp.operators.actions.resolve import StripeActs
    from kb_mcp.wiring.proxy import Proxy

T = TypeVar("T")
OPERATOR = "cli"


@dataclass(frozen=True, slots=True)
class OpenStore:
    """The open store, beside it what no decision touches; `out` tells what came of an act."""

    settings: Settings
    out: Output
    store: Store
    store_admin: StoreAdmin

    def now(self) -> int:
        """Return the store's time in ms UTC, which never runs behind its high-water mark."""
        return self.store.clock.now(int(self.store_admin.facts().get("high_water_ms", "0")))

    @property
    def views(self) -> Views:
        """What people look at in the store."""
        return Views(ledger=self.store.ledger, records=self.store.records, now_ms=self.now)

    def past_ms(self, text: str) -> int:
        """Read a time, a day or an age as ms UTC. Raises: BadParameter."""
        try:
            return past_ms(text, self.now())
        except ValueError as error:
            raise click.BadParameter(f"{error}, not {text!r}") from None

    async def note(self, decision: str, text: str, code: str | None = None) -> None:
        """Leave an audit row of an operator's act. Raises: LedgerUnavailableError."""
        await note(self.store.ledger, admin_row(OPERATOR, decision, text, code=code))


@dataclass(frozen=True, slots=True)
class OpenProxy(OpenStore):
    """The open store, and the way to Stripe."""

    proxy: Proxy

    @property
    def acts(self) -> StripeActs:
        """What an operator can do that is looked up at Stripe."""
        from kb_mcp.operators.actions.resolve import StripeActs

        return StripeActs(self.store.ledger, self.proxy.reads, self.proxy.recovery)


@asynccontextmanager
async def open_ledger(
    settings: Settings, out: Output, *, lenient: bool = False
) -> AsyncIterator[OpenStore]:
    """Open the store, for which no Stripe key is needed.

    `lenient` opens a store whose ceiling or times differ from this process's environment: so
    that a command can show and change them. Raises: StoreError, BindingError.
    """
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
        yield OpenStore(settings, out, store, store_admin)
    finally:
        await store.close()
        store_admin.close()


@asynccontextmanager
async def open_proxy(
    settings: Settings, out: Output, *, looks_only: bool = False
) -> AsyncIterator[OpenProxy]:
    """Open the store with a way to Stripe; nothing is served meanwhile.

    `looks_only` leaves a new store unbound. How long a send may take is never for a command to say,
    which serves nobody. Raises: StoreError, BindingError, EgressError.
    """
    from kb_mcp.wiring.proxy import Proxy
    from kb_mcp.wiring.upstream import build_sandbox

    sandbox = build_sandbox(settings) if settings.upstream_base is None else None
    binds = Binds.NOTHING if looks_only else Binds.ACCOUNT
    proxy = Proxy(settings, sandbox, binds=binds)
    store_admin = proxy.store.open_store_admin()
    try:
        # The sandbox's clock may have been turned: the store follows it.
        await proxy.follow()
        yield OpenProxy(settings, out, proxy.store, store_admin, proxy)
    finally:
        await proxy.stop(0)
        store_admin.close()
        if sandbox is not None:
            sandbox.close()


Work = Callable[..., Awaitable[None]]
Opening = Callable[[Settings, Output], AbstractAsyncContextManager[OpenStore]]
leniently: Opening = partial(open_ledger, lenient=True)


def in_store(
    line: str,
    opening: Opening = open_ledger,
    *,
    json: bool = True,
    check: Callable[..., object] = lambda **_: None,
) -> Callable[[Work], Callable[..., None]]:
    """Run a command on what `opening` opens; `line` is its example, `json` adds `--json`.

    `check` looks at the options first: wrong usage opens nothing.
    """

    def decorate(work: Work) -> Callable[..., None]:
        @example(line)
        @wraps(work)
        def run(*args: object, as_json: bool = False, **options: object) -> None:
            check(**options)

            async def opened() -> None:
                async with opening(load_settings(), Output(as_json)) as found:
                    await work(found, *args, **options)

            asyncio.run(opened())

        return json_option(run) if json else run

    return decorate


at_stripe = partial(in_store, opening=open_proxy)


def demand(outcome: T | NotDone) -> T:
    """Return what came of an act. Raises: Failure, where nothing did."""
    if isinstance(outcome, NotDone):
        raise Failure(outcome.why, outcome.hint)
    return outcome


OFFERED_MAX = 100
Offered = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _offering(known: Callable[[], Iterable[tuple[str, str | None]]]) -> Offered:
    """Return what offers to a shell the words of `known`, each with what it means."""

    def complete(
        _context: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        fit = (CompletionItem(w, help=text) for w, text in known() if w.startswith(incomplete))
        return list(islice(fit, OFFERED_MAX))

    return complete


def _known_keys() -> Iterable[tuple[str, str]]:
    """Return the keys of an embedded store, the newest first, each with its role and label."""
    try:
        found = keys_in(load_settings())
    except SettingsError:
        found = []
    for key in reversed(found):
        yield key.id, clean_text(f"{key.role} {key.label or ''}".strip(), 60)


roles = _offering(lambda: ((name, describe(policy)[0]) for name, policy in ROLES.items()))
codes = _offering(lambda: ((code.value, None) for code in Code))
key_ids = _offering(_known_keys)
key_argument = click.argument("key_id", metavar="ID", shell_complete=key_ids)
