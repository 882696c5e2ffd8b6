"""Charges, what becomes of them, and their refunds and disputes.

Floor: sandbox, ground. How a card's bank answers: `customers`. A refund succeeds at once, unless
the id of the customer or of the payment method contains `PendingRefund` (it waits) or
`RefundAction` (the customer must act first). `POST /_sandbox/refunds` moves one on, and
`POST /_sandbox/disputes` a dispute, as the bank would. Source: docs.stripe.com/refunds, /disputes.
"""

from __future__ import annotations

from typing import Final

from kb_mcp.money import Money
from kb_mcp.sandbox.answers import Answer, Json, declined, failure, missing_object, refuse_if
from kb_mcp.sandbox.listing import expanded
from kb_mcp.sandbox.params import Call, show
from kb_mcp.sandbox.resources.customers import BILLING_DETAILS, card_of, require_customer
from kb_mcp.sandbox.store import Records

WORDING: Final = (
    "description on_behalf_of receipt_email statement_descriptor statement_descriptor_suffix "
    "transfer_group"
)
"""Wording and labels, which move no money: a request passes them on to its charge or intent."""


def create_charge(call: Call) -> Json | Answer:
    """POST /v1/charges."""
    money = call.money()
    customer, source = call.text("customer"), call.text("source")
    nobody = customer is None and source is None and not call.params.get("card")
    refuse_if(nobody, "Must provide source or customer.", "parameter_missing")
    payment_method = source or f"card_{call.new_id()}"
    if customer is not None:
        settings = require_customer(call, customer)["invoice_settings"]
        payment_method = source or settings["default_payment_method"]
        no_card = "Cannot charge a customer that has no active card"
        refuse_if(not payment_method, no_card, "missing", "card")
    if "Missing" in payment_method:
        raise missing_object("token", payment_method, "source")
    origin = {"customer": customer, "payment_method": payment_method, "payment_intent": None}
    origin |= call.texts(WORDING) | {"metadata": call.metadata()}
    refused = refusal_of(call, origin, off_session=True)
    captured = call.flag("capture", default=True)
    charge = new_charge(call, money, origin, refused, captured=captured)
    shown = expanded(call, charge)
    return shown if refused is None else declined(charge["id"], reason=refused)


def capture_charge(call: Call) -> Json:
    """POST /v1/charges/{charge}/capture."""
    charge = call.named("charge")
    named, intent = f"Charge {charge['id']}", charge["payment_intent"]
    sentence = "This charge belongs to a PaymentIntent. Capture the PaymentIntent instead:"
    refuse_if(intent is not None, f"{sentence} {intent}.")
    sentence = f"{named} has already been captured."
    refuse_if(charge["captured"], sentence, "charge_already_captured")
    over = charge["status"] != "succeeded" or charge["refunded"]
    refuse_if(over, f"{named} cannot be captured.", "charge_not_capturable")
    return capture(call, charge, "amount")


def capture(call: Call, charge: Json, param: str) -> Json:
    """Take what `param` says of an authorised charge, or all of it, and return the charge.

    The rest goes back to the card. Raises: Rejected, when that is not within what was authorised.
    """
    amount = call.positive(param, charge["amount"])
    most = show(charge["amount"], charge["currency"])
    sentence = f"You cannot capture more than the authorized amount of {most}."
    refuse_if(amount > charge["amount"], sentence, "amount_too_large", param)
    amounts = {"amount_captured": amount, "amount_refunded": charge["amount"] - amount}
    taken = {"balance_transaction": f"txn_{call.new_id()}", "captured": True}
    return call.save(charge | amounts | taken)


def refusal_of(call: Call, payer: Json, *, off_session: bool) -> str | None:
    """Return why the bank says no to the card of `payer`, a charge or an intent; None: it does not.

    Nobody is there to authenticate `off_session`.
    """
    if call.declines or "Declined" in (payer["customer"] or ""):
        return "generic_decline"
    if off_session and needs_the_customer(call, payer, off_session=True):
        return "authentication_required"
    return card_of(call.records, payer["payment_method"]).decline


