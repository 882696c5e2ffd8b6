"""What must hold: between operations, attempts, windows and audit, and along the audit's chains.

Floor: operators, above the records. Pure, but for the walk of the chains, which happens on a
thread, one walk at a time. The invariants are listed in docs/exactly-once.md; that each
succeeded operation has its object at Stripe is reconcile's to ask.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from kb_mcp.instants import rfc3339
from kb_mcp.periods import Period, overlap, parse_period
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.audit.chain import Verification
from kb_mcp.proxy.ledger.records import (
    HOLDING,
    Attempt,
    AttemptOutcome,
    KeyId,
    LineageId,
    Operation,
    Window,
    WindowKey,
)
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.windows import REFUNDS, windows_of
from kb_mcp.proxy.stores.gauges import BilledDays


@dataclass(slots=True)
class Verifying:
    """Verifies on demand, on a thread; keeps the last outcome, and when (RFC 3339) it ended."""

    verify: Callable[[], Verification]
    now_ms: Callable[[], int]
    last: Verification | None = None
    at: str | None = None
    _walking: asyncio.Task[Verification] | None = None

    async def run(self) -> Verification:
        """Verify now, or join the walk under way. Raises: LedgerUnavailableError."""
        if self._walking is None or self._walking.done():
            self._walking = asyncio.create_task(self._walk())
        return await asyncio.shield(self._walking)

    async def _walk(self) -> Verification:
        self.last = await asyncio.to_thread(self.verify)
        self.at = rfc3339(self.now_ms())
        return self.last


def count_overlaps(bills: Iterable[BilledDays], allowed: Container[KeyId]) -> int:
    """Count the pairs of `bills` of which the later one would be refused today.

    Bills of one customer and reference come together, by their first day. `allowed` are the keys
    that may bill days twice; the key of the later bill counts.
    """
    count = 0
    for _, group in groupby(bills, key=lambda bill: (bill.customer, bill.reference or "")):
        running: list[tuple[Period, BilledDays]] = []
        for bill in group:
            period = parse_period(bill.period)
            running = [each for each in running if each[0].end >= period.start]
            for other, before in running:
                later = max(bill, before, key=lambda each: each.reserved_at)
                unequal = period.label != other.label
                count += unequal and overlap(period, other) and later.key_id not in allowed
            running.append((period, bill))
    return count


@dataclass(slots=True)
class Examination:
    """Looks at operations one by one, then at windows; each violated invariant is one sentence."""

    violations: list[str] = field(default_factory=list)
    _reserved: Counter[WindowKey] = field(default_factory=Counter)
    _settled: Counter[WindowKey] = field(default_factory=Counter)
    # A charge that turned up late, or was adopted, may go over its caps: it is flagged.
    _late: Counter[WindowKey] = field(default_factory=Counter)

    def look(self, operation: Operation, attempts: Sequence[Attempt], *, audited: bool) -> None:
        """Take one operation; `audited` says whether the audit has a decision about it."""
        self.violations += _of_operation(operation, attempts)
        if attempts and not audited:
            self.violations.append(f"operation {operation.id} has no decision in the audit")
        reserved = operation.state in HOLDING or not operation.final
        for key in windows_of(operation).money():
            (self._reserved if reserved else self._settled)[key] += operation.held
            if operation.overshoot:
                self._late[key] += operation.held

    def end(
        self,
        windows: Sequence[Window],
        policies: Mapping[LineageId, Sequence[Policy]],
        ceilings: Mapping[str, int],
        ceilings_since: str = "",
    ) -> list[str]:
        """Return all violations, once every operation was looked at.

        `policies` are those of each lineage's keys. `ceilings` are the account's, which were set on
        the day `ceilings_since`: what was charged until then was within others.
        """
        self.violations += self._of_sums(windows)
        for window in windows:
            if window.key.scope == "account" and window.key.start <= ceilings_since:
                continue
            cap = _cap_of(window.key, policies, ceilings)
            held = window.reserved + window.settled - self._late[window.key]
            if cap is not None and held > cap:
                self.violations.append(f"{_named(window.key)} holds {held}, its cap is {cap}")
        return self.violations

    def _of_sums(self, windows: Sequence[Window]) -> Iterator[str]:
        known = {window.key: window for window in windows if window.key.currency}
        for key in sorted({*known, *self._reserved, *self._settled}, key=_named):
            window = known.get(key) or Window(key)
            for what, held in (("reserved", self._reserved[key]), ("settled", self._settled[key])):
                says = getattr(window, what)
                if says != held:
                    yield f"{_named(key)} says {what} {says}, its operations {held}"


def _of_operation(operation: Operation, attempts: Iterable[Attempt]) -> Iterator[str]:
    made = [each for each in attempts if each.outcome is AttemptOutcome.SUCCEEDED]
    succeeded = sum(not operation.continued_by(each) for each in made)
    if succeeded > 1:
        yield f"operation {operation.id} has {succeeded} succeeded attempts"
    if operation.state is S.SUCCEEDED and operation.object_id is None:
        yield f"operation {operation.id} succeeded without an object at Stripe"
    if not _holds_what_it_should(operation):
        yield f"operation {operation.id} is {operation.state} and holds {operation.held}"


def _holds_what_it_should(operation: Operation) -> bool:
    if operation.state in HOLDING:
        return operation.held == operation.amount
    if operation.state is not S.SUCCEEDED:
        return operation.held == 0
    # A raise under way holds more than there is yet; of an authorisation a part may be captured.
    if not operation.final:
        return operation.held >= operation.amount
    return 0 <= operation.held <= operation.amount or operation.overshoot


def _cap_of(
    key: WindowKey, policies: Mapping[LineageId, Sequence[Policy]], ceilings: Mapping[str, int]
) -> int | None:
    """Return the widest cap that any key may have been held to, or None."""
    if key.scope == "account":
        return ceilings.get(key.currency) if key.window == "day" else None
    if key.scope not in {"key", f"key{REFUNDS}"} or not key.currency:
        return None
    held_to = policies.get(LineageId(key.scope_id), ())
    limits = [each.caps if key.scope == "key" else each.refund_caps for each in held_to]
    tables = [each.daily if key.window == "day" else each.monthly for each in limits]
    caps = [table[key.currency] for table in tables if key.currency in table]
    return max(caps, default=None) if len(caps) == len(tables) else None


def _named(key: WindowKey) -> str:
    owner = f"{key.scope} {key.scope_id}".strip()
    return f"window {owner} {key.window} {key.start} {key.currency}"
