"""The admission queue: a request waits unread until the ledger has room for it.

Floor: below the edge's application. Beginning is most of what a request costs the event loop. If a
crowd began at once, later requests would wait for all of it before they are refused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

ROOM = 64
BEGIN_AT_ONCE = 8
LOOK_AGAIN_S = 0.002
# A client that is told so comes back; one that waits longer has gone, and would be charged unseen.
WAIT_MAX_MS = 20_000


class AdmissionQueue:
    """Who waits to begin, first come first served; where there is room, nobody waits."""

    def __init__(self, queued: Callable[[], int], wait_max_ms: int = WAIT_MAX_MS) -> None:
        """Let requests begin while `queued()`, the steps that wait for the ledger, are few."""
        self._queued = queued
        self._wait_max_ms = wait_max_ms
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._begun = 0  # in this pass of the loop: what they ask of the ledger is not queued yet

    async def acquire(self) -> bool:
        """Return True when it is the caller's turn, or False once it has waited too long."""
        loop = asyncio.get_running_loop()
        if not self._waiting and self._room() > 0:
            self._begin(loop)
            return True
        turn = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            loop.call_later(LOOK_AGAIN_S, self._look, loop)
        try:
            async with asyncio.timeout(self._wait_max_ms / 1000):
                await turn
        except TimeoutError:
            return False
        return True

    def _room(self) -> int:
        return ROOM - self._begun - self._queued()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._begun == 0:
            loop.call_soon(self._pass_over)
        self._begun += 1

    def _pass_over(self) -> None:
        self._begun = 0

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        room = min(self._room(), BEGIN_AT_ONCE)
        while self._waiting and room > 0:
            turn = self._waiting.popleft()
            if not turn.done():  # or nobody waits for it any more
                turn.set_result(None)
                self._begin(loop)
                room -= 1
        if self._waiting:
            loop.call_later(LOOK_AGAIN_S, self._look, loop)
