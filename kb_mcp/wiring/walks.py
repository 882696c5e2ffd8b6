"""When Stripe's lists are walked: before anything is sent, every hour, and after a store moved.

Floor: wiring. Sending goes on during the hourly walk. Where Stripe refuses a list to our key, this
process does not start; where it cannot be read, nothing is sent until a walk is whole. A promoted
replica or a restored copy may lack what was acknowledged before: nothing is sent until a walk finds
everything in it that this store made, once the sends that were under way have ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kb_mcp.proxy.governor import SendGate
from kb_mcp.proxy.ledger.port import LedgerUnavailableError, note
from kb_mcp.proxy.ledger.records import AuditDraft
from kb_mcp.proxy.ledger.snapshot import GAP
from kb_mcp.proxy.rules.outcomes.matching import WALK_FAILED
from kb_mcp.proxy.store_walk import (
    HOUR_MS,
    LOOK_BACK_AT_START_MS,
    LOOK_BACK_HOURLY_MS,
    BrokenWalk,
    LostObjects,
    Outcome,
    StoreWalk,
    Whole,
)

if TYPE_CHECKING:  # the driver of PostgreSQL may not be installed
    from kb_mcp.proxy.stores.postgres.fence import FencedLine, Server

# How long a start waits for its first walk; it goes on in the background, and nothing is sent.
START_WAITS_S = 20
ALERT_AFTER = 3
_PERMISSIONS = {
    "/v1/charges": "Charges: Read",
    "/v1/payment_intents": "PaymentIntents: Read",
    "/v1/refunds": "Refunds: Read",
}
_RUN = "run `kb-mcp adopt --since … --apply`"
_log = logging.getLogger("kb_mcp.wiring")


class UpstreamKeyError(Exception):
    """Stripe refuses a list to our key; the message says what the key lacks."""

    def __init__(self, broken: BrokenWalk) -> None:
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
    """The walks of one process; `boottime_ms` counts suspended time.

    `watch` sees that the store moved, where it can; `settle_ms` is how long a send may last, all
    told.
    """

    walk: StoreWalk
    gate: SendGate
    boottime_ms: Callable[[], int]
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
            await self._again(LOOK_BACK_AT_START_MS)
        elif self.boottime_ms() >= self._walked_at + HOUR_MS or self._failures:
            await self._again(LOOK_BACK_HOURLY_MS)

    async def check_moved(self) -> None:
        """Accept the server that the store moved to, once nothing is missing there."""
        if self.watch is None:
            return
        try:
            await note(self.walk.ledger)
        except LedgerUnavailableError as error:
            _log.warning("the ledger is unavailable: %s", error)
        moved, now = self.watch.moved, self.boottime_ms()
        if moved is None:
            return
        if moved != self._moved[0]:
            self._moved = moved, now
        if now < self._moved[1] + self.settle_ms:
            return
        match await self.walk.run(LOOK_BACK_AT_START_MS, writes=False):
            case BrokenWalk(path=path, why=why):
                _log.warning("the store moved, and Stripe's list %s cannot be read: %s", path, why)
            case LostObjects(objects=lost):
                shown = ", ".join(lost[:5])
                _log.error("the store moved and lacks charges that were made (%s): %s", shown, _RUN)
            case Whole():
                self.watch.accept(moved)
                _log.warning("the store moved to %s and lacks nothing: serving again", moved)

    async def _walk_first(self) -> None:
        try:
            outcome = await self._again(LOOK_BACK_AT_START_MS)
            if isinstance(outcome, Whole) and self.gate.unwalked:
                # It went on with a walk that began before this process did.
                outcome = await self._again(LOOK_BACK_AT_START_MS)
        except LedgerUnavailableError as error:
            _log.warning("the walk of Stripe's lists waits for the ledger: %s", error)
            return
        if isinstance(outcome, BrokenWalk) and outcome.status in {401, 403}:
            raise UpstreamKeyError(outcome)

    async def _again(self, look_back_ms: int) -> Outcome:
        outcome = await self.walk.run(look_back_ms, resume=True)
        match outcome:
            case Whole(owner=owner, absent=absent):
                if absent:
                    _log.warning("Stripe has no list %s: taken as empty", ", ".join(absent))
                self._walked_at, self._failures, self.gate.gap = self.boottime_ms(), 0, False
                if owner == self.walk.owner:
                    self.gate.unwalked = False
            case LostObjects(objects=lost, any_store=any_store):
                self._failures, self.gate.unwalked, shown = 0, False, ", ".join(lost[:5])
                if any_store and self.walk.warns:
                    self._walked_at = self.boottime_ms()
                    told = "the sandbox has charges of another store (%s): `kb-mcp adopt` has them"
                    _log.warning(told, shown)
                else:
                    self.gate.gap = True
                    told = (
                        "nothing is sent: Stripe has charges that the store does not know (%s); %s"
                    )
                    _log.error(told, shown, _RUN)
            case BrokenWalk(path=path, why=why):
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
