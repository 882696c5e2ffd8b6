"""A store that moved to another PostgreSQL server or timeline: may it be served from?

Floor: wiring. A promoted replica or a restored copy may lack what was acknowledged before. Nothing
is sent until a walk of Stripe's lists finds everything in it that this store made. That is looked
up here, once the sends that were under way have ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from kb_mcp.proxy.ledger.port import Ledger, LedgerUnavailableError
from kb_mcp.proxy.ledger.records import Changes, Refs
from kb_mcp.proxy.watching.walk import LOOK_BACK_AT_START_MS, Broken, Lost, StoreWalk, Whole

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
    walk: StoreWalk
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
        match await self.walk.run(LOOK_BACK_AT_START_MS, writes=False):
            case Broken(path=path, why=why):
                _log.warning("the store moved, and Stripe's list %s cannot be read: %s", path, why)
            case Lost(objects=lost):
                _log.error(
                    "the store moved and lacks charges that were made (%s): run "
                    "`kb-mcp adopt --since … --apply`", ", ".join(lost[:5]),
                )  # fmt: skip
            case Whole():
                self.watch.accept(moved)
                _log.warning("the store moved to %s and lacks nothing: serving again", moved)
