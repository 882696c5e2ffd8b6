"""Building wing B: store, upstream, governor, pipeline, recovery, behind one ASGI application.

Floor: wiring.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from kb_mcp.proxy.access.authorize import Rates
from kb_mcp.proxy.access.issuers import Issuers
from kb_mcp.proxy.answers import Answers, Reads
from kb_mcp.proxy.audit.chain import derive_key
from kb_mcp.proxy.charge_reads import ChargeReads
from kb_mcp.proxy.edge.app import AdmissionQueue, ProxyApp
from kb_mcp.proxy.edge.key_api import KeyApi, Readiness
from kb_mcp.proxy.edge.pipeline import RefusalCounts, RequestPipeline
from kb_mcp.proxy.errors.refusals import Refusal
from kb_mcp.proxy.finished_bills import RefundWatch, Retention
from kb_mcp.proxy.governor import AbandonedIntents, Governor, SendGate, Waiters
from kb_mcp.proxy.invoice_reads import InvoiceReads
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.meters import MeteredLedger, MeteredUpstream, Meters
from kb_mcp.proxy.recovery import Recovery
from kb_mcp.proxy.rules.command import Command
from kb_mcp.proxy.store_walk import Pace, StoreWalk
from kb_mcp.proxy.stores.binding import Binds
from kb_mcp.proxy.stripe.messages import SEND_WITHIN_MS, Upstream
from kb_mcp.proxy.stripe.reader import StripeReads, TimeReader
from kb_mcp.serving.machine import boottime_ms, host_ms, new_id
from kb_mcp.serving.tracing import Span, TracedUpstream, chosen_span, no_span
from kb_mcp.settings import Settings
from kb_mcp.wiring.account import Account, UpstreamWithKeyFile, is_of_account
from kb_mcp.wiring.stores import open_store
from kb_mcp.wiring.stores.store import Store
from kb_mcp.wiring.upstream import FollowedClock, build_issuers, build_upstream, upstream_key
from kb_mcp.wiring.walks import MovedStore, Walks

# A lease outlives its send, so that no other caller takes over while it may still conclude.
LEASE_SLACK_MS = 5_000
REFUSAL_COUNTS_EVERY_MS = 60_000
_log = logging.getLogger("kb_mcp.wiring")


@dataclass(slots=True, kw_only=True)
class Proxy:
    """Wing B, built. `start` begins the timers on the running loop, `stop` drains and closes."""

    app: ProxyApp
    store: Store
    upstream: Upstream
    recovery: Recovery
    time: TimeReader
    retention: Retention
    refund_watch: RefundWatch
    settings: Settings
    walks: Walks
    moves: MovedStore | None = None
    meters: Meters = field(default_factory=Meters)
    span: Span = no_span
    timers: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Check the account and walk Stripe's lists; recover once, then on a timer.

        The counts of refusals are written every minute. Raises: BindingError, UpstreamKeyError.
        """
        await self.app.pipeline.follow()
        if self.settings.upstream_mode != "sandbox":
            await self.account.bind()
        if self.store.watch is not None:
            self.store.watch.begin()
        issuers = self.app.pipeline.issuers
        if issuers is not None:
            # One that cannot be reached is told of now; its tokens get 503 until it is back.
            await issuers.greet()
        await self.walks.begin()
        self.timers = [
            asyncio.create_task(_every(self.settings.recovery_interval_ms, self._recover)),
            asyncio.create_task(_every(self.settings.recovery_interval_ms, self.walks.tick)),
            asyncio.create_task(
                _every(REFUSAL_COUNTS_EVERY_MS, self._write_refusal_counts, first=False)
            ),
        ]

    def repeat(self, interval_ms: int, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` now and every `interval_ms`, until `stop`."""
        self.timers.append(asyncio.create_task(_every(interval_ms, work)))

    async def stop(self, within_s: int = 30) -> None:
        """Finish requests under way, then close the store and the upstream."""
        await self.app.drain(within_s)
        await self.walks.end()
        for timer in self.timers:
            timer.cancel()
        await asyncio.gather(*self.timers, return_exceptions=True)
        try:
            await self.app.pipeline.refusal_counts.flush(self.store.ledger)
        except LedgerUnavailableError:
            _log.warning("the last counts of refusals could not be written")
        await self.store.close()
        await self.upstream.aclose()

    @property
    def account(self) -> Account:
        """The account of the upstream key, and the store that must be for it."""
        reads = StripeReads(self.upstream, self.store.clock, boottime_ms)
        key = upstream_key(self.settings)
        return Account(self.store, reads, key, self.settings.account_label)

    async def _recover(self) -> None:
        await self.app.pipeline.follow()
        if self.moves is not None:
            await self.moves.check()
        await self.recovery.run()
        await self.refund_watch.run(self.store.clock.now())
        await self.retention.run(self.store.clock.now())

    async def _write_refusal_counts(self) -> None:
        await self.app.pipeline.refusal_counts.flush(self.store.ledger)


def build_proxy(
    settings: Settings,
    sandbox_app: Any | None = None,
    span: Span | None = None,
    binds: Binds = Binds.LIMITS,
) -> Proxy:
    """Build wing B for `settings`. `sandbox_app` is the in-process sandbox, where there is one.

    `span` records traces; without it, a collector that the settings name does. `binds` is what a
    new store is bound to by this.

    Raises: StoreError, BindingError, SchemaError, EgressError.
    """
    span = span or chosen_span(settings)
    plain = build_upstream(settings, sandbox_app)
    upstream = TracedUpstream(plain, span)
    followed = FollowedClock(upstream, host_ms)
    store = open_store(settings, followed, binds)
    followed.measure_from(store.base_ms)
    if isinstance(plain, UpstreamWithKeyFile):
        plain.proves = partial(is_of_account, store, settings.account_label)
    key = upstream_key(settings)
    waiters, gate = Waiters(), SendGate(heads_behind=bool(store.behind))
    reads = StripeReads(upstream, store.clock, boottime_ms)
    time = TimeReader(reads)
    follow = _follower(settings, followed, time)
    meters = Meters(queued=lambda: store.ledger.waiting, batches=lambda: store.ledger.sizes)
    recovery = _recovery(store, reads, waiters)
    refund_watch = RefundWatch(store.ledger, store.records, reads)
    reading = _reading(store, recovery, refund_watch, reads)
    governor = _governor(store, reads, key, reading, waiters, meters, gate)
    pipeline = _pipeline(store, governor, reading, key, follow, build_issuers(settings))
    walk = _walk(settings, store, reads, recovery)
    key_api = KeyApi(records=store.records, pipeline=pipeline, readiness=Readiness(reads))
    app = ProxyApp(pipeline, key_api, AdmissionQueue(meters.queued))
    meters.in_flight = lambda: app.in_flight
    return Proxy(
        app=app,
        store=store,
        upstream=upstream,
        recovery=recovery,
        time=time,
        retention=Retention(store.ledger, store.records),
        refund_watch=refund_watch,
        settings=settings,
        walks=Walks(walk=walk, gate=gate, boottime_ms=boottime_ms),
        moves=_moves(store, walk),
        meters=meters,
        span=span,
    )


def _reading(
    store: Store, recovery: Recovery, refund_watch: RefundWatch, stripe: StripeReads
) -> _Reading:
    look, live = recovery.resolve_one, store.settings.mode == "live"
    charges = ChargeReads(ledger=store.ledger, stripe=stripe, look=look, live=live)
    invoices = InvoiceReads(ledger=store.ledger, stripe=stripe, look=look, live=live)
    return _Reading(recovery, refund_watch, charges, invoices)


def _recovery(store: Store, stripe: StripeReads, waiters: Waiters) -> Recovery:
    return Recovery(
        ledger=store.ledger,
        records=store.records,
        stripe=stripe,
        waiters=waiters,
        owner=store.owner,
    )


class _Reading(NamedTuple):
    """What reads Stripe on the path of a request."""

    recovery: Recovery
    refund_watch: RefundWatch
    charges: ChargeReads
    invoices: InvoiceReads

    async def again(self, command: Command) -> Command | Refusal:
        """Read again what `command` depends on. Raises: LedgerUnavailableError."""
        reads = self.charges if command.invoice is None else self.invoices
        return await reads.again(command)


def _governor(
    store: Store,
    stripe: StripeReads,
    key: str,
    reading: _Reading,
    waiters: Waiters,
    meters: Meters,
    gate: SendGate,
) -> Governor:
    return Governor(
        ledger=MeteredLedger(store.ledger, meters, boottime_ms),
        upstream=MeteredUpstream(stripe.upstream, meters, boottime_ms),
        clock=store.clock,
        answers=Answers(stripe=stripe, livemode=store.settings.mode == "live"),
        waiters=waiters,
        abandoned=AbandonedIntents(stripe.upstream, stripe),
        look=reading.recovery.resolve_one,
        look_at_refund=reading.refund_watch.look,
        read_again=reading.again,
        invoices=reading.invoices,
        boottime_ms=boottime_ms,
        upstream_key=key,
        tasks=set(),
        gate=gate,
    )


def _pipeline(
    store: Store,
    governor: Governor,
    reading: _Reading,
    key: str,
    follow: Callable[[], Awaitable[None]],
    issuers: Issuers | None,
) -> RequestPipeline:
    return RequestPipeline(
        ledger=store.ledger,
        governor=governor,
        reads=Reads(ledger=store.ledger, stripe=reading.charges.stripe, upstream_key=key),
        charges=reading.charges,
        invoices=reading.invoices,
        rates=Rates(),
        refusal_counts=RefusalCounts(),
        now_ms=store.clock.now,
        times=store.clock.times,
        monotonic_ms=boottime_ms,
        new_id=new_id,
        keys_secret=derive_key(store.chain_key, "caller keys"),
        owner=store.owner,
        lease_ms=_lease_ms(store),
        follow=follow,
        issuers=issuers,
    )


def _walk(settings: Settings, store: Store, reads: StripeReads, recovery: Recovery) -> StoreWalk:
    return StoreWalk(
        ledger=store.ledger,
        records=store.records,
        reads=reads,
        pace=Pace(boottime_ms, _pause),
        look=recovery.resolve_one,
        stripe_ms=store.clock.stripe_ms,
        owner=store.node,
        warns=settings.upstream_mode == "sandbox",
    )


async def _pause(milliseconds: int) -> None:
    await asyncio.sleep(milliseconds / 1000)


def _moves(store: Store, walk: StoreWalk) -> MovedStore | None:
    if store.watch is None:
        return None
    return MovedStore(
        watch=store.watch,
        ledger=store.ledger,
        walk=walk,
        boottime_ms=boottime_ms,
        settle_ms=_lease_ms(store),
    )


def _lease_ms(store: Store) -> int:
    return SEND_WITHIN_MS + store.settings.upstream_timeout_ms + LEASE_SLACK_MS


def _follower(
    settings: Settings, followed: FollowedClock, time: TimeReader
) -> Callable[[], Awaitable[None]]:
    async def follow() -> None:
        if settings.upstream_mode == "sandbox":
            await followed.follow(boottime_ms)
        await time.settle()

    return follow


async def _every(
    interval_ms: int, work: Callable[[], Awaitable[None]], *, first: bool = True
) -> None:
    """Do `work` every `interval_ms`; a failure is logged, and the next turn tries again."""
    while True:
        if first:
            try:
                await work()
            except LedgerUnavailableError as error:
                _log.warning("the ledger is unavailable: %s", error)
            except Exception:  # noqa: BLE001 a timer must outlive one bad turn
                _log.exception("a timer failed")
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return  # the client of Stripe takes a cancellation for a lost answer
        first = True
        await asyncio.sleep(interval_ms / 1000)
