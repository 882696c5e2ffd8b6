"""Stripe's test payment methods and tokens: what each looks like, and how its bank answers.

Floor: sandbox, ground. Pure, but for the record of which test card a payment method is of.
Source: docs.stripe.com/testing. Beside them, any customer or payment method whose id contains
`Declined` is declined, and one that contains `Authentication` needs the customer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from kb_mcp.sandbox.answers import Json
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


def is_test_name(payment_method: str) -> bool:
    """Say whether this is the name of a test card, of which every customer gets a copy."""
    return payment_method.startswith("pm_card_")


def card_of(records: Records, payment_method: str) -> BankCard:
    """Return the test card that `payment_method` is, or is a copy of."""
    copied = records.find(_KIND, _alias(payment_method))
    found = _NAME.fullmatch(copied["name"] if copied else payment_method)
    known = CARDS.get(found[1]) if found else None
    return known or _by_words(payment_method)


def remember(records: Records, payment_method: str, name: str) -> None:
    """Note that `payment_method` is a copy of the test card `name`."""
    records.save({"object": _KIND, "id": _alias(payment_method), "name": name})


def _by_words(payment_method: str) -> BankCard:
    if "Declined" in payment_method:
        return BankCard(decline="generic_decline")
    return BankCard(authentication="always") if "Authentication" in payment_method else PLAIN


def _alias(payment_method: str) -> str:
    return f"{payment_method}#card"
