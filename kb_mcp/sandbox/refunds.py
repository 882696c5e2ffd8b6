"""Refunds, of a charge or of an intent's charge.

Floor: sandbox, ground.
"""

from __future__ import annotations

from kb_mcp.money import Money
from kb_mcp.sandbox.answers import Answer, Json, invalid, missing_object
from kb_mcp.sandbox.calls import Call, show
from kb_mcp.sandbox.listing import expand, list_objects
from kb_mcp.sandbox.params import integer, metadata, text


def create_refund(call: Call) -> Answer:
    """POST /v1/refunds."""
    charge = _refunded_charge(call)
    if charge["status"] != "succeeded":
        raise invalid(f"Charge {charge['id']} has not succeeded and cannot be refunded.")
    if charge["refunded"]:
        sentence = f"Charge {charge['id']} has already been refunded."
        raise invalid(sentence, "charge_already_refunded")
    left = charge["amount"] - charge["amount_refunded"]
    asked = integer(call.params, "amount")
    amount = left if asked is None else asked
    if amount < 1:
        sentence = "This value must be greater than or equal to 1."
        raise invalid(sentence, "parameter_invalid_integer", "amount")
    if amount > left:
        shown = (show(Money(figure, charge["currency"])) for figure in (amount, left))
        raise invalid(
            "Refund amount ({}) is greater than unrefunded amount on charge ({})".format(*shown),
            param="amount",
        )
    refunded = charge["amount_refunded"] + amount
    charge |= {"amount_refunded": refunded, "refunded": refunded == charge["amount"]}
    call.records.save(charge)
    refund = _new_refund(call, charge, amount)
    call.records.save(refund)
    return Answer(200, expand(call.records, refund, call.params))


def get_refund(call: Call) -> Answer:
    """GET /v1/refunds/{refund}."""
    refund = call.records.find("refund", call.ids[0])
    if refund is None:
        raise missing_object("refund", call.ids[0], "id", 404)
    return Answer(200, expand(call.records, refund, call.params))


def list_refunds(call: Call) -> Answer:
    """GET /v1/refunds."""
    filters = ("charge", "payment_intent")
    page = list_objects(call.records, "refund", "/v1/refunds", call.params, filters)
    return Answer(200, expand(call.records, page, call.params))


def _refunded_charge(call: Call) -> Json:
    charge_id, intent_id = text(call.params, "charge"), text(call.params, "payment_intent")
    if charge_id is None and intent_id is None:
        raise invalid(
            "One of the following params should be provided for this request: payment_intent or "
            "charge."
        )
    if charge_id is None and intent_id is not None:
        intent = call.records.find("payment_intent", intent_id)
        if intent is None:
            raise missing_object("payment_intent", intent_id, "payment_intent")
        charge_id = intent["latest_charge"]
        if charge_id is None:
            sentence = f"This PaymentIntent ({intent_id}) does not have a successful charge."
            raise invalid(sentence, param="payment_intent")
    charge = call.records.find("charge", charge_id or "")
    if charge is None:
        raise missing_object("charge", charge_id or "", "charge")
    return charge


def _new_refund(call: Call, charge: Json, amount: int) -> Json:
    return {
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
        "status": "succeeded",
        "transfer_reversal": None,
    }
