"""Building wing B: store, upstream, governor, pipeline, recovery, behind one ASGI application.

Floor: wiring.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from kb_mcp.proxy.access.authorize import Rates
from kb_mcp.proxy.answers import Answers, Reads
from kb_mcp.proxy.audit.chain import derive_key
from kb_mcp.proxy.edge.app import AdmissionQueue, ProxyApp
from kb_mcp.proxy.edge.key_api import KeyApi, Readiness
from kb_mcp.proxy.edge.pipeline import RefusalCounts, RequestPipeline
from kb_mcp.proxy.errors.refusals import Refusal
from kb_mcp.proxy.governor import AbandonedIntents, Governor, SendGate, Waiters
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.meters import MeteredLedger, MeteredUpstream, Meters
from kb_mcp.proxy.read_first import ChargeReads, InvoiceReads
from kb_mcp.proxy.recovery import Recovery, RefundWatch, Retention
from kb_mcp.proxy.rules.command import Command
from kb_mcp.proxy.store_walk import Pace, StoreWalk
from kb_mcp.proxy.stores.binding import Binds
from kb_mcp.proxy.stripe.messages import SEND_WITHIN_MS
from kb_mcp.proxy.stripe.reader import StripeReads, TimeReader
from kb_mcp.serving.machine import boottime_ms, new_id
from kb_mcp.serving.tracing import Span, TracedUpstream, chosen_span
from kb_mcp.settings import Settings
from kb_mcp.wiring.stores import open_store
from kb_mcp.wiring.stores.store import Turned
from kb_mcp.wiring.upstream import (
    Account,
    UpstreamWithKeyFile,
    build_issuers,
    build_upstream,
    follow_sandbox,
    upstream_key,
)
from kb_mcp.wiring.walks import Walks

# A lease outlives its send, so that no other caller takes over while it may still conclude.
LEASE_SLACK_MS = 5_000
REFUSAL_COUNTS_EVERY_MS = 60_000
Work = Callable[[], Awaitable[Any]]
_log = logging.getLogger("kb_mcp.wiring")


class Proxy:
    """Wing B, built. `start` begins its timers on the running loop, `stop` drains and closes."""

    def __init__(
        self,
        settings: Settings,
        sandbox_app: Any | None = None,
        span: Span | None = None,
        binds: Binds = Binds.LIMITS,
    ) -> None:
        """Build wing B for `settings`. `sandbox_app` is the in-process sandbox, if there is one.

        `span` records traces; without it, a collector that the settings name does. `binds` is what
        a new store is bound to by this.

        Raises: StoreError, BindingError, SchemaError, EgressError.
        """
        self.settings, self.span = settings, span or chosen_span(settings)
        self._turned, self._timers = Turned(), list[asyncio.Task[None]]()
        plain = build_upstream(settings, sandbox_app)
        self.upstream = TracedUpstream(plain, self.span)
        self.store = store = open_store(settings, self._turned, binds)
        self.reads = reads = StripeReads(self.upstream, store.clock, boottime_ms)
        self.account = Account(store, reads, settings)
        if isinstance(plain, UpstreamWithKeyFile):
            plain.prove = self.account.prove
        self.time = TimeReader(reads)
        self.meters = Meters(
            queued=lambda: store.ledger.waiting, batches=lambda: store.ledger.sizes
        )
        self.recovery = Recovery(
            ledger=store.ledger,
            records=store.records,
            stripe=reads,
            waiters=Waiters(),
            owner=store.owner,
        )
        self.refund_watch = RefundWatch(store.ledger, store.records, reads)
        self.retention = Retention(store.ledger, store.records)
        gate = SendGate(heads_behind=bool(store.behind))
        self._lease_ms = SEND_WITHIN_MS + store.settings.upstream_timeout_ms + LEASE_SLACK_MS
        self.walks = self._walks(gate)
        pipeline = self._pipeline(gate)
        key_api = KeyApi(records=store.records, pipeline=pipeline, readiness=Readiness(reads))
        self.app = ProxyApp(pipeline, key_api, AdmissionQueue(self.meters.queued))
        self.meters.in_flight = lambda: self.app.in_flight

    async def start(self) -> None:
        """Check the account and walk Stripe's lists; recover once, then on a timer.

        The counts of refusals are written every minute. Raises: BindingError, UpstreamKeyError.
        """
        await self.follow()
        if self.settings.upstream_mode != "sandbox":
            await self.account.bind()
        if self.store.watch is not None:
            self.store.watch.begin()
        issuers, refusal_counts = self.app.pipeline.issuers, self.app.pipeline.refusal_counts
        if issuers is not None:
            # One that cannot be reached is told of now; its tokens get 503 until it is back.
            await issuers.greet()
        await self.walks.begin()
        self.repeat(self.settings.recovery_interval_ms, self._recover)
        self.repeat(self.settings.recovery_interval_ms, self.walks.tick)
        self.repeat(REFUSAL_COUNTS_EVERY_MS, partial(refusal_counts.flush, self.store.ledger))

    def repeat(self, interval_ms: int, work: Work) -> None:
        """Do `work` now and every `interval_ms`, until `stop`."""
        self._timers.append(asyncio.create_task(_every(interval_ms, work)))

    async def stop(self, within_s: int = 30) -> None:
        """Finish requests under way, then close the store and the upstream."""
        await self.app.drain(within_s)
        await self.walks.end()
        for timer in self._timers:
            timer.cancel()
        await asyncio.gather(*self._timers, return_exceptions=True)
        try:
            await self.app.pipeline.refusal_counts.flush(self.store.ledger)
        except LedgerUnavailableError:
            _log.warning("the last counts of refusals could not be written")
        await self.store.close()
        await self.upstream.aclose()

    async def follow(self) -> None:
        """Ask the sandbox for its clock, or Stripe for the time where that is not certain."""
        if self.settings.upstream_mode == "sandbox":
            await follow_sandbox(self._turned, self.upstream, self.store.engine.base_ms)
        await self.time.settle()

    async def _recover(self) -> None:
        await self.follow()
        await self.walks.check_moved()
        await self.recovery.run()
        await self.refund_watch.run(self.store.clock.now())
        await self.retention.run(self.store.clock.now())

    def _walks(self, gate: SendGate) -> Walks:
        store = self.store
        walk = StoreWalk(
            ledger=store.ledger,
            records=store.records,
            reads=self.reads,
            pace=Pace(boottime_ms, lambda milliseconds: asyncio.sleep(milliseconds / 1000)),
            look=self.recovery.resolve_one,
            stripe_ms=store.clock.stripe_ms,
            owner=store.node,
            warns=self.settings.upstream_mode == "sandbox",
        )
        return Walks(
            walk=walk,
            gate=gate,
            boottime_ms=boottime_ms,
            watch=store.watch,
            settle_ms=self._lease_ms,
        )

    def _pipeline(self, gate: SendGate) -> RequestPipeline:
        store, reads, look = self.store, self.reads, self.recovery.resolve_one
        key, live = upstream_key(self.settings), store.settings.mode == "live"
        charges = ChargeReads(ledger=store.ledger, stripe=reads, look=look, live=live)
        invoices = InvoiceReads(ledger=store.ledger, stripe=reads, look=look, live=live)

        async def read_again(command: Command) -> Command | Refusal:
            again = charges.again if command.invoice is None else invoices.again
            return await again(command)

        governor = Governor(
            ledger=MeteredLedger(store.ledger, self.meters, boottime_ms),
            upstream=MeteredUpstream(self.upstream, self.meters, boottime_ms),
            clock=store.clock,
            answers=Answers(stripe=reads, livemode=live),
            waiters=self.recovery.waiters,
            abandoned=AbandonedIntents(self.upstream, reads),
            look=look,
            look_at_refund=self.refund_watch.look,
            read_again=read_again,
            invoices=invoices,
            boottime_ms=boottime_ms,
            upstream_key=key,
            tasks=set(),
            gate=gate,
        )
        return RequestPipeline(
            ledger=store.ledger,
            governor=governor,
            reads=Reads(ledger=store.ledger, stripe=reads, upstream_key=key),
            charges=charges,
            invoices=invoices,
            rates=Rates(),
            refusal_counts=RefusalCounts(),
            now_ms=store.clock.now,
            times=store.clock.times,
            monotonic_ms=boottime_ms,
            new_id=new_id,
            keys_secret=derive_key(store.chain_key, "caller keys"),
            owner=store.owner,
            lease_ms=self._lease_ms,
            follow=self.follow,
            issuers=build_issuers(self.settings),
        )


async def _every(interval_ms: int, work: Work) -> None:
    """Do `work` every `interval_ms`; a failure is logged, and the next turn tries again."""
    while True:
        try:
            await work()
        except LedgerUnavailableError as error:
            _log.warning("the ledger is unavailable: %s", error)
        except Exception:  # noqa: BLE001 a timer must outlive one bad turn
            _log.exception("a timer failed")
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return  # the client of Stripe takes a cancellation for a lost answer
        await asyncio.sleep(interval_ms / 1000)
