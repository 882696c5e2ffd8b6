"""The endpoints: method and path to the function that serves them.

Floor: sandbox, ground. Each has its row of parameters in `requests.json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kb_mcp.sandbox import charges, customers, disputes, intents, refunds, search
from kb_mcp.sandbox.answers import Answer, unknown_url
from kb_mcp.sandbox.calls import Call

ENDPOINTS: Final[dict[str, Callable[[Call], Answer]]] = {
    "POST /v1/charges": charges.create_charge,
    "GET /v1/charges": charges.list_charges,
    "GET /v1/charges/search": search.search_charges,
    "GET /v1/charges/{charge}": charges.get_charge,
    "POST /v1/charges/{charge}": charges.update_charge,
    "POST /v1/charges/{charge}/capture": charges.capture_charge,
    "POST /v1/payment_intents": intents.create_intent,
    "GET /v1/payment_intents": intents.list_intents,
    "GET /v1/payment_intents/search": search.search_intents,
    "GET /v1/payment_intents/{intent}": intents.get_intent,
    "POST /v1/payment_intents/{intent}": intents.update_intent,
    "POST /v1/payment_intents/{intent}/confirm": intents.confirm_intent,
    "POST /v1/payment_intents/{intent}/capture": intents.capture_intent,
    "POST /v1/payment_intents/{intent}/cancel": intents.cancel_intent,
    "POST /v1/payment_intents/{intent}/increment_authorization": intents.increment_intent,
    "POST /v1/refunds": refunds.create_refund,
    "GET /v1/refunds": refunds.list_refunds,
    "GET /v1/refunds/{refund}": refunds.get_refund,
    "POST /v1/refunds/{refund}": refunds.update_refund,
    "POST /v1/refunds/{refund}/cancel": refunds.cancel_refund,
    "GET /v1/disputes": disputes.list_disputes,
    "GET /v1/disputes/{dispute}": disputes.get_dispute,
    "POST /v1/customers": customers.create_customer,
    "GET /v1/customers": customers.list_customers,
    "GET /v1/customers/{customer}": customers.get_customer,
    "POST /v1/customers/{customer}": customers.update_customer,
    "DELETE /v1/customers/{customer}": customers.delete_customer,
    "GET /v1/customers/{customer}/payment_methods": customers.list_payment_methods,
    "GET /v1/customers/{customer}/payment_methods/{payment_method}": customers.get_payment_method,
    "GET /v1/payment_methods": customers.list_payment_methods,
    "GET /v1/payment_methods/{payment_method}": customers.get_payment_method,
    "POST /v1/payment_methods/{payment_method}/attach": customers.attach_payment_method,
    "POST /v1/payment_methods/{payment_method}/detach": customers.detach_payment_method,
    "GET /v1/account": customers.get_account,
}

_PATTERNS: Final = tuple(
    (name, re.compile(re.sub(r"\\\{\w+\\\}", "([^/]+)", re.escape(name)))) for name in ENDPOINTS
)


@dataclass(frozen=True, slots=True)
class Match:
    """An endpoint's name in the tables, and what its path named."""

    endpoint: str
    ids: tuple[str, ...]


def find_endpoint(method: str, path: str) -> Match:
    """Find the endpoint of a request.

    Raises: Rejected with 404, when there is none.
    """
    wanted = f"{method} {path}"
    for name, pattern in _PATTERNS:
        found = pattern.fullmatch(wanted)
        if found is not None:
            return Match(name, found.groups())
    raise unknown_url(method, path)
