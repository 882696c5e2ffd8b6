"""PaymentIntents and their states, and invoices, which are paid by them.

Floor: sandbox, ground. How a card's bank answers: `customers`. An item goes onto a draft of its
customer. Nothing is collected by itself: an invoice with `auto_advance` waits until somebody pays
it. Which intent paid an invoice stands in its payments, as since Stripe's version 2025-03-31.
Source: docs.stripe.com/payments/paymentintents/lifecycle and docs.stripe.com/invoicing/integration.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from kb_mcp.money import CURRENCIES, Money
from kb_mcp.sandbox.answers import Answer, Json, Rejected, declined, error_answer, refuse_if
from kb_mcp.sandbox.listing import Endpoint
from kb_mcp.sandbox.params import Call
from kb_mcp.sandbox.resources import charges
from kb_mcp.sandbox.resources.customers import require_customer, require_payment_method

_CONFIRMABLE: Final = ("requires_payment_method", "requires_confirmation", "requires_action")
_CANCELABLE: Final = (*_CONFIRMABLE, "requires_capture", "processing")


def create_intent(call: Call) -> Json | Answer:
    """POST /v1/payment_intents."""
    money, customer = call.money(), call.text("customer")
    if customer is not None:
        require_customer(call, customer)
    intent = _new_intent(call, money, customer)
    _set_payment_method(call, intent)
    intent["metadata"] = call.metadata()
    return _confirm(call, intent) if call.flag("confirm") else call.save(intent)


def update_intent(call: Call) -> Json:
    """POST /v1/payment_intents/{intent}."""
    intent = _demanded(call, "updated", _CONFIRMABLE)
    if "amount" in call.params:
        intent["amount"] = call.amount(intent["currency"])
    _set_payment_method(call, intent)
    return call.save(intent | call.sent(charges.WORDING) | {"metadata": call.metadata(intent)})


def confirm_intent(call: Call) -> Json | Answer:
    """POST /v1/payment_intents/{intent}/confirm."""
    intent = _demanded(call, "confirmed", _CONFIRMABLE)
    _set_payment_method(call, intent)
    return _confirm(call, intent)


def capture_intent(call: Call) -> Json:
    """POST /v1/payment_intents/{intent}/capture."""
    intent = _demanded(call, "captured", ("requires_capture",))
    charge = charges.capture(call, _authorized(call, intent), "amount_to_capture")
    amount = charge["amount_captured"]
    intent |= {"amount_capturable": 0, "amount_received": amount, "status": "succeeded"}
    return call.save(intent | {"metadata": call.metadata(intent)})


def cancel_intent(call: Call) -> Json:
    """POST /v1/payment_intents/{intent}/cancel."""
    intent = _demanded(call, "canceled", _CANCELABLE)
    if intent["status"] == "requires_capture":
        charge = _authorized(call, intent)
        call.save(charge | {"amount_refunded": charge["amount"], "refunded": True})
    intent |= {"amount_capturable": 0, "canceled_at": call.now, "next_action": None}
    return call.save(intent | call.texts("cancellation_reason") | {"status": "canceled"})


def increment_intent(call: Call) -> Json | Answer:
    """POST /v1/payment_intents/{intent}/increment_authorization; the amount is the new total."""
    intent = _demanded(call, "incremented", ("requires_capture",))
    amount = call.amount(intent["currency"])
    sentence = "The amount must be greater than the currently authorized amount."
    refuse_if(amount <= intent["amount"], sentence, "parameter_invalid_integer", "amount")
    charge = _authorized(call, intent)
    if call.declines:
        return declined(charge["id"])
    call.save(charge | {"amount": amount})
    intent |= {"amount": amount, "amount_capturable": amount} | call.sent(charges.WORDING)
    return call.save(intent | {"metadata": call.metadata(intent)})


def _confirm(call: Call, intent: Json) -> Json | Answer:
    if intent["payment_method"] is None:
        raise _unexpected_state(
            intent,
            "You cannot confirm this PaymentIntent because it's missing a payment method. You can "
            "either update the PaymentIntent with a payment method and then confirm it again, or "
            "confirm it again directly with a payment method or ConfirmationToken.",
        )
    off_session = (call.params.get("off_session") or "false") != "false"
    refused = charges.refusal_of(call, intent, off_session=off_session)
    if charges.needs_the_customer(call, intent, off_session=off_session):
        # What the bank would say after that is not known before.
        if off_session or call.flag("error_on_requires_action"):
            return _failed(call, intent, "authentication_required")
        if not call.declines:
            kind = "use_stripe_sdk"
            action = {"type": kind, kind: {"type": "three_d_secure_redirect"}}
            return call.save(intent | {"next_action": action, "status": "requires_action"})
    if refused is not None:
        return _failed(call, intent, refused)
    captured = intent["capture_method"] != "manual"
    intent |= {
        "amount_capturable": 0 if captured else intent["amount"],
        "amount_received": intent["amount"] if captured else 0,
        "last_payment_error": None,
        "latest_charge": _charge(call, intent, None, captured=captured)["id"],
        "next_action": None,
        "status": "succeeded" if captured else "requires_capture",
    }
    return call.save(intent)


def _failed(call: Call, intent: Json, reason: str) -> Answer:
    charge = _charge(call, intent, reason, captured=True)["id"]
    card = call.records.find("payment_method", intent["payment_method"])
    error = declined(charge, reason=reason, payment_method=card).body["error"]
    intent |= {
        "last_payment_error": error,
        "latest_charge": charge,
        "next_action": None,
        "payment_method": None,
        "status": "requires_payment_method",
    }
    return Answer(402, {"error": error | {"payment_intent": call.save(intent)}})


def _charge(call: Call, intent: Json, refused: str | None, *, captured: bool) -> Json:
    money = Money(intent["amount"], intent["currency"])
    names = "customer description metadata payment_method receipt_email transfer_group".split()
    origin = {name: intent[name] for name in names} | {"payment_intent": intent["id"]}
    return charges.new_charge(call, money, origin, refused, captured=captured)


def _authorized(call: Call, intent: Json) -> Json:
    return call.require("charge", intent["latest_charge"], "latest_charge")


def _demanded(call: Call, verb: str, states: tuple[str, ...]) -> Json:
    """Return the intent that the path names, in one of `states`. Raises: Rejected."""
    intent = call.named("payment_intent")
    if intent["status"] not in states:
        act = {"canceled": "cancel", "captured": "capture", "confirmed": "confirm"}.get(verb, verb)
        raise _unexpected_state(
            intent,
            f"You cannot {act} this PaymentIntent because it has a status of "
            f"{intent['status']}. Only a PaymentIntent with one of the following statuses may be "
            f"{verb}: {', '.join(states)}.",
        )
    return intent


def _unexpected_state(intent: Json, message: str) -> Rejected:
    code = "payment_intent_unexpected_state"
    return Rejected(error_answer(400, message, code=code, payment_intent=intent))


def _set_payment_method(call: Call, intent: Json) -> None:
    payment_method = call.text("payment_method")
    if payment_method is not None:
        require_payment_method(call, payment_method, intent["customer"])
        intent["payment_method"] = payment_method
        if intent["status"] == "requires_payment_method":
            intent["status"] = "requires_confirmation"


# Empty in a new intent.
_EMPTY_AT_FIRST: Final = (
    f"{charges.WORDING} application application_fee_amount canceled_at cancellation_reason "
    "last_payment_error latest_charge next_action payment_method "
    "payment_method_configuration_details processing review shipping transfer_data"
).split()
_CARD_OPTIONS: Final = {
    "installments": None,
    "mandate_options": None,
    "network": None,
    "request_three_d_secure": "automatic",
}


def _new_intent(call: Call, money: Money, customer: str | None) -> Json:
    params, intent_id = call.params, f"pi_{call.new_id()}"
    kinds = params.get("payment_method_types") or {"0": "card"}
    excluded = params.get("excluded_payment_method_types") or {}
    automatic = {"enabled": True} if "automatic_payment_methods" in params else None
    return (
        dict.fromkeys(_EMPTY_AT_FIRST)
        | {
            **call.new("payment_intent", intent_id),
            "amount": money.amount,
            "amount_capturable": 0,
            "amount_details": {"tip": {}},
            "amount_received": 0,
            "automatic_payment_methods": automatic,
            "capture_method": call.text("capture_method", "automatic_async"),
            "client_secret": f"{intent_id}_secret_{call.new_id()}",
            "confirmation_method": call.text("confirmation_method", "automatic"),
            "currency": money.currency,
            "customer": customer,
            "excluded_payment_method_types": list(excluded.values()) or None,
            "managed_payments": {"enabled": False},
            "metadata": {},
            "payment_method_options": {"card": _CARD_OPTIONS},
            "payment_method_types": list(kinds.values()),
            "status": "requires_payment_method",
        }
        | call.texts("customer_account setup_future_usage")
        | call.sent(charges.WORDING)
    )


_INVOICE_ACTS: Final = {
    "edited": ("draft",),
    "finalized": ("draft",),
    "marked uncollectible": ("open",),
    "paid": ("draft", "open", "uncollectible"),
    "voided": ("open", "uncollectible"),
}
"""What is done to an invoice, and in which states."""


def create_invoice(call: Call) -> Json:
    """POST /v1/invoices: a draft without items."""
    customer = require_customer(call, call.required("customer"))["id"]
    currency = str(call.text("currency", "usd")).lower()
    refuse_if(currency not in CURRENCIES, f"Invalid currency: {currency}.", param="currency")
    zero = "amount_due amount_overpaid amount_paid amount_remaining attempt_count total"
    moments = ("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")
    return call.save(
        dict.fromkeys(zero.split(), 0)
        | {
            **call.new("invoice", f"in_{call.new_id()}"),
            "attempted": False,
            "auto_advance": call.flag("auto_advance"),
            "collection_method": call.text("collection_method", "charge_automatically"),
            "currency": currency,
            "customer": customer,
            "metadata": call.metadata(),
            "status": "draft",
            "status_transitions": dict.fromkeys(moments),
        }
        | call.texts("default_payment_method description")
    )


def create_item(call: Call) -> Json:
    """POST /v1/invoiceitems: one more line on a draft."""
    amount, invoice_id = int(call.required("amount")), call.required("invoice")
    invoice = call.require("invoice", invoice_id, "invoice")
    _demand(invoice, "edited")
    others = invoice["customer"] != call.text("customer")
    refuse_if(others, f"The invoice {invoice_id} is of another customer.", param="customer")
    due = invoice["amount_due"] + amount
    call.save(invoice | {"amount_due": due, "amount_remaining": due, "total": due})
    return call.save(
        {
            "id": f"ii_{call.new_id()}",
            "object": "invoiceitem",
            "amount": amount,
            "currency": invoice["currency"],
            "customer": invoice["customer"],
            "date": call.now,
            "description": call.text("description"),
            "invoice": invoice_id,
            "livemode": False,
            "metadata": call.metadata(),
        }
    )


def finalize_invoice(call: Call) -> Json:
    """POST /v1/invoices/{invoice}/finalize; what costs nothing is paid by it."""
    invoice = _demand(call.named("invoice"), "finalized")
    invoice["auto_advance"] = call.flag("auto_advance", default=invoice["auto_advance"])
    return _move(call, invoice, "open" if invoice["amount_remaining"] else "paid")


def pay_invoice(call: Call) -> Json | Answer:
    """POST /v1/invoices/{invoice}/pay: all that is left, from the customer's card."""
    invoice = call.named("invoice")
    refuse_if(invoice["status"] == "paid", "Invoice is already paid")
    _demand(invoice, "paid")
    left = invoice["amount_remaining"]
    if left and not call.flag("paid_out_of_band"):
        answer = _collect(call, invoice)
        invoice |= {"attempt_count": invoice["attempt_count"] + 1, "attempted": True}
        if isinstance(answer, Answer):
            # A draft is finalized before the card is asked, and stays so.
            draft = invoice["status"] == "draft"
            _move(call, invoice, "open") if draft else call.save(invoice)
            return answer
    invoice |= {"amount_paid": invoice["amount_paid"] + left, "amount_remaining": 0}
    return _move(call, invoice, "paid")


