"""Customers, their cards, and the account itself.

Floor: sandbox, ground. To keep samples simple, every well-formed customer exists from the moment
it is named, with a card of its own; a name that contains `Missing` never does.
"""

from __future__ import annotations

import re
from typing import Final

from kb_mcp.sandbox.answers import ACCOUNT_ID, Answer, Json, invalid, missing_object
from kb_mcp.sandbox.calls import Call
from kb_mcp.sandbox.listing import expand, list_objects
from kb_mcp.sandbox.params import Params, metadata, text

_CUSTOMER = re.compile(r"cus_[A-Za-z0-9]{1,200}")
_PAYMENT_METHOD = re.compile(r"pm_[A-Za-z0-9_]{1,200}")
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


def require_customer(call: Call, customer_id: str, param: str, status: int = 400) -> Json:
    """Return the customer, who comes into being when first named.

    Raises: Rejected with `status`, when there can be no such customer.
    """
    known = call.records.find("customer", customer_id)
    if known is not None:
        return known
    if not _CUSTOMER.fullmatch(customer_id) or "Missing" in customer_id:
        raise missing_object("customer", customer_id, param, status)
    return _new_customer(call, customer_id, {})


def require_payment_method(call: Call, payment_method: str, customer: str | None) -> Json:
    """Return the payment method, which must not belong to another customer.

    Stripe's test names (`pm_card_visa`) and other well-formed ones come into being when named.
    Raises: Rejected.
    """
    known = call.records.find("payment_method", payment_method)
    if known is not None:
        if customer is not None and known["customer"] not in {None, customer}:
            raise invalid(
                f"The customer does not have a payment method with the ID {payment_method}. The "
                "payment method must be attached to the customer.",
                "resource_missing",
                "payment_method",
            )
        return known
    if not _PAYMENT_METHOD.fullmatch(payment_method) or "Missing" in payment_method:
        raise missing_object("PaymentMethod", payment_method, "payment_method")
    return _new_payment_method(call, payment_method, None)


def billing_details() -> Json:
    """Return billing details of which nothing is known."""
    return {
        "address": dict(_ADDRESS),
        "email": None,
        "name": None,
        "phone": None,
        "tax_id": None,
    }


def create_customer(call: Call) -> Answer:
    """POST /v1/customers."""
    customer = _new_customer(call, f"cus_{call.new_id()}", call.params)
    return Answer(200, expand(call.records, customer, call.params))


def get_customer(call: Call) -> Answer:
    """GET /v1/customers/{customer}."""
    customer = require_customer(call, call.ids[0], "id", 404)
    return Answer(200, expand(call.records, customer, call.params))


def list_customers(call: Call) -> Answer:
    """GET /v1/customers."""
    page = list_objects(call.records, "customer", "/v1/customers", call.params, ("email",))
    return Answer(200, expand(call.records, page, call.params))


def get_payment_method(call: Call) -> Answer:
    """GET /v1/payment_methods/{payment_method}, or below its customer."""
    customer, payment_method = call.ids if len(call.ids) == 2 else (None, call.ids[0])
    if customer is not None:
        require_customer(call, customer, "customer", 404)
    found = call.records.find("payment_method", payment_method)
    if found is None or (customer is not None and found["customer"] != customer):
        raise missing_object("PaymentMethod", payment_method, "payment_method", 404)
    return Answer(200, expand(call.records, found, call.params))


def list_payment_methods(call: Call) -> Answer:
    """GET /v1/payment_methods, or below a customer."""
    customer = call.ids[0] if call.ids else text(call.params, "customer")
    url = f"/v1/customers/{customer}/payment_methods" if call.ids else "/v1/payment_methods"
    params: Params = dict(call.params)
    if customer is not None:
        require_customer(call, customer, "customer", 404 if call.ids else 400)
        params["customer"] = customer
    page = list_objects(call.records, "payment_method", url, params, ("customer",))
    if call.params.get("type", "card") != "card":
        page |= {"data": [], "has_more": False}  # there are only cards here
    return Answer(200, expand(call.records, page, call.params))


def get_account(call: Call) -> Answer:  # noqa: ARG001  every endpoint is given its call
    """GET /v1/account."""
    return Answer(
        200,
        {
            "id": ACCOUNT_ID,
            "object": "account",
            "business_profile": {"name": "kb-mcp sandbox"},
            "capabilities": {"card_payments": "active", "transfers": "active"},
            "charges_enabled": True,
            "country": "US",
            "default_currency": "usd",
            "details_submitted": True,
            "email": "sandbox@example.com",
            "metadata": {},
            "payouts_enabled": True,
            "settings": {"dashboard": {"display_name": "kb-mcp sandbox", "timezone": "Etc/UTC"}},
            "type": "standard",
        },
    )


def _new_customer(call: Call, customer_id: str, params: Params) -> Json:
    default = text(params, "payment_method") or f"pm_{customer_id.removeprefix('cus_')}"
    given = params.get("invoice_settings") or {}
    default = text(given, "default_payment_method") or default
    if not _PAYMENT_METHOD.fullmatch(default) or "Missing" in default:
        raise missing_object("PaymentMethod", default, "payment_method")
    known = call.records.find("payment_method", default)
    if known is not None and known["customer"] is not None:
        raise invalid(
            "The payment method you provided has already been attached to a customer.",
            param="payment_method",
        )
    customer: Json = {
        "id": customer_id,
        "object": "customer",
        "address": None,
        "balance": int(params.get("balance") or 0),
        "created": call.now,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": text(params, "description"),
        "discount": None,
        "email": text(params, "email"),
        "invoice_prefix": call.new_id()[:8].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": default,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": metadata(params),
        "name": text(params, "name"),
        "phone": text(params, "phone"),
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }
    call.records.save(customer)
    _new_payment_method(call, default, customer_id)
    return customer


def _new_payment_method(call: Call, payment_method: str, customer: str | None) -> Json:
    body: Json = {
        "id": payment_method,
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": billing_details(),
        "card": CARD
        | {
            "checks": {"address_line1_check": None, "address_postal_code_check": None}
            | {"cvc_check": "pass"},
            "generated_from": None,
            "networks": {"available": ["visa"], "preferred": None},
            "three_d_secure_usage": {"supported": True},
        },
        "created": call.now,
        "customer": customer,
        "livemode": False,
        "metadata": {},
        "type": "card",
    }
    call.records.save(body)
    return body
