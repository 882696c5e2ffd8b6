"""Charges: created, listed, captured, and those that the card refused.

Floor: sandbox, ground. How a card's bank answers: `payment_methods`.
"""

from __future__ import annotations

from kb_mcp.money import Money
from kb_mcp.sandbox.answers import (
    DECLINES,
    Answer,
    Json,
    below_one,
    declined,
    invalid,
    missing_object,
)
from kb_mcp.sandbox.listing import saved, shown
from kb_mcp.sandbox.params import Call, Params, flag, integer, metadata, required_money, show, text
from kb_mcp.sandbox.resources.customers import require_customer
from kb_mcp.sandbox.resources.payment_methods import CARD, BankCard, billing_details, card_of

# What the sandbox does not play.
_NOT_PLAYED = (
    "application application_fee application_fee_amount description on_behalf_of "
    "receipt_email receipt_number review shipping source_transfer statement_descriptor "
    "statement_descriptor_suffix transfer_data transfer_group"
).split()

COPIED = (
    "description",
    "on_behalf_of",
    "receipt_email",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_group",
)


def create_charge(call: Call) -> Answer:
    """POST /v1/charges."""
    params = call.params
    money = required_money(params)
    customer, source = text(params, "customer"), text(params, "source")
    if customer is None and source is None and not params.get("card"):
        raise invalid("Must provide source or customer.", "parameter_missing")
    payment_method = source or f"card_{call.new_id()}"
    if customer is not None:
        owner = require_customer(call, customer, "customer")
        payment_method = source or owner["invoice_settings"]["default_payment_method"] or ""
        if not payment_method:
            raise invalid("Cannot charge a customer that has no active card", "missing", "card")
    if "Missing" in payment_method:
        raise missing_object("token", payment_method, "source")
    failure = refusal_of(call, customer, payment_method, off_session=True)
    charge = new_charge(
        call,
        money,
        customer=customer,
        payment_method=payment_method,
        captured=flag(params, "capture", default=True),
        failure=failure,
    )
    charge |= {name: text(params, name) for name in COPIED} | {"metadata": metadata(params)}
    answer = saved(call, charge)
    return answer if failure is None else declined(charge["id"], reason=failure)


def update_charge(call: Call) -> Answer:
    """POST /v1/charges/{charge}: wording and metadata, which move no money."""
    charge = call.named("charge")
    return saved(call, charge | copied(call.params) | {"metadata": metadata(call.params, charge)})


def capture_charge(call: Call) -> Answer:
    """POST /v1/charges/{charge}/capture."""
    charge = call.named("charge")
    if charge["payment_intent"] is not None:
        raise invalid(
            "This charge belongs to a PaymentIntent. Capture the PaymentIntent instead: "
            f"{charge['payment_intent']}."
        )
    if charge["captured"]:
        sentence = f"Charge {charge['id']} has already been captured."
        raise invalid(sentence, "charge_already_captured")
    if charge["status"] != "succeeded" or charge["refunded"]:
        raise invalid(f"Charge {charge['id']} cannot be captured.", "charge_not_capturable")
    amount = integer(call.params, "amount")
    capture(call, charge, charge["amount"] if amount is None else amount, "amount")
    return shown(call, charge)


def capture(call: Call, charge: Json, amount: int, param: str) -> None:
    """Take `amount` of an authorised charge; the rest goes back to the card.

    Raises: Rejected, when the amount is not within what was authorised.
    """
    if amount < 1:
        raise below_one(param)
    if amount > charge["amount"]:
        most = show(Money(charge["amount"], charge["currency"]))
        raise invalid(
            f"You cannot capture more than the authorized amount of {most}.",
            "amount_too_large",
            param,
        )
    charge |= {
        "amount_captured": amount,
        "amount_refunded": charge["amount"] - amount,
        "balance_transaction": f"txn_{call.new_id()}",
        "captured": True,
    }
    call.records.save(charge)


