"""Walking one of Stripe's lists for an operation's object, a few pages at a time.

Floor: wing B, below recovery. A walk that ran out of its budget goes on in the next pass, so that
one operation with a long list never keeps the others from being read. What it remembers is in this
process alone: after a restart it begins anew, which costs reads and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kb_mcp.proxy.ledger.records import Attempt, Operation
from kb_mcp.proxy.rules.outcomes.matching import match_attempt, twin_names
from kb_mcp.proxy.rules.outcomes.resolve import Absent, Finding, Present, Unreadable
from kb_mcp.proxy.stripe.endpoints import Route
from kb_mcp.proxy.stripe.evidence import prove_object
from kb_mcp.proxy.stripe.json_objects import next_cursor
from kb_mcp.proxy.stripe.reader import PAGE, Listed, StripeReads

LOOK_BACK_MS = 25 * 3_600_000


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one reading may take: pages, and milliseconds."""

    pages: int
    within_ms: int


# Everything that is due gets a little first, and long lists get the rest.
AT_FIRST = Budget(pages=20, within_ms=3_000)
IN_A_PASS = Budget(pages=200, within_ms=15_000)
# Somebody waits for it, and for nothing else; below the lease of a reading.
FOR_AN_OPERATOR = Budget(pages=2_000, within_ms=100_000)


@dataclass(slots=True, kw_only=True)
class Walk:
    """One walk of the list of `route`, begun at `begun_at` (store's time, ms).

    `ahead_ms` is by how much the times of `attempts` may be later than they really were.
    """

    route: Route
    operation: Operation
    attempts: list[Attempt]
    begun_at: int
    grace_ms: int
    ahead_ms: int = 0
    cursor: str | None = None
    seen: set[str] = field(default_factory=set)
    twins: list[tuple[str, ...]] = field(default_factory=list)

    def still_of(self, attempts: list[Attempt]) -> bool:
        """Say whether nothing was sent since this walk began."""
        return _sends(self.attempts) == _sends(attempts)

    async def go_on(self, stripe: StripeReads, budget: Budget) -> Finding | None:
        """Read on; None where `budget` is used up and there is more to read."""
        listing = self.route.listing
        if listing is None:
            return Unreadable()
        query = self._query(listing.filters)
        stop_at = stripe.boottime_ms() + budget.within_ms
        for _ in range(budget.pages):
            if self.cursor is not None:
                query["starting_after"] = self.cursor
            page = await stripe.page(listing.path, query)
            if not isinstance(page, Listed):
                return Unreadable()
            found = self._look(page.items)
            if found is not None:
                return found
            if page.more is not True:
                # Only a list that says so itself has ended.
                ended = page.more is False
                return Absent(self.begun_at, tuple(self.twins)) if ended else Unreadable()
            self.cursor = next_cursor(page.items, self.seen)
            if self.cursor is None:
                return Unreadable()
            if stripe.boottime_ms() >= stop_at:
                return None
        return None

    def _query(self, filters: tuple[str, ...]) -> dict[str, str]:
        first_ms = min(each.first_sent_at for each in self.attempts)
        since_ms = first_ms - LOOK_BACK_MS - self.ahead_ms
        query = {"limit": str(PAGE), "created[gte]": str(since_ms // 1000)}
        narrowed = {"customer": self.operation.customer, "charge": self.operation.gives_back}
        return query | {
            name: value for name, value in narrowed.items() if name in filters and value is not None
        }

    def _look(self, items: list[Mapping[str, Any]]) -> Finding | None:
        for item in items:
            number = match_attempt(item, self.operation, self.attempts)
            if number is None:
                names = twin_names(item, self.operation, self.attempts, self.grace_ms)
                self.twins += [names] if names else []
                continue
            made = prove_object(item, self.route)
            # It is ours, and does not say what became of it: that is no absence.
            return Unreadable() if made is None else Present(number, made)
        return None


def _sends(attempts: list[Attempt]) -> tuple[int, ...]:
    return tuple(each.sends for each in attempts)
