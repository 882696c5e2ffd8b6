"""What an endpoint is given, and the rules of amounts that several endpoints share.

Floor: sandbox, ground. Source: docs.stripe.com/currencies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kb_mcp.money import CURRENCIES, THREE_DECIMAL, WHOLE_UNITS_ONLY, Money, format_money
from kb_mcp.sandbox.answers import invalid, missing_param
from kb_mcp.sandbox.params import Params, integer, text
from kb_mcp.sandbox.store import Records

AMOUNT_MAX: Final = 99_999_999
# docs.stripe.com/currencies#minimum-and-maximum-charge-amounts, in minor units.
AMOUNT_MIN: Final = {
    "aed": 200,
    "aud": 50,
    "brl": 50,
    "cad": 50,
    "chf": 50,
    "czk": 1500,
    "dkk": 250,
    "eur": 50,
    "gbp": 30,
    "hkd": 400,
    "huf": 17500,
    "inr": 50,
    "jpy": 50,
    "mxn": 1000,
    "myr": 200,
    "nok": 300,
    "nzd": 50,
    "pln": 200,
    "ron": 200,
    "sek": 300,
    "sgd": 50,
    "thb": 1000,
    "usd": 50,
}  # fmt: skip  a table reads better dense


@dataclass(frozen=True, slots=True)
class Call:
    """One request at an endpoint, inside its transaction.

    `ids` are what stands in the path's braces, `new_id` makes the random part of an id, and
    `declines` says that a fault makes the card say no.
    """

    records: Records
    params: Params
    ids: tuple[str, ...]
    new_id: Callable[[], str]
    declines: bool = False

    @property
    def now(self) -> int:
        """The sandbox's time in seconds, as Stripe's `created` has it."""
        return self.records.now_ms // 1000


def required_money(params: Params) -> Money:
    """Return the amount and currency of a new charge or intent.

    Raises: Rejected.
    """
    for name in ("amount", "currency"):
        if name not in params:
            raise missing_param(name)
    currency = str(text(params, "currency")).lower()
    if currency not in CURRENCIES:
        supported = ", ".join(CURRENCIES)
        raise invalid(
            f"Invalid currency: {currency}. Stripe currently supports these currencies: "
            f"{supported}",
            param="currency",
        )
    money = Money(integer(params, "amount") or 0, currency)
    check_amount(money)
    return money


def check_amount(money: Money) -> None:
    """Check an amount against Stripe's bounds.

    Raises: Rejected.
    """
    amount, currency = money.amount, money.currency
    if amount < 1:
        sentence = "This value must be greater than or equal to 1."
        raise invalid(sentence, "parameter_invalid_integer", "amount")
    least = AMOUNT_MIN.get(currency, 1)
    if amount < least:
        shown = show(Money(least, currency))
        raise invalid(f"Amount must be at least {shown}", "amount_too_small", "amount")
    if amount > AMOUNT_MAX:
        shown = show(Money(AMOUNT_MAX, currency))
        raise invalid(f"Amount must be no more than {shown}", "amount_too_large", "amount")
    step = 100 if currency in WHOLE_UNITS_ONLY else 10 if currency in THREE_DECIMAL else 1
    if amount % step:
        sentence = f"Invalid amount: amounts in {currency} must be divisible by {step}."
        raise invalid(sentence, "parameter_invalid_integer", "amount")


def show(money: Money) -> str:
    """Write money as Stripe's messages do: `$0.50 usd`."""
    figure = format_money(money).split(" ", 1)[0]
    whole, dot, decimals = figure.partition(".")
    sign = {"usd": "$", "gbp": "£", "eur": "€", "jpy": "¥"}.get(money.currency, "")
    return f"{sign}{int(whole):,}{dot}{decimals} {money.currency}"
