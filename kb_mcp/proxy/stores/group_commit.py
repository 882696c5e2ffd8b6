"""Group commit: callers of any event loop wait while one thread takes what they ask for together.

Floor: inside the stores. The thread does the waiting on the network, so that no event loop does.
What the ledger of both stores does alike is here, too; a store brings the transaction.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from typing_extensions import override

from kb_mcp.proxy.audit.chain import Journal
from kb_mcp.proxy.audit.heads import Heads
from kb_mcp.proxy.ledger.clock import MARK_EVERY_MS, StoreClock, StoredTime, Told
from kb_mcp.proxy.ledger.lease_owners import gone_owners
from kb_mcp.proxy.ledger.port import Ledger, LedgerUnavailableError, Step
from kb_mcp.proxy.ledger.records import Refs
from kb_mcp.proxy.ledger.snapshot import Snapshot, StoreSettings
from kb_mcp.proxy.stores.binding import LiveSettings, Sealer
from kb_mcp.proxy.stores.rows import load_queries

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")

BATCH_MAX = 64
ANSWERED_AT_ONCE = 16  # in one turn of a loop
IDLE_S = 1


@dataclass(slots=True)
class Queued(Generic[A, R]):
    """What somebody asked for, and where the answer goes: `result` or `error`."""

    what: A
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[R]
    result: R | None = None
    error: Exception | None = None


class GroupCommit(Generic[A, R]):
    """One thread that answers waiting callers together, in the order in which they came."""

    def __init__(
        self, name: str, answer: Callable[[list[Queued[A, R]]], None], idle: Callable[[], None]
    ) -> None:
        """Start the thread: `answer` fills a batch, `idle` runs when nobody asked for a while."""
        self._answer = answer
        self._idle = idle
        self._queue: queue.SimpleQueue[Queued[A, R] | None] = queue.SimpleQueue()
        self._ended: Queued[None, None] | None = None
        self._sizes = [0] * (BATCH_MAX + 1)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return self._queue.qsize()

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many batches of each size there were; the place is the size."""
        return tuple(self._sizes)

    async def ask(self, what: A) -> R:
        """Return the answer to `what`. Raises: LedgerUnavailableError, or what it ended with."""
        if self._ended is not None:
            raise LedgerUnavailableError("the ledger is closed")
        loop = asyncio.get_running_loop()
        asked: Queued[A, R] = Queued(what, loop, loop.create_future())
        self._queue.put(asked)
        # The thread will do it whether or not anybody still waits: nobody takes it back.
        return await asked.future

    async def close(self) -> None:
        """Answer what still waits, then end the thread."""
        if self._ended is None:
            loop = asyncio.get_running_loop()
            self._ended = Queued(None, loop, loop.create_future())
            self._queue.put(None)
            # Not by a thread that waits: at the end of a process no new one can be had.
            await self._ended.future
            self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            taken = self._take()
            batch = [item for item in taken if item is not None]
            running = len(batch) == len(taken)
            if not batch:
                self._idle()
                continue
            self._sizes[len(batch)] += 1
            try:
                self._answer(batch)
            except Exception as error:  # noqa: BLE001 the thread must outlive what nobody foresaw
                for item in batch:
                    item.error = item.error or error
            _hand_over(batch)
        if self._ended is not None:
            _hand_over([self._ended])

    def _take(self) -> list[Queued[A, R] | None]:
        """Wait for a caller, and take those who wait beside it; None is the end."""
        batch: list[Queued[A, R] | None] = []
        with suppress(queue.Empty):
            batch.append(self._queue.get(timeout=IDLE_S))
            while batch[-1] is not None and len(batch) < BATCH_MAX:
                batch.append(self._queue.get_nowait())
        return batch


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerParts:
    """What the ledger of a store that is migrated and bound works with.

    `settings` are what it is bound to; `owner` names this process in leases.
    """

    settings: StoreSettings
    clock: StoreClock
    sealer: Sealer
    journal: Journal
    heads: Heads
    owner: str


Item = Queued[tuple[Callable[[int], Refs], Step[Any]], Any]