def ends_invoice(act: str, status: str) -> Endpoint:
    """Return the endpoint that does `act` to an invoice, of which nothing is collected any more."""
    return lambda call: _move(
        call, _demand(call.named("invoice"), act) | {"auto_advance": False}, status
    )


def _collect(call: Call, invoice: Json) -> Json | Answer:
    """Pay with the card that is named, or the one that is set; keep which intent did.

    The customer is away; an intent that failed earlier is tried again.
    """
    owner = require_customer(call, invoice["customer"])
    card = (
        call.text("payment_method")
        or call.text("source")
        or invoice["default_payment_method"]
        or owner["invoice_settings"]["default_payment_method"]
    )
    sentence = "There is no `default_payment_method` set on this Customer or Invoice."
    refuse_if(not card, sentence)
    require_payment_method(call, card, invoice["customer"])
    away = replace(call, params={"off_session": "true"})
    money = Money(invoice["amount_remaining"], invoice["currency"])
    tried = call.records.select("invoice_payment", {"invoice": invoice["id"]}, 1)
    if tried:
        [payment] = tried
        intent = call.require("payment_intent", payment["payment"]["payment_intent"], "invoice")
    else:
        intent = _new_intent(away, money, invoice["customer"])
        payment = {
            **call.new("invoice_payment", f"inpay_{call.new_id()}"),
            "amount_requested": money.amount,
            "currency": money.currency,
            "invoice": invoice["id"],
            "is_default": True,
            "payment": {"payment_intent": intent["id"], "type": "payment_intent"},
        }
    answer = _confirm(away, intent | {"payment_method": card})
    paid = not isinstance(answer, Answer)
    amount = money.amount if paid else None
    call.save(payment | {"amount_paid": amount, "status": "paid" if paid else "open"})
    return answer


def _demand(invoice: Json, act: str) -> Json:
    """Return the invoice, to which `act` may be done. Raises: Rejected."""
    status = invoice["status"]
    refuse_if(status not in _INVOICE_ACTS[act], f"An invoice that is {status} can't be {act}.")
    return invoice


def _move(call: Call, invoice: Json, status: str) -> Json:
    """Save the invoice in another status, and since when."""
    since = {"open": "finalized", "uncollectible": "marked_uncollectible", "void": "voided"}
    times = invoice["status_transitions"] | {f"{since.get(status, status)}_at": call.now}
    return call.save(invoice | {"status": status, "status_transitions": times})
