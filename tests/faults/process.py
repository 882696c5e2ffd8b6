"""One process of wing B: the shipped desk, governor and recovery over the simulated ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from random import Random  # noqa: TID251 seeded by the world
from types import CoroutineType
from typing import Any, TypeVar

from typing_extensions import override

from kb_mcp.proxy.answers import Answers, Reads
from kb_mcp.proxy.edge.pipeline import RequestPipeline
from kb_mcp.proxy.governor import Governor, Waiters
from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.ledger.records import OperationId, State
from kb_mcp.proxy.ledger.snapshot import StoreSettings
from kb_mcp.proxy.read_first import ChargeReads, InvoiceReads
from kb_mcp.proxy.recovery import Recovery
from kb_mcp.proxy.stores.binding import Sealer
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stores.sqlite.database import SqliteDatabase
from kb_mcp.proxy.stripe.messages import (
    SEND_WITHIN_MS,
    Answered,
    NotSent,
    Reply,
    Request,
    Upstream,
    UpstreamAnswer,
    UpstreamRequest,
)
from kb_mcp.proxy.stripe.reader import StripeReads, TimeReader
from tests.faults.loop import SimulatedLoop
from tests.faults.store import SEAL_KEY, Plan, SimulatedLedger
from tests.faults.stripe import TIMEOUT_MS, SimulatedStripe

T = TypeVar("T")

UPSTREAM_KEY = "rk_test_simulated"
LEASE_MS = SEND_WITHIN_MS + TIMEOUT_MS + 5_000

# An answer that took longer may have lain in a suspended host: it tells no time.
HEARD_WITHIN_MS = 10_000
CALL: ContextVar[int | None] = ContextVar("call", default=None)
"""Which caller's request is being served; the tasks of the product inherit it."""


@dataclass(slots=True, kw_only=True)
class Place:
    """What a process needs of the world it runs in."""

    path: Path
    loop: SimulatedLoop
    chance: Random
    stripe: SimulatedStripe
    settings: StoreSettings
    plan: Callable[[], Plan]
    host_ms: Callable[[], int]
    on_send: Callable[[UpstreamRequest], None]
    boot_id: str = "boot"


