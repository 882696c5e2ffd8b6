"""Deciding approvals: an operator's yes or no, once, in one audited transaction.

Floor: operators, above the ledger. What an approval covers, and how it is used up, stands in
`rules.approvals`; here only its state changes, and only from pending.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Approval, AuditDraft, Changes, Refs
from kb_mcp.proxy.ledger.snapshot import Snapshot

Verdict = Literal["approved", "denied"]
_DECISIONS = {"approved": "approve", "denied": "deny"}


@dataclass(frozen=True, slots=True)
class Decided:
    """The approval after this operator decided it."""

    approval: Approval


@dataclass(frozen=True, slots=True)
class NotDecided:
    """Nothing changed: `why` is `missing`, `expired`, or the state somebody else left it in."""

    why: str
    decided_by: str | None = None


async def decide_approval(
    ledger: Ledger, approval_id: str, verdict: Verdict, operator: str
) -> Decided | NotDecided:
    """Decide a pending approval in the name of `operator`. Raises: LedgerUnavailableError."""

    def step(snapshot: Snapshot) -> tuple[Decided | NotDecided, Changes]:
        approval = snapshot.approvals.get(approval_id)
        if approval is None:
            return NotDecided("missing"), Changes()
        if approval.state != "pending":
            return NotDecided(approval.state, approval.decided_by), Changes()
        if approval.expires_at <= snapshot.now:
            return NotDecided("expired"), Changes()
        decided = replace(approval, state=verdict, decided_by=operator, decided_at=snapshot.now)
        method, _, path = approval.endpoint.partition(" ")
        row = AuditDraft(
            kind="admin",
            decision=_DECISIONS[verdict],
            agent_id=operator,
            key_id=approval.key_id,
            method=method,
            path=path,
            operation_id=approval.operation_id,
            amount=approval.amount,
            currency=approval.currency,
            customer_id=approval.customer,
            note=_note(approval),
        )
        return Decided(decided), Changes(approvals=(decided,), audit=(row,))

    return await ledger.transact(lambda _: Refs(approvals=frozenset({approval_id})), step)


def _note(approval: Approval) -> str:
    """Return what of `approval` has no column of its own in the audit."""
    parts = {
        "period": approval.period,
        "reference": approval.reference,
        "payment_method": approval.payment_method,
        "destination": approval.destination,
    }
    told = [f"{name} {value}" for name, value in parts.items() if value is not None]
    return ", ".join([approval.id, *told])
