"""Customers, their cards, and the account itself.

Floor: sandbox, ground. To keep samples simple, every well-formed customer exists from the moment
it is named, with a card of its own; a name that contains `Missing` never does, and one that was
deleted does no more.
"""

from __future__ import annotations

import re
from dataclasses import replace

from kb_mcp.sandbox.answers import ACCOUNT_ID, Answer, Json, invalid, missing_object
from kb_mcp.sandbox.listing import page, saved, shown
from kb_mcp.sandbox.params import Call, Params, metadata, text
from kb_mcp.sandbox.resources.payment_methods import (
    PAYMENT_METHOD,
    attach,
    detach,
    not_the_customers,
)

_CUSTOMER = re.compile(r"cus_[A-Za-z0-9]{1,200}")
_WORDS = ("description", "email", "name", "phone")
_PARTS = ("address", "shipping")
_CARDS_MAX = 1_000


def require_customer(call: Call, customer_id: str, param: str, status: int = 400) -> Json:
    """Return the customer, who comes into being when first named.

    Raises: Rejected with `status`, when there can be no such customer, or is none any more.
    """
    known = call.records.find("customer", customer_id)
    if known is not None:
        return known
    if call.records.find("deleted_customer", _deleted(customer_id)) is not None:
        raise missing_object("customer", customer_id, param, status)
    if not _CUSTOMER.fullmatch(customer_id) or "Missing" in customer_id:
        raise missing_object("customer", customer_id, param, status)
    return _new_customer(call, customer_id, {})


def create_customer(call: Call) -> Answer:
    """POST /v1/customers."""
    return shown(call, _new_customer(call, f"cus_{call.new_id()}", call.params))


def get_customer(call: Call) -> Answer:
    """GET /v1/customers/{customer}; of a deleted one, that it is."""
    if call.records.find("deleted_customer", _deleted(call.ids[0])) is not None:
        return Answer(200, _gone(call.ids[0]))
    return shown(call, require_customer(call, call.ids[0], "id", 404))


def update_customer(call: Call) -> Answer:
    """POST /v1/customers/{customer}."""
    customer, params = require_customer(call, call.ids[0], "id", 404), call.params
    customer |= {name: text(params, name) for name in _WORDS if name in params}
    customer |= {name: params[name] or None for name in _PARTS if name in params}
    if "balance" in params:
        customer["balance"] = int(params["balance"])
    customer["metadata"] = metadata(params, customer)
    given = params.get("invoice_settings") or {}
    if "default_payment_method" in given:
        customer["invoice_settings"]["default_payment_method"] = _own_card(call, customer, given)
    return saved(call, customer)


def delete_customer(call: Call) -> Answer:
    """DELETE /v1/customers/{customer}: for good, and its cards with it."""
    customer = require_customer(call, call.ids[0], "id", 404)
    wanted = {"customer": customer["id"]}
    for card in call.records.select("payment_method", wanted, _CARDS_MAX, oldest_first=True):
        detach(call, card)
    call.records.remove("customer", customer["id"])
    call.records.save({"object": "deleted_customer", "id": _deleted(customer["id"])})
    return Answer(200, _gone(customer["id"]))


def get_own_payment_method(call: Call) -> Answer:
    """GET /v1/customers/{customer}/payment_methods/{payment_method}."""
    customer, payment_method = call.ids
    require_customer(call, customer, "customer", 404)
    found = call.require("payment_method", payment_method, "payment_method", 404)
    if found["customer"] != customer:
        raise missing_object("payment_method", payment_method, "payment_method", 404)
    return shown(call, found)


def list_payment_methods(call: Call) -> Answer:
    """GET /v1/payment_methods, or below a customer."""
    customer = call.ids[0] if call.ids else text(call.params, "customer")
    if customer is not None:
        require_customer(call, customer, "customer", 404 if call.ids else 400)
        call = replace(call, params=call.params | {"customer": customer})
    found = page(call, "payment_method", "customer")
    if call.params.get("type", "card") != "card":
        found |= {"data": [], "has_more": False}  # there are only cards here
    return shown(call, found)


def attach_payment_method(call: Call) -> Answer:
    """POST /v1/payment_methods/{payment_method}/attach."""
    customer = require_customer(call, str(text(call.params, "customer")), "customer")
    return shown(call, attach(call, call.ids[0], customer["id"]))


def detach_payment_method(call: Call) -> Answer:
    """POST /v1/payment_methods/{payment_method}/detach."""
    found = call.named("payment_method")
    if found["customer"] is None:
        raise invalid(
            "The payment method you provided is not attached to a customer so detachment is "
            "impossible."
        )
    detach(call, found)
    return shown(call, found | {"customer": None})


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
            "default_payment_method": _first_card(call, customer_id, params),
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": metadata(params),
        "name": text(params, "name"),
        "next_invoice_sequence": 1,
        "phone": text(params, "phone"),
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }
    call.records.save(customer)
    return customer


def _first_card(call: Call, customer_id: str, params: Params) -> str:
    """Attach the card that a new customer was given, or make one, and return its id."""
    given = params.get("invoice_settings") or {}
    named = text(given, "default_payment_method") or text(params, "payment_method")
    if named is None:
        named = f"pm_{customer_id.removeprefix('cus_')}"
    if not PAYMENT_METHOD.fullmatch(named) or "Missing" in named:
        raise missing_object("payment_method", named, "payment_method")
    return str(attach(call, named, customer_id)["id"])


def _own_card(call: Call, customer: Json, given: Params) -> str | None:
    named = text(given, "default_payment_method")
    if named is None:
        return None
    found = call.records.find("payment_method", named)
    if found is None or found["customer"] != customer["id"]:
        raise not_the_customers(named, "invoice_settings[default_payment_method]")
    return named


def _gone(customer_id: str) -> Json:
    return {"id": customer_id, "object": "customer", "deleted": True}


def _deleted(customer_id: str) -> str:
    return f"{customer_id}#deleted"
