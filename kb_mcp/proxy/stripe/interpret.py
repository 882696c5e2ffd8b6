"""What a Stripe request means: which money it moves, for whom, for which period.

Floor: wing B, above forms and endpoints. Pure.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from kb_mcp.idempotency import CUSTOMER_ID, REFERENCE, is_sdk_made_key
from kb_mcp.money import Money, MoneyError, check_amount, check_currency, parse_amount
from kb_mcp.periods import Period, PeriodError, parse_period, period_from_description
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
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
_REFUNDED = ("charge", "payment_intent")
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
    if route.moves is Moves.READS:
        customer = _matched(form, *_CUSTOMER) or _owner(route, path)
        return _understood(Reading(route=route, path=path, form=form), customer=customer)
    keyed = _read_key(Reading(route=route, path=path, form=form), header_key)
    if isinstance(keyed, Refusal):
        return keyed
    if route.moves is Moves.READ_FIRST:
        return _read_standing(keyed) if route.standing is not None else _read_refund(keyed)
    return _read_bill(keyed)


def _read_bill(reading: Reading) -> Reading | Refusal:
    """Read a write that makes an object of its own or goes on with one: amount, whose, what for."""
    route, form = reading.route, reading.form
    metered = route.moves is Moves.METERED
    money = _read_money(form, required=metered)
    if isinstance(money, Refusal):
        return money
    return _understood(
        reading,
        form=form if money is None else form.with_({"currency": money.currency}),
        money=money if metered else None,
        customer=_matched(form, *_CUSTOMER) or _owner(route, reading.path),
        payment_method=_matched(form, *_PAYMENT_METHOD),
        destination=_matched(form, *_DESTINATION),
        period=_read_period(form),
        reference=_read_reference(form),
        total=_read_total(route, form),
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


def _read_standing(reading: Reading) -> Reading | Refusal:
    """Read which object a request pays; what it costs and whose it is, only Stripe can say."""
    method = _matched(reading.form, *_PAYMENT_METHOD)
    return _understood(reading, of=reading.object_id, payment_method=method)


def _read_refund(reading: Reading) -> Reading | Refusal:
    """Read what a refund names; whose charge it is and in which currency, only Stripe can say.

    A period in its metadata is wording: no refund is a bill.
    """
    form = reading.form
    named = [name for name in _REFUNDED if name in form]
    if len(named) != 1:
        param = named[0] if named else _REFUNDED[0]
        return refuse(Code.PARAMETER_DUPLICATE if named else Code.PARAMETER_MISSING, param=param)
    return _understood(
        reading,
        of=_matched(form, (named[0],), *_REFUNDED_IDS[named[0]]),
        total=_read_total(reading.route, form),
        reference=_read_reference(form),
    )


def _read_key(reading: Reading, header: str | None) -> Reading | Refusal:
    """Return `reading` with the keys that name it, lifted out of its form."""
    lifted = reading.form.get(KEY_FIELD)
    for param, key in ((KEY_HEADER, header), (KEY_FIELD, lifted)):
        if key is not None and not _KEY.fullmatch(key):
            reason = "an idempotency key is 1 to 255 printable ASCII characters."
            return refuse(Code.PARAMETER_INVALID, param=param, reason=reason)
    # An SDK sends a header of its own making when the caller put the key into the body.
    keys = tuple(dict.fromkeys(key for key in (header, lifted) if key is not None))
    made_up = tuple(key for key in keys if is_sdk_made_key(key))
    named = [key for key in keys if key not in made_up]
    if len(named) > 1:
        reason = "it differs from the Idempotency-Key header. Send one of them, in the header."
        return refuse(Code.PARAMETER_INVALID, param=KEY_FIELD, reason=reason)
    return replace(
        reading,
        form=reading.form.without(KEY_FIELD),
        explicit_key=named[0] if named else None,
        sent_key=header if header is not None else lifted,
        made_up_keys=made_up,
    )


def _read_money(form: Form, *, required: bool) -> Money | Refusal | None:
    texts = form.get("amount"), form.get("currency")
    for param, text in zip(("amount", "currency"), texts, strict=True):
        if text is None and required:
            return refuse(Code.PARAMETER_MISSING, param=param)
    amount_text, currency = texts
    param = "currency"
    try:
        if currency is not None:
            # Stripe takes both cases; one of them must be the same bill as the other.
            currency = currency.lower() if currency.isascii() else currency
            check_currency(currency)
        param = "amount"
        amount = None if amount_text is None else parse_amount(amount_text)
        if amount is None or currency is None:
            return None
        check_amount(amount, currency)
    except MoneyError as error:
        return refuse(Code.PARAMETER_INVALID, param=param, reason=str(error))
    return Money(amount, currency)


def _read_total(route: Route, form: Form) -> int | Refusal | None:
    text = None if route.total is None else form.get(route.total)
    try:
        return None if text is None else parse_amount(text)
    except MoneyError as error:
        return refuse(Code.PARAMETER_INVALID, param=route.total, reason=str(error))


def _matched(
    form: Form, names: tuple[str, ...], pattern: re.Pattern[str], what: str
) -> str | Refusal | None:
    found: str | None = None
    for name in names:
        value = form.get(name)
        if value is None:
            continue
        if not pattern.fullmatch(value):
            return refuse(Code.PARAMETER_INVALID, param=name, reason=f"it must be {what}.")
        if found is not None:
            # Two names for one thing: which of them Stripe would take is not ours to guess.
            return refuse(Code.PARAMETER_DUPLICATE, param=name)
        found = value
    return found


def _read_period(form: Form) -> Period | Refusal | None:
    described = period_from_description(form.get("description", ""))
    text = form.get(PERIOD_FIELD)
    period = described
    if text is None and (misspelt := next(filter(_PERIOD_MISSPELT.fullmatch, form), None)):
        reason = f"the period that a bill is for is read from {PERIOD_FIELD}."
        return refuse(Code.PARAMETER_INVALID, param=misspelt, reason=reason)
    if text is not None:
        try:
            period = parse_period(text)
        except PeriodError as error:
            return refuse(Code.PARAMETER_INVALID, param=PERIOD_FIELD, reason=str(error))
        if described is not None and described != period:
            reason = "it disagrees with the period in the description. Make them the same."
            return refuse(Code.PARAMETER_INVALID, param=PERIOD_FIELD, reason=reason)
    return period


def _read_reference(form: Form) -> str | Refusal | None:
    reference = form.get(REFERENCE_FIELD)
    if reference is not None and not REFERENCE.fullmatch(reference):
        reason = "it must be 1 to 100 printable ASCII characters."
        return refuse(Code.PARAMETER_INVALID, param=REFERENCE_FIELD, reason=reason)
    return reference


def _owner(route: Route, path: str) -> str | None:
    ids = object_ids(route, path)
    return ids[0] if ids and ids[0].startswith("cus_") else None
