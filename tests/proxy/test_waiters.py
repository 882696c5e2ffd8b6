"""Joins: woken when there is an outcome, and never waited for longer than was left."""

from __future__ import annotations

import asyncio

from kb_mcp.proxy.governor import Waiters
from kb_mcp.proxy.ledger.records import OperationId

ONE, TWO = OperationId("op_1"), OperationId("op_2")
LONG_MS = 60_000


def test_everybody_who_waits_is_woken_and_nobody_else() -> None:
    async def run() -> list[bool]:
        waiters = Waiters()
        waiting = [asyncio.create_task(waiters.wait(ONE, LONG_MS)) for _ in range(3)]
        other = asyncio.create_task(waiters.wait(TWO, LONG_MS))
        await asyncio.sleep(0)
        waiters.wake(ONE)
        await asyncio.gather(*waiting)
        done = other.done()
        waiters.wake(TWO)
        await other
        return [done, *(task.done() for task in waiting)]

    assert asyncio.run(run()) == [False, True, True, True]


def test_a_wait_ends_by_itself_and_leaves_nothing_behind() -> None:
    async def run() -> Waiters:
        waiters = Waiters()
        await waiters.wait(ONE, 1)
        waiters.wake(ONE)
        gone = asyncio.create_task(waiters.wait(TWO, LONG_MS))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        return waiters

    assert not asyncio.run(run())._waiting  # noqa: SLF001 - that nothing piles up is the point
