"""What an endpoint is given: Stripe's form encoding, held against its parameters and the amounts.

Floor: sandbox, ground. Pure, but for the table of parameters (`requests.json`, taken from
Stripe's published OpenAPI) that is read once at import. Source: docs.stripe.com/currencies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

from kb_mcp.money import CURRENCIES, THREE_DECIMAL, WHOLE_UNITS_ONLY, Money, format_money
from kb_mcp.sandbox.answers import Json, invalid, missing_object, missing_param, refuse_if
from kb_mcp.sandbox.store import Records

Params: TypeAlias = dict[str, Any]
"""Names to strings, or to a further level; a list is a level whose names are its indexes."""

METADATA_KEYS: Final = 50
METADATA_LENGTHS: Final = {"key": 40, "value": 500}
_FIELDS_MAX: Final = 1_000
_DEPTH_MAX: Final = 8

REQUESTS: Final[dict[str, Json]] = json.loads(
    files("kb_mcp.sandbox").joinpath("requests.json").read_text("utf-8")
)
"""`METHOD /path/{name}` to its required parameters and the kind of each parameter."""

_SEGMENT = re.compile(r"\[([^\[\]]*)\]")


def decode(query: bytes, body: bytes, content_type: str) -> Params:
    """Decode the query and a form body into nested parameters; of equal names the last wins.

    Raises: Rejected, when the body is no form.
    """
    if body and content_type.partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise invalid(
            "Invalid request (check that your POST content type is "
            "application/x-www-form-urlencoded). If you have questions, we can help at "
            "https://support.stripe.com/."
        )
    params: Params = {}
    try:
        for raw in (query, body):
            pairs = parse_qsl(
                raw.decode("ascii"),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=_FIELDS_MAX,
            )
            for name, value in pairs:
                _place(params, name, value)
    except ValueError:
        raise invalid("Invalid request: the parameters could not be read.") from None
    return params


def check(endpoint: str, params: Params) -> None:
    """Check names, kinds and presence against what `endpoint` takes.

    Raises: Rejected.
    """
    known: dict[str, str | list[str]] = REQUESTS[endpoint]["parameters"]
    unknown = [name for name in params if name not in known]
    if unknown:
        noun = "parameter" if len(unknown) == 1 else "parameters"
        sentence = f"Received unknown {noun}: {', '.join(unknown)}"
        raise invalid(sentence, "parameter_unknown", unknown[0])
    for name in REQUESTS[endpoint]["required"]:
        if name not in params:
            raise missing_param(name)
    for name, value in params.items():
        _check_kind(name, value, known[name])


def _place(params: Params, name: str, value: str) -> None:
    top = name.partition("[")[0]
    path = [top, *_SEGMENT.findall(name[len(top) :])]
    if len(path) > _DEPTH_MAX:
        raise ValueError(name)
    level = params
    for step in path[:-1]:
        inner = level.setdefault(step or str(len(level)), {})
        if not isinstance(inner, dict):
            raise ValueError(name)  # noqa: TRY004  a malformed form, whatever its parts are
        level = inner
    level[path[-1] or str(len(level))] = value


_PATTERNS: Final = {"integer": re.compile(r"-?[0-9]{1,18}"), "boolean": re.compile("true|false")}
_NO_INTEGER: Final = "parameter_invalid_integer"
_NEVER_UNSET: Final = frozenset({"amount", "currency", "customer", "charge"})


def _check_kind(name: str, value: object, kind: str | list[str]) -> None:
    if kind == "any":
        return
    if kind in ("array", "object", "metadata", "range"):
        _check_level(name, value, kind)
        return
    if not isinstance(value, str):
        raise invalid(f"Invalid string: {value}", param=name)
    refuse_if(
        value == "" and name in _NEVER_UNSET,
        f"You passed an empty string for '{name}'. We assume empty values are an attempt to unset "
        f"a field; however '{name}' cannot be unset. You should remove '{name}' from your request "
        "or supply a non-empty value.",
        "parameter_invalid_empty",
        name,
    )
    if isinstance(kind, list):
        choices = ", or ".join(filter(None, (", ".join(kind[:-1]), kind[-1])))
        sentence = f"Invalid {name}: must be one of {choices}"
        refuse_if(value not in kind, sentence, param=name)
    elif kind in _PATTERNS:
        code = _NO_INTEGER if kind == "integer" else None
        refuse_if(not _PATTERNS[kind].fullmatch(value), f"Invalid {kind}: {value}", code, name)


def _check_level(name: str, value: object, kind: str) -> None:
    if kind == "range" and isinstance(value, str):
        value = {"gte": value}
    if value == "" and kind != "array":
        return
    if not isinstance(value, dict):
        raise invalid(f"Invalid {'array' if kind == 'array' else 'hash'}", param=name)
    deep = kind == "metadata" and not all(isinstance(item, str) for item in value.values())
    refuse_if(deep, "Metadata values must be strings.", param=name)
    for bound, moment in value.items() if kind == "range" else ():
        param, known = f"{name}[{bound}]", bound in {"gt", "gte", "lt", "lte"}
        refuse_if(not known, f"Received unknown parameter: {param}", "parameter_unknown", name)
        exact = isinstance(moment, str) and _PATTERNS["integer"].fullmatch(moment)
        refuse_if(not exact, f"Invalid timestamp: {moment}", _NO_INTEGER, param)


AMOUNT_MAX: Final = 99_999_999
# docs.stripe.com/currencies#minimum-and-maximum-charge-amounts, in minor units.
_MINIMA: Final = {
    30: "gbp",
    50: "aud brl cad chf eur inr jpy nzd sgd usd",
    200: "aed myr pln ron",
    250: "dkk",
    300: "nok sek",
    400: "hkd",
    1000: "mxn thb",
    1500: "czk",
    17500: "huf",
}
AMOUNT_MIN: Final = {name: least for least, names in _MINIMA.items() for name in names.split()}


@dataclass(frozen=True, slots=True)
class Call:
    """One request at an endpoint, inside its transaction; `check` let its parameters pass.

    `ids` are what stands in the braces of the endpoint's `path`, `new_id` makes the random part of
    an id, and `declines` says that a fault makes the card say no.
    """

    records: Records
    path: str
    params: Params
    ids: tuple[str, ...]
    new_id: Callable[[], str]
    declines: bool = False

    @property
    def now(self) -> int:
        """The sandbox's time in seconds, as Stripe's `created` has it."""
        return self.records.now_ms // 1000

    def text(self, name: str, default: str | None = None) -> str | None:
        """Return a text parameter; empty means unset."""
        value = self.params.get(name)
        return value if isinstance(value, str) and value else default

    def required(self, name: str) -> str:
        """Return a text parameter that must be there. Raises: Rejected."""
        value = self.text(name)
        if value is None:
            raise missing_param(name)
        return value

    def texts(self, names: str) -> Json:
        """Return the text parameters that `names` lists, with None for those that are not set."""
        return {name: self.text(name) for name in names.split()}

    def sent(self, names: str) -> Json:
        """Return the text parameters that `names` lists, those alone that were sent."""
        return {name: self.text(name) for name in names.split() if name in self.params}

    def integer(self, name: str, default: int) -> int:
        """Return an integer parameter."""
        return int(self.params.get(name, default))

    def positive(self, name: str, default: int) -> int:
        """Return an integer parameter that is one or more. Raises: Rejected."""
        value = self.integer(name, default)
        sentence = "This value must be greater than or equal to 1."
        refuse_if(value < 1, sentence, _NO_INTEGER, name)
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a boolean parameter."""
        value = self.text(name)
        return default if value is None else value == "true"

    def metadata(self, held: Json | None = None) -> dict[str, str]:
        """Return the metadata to set on a new object, or on `held`; an empty value unsets its key.

        Raises: Rejected, beyond Stripe's limits (docs.stripe.com/api/metadata).
        """
        given = self.params.get("metadata", {})
        given = {} if given == "" else ({} if held is None else held["metadata"]) | given
        for label in given.items():
            for (noun, most), word in zip(METADATA_LENGTHS.items(), label, strict=True):
                sentence = (
                    f"Metadata {noun}s can have up to {most} characters, but you passed in a "
                    f"{noun} that is {len(word)} characters. Invalid {noun}: {word}"
                )
                refuse_if(len(word) > most, sentence, param="metadata")
        kept = {name: value for name, value in given.items() if value}
        sentence = f"You can only have up to {METADATA_KEYS} keys in metadata."
        refuse_if(len(kept) > METADATA_KEYS, sentence, param="metadata")
        return kept

    def money(self) -> Money:
        """Return the amount and currency of a new charge or intent. Raises: Rejected."""
        self.required("amount")
        currency = self.required("currency").lower()
        if currency not in CURRENCIES:
            sentence = f"Invalid currency: {currency}. Stripe currently supports these currencies:"
            raise invalid(f"{sentence} {', '.join(CURRENCIES)}", param="currency")
        return Money(self.amount(currency), currency)

    def amount(self, currency: str) -> int:
        """Return the amount, in minor units and within Stripe's bounds. Raises: Rejected."""
        amount, least = self.positive("amount", 0), AMOUNT_MIN.get(currency, 1)
        if amount < least:
            sentence = f"Amount must be at least {show(least, currency)}"
            raise invalid(sentence, "amount_too_small", "amount")
        if amount > AMOUNT_MAX:
            sentence = f"Amount must be no more than {show(AMOUNT_MAX, currency)}"
            raise invalid(sentence, "amount_too_large", "amount")
        step = 100 if currency in WHOLE_UNITS_ONLY else 10 if currency in THREE_DECIMAL else 1
        sentence = f"Invalid amount: amounts in {currency} must be divisible by {step}."
        refuse_if(amount % step, sentence, _NO_INTEGER, "amount")
        return amount

    def new(self, kind: str, object_id: str) -> Json:
        """Return what a new object shows: its id and kind, when it is made, and no live mode."""
        return {"id": object_id, "object": kind, "created": self.now, "livemode": False}

    def save(self, body: Json) -> Json:
        """Write an object, and return it."""
        return self.records.save(body)

    def require(self, kind: str, object_id: str, param: str, status: int = 400) -> Json:
        """Return the object that `param` names. Raises: Rejected with `status` if there is none."""
        found = self.records.find(kind, object_id)
        if found is None:
            raise missing_object(kind, object_id, param, status)
        return found

    def named(self, kind: str) -> Json:
        """Return the object that the path names. Raises: Rejected with 404 if there is none."""
        param = {"payment_intent": "intent", "payment_method": kind}.get(kind, "id")
        return self.require(kind, self.ids[0], param, 404)


def show(amount: int, currency: str) -> str:
    """Write money as Stripe's messages do: `$0.50 usd`."""
    figure = format_money(Money(amount, currency)).split(" ", 1)[0]
    whole, dot, decimals = figure.partition(".")
    sign = {"usd": "$", "gbp": "£", "eur": "€", "jpy": "¥"}.get(currency, "")
    return f"{sign}{int(whole):,}{dot}{decimals} {currency}"
