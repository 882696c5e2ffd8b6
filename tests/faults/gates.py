"""Gates: what must have been true of a send when its decision was committed.

Worked out from the bytes that are sent, from policies and from what operators were shown; not with
the product's functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from kb_mcp.proxy.ledger.records import LineageId, Operation, OperationId

if TYPE_CHECKING:
    from kb_mcp.proxy.access.policy import Policy
    from kb_mcp.proxy.ledger.snapshot import Snapshot

WEEK_DAYS = 7
Shown = tuple[LineageId, str | None, int, str, str | None, str | None, str | None]


@dataclass(slots=True)
class Gates:
    """What keys and operators allow. `lineage_of` knows the keys, those that were rotated too."""

    policies: Mapping[LineageId, Policy]
    lineage_of: dict[str, LineageId]
    frozen: set[LineageId] = field(default_factory=set)
    approved: set[Shown] = field(default_factory=set)

    def note(self, snapshot: Snapshot) -> Iterator[str]:
        """Take over what a transaction committed, and yield what it should not have let pass."""
        dirty = snapshot.dirty
        for approval_id in dirty.approvals:
            held = snapshot.approvals[approval_id]
            # Approved and used in one batch leaves its last image alone.
            if held.state == "approved" or (held.state == "used" and held.decided_by is not None):
                self.approved.add(
                    (held.lineage_id, held.customer, held.amount, held.currency, held.period,
                     held.reference, held.payment_method)
                )  # fmt: skip
        for row in dirty.audit:
            if row.kind == "decision" and row.decision == "proceed":
                yield from self._check_frozen(row.key_id, snapshot)
                attempt = snapshot.attempts[OperationId(row.operation_id or ""), row.attempt or 0]
                if attempt.path == "/v1/charges":
                    yield from self._check(row.key_id, attempt.body)
        for lineage_id in dirty.lineages:
            frozen = snapshot.lineages[lineage_id].frozen_at is not None
            (self.frozen.add if frozen else self.frozen.discard)(lineage_id)
        for key_id in dirty.keys:
            self.lineage_of[key_id] = snapshot.keys[key_id].lineage_id

    def _check_frozen(self, key_id: Any, snapshot: Snapshot) -> Iterator[str]:
        lineage = self.lineage_of[key_id]
        thawed = lineage in snapshot.dirty.lineages
        if lineage in self.frozen and not thawed:
            yield f"{key_id} sends, though its lineage is frozen"

    def _check(self, key_id: Any, body: bytes) -> Iterator[str]:
        form = dict(parse_qsl(body.decode()))
        amount, currency = int(form["amount"]), form["currency"]
        lineage = self.lineage_of[key_id]
        policy = self.policies[lineage]
        for limits in (policy.caps.per_charge, policy.caps.daily, policy.approval_above):
            if limits and currency not in limits:
                yield f"{key_id} sends {currency}, and no gate of its policy knows that currency"
        if amount > policy.caps.per_charge.get(currency, amount):
            yield f"{key_id} sends {amount}{currency}, more than its policy allows a charge"
        above = policy.approval_above.get(currency)
        if above is None or amount <= above:
            return
        said = form.get("description", "").removeprefix("Subscription ")
        period = form.get("metadata[billing_period]") or said or None
        shown = (lineage, form.get("customer"), amount, currency, period,
                 form.get("metadata[reference]"), form.get("source"))  # fmt: skip
        if shown not in self.approved:
            yield f"{key_id} sends {shown}, which no operator was shown and approved"


def overlapping(one: Operation, other: Operation) -> bool:
    """Say whether two bills with unequal periods are for some of the same days."""
    if one.period == other.period or (one.reference or "") != (other.reference or ""):
        return False
    starts, ends = (one.period_start, other.period_start), (one.period_end, other.period_end)
    if None in starts or None in ends:
        return False
    first, last = max(map(str, starts)), min(map(str, ends))
    # Consecutive ranges of a week and more may share the day between them.
    shares_a_day = first == last and "/" in str(one.period) and "/" in str(other.period)
    return first <= last and not shares_a_day
