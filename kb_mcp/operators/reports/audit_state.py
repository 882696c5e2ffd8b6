"""The state of the audit as an operator sees it: when it was last verified, and what was found.

Floor: operators, beside the views. Walking the chains happens on a thread, one walk at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from kb_mcp.proxy.audit.verification import Verification


@dataclass(frozen=True, slots=True)
class Verified:
    """One walk: when it ended (ms UTC), and its outcome."""

    at: int
    outcome: Verification

    @property
    def holds(self) -> bool:
        """Say whether every chain held."""
        return not self.outcome.breaks


@dataclass(slots=True)
class Verifying:
    """Verifies on demand and remembers the last outcome; `verify` blocks while it walks."""

    verify: Callable[[], Verification]
    now_ms: Callable[[], int]
    last: Verified | None = None
    _walking: asyncio.Task[Verified] | None = None

    async def run(self) -> Verified:
        """Verify now, or join the walk under way. Raises: LedgerUnavailableError."""
        if self._walking is None or self._walking.done():
            self._walking = asyncio.create_task(self._walk())
        return await asyncio.shield(self._walking)

    async def _walk(self) -> Verified:
        outcome = await asyncio.to_thread(self.verify)
        self.last = Verified(self.now_ms(), outcome)
        return self.last
