"""Building wing B: store, upstream, governor, pipeline, recovery, behind one ASGI application.

Floor: wiring. Stripe's lists are walked before anything is sent, every hour, and after a store
moved. Sending goes on during the hourly walk. Where Stripe refuses a list to our key, this process
does not start; where it cannot be read, nothing is sent until a walk is whole. A promoted replica
or a restored copy may lack what was acknowledged before: nothing is sent until a walk finds
everything in it that this store made, once the sends that were under way have ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from kb_mcp.proxy import store_walk
from kb_mcp.proxy.answers import Answers, Reads
from kb_mcp.proxy.audit.chain import derive_key
from kb_mcp.proxy.edge.app import AdmissionQueue, ProxyApp
from kb_mcp.proxy.edge.key_api import KeyApi, Readiness
from kb_mcp.proxy.edge.pipeline import RequestPipeline
from kb_mcp.proxy.errors.refusals import Refusal
from kb_mcp.proxy.governor import Governor, SendGate, Waiters
from kb_mcp.proxy.ledger.port import LedgerUnavailableError, note
from kb_mcp.proxy.ledger.records import AuditDraft
from kb_mcp.proxy.ledger.snapshot import GAP
from kb_mcp.proxy.meters import Meters
from kb_mcp.proxy.read_first import ChargeReads, InvoiceReads
from kb_mcp.proxy.recovery import Recovery
from kb_mcp.proxy.rules.command import Command
from kb_mcp.proxy.rules.outcomes.matching import WALK_FAILED
from kb_mcp.proxy.stores.binding import Binds
from kb_mcp.proxy.stripe.messages import SEND_WITHIN_MS
from kb_mcp.proxy.stripe.reader import StripeReads, TimeReader
from kb_mcp.serving.machine import boottime_ms, new_id
from kb_mcp.serving.tracing import Span, TracedUpstream, chosen_span
from kb_mcp.settings import Settings
from kb_mcp.wiring import upstream
from kb_mcp.wiring.stores import Turned, open_store

if TYPE_CHECKING:  # the driver of PostgreSQL may not be installed
    from kb_mcp.proxy.stores.postgres.fence import FencedLine, Server

# A lease outlives its send, so that no other caller takes over while it may still conclude.
LEASE_SLACK_MS = 5_000
REFUSAL_COUNTS_EVERY_MS = 60_000
# How long a start waits for its first walk; it goes on in the background, and nothing is sent.
START_WAITS_S = 20
ALERT_AFTER = 3
_PERMISSIONS = {
    "/v1/charges": "Charges: Read",
    "/v1/payment_intents": "PaymentIntents: Read",
    "/v1/refunds": "Refunds: Read",
}
_RUN = "run `kb-mcp adopt --since … --apply`"
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
        plain = upstream.build_upstream(settings, sandbox_app)
        self.upstream = TracedUpstream(plain, self.span)
        self.store = store = open_store(settings, self._turned, binds)
        self.reads = reads = StripeReads(self.upstream, store.clock, boottime_ms)
        self.account = upstream.Account(store, reads, settings)
        if isinstance(plain, upstream.UpstreamWithKeyFile):
            plain.prove = self.account.prove
        self.time = TimeReader(reads)
        writer = store.ledger.batches
        self.meters = Meters(queued=lambda: writer.waiting, batches=lambda: writer.sizes)
        self.recovery = Recovery(
            ledger=store.ledger,
            records=store.records,
            stripe=reads,
            waiters=Waiters(),
            owner=store.owner,
        )
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
            await issuers.examine()
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
            await upstream.follow_sandbox(self._turned, self.upstream, self.store.engine.base_ms)
        await self.time.settle()

    async def _recover(self) -> None:
        await self.follow()
        await self.walks.check_moved()
        await self.recovery.run()
        await self.recovery.watch_refunds()
        await self.recovery.drop_answers()

    def _walks(self, gate: SendGate) -> Walks:
        store = self.store
        walk = store_walk.StoreWalk(
            ledger=store.ledger,
            records=store.records,
            reads=self.reads,
            pace=store_walk.Pace(
                boottime_ms, lambda milliseconds: asyncio.sleep(milliseconds / 1000)
            ),
            look=self.recovery.resolve_one,
            stripe_ms=store.clock.stripe_ms,
            owner=store.node,
            warns=self.settings.upstream_mode == "sandbox",
        )
        return Walks(walk=walk, gate=gate, watch=store.watch, settle_ms=self._lease_ms)

    def _pipeline(self, gate: SendGate) -> RequestPipeline:
        store, reads, look = self.store, self.reads, self.recovery.resolve_one
        key, live = upstream.upstream_key(self.settings), store.settings.mode == "live"
        charges = ChargeReads(ledger=store.ledger, stripe=reads, look=look, live=live)
        invoices = InvoiceReads(ledger=store.ledger, stripe=reads, look=look, live=live)

        async def read_again(command: Command) -> Command | Refusal:
            again = charges.again if command.invoice is None else invoices.again
            return await again(command)

        governor = Governor(
            ledger=store.ledger,
            upstream=self.upstream,
            clock=store.clock,
            answers=Answers(stripe=reads, livemode=live),
            waiters=self.recovery.waiters,
            look=look,
            look_at_refund=self.recovery.look_at_refund,
            read_again=read_again,
            invoices=invoices,
            boottime_ms=boottime_ms,
            upstream_key=key,
            gate=gate,
            meters=self.meters,
        )
        return RequestPipeline(
            ledger=store.ledger,
            governor=governor,
            reads=Reads(ledger=store.ledger, stripe=reads, upstream_key=key),
            charges=charges,
            clock=store.clock,
            new_id=new_id,
            keys_secret=derive_key(store.chain_key, "caller keys"),
            owner=store.owner,
            lease_ms=self._lease_ms,
            follow=self.follow,
            issuers=upstream.build_issuers(self.settings),
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


class UpstreamKeyError(Exception):
    """Stripe refuses a list to our key; the message says what the key lacks."""

    def __init__(self, broken: store_walk.BrokenWalk) -> None:
        """Take the list that could not be read: Stripe's status is 401 or 403."""
        path, permission = broken.path, _PERMISSIONS.get(broken.path, broken.path)
        super().__init__(
            "Stripe refuses KEYBRAKE_STRIPE_KEY (401): it is wrong, expired or revoked"
            if broken.status == 401
            else f"KEYBRAKE_STRIPE_KEY may not read {path} (403): give the restricted key the "
            f"permission `{permission}` in Stripe's dashboard"
        )


