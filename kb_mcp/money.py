"""Money as integer minor units beside a currency, by Stripe's exponents.

Floor: the shared ground, free to both wings. Pure: no IO, clock or randomness, and no float.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

# A guard against nonsense, not a limit of Stripe's: those differ by currency and account.
MAX_AMOUNT: Final = 99_999_999_999
MAX_CAP: Final = 10**15

# docs.stripe.com/currencies: zero-decimal, three-decimal, and two that are sent times 100.
ZERO_DECIMAL: Final = frozenset(
    "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf".split()
)
THREE_DECIMAL: Final = frozenset("bhd jod kwd omr tnd".split())
WHOLE_UNITS_ONLY: Final = frozenset({"isk", "ugx"})
_TWO_DECIMAL = (
    "usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bmd bnd bob brl bsd btn bwp byn "
    "bzd cad cdf chf cny cop crc cve czk dkk dop dzd egp etb eur fjd fkp gbp gel ghs gip gmd gtq "
    "gyd hkd hnl htg huf idr ils inr isk jmd kes kgs khr kyd kzt lak lbp lkr lrd lsl mad mdl mkd "
    "mmk mnt mop mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd pab pen pgk php pkr pln qar ron "
    "rsd rub sar sbd scr sek sgd shp sle sos srd std svc szl thb tjs top try ttd twd tzs uah ugx "
    "uyu uzs wst xcd xcg yer zar zmw"
).split()
CURRENCIES: Final = MappingProxyType(
    dict.fromkeys(_TWO_DECIMAL, 2)
    | dict.fromkeys(ZERO_DECIMAL, 0)
    | dict.fromkeys(THREE_DECIMAL, 3)
)
"""Every currency we know, and the number of decimals its minor unit stands for at Stripe."""

# ISO 4217's code for no currency: that of a request which does not tell what it moves.
UNTOLD_CURRENCY: Final = "xxx"

_CAP = re.compile(r"(0|[1-9][0-9]{0,14})(?:\.([0-9]{1,3}))? ?([A-Za-z]{3})")
_AMOUNT = re.compile(r"0|[1-9][0-9]{0,11}")


class MoneyError(ValueError):
    """An amount, currency or cap that is not valid; the message says what to send instead."""


@dataclass(frozen=True, slots=True)
class Money:
    """`amount` in minor units of `currency` (lower-case ISO 4217)."""

    amount: int
    currency: str


def check_currency(currency: str) -> None:
    """Check that `currency` is a lower-case code that Stripe can charge.

    Raises: MoneyError.
    """
    if currency not in CURRENCIES:
        message = "The currency must be a three-letter lower-case ISO code that Stripe supports"
        raise MoneyError(f"{message}, for example usd.")


def check_amount(amount: int, currency: str) -> None:
    """Check that `amount` minor units of `currency` can be charged.

    Source: docs.stripe.com/currencies#special-cases. Minimums are left to Stripe: they depend on
    the settlement currency.
    Raises: MoneyError.
    """
    check_currency(currency)
    if type(amount) is not int or amount <= 0:
        raise MoneyError("The amount must be a positive integer in the currency's minor unit.")
    if amount > MAX_AMOUNT:
        raise MoneyError(f"The amount must not exceed {MAX_AMOUNT} minor units.")
    if currency in WHOLE_UNITS_ONLY and amount % 100:
        raise MoneyError(
            f"Amounts in {currency} are sent in hundredths, but must end in 00: "
            f"{currency} has no decimals."
        )
    if currency in THREE_DECIMAL and amount % 10:
        raise MoneyError(f"Amounts in {currency} are sent in thousandths and must end in 0.")


def parse_amount(text: str) -> int:
    """Read an amount in minor units from a form field: ASCII digits, no sign, no leading zero.

    Raises: MoneyError.
    """
    if not _AMOUNT.fullmatch(text):
        raise MoneyError(
            "The amount must be a positive integer in the currency's minor unit, "
            "written in plain digits, for example 2900 for 29.00 USD."
        )
    return int(text)


def parse_cap(text: str) -> Money:
    """Read a cap in major units with its currency: `10000.00usd`, `5000jpy`, `10000 usd`.

    Decimals are either absent or exactly as many as the currency has.
    Raises: MoneyError.
    """
    match = _CAP.fullmatch(text)
    if match is None:
        raise MoneyError("A cap is an amount and a currency, for example 10000.00usd or 5000jpy.")
    whole, decimals, currency = match[1], match[2], match[3].lower()
    check_currency(currency)
    exponent = CURRENCIES[currency]
    if decimals is not None and len(decimals) != exponent:
        raise MoneyError(f"A cap in {currency} has {exponent} decimals or none.")
    amount = int(whole + (decimals or "0" * exponent))
    check_cap(amount, currency)
    return Money(amount, currency)


def parse_caps(text: str) -> dict[str, int]:
    """Read caps with a comma between them, like `500.00usd,450.00eur`: minor units by currency.

    Raises: MoneyError.
    """
    caps = [parse_cap(part.strip()) for part in text.split(",")]
    found = {cap.currency: cap.amount for cap in caps}
    if len(found) != len(caps):
        raise MoneyError("A currency is named twice: give one amount for each.")
    return found


def check_cap(amount: int, currency: str) -> None:
    """Check that `amount` minor units can cap spend in `currency`.

    Raises: MoneyError.
    """
    check_currency(currency)
    if type(amount) is not int or not 0 < amount <= MAX_CAP:
        raise MoneyError(f"A cap must be between 1 and {MAX_CAP} minor units, as an integer.")


def format_money(money: Money) -> str:
    """Write `money` for people: `29.00 USD`, `500 JPY`, `1.500 KWD`.

    An unknown currency is shown in minor units, so that a record can always be shown.
    """
    exponent = CURRENCIES.get(money.currency, 0)
    sign, digits = ("-" if money.amount < 0 else ""), str(abs(money.amount)).zfill(exponent + 1)
    whole, decimals = digits[: len(digits) - exponent], digits[len(digits) - exponent :]
    return f"{sign}{whole}{'.' if decimals else ''}{decimals} {money.currency.upper()}"
