"""Stripe's resources, as the sandbox plays them, and which endpoint calls what.

Floor: sandbox, above listing and params. A function is an endpoint: it returns the object to show,
or an answer that is no 200. Each endpoint has its row of parameters in `requests.json`.
"""

from __future__ import annotations

from typing import Final

from kb_mcp.sandbox.answers import ACCOUNT_ID, Answer, Json
from kb_mcp.sandbox.listing import Endpoint, lists, retrieves, searches, updates
from kb_mcp.sandbox.resources import charges, customers, intents

_ACCOUNT: Final[Json] = {
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
}

ENDPOINTS: Final[dict[str, Endpoint]] = {
    "POST /v1/charges": charges.create_charge,
    "GET /v1/charges": lists("charge", "customer", "payment_intent", "transfer_group"),
    "GET /v1/charges/search": searches("charge"),
    "GET /v1/charges/{charge}": retrieves("charge"),
    "POST /v1/charges/{charge}": updates("charge", charges.WORDING),
    "POST /v1/charges/{charge}/capture": charges.capture_charge,
    "POST /v1/payment_intents": intents.create_intent,
    "GET /v1/payment_intents": lists("payment_intent", "customer"),
    "GET /v1/payment_intents/search": searches("payment_intent"),
    "GET /v1/payment_intents/{intent}": retrieves("payment_intent"),
    "POST /v1/payment_intents/{intent}": intents.update_intent,
    "POST /v1/payment_intents/{intent}/confirm": intents.confirm_intent,
    "POST /v1/payment_intents/{intent}/capture": intents.capture_intent,
    "POST /v1/payment_intents/{intent}/cancel": intents.cancel_intent,
    "POST /v1/payment_intents/{intent}/increment_authorization": intents.increment_intent,
    "POST /v1/invoices": intents.create_invoice,
    "GET /v1/invoices": lists("invoice", "customer"),
    "GET /v1/invoices/{invoice}": retrieves("invoice"),
    "POST /v1/invoices/{invoice}/finalize": intents.finalize_invoice,
    "POST /v1/invoices/{invoice}/pay": intents.pay_invoice,
    "POST /v1/invoices/{invoice}/void": intents.ends_invoice("voided", "void"),
    "POST /v1/invoices/{invoice}/mark_uncollectible": intents.ends_invoice(
        "marked uncollectible", "uncollectible"
    ),
    "POST /v1/invoiceitems": intents.create_item,
    "GET /v1/invoice_payments": lists("invoice_payment", "invoice"),
    "POST /v1/refunds": charges.create_refund,
    "GET /v1/refunds": lists("refund", "charge", "payment_intent"),
    "GET /v1/refunds/{refund}": retrieves("refund"),
    "POST /v1/refunds/{refund}": updates("refund"),
    "POST /v1/refunds/{refund}/cancel": charges.cancel_refund,
    "GET /v1/disputes": lists("dispute", "charge", "payment_intent"),
    "GET /v1/disputes/{dispute}": retrieves("dispute"),
    "POST /v1/customers": customers.create_customer,
    "GET /v1/customers": lists("customer", "email"),
    "GET /v1/customers/{customer}": customers.get_customer,
    "POST /v1/customers/{customer}": customers.update_customer,
    "DELETE /v1/customers/{customer}": customers.delete_customer,
    "GET /v1/customers/{customer}/payment_methods": customers.list_payment_methods,
    "GET /v1/customers/{customer}/payment_methods/{payment_method}": (
        customers.get_own_payment_method
    ),
    "GET /v1/payment_methods": customers.list_payment_methods,
    "GET /v1/payment_methods/{payment_method}": retrieves("payment_method"),
    "POST /v1/payment_methods/{payment_method}/attach": customers.attach_payment_method,
    "POST /v1/payment_methods/{payment_method}/detach": customers.detach_payment_method,
    "GET /v1/account": lambda _: Answer(200, _ACCOUNT),
}
