"""An approval as an operator sees it, with the bill it is about.

Floor: beside the views. Pure.
"""

from __future__ import annotations

from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.records import Approval, Operation
from kb_mcp.proxy.ledger.windows import rfc3339
from kb_mcp.proxy.rules.follow_ups.find import RAISED_TO


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
