"""Joining: callers that wait for an outcome somebody else is fetching.

Floor: below the governor. Callers of this process are woken at once; those of another process
look again every POLL_MS, since the store tells nobody of a change.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from kb_mcp.proxy.ledger.records import OperationId

POLL_MS = 100


class Waiters:
    """Who waits for which operation in this process."""

    def __init__(self) -> None:
        """Start with nobody waiting."""
        self._waiting: dict[OperationId, set[asyncio.Event]] = defaultdict(set)

    async def wait(self, operation_id: OperationId, left_ms: int) -> None:
        """Return when the operation may have an outcome, at most POLL_MS or `left_ms` later."""
        event = asyncio.Event()
        self._waiting[operation_id].add(event)
        try:
            async with asyncio.timeout(min(POLL_MS, left_ms) / 1000):
                await event.wait()
        except TimeoutError:
            return
        finally:
            self._waiting[operation_id].discard(event)
            if not self._waiting[operation_id]:
                del self._waiting[operation_id]

    def wake(self, operation_id: OperationId) -> None:
        """Wake everybody who waits for `operation_id`."""
        for event in self._waiting.get(operation_id, ()):
            event.set()
