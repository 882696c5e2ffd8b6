"""Disputes: a bank that takes a charge back. `POST /_sandbox/disputes` plays the bank.

Floor: sandbox, ground. Source: docs.stripe.com/disputes.
"""

from __future__ import annotations

from typing import Final

from kb_mcp.sandbox.answers import Answer, Json, missing_object
from kb_mcp.sandbox.calls import Call
from kb_mcp.sandbox.listing import expand, list_objects
from kb_mcp.sandbox.store import Records

STATUSES: Final = (
    "warning_needs_response",
    "warning_under_review",
    "warning_closed",
    "needs_response",
    "under_review",
    "won",
    "lost",
)
# An inquiry has taken nothing yet, and what was won is back.
_REFUNDABLE: Final = frozenset(STATUSES[:3]) | {"won"}


def get_dispute(call: Call) -> Answer:
    """GET /v1/disputes/{dispute}."""
    dispute = call.records.find("dispute", call.ids[0])
    if dispute is None:
        raise missing_object("dispute", call.ids[0], "id", 404)
    return Answer(200, expand(call.records, dispute, call.params))


def list_disputes(call: Call) -> Answer:
    """GET /v1/disputes."""
    filters = ("charge", "payment_intent")
    page = list_objects(call.records, "dispute", "/v1/disputes", call.params, filters)
    return Answer(200, expand(call.records, page, call.params))


def takes_refunds(records: Records, charge: Json) -> bool:
    """Say whether the bank leaves `charge` to its merchant."""
    dispute = _dispute_of(records, charge)
    return dispute is None or dispute["is_charge_refundable"]


def dispute_charge(records: Records, charge: Json, status: str, new_id: str) -> Json:
    """Open a dispute of `charge`, or move its dispute to `status`; return the dispute."""
    dispute = _dispute_of(records, charge) or {
        "id": f"dp_{new_id}",
        "object": "dispute",
        "amount": charge["amount"],
        "balance_transactions": [],
        "charge": charge["id"],
        "created": records.now_ms // 1000,
        "currency": charge["currency"],
        "evidence": {},
        "evidence_details": {"due_by": None, "has_evidence": False, "past_due": False},
        "livemode": False,
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "reason": "general",
    }
    dispute |= {"is_charge_refundable": status in _REFUNDABLE, "status": status}
    records.save(charge | {"disputed": True})
    records.save(dispute)
    return dispute


def _dispute_of(records: Records, charge: Json) -> Json | None:
    found = records.select("dispute", {"charge": charge["id"]}, 1, oldest_first=False)
    return found[0] if found else None
