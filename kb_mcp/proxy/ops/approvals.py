"""Deciding approvals: an operator's yes or no, once, in one audited transaction.

Floor: wing B, above the ledger. What an approval covers, and how it is used up, stands in
`proxy.approvals`; here only its state changes, and only from pending.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from kb_mcp.proxy.continuing import RAISED_TO
from kb_mcp.proxy.ledger import Approval, AuditDraft, Changes, Ledger, Operation, Refs
from kb_mcp.proxy.records import Record
from kb_mcp.proxy.standing import Standing
from kb_mcp.proxy.windows import rfc3339

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

    def step(standing: Standing) -> tuple[Decided | NotDecided, Changes]:
        approval = standing.approvals.get(approval_id)
        if approval is None:
            return NotDecided("missing"), Changes()
        if approval.state != "pending":
            return NotDecided(approval.state, approval.decided_by), Changes()
        if approval.expires_at <= standing.now:
            return NotDecided("expired"), Changes()
        decided = replace(approval, state=verdict, decided_by=operator, decided_at=standing.now)
        row = AuditDraft(
            kind="admin",
            decision=_DECISIONS[verdict],
            agent_id=operator,
            operation_id=approval.operation_id,
            note=approval.id,
        )
        return Decided(decided), Changes(approvals=(decided,), audit=(row,))

    return await ledger.transact(lambda _: Refs(approvals=frozenset({approval_id})), step)


def _amount(approval: Approval, operation: Operation) -> int:
    """Return the amount that `approval` covers, in minor units: what a bill is to be raised to."""
    raised = approval.fingerprint.partition(RAISED_TO)[2]
    return int(raised) if raised else operation.amount


def approval_record(approval: Approval, operation: Operation | None, now: int) -> Record:
    """Return an approval with the bill it is about; a pending one past its end is `expired`."""
    state = approval.state
    if state == "pending" and approval.expires_at <= now:
        state = "expired"
    return {
        "id": approval.id,
        "state": state,
        "operation_id": approval.operation_id,
        "key_id": None if operation is None else operation.key_id,
        "lineage": approval.lineage_id,
        "amount": None if operation is None else _amount(approval, operation),
        "currency": None if operation is None else operation.currency,
        "customer_id": None if operation is None else operation.customer,
        "billing_period": None if operation is None else operation.period,
        "created_at": rfc3339(approval.created_at),
        "expires_at": rfc3339(approval.expires_at),
        "decided_by": approval.decided_by,
        "decided_at": None if approval.decided_at is None else rfc3339(approval.decided_at),
    }
