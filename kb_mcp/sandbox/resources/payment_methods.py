"""Payment methods: Stripe's test cards and how their banks answer; found, attached, taken off.

Floor: sandbox, ground. Pure, but for the records. Source: docs.stripe.com/testing and
/api/payment_methods. Beside the test cards, any customer or payment method whose id contains
`Declined` is declined, and one that contains `Authentication` needs the customer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from kb_mcp.sandbox.answers import Json, Rejected, declined, invalid, missing_object
from kb_mcp.sandbox.params import Call
from kb_mcp.sandbox.store import Records

Authentication = Literal["never", "always", "unless_set_up"]
_KIND: Final = "test_card"  # a record of ours, which no endpoint shows


@dataclass(frozen=True, slots=True)
class BankCard:
    """A card: `decline` names a row of `DECLINES`; `attaches` says that it can be saved."""

    brand: str = "visa"
    last4: str = "4242"
    funding: str = "credit"
    decline: str | None = None
    attaches: bool = True
    authentication: Authentication = "never"

    @property
    def shown(self) -> Json:
        """What an object of the API shows of it."""
        fingerprint = f"KbSandbox{self.last4:0>7}"
        return {
            "brand": self.brand,
            "fingerprint": "KbSandbox0000001" if self.last4 == "4242" else fingerprint,
            "funding": self.funding,
            "last4": self.last4,
        }


PLAIN: Final = BankCard()

_BRANDS: Final = {
    "visa": PLAIN,
    "visa_debit": BankCard(last4="5556", funding="debit"),
    "mastercard": BankCard("mastercard", "4444"),
    "mastercard_debit": BankCard("mastercard", "8210", "debit"),
    "mastercard_prepaid": BankCard("mastercard", "5100", "prepaid"),
    "amex": BankCard("amex", "8431"),
    "discover": BankCard("discover", "1117"),
    "diners": BankCard("diners", "0004"),
    "jcb": BankCard("jcb", "0505"),
    "unionpay": BankCard("unionpay", "0005"),
}
_DECLINED: Final = {
    "chargeDeclined": ("0002", "generic_decline"),
    "chargeDeclinedInsufficientFunds": ("9995", "insufficient_funds"),
    "chargeDeclinedLostCard": ("9987", "lost_card"),
    "chargeDeclinedStolenCard": ("9979", "stolen_card"),
    "chargeDeclinedExpiredCard": ("0069", "expired_card"),
    "chargeDeclinedIncorrectCvc": ("0127", "incorrect_cvc"),
    "chargeDeclinedProcessingError": ("0119", "processing_error"),
    "chargeDeclinedVelocityLimitExceeded": ("6975", "card_velocity_exceeded"),
    "chargeDeclinedFraudulent": ("0019", "fraudulent"),
    "radarBlock": ("0019", "fraudulent"),
}
_AUTHENTICATED: Final[dict[str, tuple[str, Authentication, str | None]]] = {
    "authenticationRequired": ("3184", "always", None),
    "authenticationRequiredOnSetup": ("3155", "unless_set_up", None),
    "authenticationRequiredSetupForOffSession": ("3178", "unless_set_up", None),
    "authenticationRequiredChargeDeclinedInsufficientFunds": (
        "8260",
        "always",
        "insufficient_funds",
    ),
    "threeDSecureRequired": ("3063", "always", None),
    "threeDSecure2Required": ("3220", "always", None),
    "threeDSecureRequiredChargeDeclined": ("8001", "always", "generic_decline"),
    "threeDSecureRequiredProcessingError": ("3097", "always", "processing_error"),
}  # fmt: skip  a table reads better dense
CARDS: Final[dict[str, BankCard]] = (
    _BRANDS
    | {
        name: BankCard(last4=last4, decline=reason, attaches=False)
        for name, (last4, reason) in _DECLINED.items()
    }
    | {"chargeCustomerFail": BankCard(last4="0341", decline="generic_decline")}
    | {
        name: BankCard(last4=last4, decline=reason, authentication=when)
        for name, (last4, when, reason) in _AUTHENTICATED.items()
    }
)
"""Names without `pm_card_`; a name that is not here is a plain card."""

_NAME: Final = re.compile(r"(?:pm_card_|tok_)(?:visa_(?=charge))?(\w+)")


def card_of(records: Records, payment_method: str) -> BankCard:
    """Return the test card that `payment_method` is, or is a copy of."""
    copied = records.find(_KIND, _alias(payment_method))
    found = _NAME.fullmatch(copied["name"] if copied else payment_method)
    if found and found[1] in CARDS:
        return CARDS[found[1]]
    if "Declined" in payment_method:
        return BankCard(decline="generic_decline")
    return BankCard(authentication="always") if "Authentication" in payment_method else PLAIN


def _alias(payment_method: str) -> str:
    return f"{payment_method}#card"


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
        raise missing_object("payment_method", payment_method, "payment_method")
    return _new(call, payment_method)


def not_the_customers(payment_method: str, param: str = "payment_method") -> Rejected:
    """Refuse a payment method that is not attached to the customer."""
    return invalid(
        f"The customer does not have a payment method with the ID {payment_method}. The payment "
        "method must be attached to the customer.",
        "resource_missing",
        param,
    )


def attach(call: Call, payment_method: str, customer: str) -> Json:
    """Attach a payment method to a customer, and return it; of a test card, a copy.

    Raises: Rejected, when it belongs to somebody, or when its bank refuses even to save it.
    """
    found = require_payment_method(call, payment_method, None)
    card = card_of(call.records, payment_method)
    if not card.attaches and card.decline is not None:
        raise Rejected(declined(None, reason=card.decline))
    if payment_method.startswith("pm_card_"):
        found = _new(call, f"pm_{call.new_id()}", like=payment_method)
    elif found["customer"] not in {None, customer}:
        sentence = "The payment method you provided has already been attached to a customer."
        raise invalid(sentence, param="payment_method")
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


def _new(call: Call, payment_method: str, like: str | None = None) -> Json:
    """Save a new card; `like` names the test card that it is a copy of."""
    if like is not None:
        call.records.save({"object": _KIND, "id": _alias(payment_method), "name": like})
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
        "customer": None,
        "customer_account": None,
        "livemode": False,
        "metadata": {},
        "type": "card",
    }
    call.records.save(body)
    return body
