"""An approval as an operator sees it, with the bill it is about.

Floor: beside the views. Pure.
"""

from __future__ import annotations

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.records import Approval


def approval_record(approval: Approval, now: int) -> Record:
    """Return an approval with the request it is about; past its end it is `expired`."""
    state = approval.state
    if state in {"pending", "approved"} and approval.expires_at <= now:
        state = "expired"
    return {
        "id": approval.id,
        "state": state,
        "operation_id": approval.operation_id,
        "key_id": approval.key_id,
        "lineage": approval.lineage_id,
        "endpoint": approval.endpoint,
        "amount": approval.amount,
        "currency": approval.currency,
        "customer_id": approval.customer,
        "charge_id": approval.gives_back,
        "billing_period": approval.period,
        "reference": approval.reference,
        "payment_method": approval.payment_method,
        "destination": approval.destination,
        "fingerprint": approval.fingerprint,
        "created_at": rfc3339(approval.created_at),
        "expires_at": rfc3339(approval.expires_at),
        "decided_by": approval.decided_by,
        "decided_at": None if approval.decided_at is None else rfc3339(approval.decided_at),
    }
