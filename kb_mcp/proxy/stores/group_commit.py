"""Batches: callers of any event loop wait while one thread takes what they ask for together.

Floor: inside the stores. The thread does the waiting on the network, so that no event loop does.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kb_mcp.proxy.ledger.port import LedgerUnavailableError

A = TypeVar("A")
R = TypeVar("R")

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
        self._closed = False
        self._ended: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
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
        if self._closed:
            raise LedgerUnavailableError("the ledger is closed")
        loop = asyncio.get_running_loop()
        asked: Queued[A, R] = Queued(what, loop, loop.create_future())
        self._queue.put(asked)
        # The thread will do it whether or not anybody still waits: nobody takes it back.
        return await asked.future

    async def close(self) -> None:
        """Answer what still waits, then end the thread."""
        if not self._closed:
            self._closed = True
            loop = asyncio.get_running_loop()
            self._ended = loop, loop.create_future()
            self._queue.put(None)
            # Not by a thread that waits: at the end of a process no new one can be had.
            await self._ended[1]
            self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            batch, running = self._take()
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
            loop, ended = self._ended
            loop.call_soon_threadsafe(ended.set_result, None)

    def _take(self) -> tuple[list[Queued[A, R]], bool]:
        batch: list[Queued[A, R]] = []
        try:
            item = self._queue.get(timeout=IDLE_S)
        except queue.Empty:
            return batch, True
        while item is not None:
            batch.append(item)
            if len(batch) >= BATCH_MAX:
                return batch, True
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False


def _hand_over(batch: list[Queued[A, R]]) -> None:
    """Hand the answers over, with one wake-up per event loop."""
    for loop in {item.loop for item in batch}:
        mine = [item for item in batch if item.loop is loop]
        try:
            loop.call_soon_threadsafe(_resolve, mine)
        except RuntimeError:
            # That loop is closed: nobody waits any more, and the store has what happened.
            continue


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
