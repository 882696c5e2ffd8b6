"""What a Stripe request means: which money it moves, for whom, for which period.

Floor: wing B, above forms and endpoints. Pure.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from kb_mcp.idempotency import CUSTOMER_ID, REFERENCE, is_sdk_made_key
from kb_mcp.money import Money, MoneyError, check_amount, check_currency, parse_amount
from kb_mcp.periods import Period, PeriodError, parse_period, period_from_description
from kb_mcp.proxy.errors.refusals import Code, Refusal, invalid, refuse
from kb_mcp.proxy.stripe.endpoints import Moves, Route, find_route, object_ids
from kb_mcp.proxy.stripe.forms import Form

KEY_HEADER: Final = "Idempotency-Key"
KEY_FIELD: Final = "idempotency_key"
PERIOD_FIELD: Final = "metadata[billing_period]"
REFERENCE_FIELD: Final = "metadata[reference]"
_PERIOD_MISSPELT = re.compile(r"metadata\[billing[ _-]?period\]", re.IGNORECASE)
# Stripe's own limit on the header; printable, so that it can go into a header again.
_KEY = re.compile(r"[ -~]{1,255}")
_OBJECT_ID = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
_REFUNDED_IDS: Final = {
    "charge": (re.compile(r"(?:ch|py)_[A-Za-z0-9]{1,128}"), "the id of a charge, like ch_Abc123"),
    "payment_intent": (re.compile(r"pi_[A-Za-z0-9]{1,128}"), "the id of an intent, like pi_Abc123"),
}
PAYMENT_FIELDS = ("payment_method", "source")
# The parameters that name a thing, of which one may be there; its form; and what it must be.
_CUSTOMER = (("customer",), CUSTOMER_ID, "a customer id like cus_Abc123")
_PAYMENT_METHOD = (PAYMENT_FIELDS, _OBJECT_ID, "the id of a payment method")
_DESTINATION = (
    ("destination", "destination[account]", "transfer_data[destination]"),
    _OBJECT_ID,
    "the id of a destination",
)
T = TypeVar("T")
# As every fingerprint in a store was written.
_COMPACT = json.JSONEncoder(separators=(",", ":"))


class Reading(Struct, frozen=True, kw_only=True):
    """A request understood. `form` is without `idempotency_key`, its currency in lower case.

    `explicit_key` names the bill for its caller; `made_up_keys` are those of an SDK, which name
    nothing new. `sent_key` is the header as it came, else the field of the body. `total` is what
    the operation comes to that a step goes on with, or what a refund gives back, in minor units,
    where the request tells it. `of` is the charge or the intent that a refund names, or the object
    whose amount the request moves.
    """

    route: Route
    path: str
    form: Form
    customer: str | None = None
    money: Money | None = None
    total: int | None = None
    of: str | None = None
    period: Period | None = None
    reference: str | None = None
    payment_method: str | None = None
    destination: str | None = None
    explicit_key: str | None = None
    sent_key: str | None = None
    made_up_keys: tuple[str, ...] = ()

    @property
    def object_id(self) -> str | None:
        """The first object id in the path."""
        ids = object_ids(self.route, self.path)
        return ids[0] if ids else None


def read_request(
    method: str, path: str, form: Form, header_key: str | None = None
) -> Reading | Refusal:
    """Read what a request to a canonical `path` means, and check every value that moves money.

    Reads carry a customer and nothing else; writes whose amount the request does not tell carry
    no money, whatever they say.
    """
    route = find_route(method, path)
    if isinstance(route, Refusal):
        return route
    reading = Reading(route=route, path=path, form=form)
    if route.moves is Moves.READS:
        return _understood(reading, customer=_read_customer(reading))
    keyed = _read_key(reading, header_key)
    if isinstance(keyed, Refusal):
        return keyed
    if route.standing is not None:
        # What an invoice costs and whose it is, only Stripe can say.
        paid_with = _matched(keyed.form, *_PAYMENT_METHOD)
        return _understood(keyed, of=keyed.object_id, payment_method=paid_with)
    return _read_refund(keyed) if route.moves is Moves.READ_FIRST else _read_bill(keyed)


def _read_bill(reading: Reading) -> Reading | Refusal:
    """Read a write that makes an object of its own or goes on with one: amount, whose, what for."""
    form, metered = reading.form, reading.route.moves is Moves.METERED
    money = _read_money(form, required=metered)
    if isinstance(money, Refusal):
        return money
    return _understood(
        reading,
        form=form if money is None else form.with_({"currency": money.currency}),
        money=money if metered else None,
        customer=_read_customer(reading),
        payment_method=_matched(form, *_PAYMENT_METHOD),
        destination=_matched(form, *_DESTINATION),
        period=_read_period(form),
        reference=_read_reference(form),
        total=_parsed(form, reading.route.total, parse_amount),
    )


def _understood(reading: Reading, **read: object) -> Reading | Refusal:
    """Return `reading` with what was `read` for it, or the first refusal among that."""
    refusal = next((each for each in read.values() if isinstance(each, Refusal)), None)
    return refusal or replace(reading, **read)


def fingerprint(reading: Reading) -> str:
    """Hash what moves money, not its wording: equal for a retry with another description."""
    money = reading.money
    parts = (
        reading.path,
        reading.customer,
        money.amount if money else None,
        money.currency if money else None,
        reading.payment_method,
        reading.destination,
        reading.period.label if reading.period else None,
        reading.reference,
    )
    return hashlib.sha256(_COMPACT.encode(parts).encode("ascii")).hexdigest()


def _read_refund(reading: Reading) -> Reading | Refusal:
    """Read what a refund names; whose charge it is and in which currency, only Stripe can say.

    A period in its metadata is wording: no refund is a bill.
    """
    form = reading.form
    named = [name for name in _REFUNDED_IDS if name in form]
    if len(named) != 1:
        code = Code.PARAMETER_DUPLICATE if named else Code.PARAMETER_MISSING
        return refuse(code, param="charge")
    return _understood(
        reading,
        of=_matched(form, (named[0],), *_REFUNDED_IDS[named[0]]),
        total=_parsed(form, reading.route.total, parse_amount),
        reference=_read_reference(form),
    )


def _read_key(reading: Reading, header: str | None) -> Reading | Refusal:
    """Return `reading` with the keys that name it, lifted out of its form."""
    lifted = reading.form.get(KEY_FIELD)
    for param, key in ((KEY_HEADER, header), (KEY_FIELD, lifted)):
        if key is not None and not _KEY.fullmatch(key):
            return invalid(param, "an idempotency key is 1 to 255 printable ASCII characters.")
    # An SDK sends a header of its own making when the caller put the key into the body.
    keys = tuple(dict.fromkeys(key for key in (header, lifted) if key is not None))
    made_up = tuple(key for key in keys if is_sdk_made_key(key))
    named = [key for key in keys if key not in made_up]
    if len(named) > 1:
        reason = "it differs from the Idempotency-Key header. Send one of them, in the header."
        return invalid(KEY_FIELD, reason)
    return replace(
        reading,
        form=reading.form.without(KEY_FIELD),
        explicit_key=named[0] if named else None,
        sent_key=header if header is not None else lifted,
        made_up_keys=made_up,
    )


def _parsed(form: Form, name: str | None, parse: Callable[[str], T]) -> T | Refusal | None:
    """Return what `parse` makes of the parameter `name`; None where it is not there."""
    if name is None or name not in form:
        return None
    try:
        return parse(form[name])
    except (MoneyError, PeriodError) as error:
        return invalid(name, error)


def _read_money(form: Form, *, required: bool) -> Money | Refusal | None:
    missing = [name for name in ("amount", "currency") if name not in form]
    if required and missing:
        return refuse(Code.PARAMETER_MISSING, param=missing[0])
    currency = _parsed(form, "currency", _parse_currency)
    if isinstance(currency, Refusal):
        return currency
    return _parsed(form, "amount", partial(_parse_money, currency))


def _parse_currency(text: str) -> str:
    # Stripe takes both cases; one of them must be the same bill as the other.
    currency = text.lower() if text.isascii() else text
    check_currency(currency)
    return currency


def _parse_money(currency: str | None, text: str) -> Money | None:
    amount = parse_amount(text)
    if currency is None:
        return None
    check_amount(amount, currency)
    return Money(amount, currency)


def _matched(
    form: Form, names: tuple[str, ...], pattern: re.Pattern[str], what: str
) -> str | Refusal | None:
    given = [name for name in names if name in form]
    for name in given:
        if not pattern.fullmatch(form[name]):
            return invalid(name, f"it must be {what}.")
    if len(given) > 1:
        # Two names for one thing: which of them Stripe would take is not ours to guess.
        return refuse(Code.PARAMETER_DUPLICATE, param=given[1])
    return form[given[0]] if given else None


def _read_period(form: Form) -> Period | Refusal | None:
    described = period_from_description(form.get("description", ""))
    if PERIOD_FIELD not in form:
        misspelt = next(filter(_PERIOD_MISSPELT.fullmatch, form), None)
        reason = f"the period that a bill is for is read from {PERIOD_FIELD}."
        return invalid(misspelt, reason) if misspelt else described
    period = _parsed(form, PERIOD_FIELD, parse_period)
    if isinstance(period, Period) and described not in {None, period}:
        reason = "it disagrees with the period in the description. Make them the same."
        return invalid(PERIOD_FIELD, reason)
    return period


def _read_reference(form: Form) -> str | Refusal | None:
    reference = form.get(REFERENCE_FIELD)
    if reference is not None and not REFERENCE.fullmatch(reference):
        return invalid(REFERENCE_FIELD, "it must be 1 to 100 printable ASCII characters.")
    return reference


def _read_customer(reading: Reading) -> str | Refusal | None:
    """Return the customer that a request names, in its form or in its path."""
    owner = reading.object_id or ""
    in_path = owner if owner.startswith("cus_") else None
    return _matched(reading.form, *_CUSTOMER) or in_path
