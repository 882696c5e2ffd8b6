"""Refunds, of a charge or of an intent's charge, and disputes: a bank that takes a charge back.

Floor: sandbox, ground. A refund succeeds at once, unless the id of the customer or of the payment
method contains `PendingRefund` (it waits) or `RefundAction` (the customer must act first).
`POST /_sandbox/refunds` moves one on, and `POST /_sandbox/disputes` a dispute, as the bank would.
Source: docs.stripe.com/refunds and /disputes.
"""

from __future__ import annotations

from typing import Final

from kb_mcp.money import Money
from kb_mcp.sandbox.answers import Answer, Json, below_one, invalid
from kb_mcp.sandbox.listing import saved, shown
from kb_mcp.sandbox.params import Call, integer, metadata, show, text
from kb_mcp.sandbox.store import Records

STATUSES: Final = ("pending", "requires_action", "succeeded", "failed", "canceled")
_GIVEN_BACK: Final = frozenset({"failed", "canceled"})
_ACTION_LASTS_SECONDS: Final = 45 * 24 * 3600


def create_refund(call: Call) -> Answer:
    """POST /v1/refunds."""
    charge = _refunded_charge(call)
    amount = _refunded_amount(call, charge)
    _count(charge, amount)
    call.records.save(charge)
    return saved(call, _new_refund(call, charge, amount))


def update_refund(call: Call) -> Answer:
    """POST /v1/refunds/{refund}: its metadata."""
    refund = call.named("refund")
    return saved(call, refund | {"metadata": metadata(call.params, refund)})


def cancel_refund(call: Call) -> Answer:
    """POST /v1/refunds/{refund}/cancel: only one that waits for the customer."""
    refund = call.named("refund")
    if refund["status"] != "requires_action":
        raise invalid("You can only cancel refunds that require customer actions.")
    return shown(call, end_refund(call.records, refund, "canceled"))


def end_refund(records: Records, refund: Json, status: str) -> Json:
    """Move `refund` to `status`; what failed or was canceled is left on its charge again."""
    before, refund["status"] = refund["status"], status
    refund.pop("next_action", None)
    if status == "failed":
        refund |= {
            "failure_balance_transaction": f"txn_failed{refund['id'][3:]}",
            "failure_reason": "lost_or_stolen_card",
        }
    charge = records.find("charge", refund["charge"]) or {}
    counted = [1 if each in _GIVEN_BACK else 0 for each in (before, status)]
    _count(charge, refund["amount"] * (counted[0] - counted[1]))
    records.save(charge)
    records.save(refund)
    return refund


def _refunded_amount(call: Call, charge: Json) -> int:
    if charge["status"] != "succeeded":
        raise invalid(f"Charge {charge['id']} has not succeeded and cannot be refunded.")
    if charge["refunded"]:
        sentence = f"Charge {charge['id']} has already been refunded."
        raise invalid(sentence, "charge_already_refunded")
    if not takes_refunds(call.records, charge):
        sentence = f"Charge {charge['id']} has been charged back; cannot issue a refund."
        raise invalid(sentence, "charge_disputed")
    left = charge["amount"] - charge["amount_refunded"]
    asked = integer(call.params, "amount")
    amount = left if asked is None else asked
    if amount < 1:
        raise below_one("amount")
    if amount > left:
        shown = (show(Money(figure, charge["currency"])) for figure in (amount, left))
        raise invalid(
            "Refund amount ({}) is greater than unrefunded amount on charge ({})".format(*shown),
            param="amount",
        )
    if amount < left and not charge["captured"]:
        raise invalid(
            f"Charge {charge['id']} has not been captured, so it cannot be refunded in part.",
            param="amount",
        )
    return amount


def _count(charge: Json, amount: int) -> None:
    refunded = charge["amount_refunded"] + amount
    charge |= {"amount_refunded": refunded, "refunded": refunded == charge["amount"]}


def _refunded_charge(call: Call) -> Json:
    charge_id, intent_id = text(call.params, "charge"), text(call.params, "payment_intent")
    if charge_id is None and intent_id is None:
        raise invalid(
            "One of the following params should be provided for this request: payment_intent or "
            "charge."
        )
    if charge_id is None and intent_id is not None:
        charge_id = call.require("payment_intent", intent_id, "payment_intent")["latest_charge"]
        if charge_id is None:
            sentence = f"This PaymentIntent ({intent_id}) does not have a successful charge."
            raise invalid(sentence, param="payment_intent")
    charge = call.require("charge", charge_id or "", "charge")
    if intent_id is not None and charge["payment_intent"] != intent_id:
        raise invalid(f"Charge {charge_id} does not belong to {intent_id}.", param="charge")
    return charge


def _first_status(charge: Json) -> str:
    named = f"{charge['customer']} {charge['payment_method']}"
    if "RefundAction" in named:
        return "requires_action"
    return "pending" if "PendingRefund" in named else "succeeded"


def _new_refund(call: Call, charge: Json, amount: int) -> Json:
    status = _first_status(charge)
    refund = {
        "id": f"re_{call.new_id()}",
        "object": "refund",
        "amount": amount,
        "balance_transaction": f"txn_{call.new_id()}",
        "charge": charge["id"],
        "created": call.now,
        "currency": charge["currency"],
        "destination_details": {
            "card": {
                "reference_status": "pending",
                "reference_type": "acquirer_reference_number",
                "type": "refund",
            },
            "type": "card",
        },
        "metadata": metadata(call.params),
        "payment_intent": charge["payment_intent"],
        "reason": text(call.params, "reason"),
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": status,
        "transfer_reversal": None,
    }
    if status == "requires_action":
        details = {
            "email_sent": {"email_sent_at": call.now, "email_sent_to": "customer@example.com"},
            "expires_at": call.now + _ACTION_LASTS_SECONDS,
        }
        refund["next_action"] = {"display_details": details, "type": "display_details"}
    return refund


DISPUTE_STATUSES: Final = (
    "warning_needs_response",
    "warning_under_review",
    "warning_closed",
    "needs_response",
    "under_review",
    "won",
    "lost",
)
# An inquiry has taken nothing yet, and what was won is back.
_REFUNDABLE: Final = frozenset(DISPUTE_STATUSES[:3]) | {"won"}


def takes_refunds(records: Records, charge: Json) -> bool:
    """Say whether the bank leaves `charge` to its merchant."""
    dispute = _dispute_of(records, charge)
    return dispute is None or dispute["is_charge_refundable"]


def dispute_charge(records: Records, charge: Json, status: str) -> Json:
    """Open a dispute of `charge`, or move its dispute to `status`; return the dispute."""
    dispute = _dispute_of(records, charge) or {
        "id": f"dp_{charge['id'].removeprefix('ch_')}",
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