def needs_the_customer(call: Call, payer: Json, *, off_session: bool) -> bool:
    """Say whether the customer must authenticate; a card that was saved may have it behind it."""
    if "Authentication" in (payer["customer"] or ""):
        return True
    when = card_of(call.records, payer["payment_method"]).asks
    if when == "unless_set_up" and off_session:
        saved = call.records.find("payment_method", payer["payment_method"])
        return saved is None or saved["customer"] is None
    return when != "never"


def new_charge(
    call: Call, money: Money, origin: Json, refused: str | None, *, captured: bool
) -> Json:
    """Save a charge that succeeded, or that the bank `refused`, which says why.

    `origin` is what it takes from its request or its intent: customer, payment method, wording.
    """
    charge_id, succeeded = f"ch_{call.new_id()}", refused is None
    took = succeeded and captured
    code, message = (None, None) if refused is None else failure(refused)
    return call.save(
        dict.fromkeys(_NOT_PLAYED)
        | {
            **call.new("charge", charge_id),
            "amount": money.amount,
            "amount_captured": money.amount if took else 0,
            "amount_refunded": 0,
            "balance_transaction": f"txn_{call.new_id()}" if took else None,
            "billing_details": BILLING_DETAILS,
            "calculated_statement_descriptor": "KB-MCP SANDBOX",
            "captured": took,
            "currency": money.currency,
            "disputed": False,
            "failure_code": code,
            "failure_message": message,
            "fraud_details": {},
            "outcome": _outcome(refused),
            "paid": succeeded,
            "payment_method_details": _card_details(
                call, origin["payment_method"], money.amount, captured=captured
            ),
            "receipt_url": f"https://receipts.invalid/{charge_id}" if succeeded else None,
            "refunded": False,
            "status": "succeeded" if succeeded else "failed",
        }
        | origin
    )


# What the sandbox does not play.
_NOT_PLAYED: Final = (
    f"{WORDING} application application_fee application_fee_amount failure_balance_transaction "
    "receipt_number review shipping source_transfer transfer_data"
).split()


def _outcome(refused: str | None) -> Json:
    ending = {
        "network_status": "approved_by_network",
        "seller_message": "Payment complete.",
        "type": "authorized",
    }
    if refused is not None:
        ending = {
            "network_status": "declined_by_network",
            "seller_message": "The bank did not return any further details with this decline.",
            "type": "issuer_declined",
        }
    codes = dict.fromkeys(("advice_code", "network_advice_code", "network_decline_code"))
    return codes | ending | {"reason": refused, "risk_level": "normal", "risk_score": 20}


def _card_details(call: Call, payment_method: str, amount: int, *, captured: bool) -> Json:
    card = card_of(call.records, payment_method)
    details = dict.fromkeys(
        "authorization_code installments mandate network_token network_transaction_id "
        "three_d_secure".split()
    )
    details |= card.shown | {"amount_authorized": amount, "network": card.brand}
    if not captured:
        details |= {
            "extended_authorization": {"status": "disabled"},
            "incremental_authorization": {"status": "available"},
            "multicapture": {"status": "unavailable"},
            "overcapture": {"maximum_amount_capturable": amount, "status": "unavailable"},
        }
    return {"card": details, "type": "card"}


STATUSES: Final = ("pending", "requires_action", "succeeded", "failed", "canceled")
_GIVEN_BACK: Final = frozenset({"failed", "canceled"})
_ACTION_LASTS_SECONDS: Final = 45 * 24 * 3600


def create_refund(call: Call) -> Json:
    """POST /v1/refunds."""
    charge = _refunded_charge(call)
    amount = _refunded_amount(call, charge)
    _count(call.records, charge, amount)
    named = f"{charge['customer']} {charge['payment_method']}"
    details = {
        "reference_status": "pending",
        "reference_type": "acquirer_reference_number",
        "type": "refund",
    }
    refund = {
        "id": f"re_{call.new_id()}",
        "object": "refund",
        "amount": amount,
        "balance_transaction": f"txn_{call.new_id()}",
        "charge": charge["id"],
        "created": call.now,
        "currency": charge["currency"],
        "destination_details": {"card": details, "type": "card"},
        "metadata": call.metadata(),
        "payment_intent": charge["payment_intent"],
        "reason": call.text("reason"),
        "status": "pending" if "PendingRefund" in named else "succeeded",
        **dict.fromkeys(("receipt_number", "source_transfer_reversal", "transfer_reversal")),
    }
    if "RefundAction" in named:
        emailed = {"email_sent_at": call.now, "email_sent_to": "customer@example.com"}
        steps = {"email_sent": emailed, "expires_at": call.now + _ACTION_LASTS_SECONDS}
        action = {"display_details": steps, "type": "display_details"}
        refund |= {"next_action": action, "status": "requires_action"}
    return call.save(refund)


