"""A store that moved to another PostgreSQL server or timeline: may it be served from?

Floor: wiring. A promoted replica or a restored copy may lack what was acknowledged before. Nothing
is sent until every marked charge at Stripe is found in it (ledger.md: Recovery). That is looked up
here, once the sends that were under way have ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from kb_mcp.operators.reports.reconcile import marks
from kb_mcp.operators.reports.views import OperatorRecords
from kb_mcp.proxy.ledger.port import Ledger, LedgerUnavailableError
from kb_mcp.proxy.ledger.records import Changes, OperationId, Refs
from kb_mcp.proxy.stripe.reader import StripeReads, Unread

LOOK_BACK_MS = 25 * 3_600_000
_log = logging.getLogger("kb_mcp.wiring")


class Watch(Protocol):
    """What knows which server answers, and which one may."""

    def begin(self) -> None:
        """Hold the ledger to the server that was seen last."""
        ...

    @property
    def moved(self) -> Any | None:
        """The other server that answers now, if one does."""
        ...

    def accept(self, server: Any) -> None:
        """Serve from `server`."""
        ...


@dataclass(slots=True, kw_only=True)
class Moves:
    """Checks a moved store on a timer. `settle_ms` is how long a send may last, all told."""

    watch: Watch
    ledger: Ledger
    records: OperatorRecords
    reads: StripeReads
    boottime_ms: Callable[[], int]
    settle_ms: int
    _moved_to: Any | None = field(default=None, init=False)
    _moved_at: int = field(default=0, init=False)

    async def check(self) -> None:
        """Look at the store; accept the server that it moved to once nothing is missing there."""
        try:
            await self.ledger.transact(lambda _: Refs(), lambda _: (None, Changes()))
        except LedgerUnavailableError as error:
            _log.warning("the ledger is unavailable: %s", error)
        moved, now = self.watch.moved, self.boottime_ms()
        if moved is None:
            return
        if moved != self._moved_to:
            self._moved_to, self._moved_at = moved, now
        if now < self._moved_at + self.settle_ms:
            return
        missing = await self._missing()
        if missing is None:
            return
        if missing:
            _log.error(
                "the store moved and lacks charges that were made (%s): run "
                "`kb-mcp adopt --since … --apply`", ", ".join(missing[:5]),
            )  # fmt: skip
            return
        self.watch.accept(moved)
        _log.warning("the store moved to %s and lacks nothing: serving again", moved)

    async def _missing(self) -> list[str] | None:
        """Return the charges of ours that the store lacks, or None where that cannot be told."""
        newest = list(self.records.audit(limit=1, newest_first=True))
        since_ms = max(_ms_of(newest[0]["time"]) - LOOK_BACK_MS, 0) if newest else 0
        charges = await self.reads.walk("/v1/charges", since_ms)
        if isinstance(charges, Unread):
            _log.warning("the store moved, and Stripe cannot be read: %s", charges.why)
            return None
        return [str(charge["id"]) for charge in charges if await self._is_lost(charge)]

    async def _is_lost(self, charge: Mapping[str, Any]) -> bool:
        mark = marks(charge).get("keybrake_operation")
        if mark is None or charge.get("status") == "failed":
            return False
        return not await self.records.operations(operation_id=OperationId(mark), limit=1)


def _ms_of(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(microsecond=0).timestamp()) * 1000
