"""Payment methods: found, attached to a customer, and taken off again.

Floor: sandbox, ground. Source: docs.stripe.com/api/payment_methods.
"""

from __future__ import annotations

import re
from typing import Final

from kb_mcp.sandbox.answers import Json, Rejected, declined, invalid, missing_object
from kb_mcp.sandbox.bank_cards import card_of, is_test_name, remember
from kb_mcp.sandbox.calls import Call

PAYMENT_METHOD: Final = re.compile(r"pm_[A-Za-z0-9_]{1,200}")
_ADDRESS: Final = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))
CARD: Final = {
    "brand": "visa",
    "country": "US",
    "exp_month": 12,
    "exp_year": 2034,
    "fingerprint": "KbSandbox0000001",
    "funding": "credit",
    "last4": "4242",
    "wallet": None,
}


def billing_details() -> Json:
    """Return billing details of which nothing is known."""
    return {
        "address": dict(_ADDRESS),
        "email": None,
        "name": None,
        "phone": None,
        "tax_id": None,
    }


def require_payment_method(call: Call, payment_method: str, customer: str | None) -> Json:
    """Return the payment method, which must not belong to another customer.

    Stripe's test names (`pm_card_visa`) and other well-formed ones come into being when named.
    Raises: Rejected.
    """
    known = call.records.find("payment_method", payment_method)
    if known is not None:
        if customer is not None and known["customer"] not in {None, customer}:
            raise not_the_customers(payment_method)
        return known
    if not PAYMENT_METHOD.fullmatch(payment_method) or "Missing" in payment_method:
        raise missing_object("PaymentMethod", payment_method, "payment_method")
    return new_payment_method(call, payment_method, None)


def not_the_customers(payment_method: str, param: str = "payment_method") -> Rejected:
    """Refuse a payment method that is not attached to the customer."""
    return invalid(
        f"The customer does not have a payment method with the ID {payment_method}. The payment "
        "method must be attached to the customer.",
        "resource_missing",
        param,
    )


def attach(call: Call, payment_method: str, customer: str, param: str = "payment_method") -> Json:
    """Attach a payment method to a customer, and return it; of a test card, a copy.

    Raises: Rejected, when it belongs to somebody, or when its bank refuses even to save it.
    """
    found = require_payment_method(call, payment_method, None)
    card = card_of(call.records, payment_method)
    if not card.attaches and card.decline is not None:
        raise Rejected(declined(None, reason=card.decline))
    if is_test_name(payment_method):
        found = new_payment_method(call, f"pm_{call.new_id()}", None, like=payment_method)
    elif found["customer"] not in {None, customer}:
        sentence = "The payment method you provided has already been attached to a customer."
        raise invalid(sentence, param=param)
    found["customer"] = customer
    call.records.save(found)
    return found


def detach(call: Call, payment_method: Json) -> None:
    """Take a payment method off its customer, whose default it is no more."""
    owner = call.records.find("customer", payment_method["customer"] or "")
    if owner is not None:
        settings = owner["invoice_settings"]
        if settings["default_payment_method"] == payment_method["id"]:
            call.records.save(
                owner | {"invoice_settings": settings | {"default_payment_method": None}}
            )
    call.records.save(payment_method | {"customer": None})


def new_payment_method(
    call: Call, payment_method: str, customer: str | None, like: str | None = None
) -> Json:
    """Save a new card; `like` names the test card that it is a copy of."""
    if like is not None:
        remember(call.records, payment_method, like)
    shown = card_of(call.records, payment_method).shown
    body: Json = {
        "id": payment_method,
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": billing_details(),
        "card": CARD
        | shown
        | {
            "checks": {"address_line1_check": None, "address_postal_code_check": None}
            | {"cvc_check": "pass"},
            "display_brand": shown["brand"],
            "generated_from": None,
            "networks": {"available": [shown["brand"]], "preferred": None},
            "regulated_status": "unregulated",
            "three_d_secure_usage": {"supported": True},
        },
        "created": call.now,
        "customer": customer,
        "customer_account": None,
        "livemode": False,
        "metadata": {},
        "type": "card",
    }
    call.records.save(body)
    return body
