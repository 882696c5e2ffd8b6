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
from kb_mcp.sandbox.answers import Json, below_one, invalid, missing_object, missing_param
from kb_mcp.sandbox.store import Records

Params: TypeAlias = dict[str, Any]
"""Names to strings, or to a further level; a list is a level whose names are its indexes."""

METADATA_KEYS: Final = 50
METADATA_KEY_LENGTH: Final = 40
METADATA_VALUE_LENGTH: Final = 500
_FIELDS_MAX: Final = 1_000
_DEPTH_MAX: Final = 8

REQUESTS: Final[dict[str, Json]] = json.loads(
    files("kb_mcp.sandbox").joinpath("requests.json").read_text("utf-8")
)
"""`METHOD /path/{name}` to its required parameters and the kind of each parameter."""

_SEGMENT = re.compile(r"\[([^\[\]]*)\]")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


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


def integer(params: Params, name: str) -> int | None:
    """Return an integer parameter that `check` let pass, or None when it isn't there."""
    value = params.get(name)
    return None if value is None else int(value)


def flag(params: Params, name: str, *, default: bool) -> bool:
    """Return a boolean parameter that `check` let pass."""
    value = text(params, name)
    return default if value is None else value == "true"


def text(params: Params, name: str) -> str | None:
    """Return a text parameter; empty means unset."""
    value = params.get(name)
    return value if isinstance(value, str) and value else None


def metadata(params: Params, held: Json | None = None) -> dict[str, str]:
    """Return the metadata to set on a new object, or on `held`; an empty value unsets its key.

    Raises: Rejected, beyond Stripe's limits (docs.stripe.com/api/metadata).
    """
    given = params.get("metadata", {})
    given = {} if given == "" else ({} if held is None else held["metadata"]) | given
    for name, value in given.items():
        if len(name) > METADATA_KEY_LENGTH:
            raise invalid(
                f"Metadata keys can have up to {METADATA_KEY_LENGTH} characters, but you passed "
                f"in a key that is {len(name)} characters. Invalid key: {name}",
                param="metadata",
            )
        if len(value) > METADATA_VALUE_LENGTH:
            raise invalid(
                f"Metadata values can have up to {METADATA_VALUE_LENGTH} characters, but you "
                f"passed in a value that is {len(value)} characters. Invalid value: {value}",
                param="metadata",
            )
    kept = {name: value for name, value in given.items() if value}
    if len(kept) > METADATA_KEYS:
        raise invalid(
            f"You can only have up to {METADATA_KEYS} keys in metadata.", param="metadata"
        )
    return kept


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


def _check_kind(name: str, value: object, kind: str | list[str]) -> None:
    if kind == "any":
        return
    if isinstance(kind, str) and kind in {"array", "object", "metadata", "range"}:
        _check_level(name, value, kind)
        return
    if not isinstance(value, str):
        raise invalid(f"Invalid string: {value}", param=name)
    if value == "" and name in {"amount", "currency", "customer", "charge"}:
        raise invalid(
            f"You passed an empty string for '{name}'. We assume empty values are an attempt to "
            f"unset a field; however '{name}' cannot be unset. You should remove '{name}' from "
            "your request or supply a non-empty value.",
            "parameter_invalid_empty",
            name,
        )
    if kind == "integer" and not _INTEGER.fullmatch(value):
        raise invalid(f"Invalid integer: {value}", "parameter_invalid_integer", name)
    if kind == "boolean" and value not in {"true", "false"}:
        raise invalid(f"Invalid boolean: {value}", param=name)
    if isinstance(kind, list) and value not in kind:
        choices = ", ".join(kind[:-1]) + f", or {kind[-1]}" if len(kind) > 1 else kind[0]
        raise invalid(f"Invalid {name}: must be one of {choices}", param=name)


def _check_level(name: str, value: object, kind: str) -> None:
    if kind == "range" and isinstance(value, str):
        value = {"gte": value}
    if value == "" and kind != "array":
        return
    if not isinstance(value, dict):
        noun = "array" if kind == "array" else "hash"
        raise invalid(f"Invalid {noun}", param=name)
    if kind == "metadata" and not all(isinstance(item, str) for item in value.values()):
        raise invalid("Metadata values must be strings.", param=name)
    if kind == "range":
        for bound, moment in value.items():
            if bound not in {"gt", "gte", "lt", "lte"}:
                raise invalid(
                    f"Received unknown parameter: {name}[{bound}]", "parameter_unknown", name
                )
            if not isinstance(moment, str) or not _INTEGER.fullmatch(moment):
                raise invalid(
                    f"Invalid timestamp: {moment}", "parameter_invalid_integer", f"{name}[{bound}]"
                )


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
        raise below_one("amount")
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
