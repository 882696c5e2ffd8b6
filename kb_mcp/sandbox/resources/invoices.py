"""Invoices: drafted, finalized, paid, voided, written off.

Floor: sandbox, ground. An item goes onto a draft of its customer. Nothing is collected by itself:
an invoice with `auto_advance` waits until somebody pays it. Which intent paid an invoice stands in
its payments, as since Stripe's version 2025-03-31. Source: docs.stripe.com/invoicing/integration.
"""

from __future__ import annotations

from typing import Final

from kb_mcp.money import CURRENCIES, Money
from kb_mcp.sandbox.answers import Answer, Json, invalid, missing_param
from kb_mcp.sandbox.listing import saved
from kb_mcp.sandbox.params import Call, flag, integer, metadata, text
from kb_mcp.sandbox.resources.customers import require_customer
from kb_mcp.sandbox.resources.intents import pay_off_session
from kb_mcp.sandbox.resources.payment_methods import require_payment_method

_PAYABLE: Final = ("draft", "open", "uncollectible")


def create_invoice(call: Call) -> Answer:
    """POST /v1/invoices: a draft without items."""
    params, customer = call.params, text(call.params, "customer")
    if customer is None:
        raise missing_param("customer")
    require_customer(call, customer, "customer")
    currency = (text(params, "currency") or "usd").lower()
    if currency not in CURRENCIES:
        raise invalid(f"Invalid currency: {currency}.", param="currency")
    invoice = {
        "id": f"in_{call.new_id()}",
        "object": "invoice",
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": flag(params, "auto_advance", default=False),
        "collection_method": text(params, "collection_method") or "charge_automatically",
        "created": call.now,
        "currency": currency,
        "customer": customer,
        "default_payment_method": text(params, "default_payment_method"),
        "description": text(params, "description"),
        "livemode": False,
        "metadata": metadata(params),
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "total": 0,
    }
    return saved(call, invoice)


def create_item(call: Call) -> Answer:
    """POST /v1/invoiceitems: one more line on a draft."""
    invoice_id, amount = text(call.params, "invoice"), integer(call.params, "amount")
    if invoice_id is None or amount is None:
        raise missing_param("amount" if amount is None else "invoice")
    invoice = _in_state(call.require("invoice", invoice_id, "invoice"), "draft", "edited")
    if invoice["customer"] != text(call.params, "customer"):
        raise invalid(f"The invoice {invoice_id} is of another customer.", param="customer")
    due = invoice["amount_due"] + amount
    call.records.save(invoice | {"amount_due": due, "amount_remaining": due, "total": due})
    item = {
        "id": f"ii_{call.new_id()}",
        "object": "invoiceitem",
        "amount": amount,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "date": call.now,
        "description": text(call.params, "description"),
        "invoice": invoice_id,
        "livemode": False,
        "metadata": metadata(call.params),
    }
    return saved(call, item)


def finalize_invoice(call: Call) -> Answer:
    """POST /v1/invoices/{invoice}/finalize; what costs nothing is paid by it."""
    invoice = _in_state(call.named("invoice"), "draft", "finalized")
    invoice["auto_advance"] = flag(call.params, "auto_advance", default=invoice["auto_advance"])
    return saved(call, _moved(call, invoice, "open" if invoice["amount_remaining"] else "paid"))


def pay_invoice(call: Call) -> Answer:
    """POST /v1/invoices/{invoice}/pay: all that is left, from the customer's card."""
    invoice = call.named("invoice")
    if invoice["status"] == "paid":
        raise invalid("Invoice is already paid")
    _in_state(invoice, _PAYABLE, "paid")
    money = Money(invoice["amount_remaining"], invoice["currency"])
    by_hand = flag(call.params, "paid_out_of_band", default=False)
    answer = None
    if money.amount and not by_hand:
        answer = _collect(call, invoice, money)
        invoice |= {"attempt_count": invoice["attempt_count"] + 1, "attempted": True}
    if answer is not None and answer.status != 200:
        # A draft is finalized before the card is asked, and stays so.
        call.records.save(
            _moved(call, invoice, "open") if invoice["status"] == "draft" else invoice
        )
        return answer
    paid = invoice["amount_paid"] + money.amount
    invoice |= {"amount_paid": paid, "amount_remaining": 0}
    return saved(call, _moved(call, invoice, "paid"))


def void_invoice(call: Call) -> Answer:
    """POST /v1/invoices/{invoice}/void."""
    invoice = _in_state(call.named("invoice"), ("open", "uncollectible"), "voided")
    return saved(call, _moved(call, invoice | {"auto_advance": False}, "void"))


def write_off_invoice(call: Call) -> Answer:
    """POST /v1/invoices/{invoice}/mark_uncollectible."""
    invoice = _in_state(call.named("invoice"), "open", "marked uncollectible")
    return saved(call, _moved(call, invoice | {"auto_advance": False}, "uncollectible"))


def _collect(call: Call, invoice: Json, money: Money) -> Answer:
    """Pay with the card that is named, or the one that is set; keep which intent did."""
    owner = require_customer(call, invoice["customer"], "customer")
    card = (
        text(call.params, "payment_method")
        or text(call.params, "source")
        or invoice["default_payment_method"]
        or owner["invoice_settings"]["default_payment_method"]
    )
    if not card:
        raise invalid("There is no `default_payment_method` set on this Customer or Invoice.")
    require_payment_method(call, card, invoice["customer"])
    tried = call.records.select(
        "invoice_payment", {"invoice": invoice["id"]}, 1, oldest_first=False
    )
    payment = tried[0] if tried else {}
    earlier = payment and call.records.find("payment_intent", payment["payment"]["payment_intent"])
    answer = pay_off_session(call, money, invoice["customer"], card, earlier)
    paid = answer.status == 200
    intent = answer.body if paid else answer.body["error"]["payment_intent"]
    kept = payment or _new_payment(call, invoice, money, intent["id"])
    amount = money.amount if paid else None
    call.records.save(kept | {"amount_paid": amount, "status": "paid" if paid else "open"})
    return answer


def _new_payment(call: Call, invoice: Json, money: Money, intent: str) -> Json:
    return {
        "id": f"inpay_{call.new_id()}",
        "object": "invoice_payment",
        "amount_paid": None,
        "amount_requested": money.amount,
        "created": call.now,
        "currency": money.currency,
        "invoice": invoice["id"],
        "is_default": True,
        "livemode": False,
        "payment": {"payment_intent": intent, "type": "payment_intent"},
        "status": "open",
    }


def _moved(call: Call, invoice: Json, status: str) -> Json:
    """Return the invoice in another status, and since when."""
    since = {"open": "finalized", "uncollectible": "marked_uncollectible", "void": "voided"}
    times = invoice["status_transitions"] | {f"{since.get(status, status)}_at": call.now}
    return invoice | {"status": status, "status_transitions": times}


def _in_state(invoice: Json, states: str | tuple[str, ...], verb: str) -> Json:
    """Return the invoice, which is in one of `states`. Raises: Rejected."""
    if invoice["status"] not in ((states,) if isinstance(states, str) else states):
        raise invalid(f"An invoice that is {invoice['status']} can't be {verb}.")
    return invoice