@dataclass(slots=True, kw_only=True)
class Walks:
    """The walks of one process.

    `watch` sees that the store moved, where it can; `settle_ms` is how long a send may last, all
    told.
    """

    walk: store_walk.StoreWalk
    gate: SendGate
    watch: FencedLine | None
    settle_ms: int
    _walked_at: int = field(default=0, init=False)
    _failures: int = field(default=0, init=False)
    _first: asyncio.Task[None] | None = field(default=None, init=False)
    _moved: tuple[Server | None, int] = field(default=(None, 0), init=False)

    async def begin(self) -> None:
        """Walk before anything is sent. Raises: UpstreamKeyError."""
        self.gate.unwalked = True
        self._first = asyncio.create_task(self._walk_first())
        done, _ = await asyncio.wait({self._first}, timeout=START_WAITS_S)
        for task in done:
            task.result()

    async def end(self) -> None:
        """Give up a walk that is under way."""
        while self._first is not None and not self._first.done():
            # Again, if need be: the client of Stripe takes a cancellation for a lost answer.
            self._first.cancel()
            await asyncio.wait({self._first}, timeout=1)

    async def tick(self) -> None:
        """Walk if it is time to. Raises: LedgerUnavailableError."""
        if self._first is not None and not self._first.done():
            return
        facts = await self.walk.records.facts()
        self.gate.gap = bool(facts.get(GAP))
        if self.gate.unwalked or self.gate.gap:
            await self._again(store_walk.LOOK_BACK_AT_START_MS)
        elif boottime_ms() >= self._walked_at + store_walk.HOUR_MS or self._failures:
            await self._again(store_walk.LOOK_BACK_HOURLY_MS)

    async def check_moved(self) -> None:
        """Accept the server that the store moved to, once nothing is missing there."""
        if self.watch is None:
            return
        try:
            await note(self.walk.ledger)
        except LedgerUnavailableError as error:
            _log.warning("the ledger is unavailable: %s", error)
        moved, now = self.watch.moved, boottime_ms()
        if moved is None:
            return
        if moved != self._moved[0]:
            self._moved = moved, now
        if now < self._moved[1] + self.settle_ms:
            return
        match await self.walk.run(store_walk.LOOK_BACK_AT_START_MS, writes=False):
            case store_walk.BrokenWalk(path=path, why=why):
                _log.warning("the store moved, and Stripe's list %s cannot be read: %s", path, why)
            case store_walk.LostObjects(objects=lost):
                shown = ", ".join(lost[:5])
                _log.error("the store moved and lacks charges that were made (%s): %s", shown, _RUN)
            case store_walk.Whole():
                self.watch.accept(moved)
                _log.warning("the store moved to %s and lacks nothing: serving again", moved)

    async def _walk_first(self) -> None:
        try:
            outcome = await self._again(store_walk.LOOK_BACK_AT_START_MS)
            if isinstance(outcome, store_walk.Whole) and self.gate.unwalked:
                # It went on with a walk that began before this process did.
                outcome = await self._again(store_walk.LOOK_BACK_AT_START_MS)
        except LedgerUnavailableError as error:
            _log.warning("the walk of Stripe's lists waits for the ledger: %s", error)
            return
        if isinstance(outcome, store_walk.BrokenWalk) and outcome.status in {401, 403}:
            raise UpstreamKeyError(outcome)

    async def _again(self, look_back_ms: int) -> store_walk.Outcome:
        outcome = await self.walk.run(look_back_ms, resume=True)
        match outcome:
            case store_walk.Whole(owner=owner, absent=absent):
                if absent:
                    _log.warning("Stripe has no list %s: taken as empty", ", ".join(absent))
                self._walked_at, self._failures, self.gate.gap = boottime_ms(), 0, False
                if owner == self.walk.owner:
                    self.gate.unwalked = False
            case store_walk.LostObjects(objects=lost, any_store=any_store):
                self._failures, self.gate.unwalked, shown = 0, False, ", ".join(lost[:5])
                if any_store and self.walk.warns:
                    self._walked_at = boottime_ms()
                    told = "the sandbox has charges of another store (%s): `kb-mcp adopt` has them"
                    _log.warning(told, shown)
                else:
                    self.gate.gap = True
                    told = (
                        "nothing is sent: Stripe has charges that the store does not know (%s); %s"
                    )
                    _log.error(told, shown, _RUN)
            case store_walk.BrokenWalk(path=path, why=why):
                self._failures += 1
                _log.warning("Stripe's list %s could not be read: %s", path, why)
                if self._failures == ALERT_AFTER:
                    row = AuditDraft(
                        kind="recovery",
                        decision="walk_failed",
                        code=WALK_FAILED,
                        note=f"{path}: {why}",
                    )
                    await note(self.walk.ledger, row)
        return outcome
