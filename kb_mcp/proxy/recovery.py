"""Recovery: finds out what became of operations whose outcome nobody recorded. It never posts.

Floor: wing B, above the governor. One process leases each operation that is past its send or
unknown, walks Stripe's own list, and lets `resolve` say what follows. A walk that ran out of its
budget goes on in the next pass, so that one operation with a long list never keeps the others from
being read. What it remembers is in this process alone: after a restart it begins anew, which costs
reads and nothing else.

Finished bills are looked after here, too. A reopened bill stays open only while its refund holds,
which can fail days after it succeeded: then the charge is paid again, whatever was not sent yet in
its place must not be sent, and people are told. Stored answers are dropped after 90 days; a replay
then reads the object from Stripe. Only answers of operations that succeeded for good are dropped:
a decline has no object whose reading would say the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from msgspec.structs import replace

from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.governor import Waiters, ending_refs
from kb_mcp.proxy.ledger.port import Ledger, LedgerUnavailableError, look_up
from kb_mcp.proxy.ledger.records import (
    Attempt,
    AttemptOutcome,
    AuditDraft,
    Changes,
    KeyId,
    Operation,
    OperationId,
    Refs,
)
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.read_first import payment_with, with_payment
from kb_mcp.proxy.rules.duplicates import REFUND_READ_EVERY_MS
from kb_mcp.proxy.rules.outcomes.conclude import REFUND_FAILED
from kb_mcp.proxy.rules.outcomes.matching import match_attempt, may_have_made, twin_names
from kb_mcp.proxy.rules.outcomes.resolve import (
    LEASE_MS,
    Absent,
    Finding,
    Present,
    Unreadable,
    resolve,
    take,
)
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Listing, Route
from kb_mcp.proxy.stripe.evidence import Made, Nothing, prove_object
from kb_mcp.proxy.stripe.reader import GivenBack, Listed, Pages, StripeReads, read_refund

LOOK_BACK_MS = 25 * 3_600_000
BATCH = 100
DAILY_DECLINES_DEFAULT = 20
WATCHED_MS = 30 * 86_400_000
RETAIN_MS = 90 * 86_400_000
RETAIN_BATCH = 200


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

T = TypeVar("T")
# What follows from a finding: (snapshot, the leased operation, finding, the day's decline limit).
Reached = Callable[[Snapshot, Operation, Finding, int], tuple[T, Changes]]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Walk:
    """One walk of a list, begun at `begun_at` (store's time, ms), when `sends` had been made."""

    sends: list[int]
    pages: Pages
    begun_at: int
    twins: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Reads; one per process. `owner` is the lease name of this process.

    `walks` holds what was read of lists that are too long for one pass.
    """

    ledger: Ledger
    records: StoreReads
    stripe: StripeReads
    waiters: Waiters
    owner: str
    walks: dict[OperationId, Walk] = field(default_factory=dict)

    async def run(
        self, seen: Callable[[int, int], None] = lambda _done, _total: None
    ) -> dict[OperationId, S]:
        """Make one pass over what is due, and return the states it was left in.

        `seen` hears (done, total). Raises: LedgerUnavailableError.
        """
        now = self.stripe.clock.now()
        due = await self.records.ids("to_recover", now=now, most=BATCH)
        for settled in self.walks.keys() - set(due):
            del self.walks[settled]
        states: dict[OperationId, S] = {}
        for done, operation_id in enumerate(due):
            seen(done, len(due))
            states |= await self._resolve_beside_others(operation_id, AT_FIRST)
        for operation_id in [each for each in due if each in self.walks]:
            states |= await self._resolve_beside_others(operation_id, IN_A_PASS)
        return states

    async def _resolve_beside_others(
        self, operation_id: OperationId, budget: Budget
    ) -> dict[OperationId, S]:
        try:
            after = await self.examine(operation_id, resolve, budget)
        except LedgerUnavailableError:
            raise
        except Exception:  # noqa: BLE001 one operation must not keep the others from theirs
            _log.exception("operation %s cannot be resolved", operation_id)
            return {}
        return {} if after is None else {operation_id: after.state}

    async def resolve_one(self, operation_id: OperationId) -> Operation | None:
        """Lease, read and resolve one operation; None where somebody else is at it."""
        return await self.examine(operation_id, resolve)

    async def examine(
        self, operation_id: OperationId, step: Reached[T], budget: Budget = IN_A_PASS
    ) -> T | None:
        """Lease and read one operation, and let `step` say what follows from what was found.

        None where somebody else is at it. Raises: LedgerUnavailableError.
        """
        refs = Refs(operations=frozenset({operation_id}))
        taken = await self.ledger.transact(
            lambda _: refs, lambda snapshot: take(snapshot, operation_id, self.owner)
        )
        if taken is None:
            return None
        leased, attempts = taken
        finding = await self._find(leased, attempts, budget)
        proof = finding.proof if isinstance(finding, Present) else Nothing("not found")
        twins = finding.objects if isinstance(finding, Absent) else frozenset()
        limit = await self.daily_declines(leased.key_id)

        def refs_at(now: int) -> Refs:
            named = ending_refs(leased, proof, now)
            return replace(named, objects=named.objects | twins)

        after = await self.ledger.transact(
            refs_at, lambda snapshot: step(snapshot, leased, finding, limit)
        )
        self.waiters.wake(operation_id)
        return after

    async def _find(self, operation: Operation, attempts: list[Attempt], budget: Budget) -> Finding:
        """Read; a fault of ours in it is no finding, and must not keep the lease."""
        try:
            route = ENDPOINTS[operation.route]
            last = attempts[-1]
            if route.standing is not None:
                return await self._read_standing(route, operation, attempts, budget)
            if operation.state is S.SUCCEEDED or operation.continued_by(last):
                return await self._read_object(route, operation)
            return await self._walk(route, operation, attempts, budget)
        except Exception:  # noqa: BLE001 whatever it was, nothing is known and the lease goes back
            _log.exception("operation %s cannot be read", operation.id)
            return Unreadable()

    async def _read_object(self, route: Route, operation: Operation) -> Finding:
        made = await self.stripe.made(route, str(operation.object_id))
        return Unreadable() if made is None else Present(operation.attempt, made)

    async def _read_standing(
        self, route: Route, operation: Operation, attempts: list[Attempt], budget: Budget
    ) -> Finding:
        """Read an invoice: its own status and payments say what became of it.

        While it is as it was before the send, a charge that may be its own proves that nothing is
        known; without one the send has done nothing so far.
        """
        if not operation.pays_invoice or route.standing is None:
            # Of a version that did not read first: nobody knows what it was about.
            return Unreadable()
        seen = await self._read_object(route, operation)
        if not isinstance(seen, Present):
            return seen
        made, last = seen.proof, attempts[-1]
        paid_at = made.facts.get("paid_at")
        if (
            operation.state is not S.SUCCEEDED
            and isinstance(paid_at, int)
            and not may_have_made(attempts, paid_at, self._grace_ms)
        ):
            # Somebody else paid it, before or long after: the send has done nothing so far.
            return await self._walk(route, operation, attempts, budget)
        if made.verdict == "done":
            return Present(seen.number, await with_payment(self.stripe, made))
        if operation.state is S.SUCCEEDED and operation.final:
            return Unreadable()
        if operation.state is S.SUCCEEDED and last.outcome is AttemptOutcome.SUCCEEDED:
            return Present(seen.number, await self._unless_refused(made, last))
        if operation.state is S.SUCCEEDED or made.stripe_status not in route.standing:
            return seen
        return await self._walk(route, operation, attempts, budget)

    async def _unless_refused(self, made: Made, last: Attempt) -> Made:
        """Return what an invoice proves whose payment waits; it has failed where its intent has."""
        if not last.path.endswith("/pay"):
            return made
        intent = made.facts.get("paid_by")
        intent = intent or await payment_with(self.stripe, made.object_id, "open")
        route = ENDPOINTS["POST /v1/payment_intents"]
        proof = await self.stripe.made(route, str(intent)) if intent else None
        if proof is None or proof.verdict != "failed":
            return made
        return replace(made, verdict="failed", stripe_status="payment_failed")

    async def _walk(
        self, route: Route, operation: Operation, attempts: list[Attempt], budget: Budget
    ) -> Finding:
        """Walk the list, from where the last pass left off; an incomplete walk says nothing."""
        if route.listing is None:
            return Unreadable()
        walk, sends = self.walks.pop(operation.id, None), [each.sends for each in attempts]
        if walk is None or walk.sends != sends:
            pages = self._list(route.listing, operation, attempts)
            walk = Walk(sends, pages, operation.lease_until - LEASE_MS)
        stop_at = self.stripe.boottime_ms() + budget.within_ms
        for _ in range(budget.pages):
            page = await walk.pages.next()
            if not isinstance(page, Listed):
                return Unreadable()
            for item in page.items:
                number = match_attempt(item, operation, attempts)
                if number is not None:
                    made = prove_object(item, route)
                    # It is ours, and does not say what became of it: that is no absence.
                    return Unreadable() if made is None else Present(number, made)
                twin = twin_names(item, operation, attempts, self._grace_ms)
                walk.twins += [twin] if twin else []
            if not page.more:
                return Absent(walk.begun_at, tuple(walk.twins))
            if self.stripe.boottime_ms() >= stop_at:
                break
        self.walks[operation.id] = walk
        return Unreadable()

    @property
    def _grace_ms(self) -> int:
        return self.ledger.settings.recovery_grace_ms

    def _list(self, listing: Listing, operation: Operation, attempts: list[Attempt]) -> Pages:
        """Return the list that would hold the object of `operation`, from before its first send."""
        first_ms = min(each.first_sent_at for each in attempts)
        # By how much the times of the attempts may be later than they really were.
        ahead_ms = max(self.stripe.clock.may_be_ahead_ms(each.first_sent_at) for each in attempts)
        since_ms = first_ms - LOOK_BACK_MS - ahead_ms
        narrowed = {"customer": operation.customer, "charge": operation.gives_back}
        filters = {name: value for name in listing.filters if (value := narrowed.get(name))}
        return Pages(self.stripe, listing.path, {"created[gte]": str(since_ms // 1000), **filters})

    async def daily_declines(self, key_id: KeyId) -> int:
        """Return after how many declines in a day a key freezes."""
        found = await self.ledger.find_key(key_id)
        return policy_of(found[0].policy).daily_declines if found else DAILY_DECLINES_DEFAULT

    async def watch_refunds(self) -> None:
        """Read the refunds of reopened bills that are due now. Raises: LedgerUnavailableError."""
        now = self.stripe.clock.now()
        for operation_id in await self.records.ids("refunds_to_watch", now=now, most=BATCH):
            await self.look_at_refund(operation_id)

    async def look_at_refund(self, operation_id: OperationId) -> None:
        """Read one refund and note what follows; what cannot be read changes nothing.

        Raises: LedgerUnavailableError.
        """
        refs = Refs(operations=frozenset({operation_id}))
        operation = await look_up(
            self.ledger, refs, lambda snapshot: snapshot.operations.get(operation_id)
        )
        if operation is None or not operation.refunded:
            return
        seen = await read_refund(self.stripe, operation)
        if not isinstance(seen, GivenBack):
            return
        ids = [OperationId(each) for each in (operation_id, operation.successor) if each]
        refs = Refs(operations=frozenset(ids))

        def step(snapshot: Snapshot) -> tuple[None, Changes]:
            current = snapshot.operations[operation_id]
            if current.refunded_at != operation.refunded_at:
                return None, Changes()
            return None, (_holds if seen.whole else _failed)(snapshot, current)

        await self.ledger.transact(lambda _: refs, step)

    async def drop_answers(self) -> int:
        """Drop a batch of answers that are older than RETAIN_MS now; return how many."""
        before = self.stripe.clock.now() - RETAIN_MS
        old = frozenset(await self.records.ids("answered_before", before=before, most=RETAIN_BATCH))
        if not old:
            return 0

        def step(snapshot: Snapshot) -> tuple[int, Changes]:
            dropped = tuple(
                replace(operation, answer=None)
                for operation in snapshot.operations.values()
                if operation.id in old and operation.state is S.SUCCEEDED and operation.final
            )
            return len(dropped), Changes(operations=dropped)

        return await self.ledger.transact(lambda _: Refs(operations=old), step)


def _holds(snapshot: Snapshot, operation: Operation) -> Changes:
    unused = operation.reopened and operation.successor is None
    over = not unused and snapshot.now >= (operation.refunded_at or 0) + WATCHED_MS
    due = None if over else snapshot.now + REFUND_READ_EVERY_MS
    return Changes(operations=(replace(operation, refund_read_at=due),))


def _failed(snapshot: Snapshot, operation: Operation) -> Changes:
    """Close what was opened: the charge is paid again."""
    successor = snapshot.successor(operation)
    note = "The refund failed: the charge stands as paid. "
    if successor is None:
        note += "A new bill was not sent in its place and will not be."
    else:
        billed = successor.object_id or successor.state.value
        note += f"Its new bill {successor.id} ({billed}) was sent: the customer is billed twice."
    paid = replace(
        operation,
        reopened=False,
        released=False,
        permit_amount=None,
        refunded_at=None,
        refund_read_at=None,
        updated_at=snapshot.now,
    )
    row = AuditDraft(kind="recovery", decision=REFUND_FAILED, code=REFUND_FAILED, note=note)
    row = row.about(operation, object_id=operation.object_id)
    return Changes(operations=(paid,), audit=(row,))