def refusal_of(
    call: Call, customer: str | None, payment_method: str, *, off_session: bool
) -> str | None:
    """Return why the bank says no, a row of `DECLINES`; None where it does not.

    Nobody is there to authenticate `off_session`.
    """
    if call.declines or "Declined" in (customer or ""):
        return "generic_decline"
    card = card_of(call.records, payment_method)
    if off_session and needs_the_customer(call, customer, payment_method, off_session=True):
        return "authentication_required"
    return card.decline


def needs_the_customer(
    call: Call, customer: str | None, payment_method: str, *, off_session: bool
) -> bool:
    """Say whether the customer must authenticate; a card that was saved may have it behind it."""
    if "Authentication" in (customer or ""):
        return True
    when = card_of(call.records, payment_method).authentication
    if when == "unless_set_up" and off_session:
        saved = call.records.find("payment_method", payment_method)
        return saved is None or saved["customer"] is None
    return when != "never"


def new_charge(
    call: Call,
    money: Money,
    *,
    customer: str | None,
    payment_method: str,
    captured: bool,
    failure: str | None,
    payment_intent: str | None = None,
) -> Json:
    """Build a charge that succeeded, or that the bank refused; the caller saves it.

    `failure` is a row of `DECLINES`.
    """
    charge_id, succeeded = f"ch_{call.new_id()}", failure is None
    took, card = succeeded and captured, card_of(call.records, payment_method)
    return dict.fromkeys(_NOT_PLAYED) | {
        "id": charge_id,
        "object": "charge",
        "amount": money.amount,
        "amount_captured": money.amount if took else 0,
        "amount_refunded": 0,
        "balance_transaction": f"txn_{call.new_id()}" if took else None,
        "billing_details": billing_details(),
        "calculated_statement_descriptor": "KB-MCP SANDBOX",
        "captured": took,
        "created": call.now,
        "currency": money.currency,
        "customer": customer,
        "disputed": False,
        **_failure(failure),
        "fraud_details": {},
        "livemode": False,
        "metadata": {},
        "paid": succeeded,
        "payment_intent": payment_intent,
        "payment_method": payment_method,
        "payment_method_details": _card_details(money.amount, card, captured=captured),
        "receipt_url": f"https://receipts.invalid/{charge_id}" if succeeded else None,
        "refunded": False,
        "status": "succeeded" if succeeded else "failed",
    }


def copied(params: Params) -> Json:
    """Return the wording and labels that a request passes on to its charge or intent."""
    return {name: text(params, name) for name in COPIED if name in params}


def _failure(failure: str | None) -> Json:
    refused = failure is not None
    outcome = {
        "advice_code": None,
        "network_advice_code": None,
        "network_decline_code": None,
        "network_status": "declined_by_network" if refused else "approved_by_network",
        "reason": failure,
        "risk_level": "normal",
        "risk_score": 20,
        "seller_message": "The bank did not return any further details with this decline."
        if refused
        else "Payment complete.",
        "type": "issuer_declined" if refused else "authorized",
    }
    return {
        "failure_balance_transaction": None,
        "failure_code": None if failure is None else DECLINES[failure].code,
        "failure_message": None if failure is None else DECLINES[failure].message,
        "outcome": outcome,
    }


def _card_details(amount: int, bank_card: BankCard, *, captured: bool) -> Json:
    checks = {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass"}
    card: Json = {
        **CARD,
        **bank_card.shown,
        "amount_authorized": amount,
        "authorization_code": None,
        "checks": checks,
        "installments": None,
        "mandate": None,
        "network": bank_card.brand,
        "network_token": None,
        "network_transaction_id": None,
        "regulated_status": "unregulated",
        "three_d_secure": None,
    }
    hold = {
        "extended_authorization": {"status": "disabled"},
        "incremental_authorization": {"status": "available"},
        "multicapture": {"status": "unavailable"},
        "overcapture": {"maximum_amount_capturable": amount, "status": "unavailable"},
    }
    return {"card": card if captured else card | hold, "type": "card"}
