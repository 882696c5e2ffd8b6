"""Customers and their payment methods: Stripe's test cards, and how their banks answer.

Floor: sandbox, ground. Pure, but for the records. To keep samples simple, every well-formed
customer exists from the moment it is named, with a card of its own; a name that contains `Missing`
never does, and one that was deleted does no more. Beside the test cards, any customer or payment
method whose id contains `Declined` is declined, and one that contains `Authentication` needs the
customer. Source: docs.stripe.com/testing and /api/payment_methods.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

from kb_mcp.sandbox import answers
from kb_mcp.sandbox.listing import page
from kb_mcp.sandbox.params import Call
from kb_mcp.sandbox.store import Records

Asks = Literal["never", "always", "unless_set_up"]
_UNKNOWN = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))
BILLING_DETAILS: Final = {
    "address": _UNKNOWN,
    **dict.fromkeys(("email", "name", "phone", "tax_id")),
}
"""Billing details of which nothing is known."""
_CHECKS: Final = {
    **dict.fromkeys(("address_line1_check", "address_postal_code_check")),
    "cvc_check": "pass",
}


@dataclass(frozen=True, slots=True)
class BankCard:
    """A card: `decline` is why its bank says no; `attaches` says that it can be saved.

    `asks` says when its customer must authenticate.
    """

    last4: str = "4242"
    decline: str | None = None
    brand: str = "visa"
    funding: str = "credit"
    asks: Asks = "never"
    attaches: bool = True

    @property
    def shown(self) -> answers.Json:
        """What an object of the API shows of it."""
        return {
            "brand": self.brand,
            "checks": _CHECKS,
            "country": "US",
            "exp_month": 12,
            "exp_year": 2034,
            "fingerprint": f"KbSandbox{'1' if self.last4 == '4242' else self.last4:0>7}",
            "funding": self.funding,
            "last4": self.last4,
            "regulated_status": "unregulated",
            "wallet": None,
        }


PLAIN: Final = BankCard()
_refused: Final = partial(BankCard, attaches=False)
_asking: Final = partial(BankCard, asks="always")
CARDS: Final = {
    "visa": PLAIN,
    "visa_debit": BankCard("5556", funding="debit"),
    "mastercard": BankCard("4444", brand="mastercard"),
    "mastercard_debit": BankCard("8210", brand="mastercard", funding="debit"),
    "mastercard_prepaid": BankCard("5100", brand="mastercard", funding="prepaid"),
    "amex": BankCard("8431", brand="amex"),
    "discover": BankCard("1117", brand="discover"),
    "diners": BankCard("0004", brand="diners"),
    "jcb": BankCard("0505", brand="jcb"),
    "unionpay": BankCard("0005", brand="unionpay"),
    "chargeCustomerFail": BankCard("0341", "generic_decline"),
    "chargeDeclined": _refused("0002", "generic_decline"),
    "chargeDeclinedInsufficientFunds": _refused("9995", "insufficient_funds"),
    "chargeDeclinedLostCard": _refused("9987", "lost_card"),
    "chargeDeclinedStolenCard": _refused("9979", "stolen_card"),
    "chargeDeclinedExpiredCard": _refused("0069", "expired_card"),
    "chargeDeclinedIncorrectCvc": _refused("0127", "incorrect_cvc"),
    "chargeDeclinedProcessingError": _refused("0119", "processing_error"),
    "chargeDeclinedVelocityLimitExceeded": _refused("6975", "card_velocity_exceeded"),
    "chargeDeclinedFraudulent": _refused("0019", "fraudulent"),
    "radarBlock": _refused("0019", "fraudulent"),
    "authenticationRequired": _asking("3184"),
    "authenticationRequiredOnSetup": BankCard("3155", asks="unless_set_up"),
    "authenticationRequiredSetupForOffSession": BankCard("3178", asks="unless_set_up"),
    "authenticationRequiredChargeDeclinedInsufficientFunds": _asking("8260", "insufficient_funds"),
    "threeDSecureRequired": _asking("3063"),
    "threeDSecure2Required": _asking("3220"),
    "threeDSecureRequiredChargeDeclined": _asking("8001", "generic_decline"),
    "threeDSecureRequiredProcessingError": _asking("3097", "processing_error"),
}
"""Names without `pm_card_`; a name that is not here is a plain card."""

_NAME: Final = re.compile(r"(?:pm_card_|tok_)(?:visa_(?=charge))?(\w+)")
_TEST_CARD: Final = "test_card"  # a record of ours, which no endpoint shows


def card_of(records: Records, payment_method: str) -> BankCard:
    """Return the test card that `payment_method` is, or is a copy of."""
    copied = records.find(_TEST_CARD, f"{payment_method}#card")
    found = _NAME.fullmatch(copied["name"] if copied else payment_method)
    if found and found[1] in CARDS:
        return CARDS[found[1]]
    if "Declined" in payment_method:
        return BankCard(decline="generic_decline")
    return BankCard(asks="always") if "Authentication" in payment_method else PLAIN


_PAYMENT_METHOD: Final = re.compile(r"pm_[A-Za-z0-9_]{1,200}")


def require_payment_method(call: Call, payment_method: str, customer: str | None) -> answers.Json:
    """Return the payment method, which must not belong to another customer.

    Stripe's test names (`pm_card_visa`) and other well-formed ones come into being when named.
    Raises: Rejected.
    """
    known = call.records.find("payment_method", payment_method)
    if known is None:
        return _new_payment_method(call, _well_formed(payment_method))
    if customer is not None and known["customer"] not in {None, customer}:
        raise _not_the_customers(payment_method, "payment_method")
    return known


def _well_formed(payment_method: str) -> str:
    if not _PAYMENT_METHOD.fullmatch(payment_method) or "Missing" in payment_method:
        raise answers.missing_object("payment_method", payment_method, "payment_method")
    return payment_method


def _not_the_customers(payment_method: str, param: str) -> answers.Rejected:
    return answers.invalid(
        f"The customer does not have a payment method with the ID {payment_method}. The payment "
        "method must be attached to the customer.",
        "resource_missing",
        param,
    )


def _attach(call: Call, payment_method: str, customer: str) -> answers.Json:
    """Attach a payment method to a customer, and return it; of a test card, a copy.

    Raises: Rejected, when it belongs to somebody, or when its bank refuses even to save it.
    """
    found = require_payment_method(call, payment_method, None)
    card = card_of(call.records, payment_method)
    if not card.attaches and card.decline is not None:
        raise answers.Rejected(answers.declined(None, reason=card.decline))
    if payment_method.startswith("pm_card_"):
        copied = f"pm_{call.new_id()}"
        call.save({"object": _TEST_CARD, "id": f"{copied}#card", "name": payment_method})
        found = _new_payment_method(call, copied)
    else:
        sentence = "The payment method you provided has already been attached to a customer."
        answers.refuse_if(
            found["customer"] not in {None, customer}, sentence, param="payment_method"
        )
    return call.save(found | {"customer": customer})


def _detach(call: Call, payment_method: answers.Json) -> answers.Json:
    """Take a payment method off its customer, whose default it is no more."""
    owner = call.records.find("customer", payment_method["customer"])
    if owner and owner["invoice_settings"]["default_payment_method"] == payment_method["id"]:
        owner["invoice_settings"]["default_payment_method"] = None
        call.save(owner)
    return call.save(payment_method | {"customer": None})


def _new_payment_method(call: Call, payment_method: str) -> answers.Json:
    shown = card_of(call.records, payment_method).shown
    return call.save(
        {
            **call.new("payment_method", payment_method),
            "allow_redisplay": "unspecified",
            "billing_details": BILLING_DETAILS,
            "card": shown
            | {
                "display_brand": shown["brand"],
                "generated_from": None,
                "networks": {"available": [shown["brand"]], "preferred": None},
                "three_d_secure_usage": {"supported": True},
            },
            "customer": None,
            "customer_account": None,
            "metadata": {},
            "type": "card",
        }
    )


def attach_payment_method(call: Call) -> answers.Json:
    """POST /v1/payment_methods/{payment_method}/attach."""
    customer = require_customer(call, call.required("customer"))
    return _attach(call, call.ids[0], customer["id"])


def detach_payment_method(call: Call) -> answers.Json:
    """POST /v1/payment_methods/{payment_method}/detach."""
    found = call.named("payment_method")
    sentence = "The payment method you provided is not attached to a customer so detachment is"
    answers.refuse_if(found["customer"] is None, f"{sentence} impossible.")
    return _detach(call, found)


def list_payment_methods(call: Call) -> answers.Json:
    """GET /v1/payment_methods, or below a customer."""
    customer = call.ids[0] if call.ids else call.text("customer")
    if customer is not None:
        require_customer(call, customer, "customer", 404 if call.ids else 400)
        call = replace(call, params=call.params | {"customer": customer})
    found = page(call, "payment_method", "customer")
    if call.params.get("type", "card") != "card":
        found |= {"data": [], "has_more": False}  # there are only cards here
    return found


def get_own_payment_method(call: Call) -> answers.Json:
    """GET /v1/customers/{customer}/payment_methods/{payment_method}."""
    customer, payment_method = call.ids
    require_customer(call, customer, "customer", 404)
    found = call.require("payment_method", payment_method, "payment_method", 404)
    if found["customer"] != customer:
        raise answers.missing_object("payment_method", payment_method, "payment_method", 404)
    return found


_CUSTOMER: Final = re.compile(r"cus_[A-Za-z0-9]{1,200}")


def require_customer(
    call: Call, customer_id: str, param: str = "customer", status: int = 400
) -> answers.Json:
    """Return the customer, who comes into being when first named.

    Raises: Rejected with `status`, when there can be no such customer, or is none any more.
    """
    known = call.records.find("customer", customer_id)
    if known is not None:
        return known
    may_be = _CUSTOMER.fullmatch(customer_id) and "Missing" not in customer_id
    if not may_be or _is_deleted(call, customer_id):
        raise answers.missing_object("customer", customer_id, param, status)
    return create_customer(replace(call, params={}), customer_id)


def _is_deleted(call: Call, customer_id: str) -> bool:
    return call.records.find("deleted_customer", f"{customer_id}#deleted") is not None


def get_customer(call: Call) -> answers.Json | answers.Answer:
    """GET /v1/customers/{customer}; of a deleted one, that it is."""
    [customer] = call.ids
    gone = _is_deleted(call, customer)
    return _gone(customer) if gone else require_customer(call, customer, "id", 404)


def update_customer(call: Call) -> answers.Json:
    """POST /v1/customers/{customer}."""
    customer, params = require_customer(call, call.ids[0], "id", 404), call.params
    customer |= call.sent("description email name phone")
    customer |= {name: params[name] or None for name in ("address", "shipping") if name in params}
    customer["balance"] = call.integer("balance", customer["balance"])
    customer["metadata"] = call.metadata(customer)
    settings = params.get("invoice_settings") or {}
    if "default_payment_method" in settings:
        named = replace(call, params=settings).text("default_payment_method")
        found = call.records.find("payment_method", named or "")
        if named is not None and (found is None or found["customer"] != customer["id"]):
            raise _not_the_customers(named, "invoice_settings[default_payment_method]")
        customer["invoice_settings"]["default_payment_method"] = named
    return call.save(customer)


def delete_customer(call: Call) -> answers.Answer:
    """DELETE /v1/customers/{customer}: for good, and its cards with it."""
    customer = require_customer(call, call.ids[0], "id", 404)["id"]
    for card in call.records.select("payment_method", {"customer": customer}):
        _detach(call, card)
    call.records.run("remove_object", customer, "customer")
    call.save({"object": "deleted_customer", "id": f"{customer}#deleted"})
    return _gone(customer)


def _gone(customer_id: str) -> answers.Answer:
    return answers.Answer(200, {"id": customer_id, "object": "customer", "deleted": True})


def create_customer(call: Call, customer_id: str | None = None) -> answers.Json:
    """POST /v1/customers; with an id, one that comes into being when first named."""
    customer_id = customer_id or f"cus_{call.new_id()}"
    settings = replace(call, params=call.params.get("invoice_settings") or {})
    card = settings.text("default_payment_method") or call.text("payment_method")
    card = _well_formed(card or f"pm_{customer_id.removeprefix('cus_')}")
    return call.save(
        {
            **call.new("customer", customer_id),
            "balance": call.integer("balance", 0),
            "delinquent": False,
            "invoice_prefix": call.new_id()[:8].upper(),
            "invoice_settings": {
                **dict.fromkeys(("custom_fields", "footer", "rendering_options")),
                "default_payment_method": _attach(call, card, customer_id)["id"],
            },
            "metadata": call.metadata(),
            "next_invoice_sequence": 1,
            "preferred_locales": [],
            "tax_exempt": "none",
            **call.texts("description email name phone"),
            **dict.fromkeys("address currency default_source discount shipping test_clock".split()),
        }
    )
