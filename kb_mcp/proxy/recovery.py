"""Recovery: finds out what became of operations whose outcome nobody recorded. It never posts.

Floor: wing B, beside the governor. One process leases each operation that is past its send or
unknown, walks Stripe's own list, and lets `resolve` say what follows (ledger.md: Recovery).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.governor import ending_refs
from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Attempt, KeyId, Operation, OperationId, Refs
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.rules.resolve import (
    Absent,
    Finding,
    Found,
    Unreadable,
    match_attempt,
    resolve,
    take,
)
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Route
from kb_mcp.proxy.stripe.evidence import Nothing, prove_object
from kb_mcp.proxy.stripe.sends import Answered, Upstream, UpstreamRequest
from kb_mcp.proxy.waiters import Waiters

READ_WITHIN_MS = 10_000
BATCH = 100
PAGE = 100
PAGES_MAX = 2_000
LOOK_BACK_MS = 25 * 3_600_000
DAILY_DECLINES_DEFAULT = 20


class Due(Protocol):
    """The part of a store's reads that recovery needs."""

    async def due(self, now: int, limit: int) -> list[OperationId]:
        """Return the operations to look at, oldest first."""
        ...


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass did: operation ids and the state each was left in."""

    states: Mapping[OperationId, S]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Reads; one per process. `owner` is the lease name of this process."""

    ledger: Ledger
    due: Due
    upstream: Upstream
    clock: StoreClock
    waiters: Waiters
    owner: str
    boottime_ms: Callable[[], int]

    async def run(self, seen: Callable[[int, int], None] = lambda _done, _total: None) -> Pass:
        """Make one pass over what is due; `seen` hears (done, total).

        Raises: LedgerUnavailableError.
        """
        states: dict[OperationId, S] = {}
        due = await self.due.due(self.clock.now(0), BATCH)
        for done, operation_id in enumerate(due):
            seen(done, len(due))
            after = await self.resolve_one(operation_id)
            if after is not None:
                states[operation_id] = after.state
        return Pass(states)

    async def resolve_one(self, operation_id: OperationId) -> Operation | None:
        """Lease, read and resolve one operation; None where somebody else is at it."""
        refs = Refs(operations=frozenset({operation_id}))
        taken = await self.ledger.transact(
            lambda _: refs, lambda snapshot: take(snapshot, operation_id, self.owner)
        )
        if taken is None:
            return None
        leased, attempts = taken
        finding = await self._read(leased, attempts)
        proof = finding.proof if isinstance(finding, Found) else Nothing("not found")
        limit = await self._daily_declines(leased.key_id)
        after = await self.ledger.transact(
            lambda now: ending_refs(leased, proof, now),
            lambda snapshot: resolve(snapshot, leased, finding, limit),
        )
        self.waiters.wake(operation_id)
        return after

    async def _read(self, operation: Operation, attempts: list[Attempt]) -> Finding:
        route = ENDPOINTS[operation.route]
        last = attempts[-1]
        if operation.state is S.SUCCEEDED or operation.continued_by(last):
            return await self._read_object(route, operation)
        return await self._walk(route, operation, attempts)

    async def _read_object(self, route: Route, operation: Operation) -> Finding:
        parsed = await self._get(f"{route.template}/{operation.object_id}")
        made = None if parsed is None else prove_object(parsed, route)
        return Unreadable() if made is None else Found(operation.attempt, made)

    async def _walk(self, route: Route, operation: Operation, attempts: list[Attempt]) -> Finding:
        """Walk the whole list from 25 h before the first send; an incomplete walk says nothing."""
        listing = route.listing
        if listing is None:
            return Unreadable()
        since_ms = min(each.first_sent_at for each in attempts) - LOOK_BACK_MS
        query = {"limit": str(PAGE), "created[gte]": str(since_ms // 1000)}
        narrowed = {"customer": operation.customer, "charge": operation.gives_back}
        query |= {
            name: value
            for name, value in narrowed.items()
            if name in listing.filters and value is not None
        }
        for _ in range(PAGES_MAX):
            page = await self._get(f"{listing.path}?{urlencode(query)}")
            items = None if page is None else page.get("data")
            if page is None or not isinstance(items, list):
                return Unreadable()
            found = _find(items, route, operation, attempts)
            if found is not None:
                return found
            if page.get("has_more") is not True:
                # Only a list that says so itself has ended.
                return Absent() if page.get("has_more") is False else Unreadable()
            if not items or not isinstance(items[-1].get("id"), str):
                return Unreadable()
            query["starting_after"] = items[-1]["id"]
        return Unreadable()

    async def _get(self, path: str) -> dict[str, Any] | None:
        request = UpstreamRequest(
            method="GET", path=path, body=None, stripe_version=None, idempotency_key=None
        )
        begun = self.boottime_ms()
        answer = await self.upstream.send(request, deadline_ms=begun + READ_WITHIN_MS)
        if not isinstance(answer, Answered):
            return None
        self.clock.observe(answer.headers.get("date"), self.boottime_ms() - begun)
        if answer.status != 200:
            return None
        try:
            parsed = json.loads(answer.body)
        except ValueError:
            return None
        return parsed if isinstance(parsed, dict) else None

    async def _daily_declines(self, key_id: KeyId) -> int:
        found = await self.ledger.find_key(key_id)
        return (
            DAILY_DECLINES_DEFAULT if found is None else policy_of(found[0].policy).daily_declines
        )


def _find(
    items: list[Any], route: Route, operation: Operation, attempts: list[Attempt]
) -> Found | None:
    for item in items:
        if not isinstance(item, dict):
            continue
        number = match_attempt(item, operation, attempts)
        made = None if number is None else prove_object(item, route)
        if number is not None and made is not None:
            return Found(number, made)
    return None