def cancel_refund(call: Call) -> Json:
    """POST /v1/refunds/{refund}/cancel: only one that waits for the customer."""
    refund = call.named("refund")
    sentence = "You can only cancel refunds that require customer actions."
    refuse_if(refund["status"] != "requires_action", sentence)
    return end_refund(call.records, refund, "canceled")


def end_refund(records: Records, refund: Json, status: str) -> Json:
    """Move `refund` to `status`; what failed or was canceled is left on its charge again."""
    before, refund["status"] = refund["status"], status
    refund.pop("next_action", None)
    if status == "failed":
        refund |= {
            "failure_balance_transaction": f"txn_failed{refund['id'][3:]}",
            "failure_reason": "lost_or_stolen_card",
        }
    counted = (before in _GIVEN_BACK) - (status in _GIVEN_BACK)
    _count(records, records.find("charge", refund["charge"]) or {}, refund["amount"] * counted)
    return records.save(refund)


def _count(records: Records, charge: Json, amount: int) -> None:
    refunded = charge["amount_refunded"] + amount
    charge |= {"amount_refunded": refunded, "refunded": refunded == charge["amount"]}
    records.save(charge)


def _refunded_charge(call: Call) -> Json:
    charge_id, intent_id = call.text("charge"), call.text("payment_intent")
    sentence = "One of the following params should be provided for this request:"
    refuse_if(charge_id is None and intent_id is None, f"{sentence} payment_intent or charge.")
    if charge_id is None:
        param = "payment_intent"
        charge_id = call.require(param, str(intent_id), param)["latest_charge"]
        sentence = f"This PaymentIntent ({intent_id}) does not have a successful charge."
        refuse_if(charge_id is None, sentence, param=param)
    charge = call.require("charge", str(charge_id), "charge")
    others = intent_id is not None and charge["payment_intent"] != intent_id
    refuse_if(others, f"Charge {charge_id} does not belong to {intent_id}.", param="charge")
    return charge


def _refunded_amount(call: Call, charge: Json) -> int:
    named = f"Charge {charge['id']}"
    failed = charge["status"] != "succeeded"
    refuse_if(failed, f"{named} has not succeeded and cannot be refunded.")
    sentence = f"{named} has already been refunded."
    refuse_if(charge["refunded"], sentence, "charge_already_refunded")
    dispute = _dispute_of(call.records, charge)
    lost = dispute is not None and not dispute["is_charge_refundable"]
    sentence = f"{named} has been charged back; cannot issue a refund."
    refuse_if(lost, sentence, "charge_disputed")
    left = charge["amount"] - charge["amount_refunded"]
    amount = call.positive("amount", left)
    asked, most = (show(figure, charge["currency"]) for figure in (amount, left))
    sentence = f"Refund amount ({asked}) is greater than unrefunded amount on charge ({most})"
    refuse_if(amount > left, sentence, param="amount")
    sentence = f"{named} has not been captured, so it cannot be refunded in part."
    refuse_if(amount < left and not charge["captured"], sentence, param="amount")
    return amount


# Of an inquiry nothing has been taken yet, and what was won is back.
_REFUNDABLE: Final = ("warning_needs_response", "warning_under_review", "warning_closed", "won")
DISPUTE_STATUSES: Final = (*_REFUNDABLE, "needs_response", "under_review", "lost")


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
    records.save(charge | {"disputed": True})
    moved = {"is_charge_refundable": status in _REFUNDABLE, "status": status}
    return records.save(dispute | moved)


def _dispute_of(records: Records, charge: Json) -> Json | None:
    return next(iter(records.select("dispute", {"charge": charge["id"]}, 1)), None)