@dataclass(slots=True, kw_only=True)
class Process:
    """One process of wing B; every start of it has an owner name of its own."""

    name: str
    owner: str
    place: Place
    alive: bool = True
    heard_at: int | None = None  # when an answer last brought a Date here, by the loop
    tasks: set[asyncio.Task[Any]] = field(default_factory=lambda: InOrder())  # noqa: PLW0108 defined below
    clock: StoreClock = field(init=False)
    ledger: SimulatedLedger = field(init=False)
    records: StoreReads = field(init=False)
    pipeline: RequestPipeline = field(init=False)
    recovery: Recovery = field(init=False)

    def __post_init__(self) -> None:
        place, loop = self.place, self.place.loop

        def boottime_ms() -> int:
            return loop.now_ms

        clock = StoreClock(place.host_ms, place.host_ms, boottime_ms, boot_id=place.boot_id)
        self.clock = clock
        upstream = Way(self)
        stripe = StripeReads(upstream, clock, boottime_ms)
        waiters = Waiters()
        self.ledger = SimulatedLedger(
            place.path,
            settings=place.settings,
            clock=clock,
            owner=self.owner,
            loop=loop,
            chance=place.chance,
            plan=place.plan,
        )
        sealer = Sealer(SEAL_KEY, place.chance.randbytes)
        self.records = StoreReads(SqliteDatabase(place.path), sealer.unseal)
        self.recovery = Recovery(
            ledger=self.ledger,
            records=self.records,
            stripe=stripe,
            waiters=waiters,
            owner=self.owner,
        )
        charges = ChargeReads(
            ledger=self.ledger,
            stripe=stripe,
            look=self.recovery.resolve_one,
            live=False,
        )
        invoices = InvoiceReads(
            ledger=self.ledger,
            stripe=stripe,
            look=self.recovery.resolve_one,
            live=False,
        )
        governor = Governor(
            ledger=self.ledger,
            upstream=upstream,
            clock=clock,
            answers=Answers(stripe=stripe),
            waiters=waiters,
            boottime_ms=boottime_ms,
            upstream_key=UPSTREAM_KEY,
            look=self.recovery.resolve_one,
            look_at_refund=self.recovery.look_at_refund,
            read_again=charges.again,
            invoices=invoices,
            tasks=InOrder(),
        )
        self.pipeline = RequestPipeline(
            ledger=self.ledger,
            governor=governor,
            reads=Reads(ledger=self.ledger, stripe=stripe, upstream_key=UPSTREAM_KEY),
            charges=charges,
            clock=clock,
            new_id=lambda prefix: f"{prefix}_{place.chance.randbytes(6).hex()}",
            keys_secret=b"of the simulation",
            owner=self.owner,
            lease_ms=LEASE_MS,
            follow=TimeReader(stripe).settle,
        )

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in this process: it ends with it."""
        task = self.place.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def recover(self) -> dict[OperationId, State]:
        """Find out what nobody recorded, and whether refunds of reopened bills still hold."""
        found = await self.recovery.run()
        await self.recovery.watch_refunds()
        return found

    async def serve(self, request: Request) -> Reply:
        async def body() -> bytes:
            return request.body

        return await self.pipeline.serve(request, body)

    def end(self) -> list[str]:
        """End without a goodbye, and say where in the product its tasks were."""
        self.alive = False
        tasks = [task for task in (*self.tasks, *self.pipeline.governor.tasks) if not task.done()]
        places = sorted(filter(None, (_place_of(task) for task in tasks)))
        for task in tasks:
            task.cancel()
        # The writer closes last: it alone does not wait for a disk.
        self.records.close()
        self.ledger.end()
        return places


class Way(Upstream):
    """The way from one process to Stripe; closed once the process has ended."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @override
    async def send(self, request: UpstreamRequest, *, deadline_ms: int) -> UpstreamAnswer:
        if not self._process.alive:
            raise asyncio.CancelledError
        place = self._process.place
        if place.chance.random() < 0.03 and place.stripe.faulty:
            await place.loop.pause(place.chance.randrange(1, 120_000))  # the host was suspended
        if place.loop.now_ms > deadline_ms:
            return NotSent("deadline_passed")
        if request.method == "POST":
            place.on_send(request)
        asked_at = place.loop.now_ms
        answer = await place.stripe.exchange(request, CALL.get())
        if place.chance.random() < 0.03 and place.stripe.faulty:
            await place.loop.pause(place.chance.randrange(1, 1_200_000))  # again, with the answer
        in_time = place.loop.now_ms - asked_at <= HEARD_WITHIN_MS
        if in_time and isinstance(answer, Answered) and "date" in answer.headers:
            self._process.heard_at = place.loop.now_ms
        return answer

    @override
    async def aclose(self) -> None:
        """There are no connections."""


class InOrder(set[Any]):
    """A set that is iterated in the order of arrival, not of addresses in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._order: dict[Any, None] = {}

    @override
    def add(self, element: Any) -> None:
        super().add(element)
        self._order[element] = None

    @override
    def discard(self, element: Any) -> None:
        super().discard(element)
        self._order.pop(element, None)

    @override
    def __iter__(self) -> Any:
        return iter(self._order)


def _place_of(task: asyncio.Task[Any]) -> str | None:
    """Return the innermost function of the product in which `task` waits, and what it awaits."""
    waits: Awaitable[Any] | None = task.get_coro()  # type: ignore[assignment] # a coroutine, in 3.11's stubs a union
    innermost = None
    while isinstance(waits, CoroutineType):
        frame = waits.cr_frame
        if frame is not None and "kb_mcp" in frame.f_code.co_filename:
            awaited = waits.cr_await
            name = getattr(awaited, "__qualname__", "") or type(awaited).__name__
            innermost = f"{frame.f_code.co_qualname} > {name}"
        waits = waits.cr_await
    return innermost