class StoreLedger(Ledger):
    """The ledger of a store. `Ledger` says what its methods promise.

    A store sets `batches`, its writer, to what `_begin` returns, once it can flush.
    """

    batches: GroupCommit[Any, Any]

    def __init__(self, engine: str, parts: LedgerParts) -> None:
        """Serve the store of `engine` with its named queries."""
        self._live = LiveSettings(parts.settings)
        self._clock = parts.clock
        self._sealer = parts.sealer
        self._journal = parts.journal
        self._heads = parts.heads
        self._gone = partial(gone_owners, mine=parts.owner)
        self._queries = load_queries(engine)
        self._marked = 0  # the store's high-water mark, as this transaction read it
        self._told = Told(0, 0)  # the time, as this transaction was told it

    @property
    @override
    def settings(self) -> StoreSettings:
        return self._live.now

    @override
    async def transact(self, refs: Callable[[int], Refs], step: Step[T]) -> T:
        result: T = await self.batches.ask((refs, step))
        return result

    def _begin(self) -> GroupCommit[Any, Any]:
        """Start the writer: it takes together whatever waits, and exports the heads at rest."""
        return GroupCommit("ledger-writer", self._flush, self._rest)

    @abstractmethod
    def _flush(self, batch: list[Item]) -> None:
        """Run a batch in one transaction; every item ends with its result or its error."""

    @abstractmethod
    def _rest(self) -> None:
        """Do what there is time for while nobody waits."""

    def _snapshot(self, facts: Mapping[str, str | None]) -> Snapshot:
        """Return the empty snapshot of a transaction that read these deciding `facts`."""
        stored = StoredTime.of_facts(facts)
        told = self._clock.tell(stored)
        self._marked, self._told = stored.mark, told
        return Snapshot(
            now=told.now,
            latest=told.latest,
            settings=self._live.read(facts),
            skewed=bool(told.dispute),
            turning=told.turning,
            unheard=told.unheard,
            doubt=told.doubt,
            facts={name: value for name, value in facts.items() if value},
        )

    def _time_facts(self, snapshot: Snapshot) -> Mapping[str, str]:
        """Return what the transaction writes of the time.

        Where Stripe has not told its time, only what was billed makes the host's word binding: a
        clock that is wrong at a first start can be set right before it matters.
        """
        told = self._told
        counts = told.agreed or bool(snapshot.dirty.operations)
        raised = counts and not told.turning and told.now >= self._marked + MARK_EVERY_MS
        return self._clock.facts(told, raised=raised)


def run_step(snapshot: Snapshot, item: Item) -> None:
    """Run the step of `item` on `snapshot`: a broken one fails alone, the batch goes on."""
    try:
        item.result, changes = item.what[1](snapshot)
    except Exception as error:  # noqa: BLE001 as above
        item.error = error
        return
    snapshot.apply(changes)


def refs_of(batch: list[Item], now: int) -> list[Refs | None]:
    """Return what each step of a batch depends on; None for one that cannot say: it fails alone."""
    asked: list[Refs | None] = []
    for item in batch:
        item.result = item.error = None  # of an earlier run of the same batch
        try:
            asked.append(item.what[0](now))
        except Exception as error:  # noqa: BLE001 as for a broken step
            item.error = error
            asked.append(None)
    return asked


def _hand_over(batch: list[Queued[A, R]]) -> None:
    """Hand the answers over, with one wake-up per event loop."""
    for loop in {item.loop for item in batch}:
        # Of a closed loop nobody waits any more, and the store has what happened.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, [item for item in batch if item.loop is loop])


def _resolve(items: list[Queued[A, R]]) -> None:
    if len(items) > ANSWERED_AT_ONCE:
        # The rest in the loop's next turn: it must hear of others in between.
        items[0].loop.call_soon(_resolve, items[ANSWERED_AT_ONCE:])
    for item in items[:ANSWERED_AT_ONCE]:
        if item.future.done():
            continue
        if item.error is not None:
            item.future.set_exception(item.error)
        else:
            item.future.set_result(item.result)  # type: ignore[arg-type] # no error: there is one
