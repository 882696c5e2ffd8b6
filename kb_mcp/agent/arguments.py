"""Arguments as runtimes send them, read strictly into the catalogue's models.

Floor: wing A, above the catalogue. Pure. What is wrong is a value that says what to send instead
and never repeats what was sent: not its values, and not its unknown names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, get_args

from pydantic import ValidationError

from kb_mcp.agent.catalogue import Arguments, Tool

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_HINTS: Final[Mapping[str, str]] = {
    "customer_id": "send a Stripe customer id as a string, for example cus_Abc123",
    "amount_cents": "send a whole number above zero in the currency's minor unit, like 2900, "
    "without quotes, decimals or exponent",
    "billing_period": "send a period as a string, for example 2026-06",
    "currency": "send a three-letter ISO code as a string, for example usd, or leave it out",
    "description": "send a string of at most 350 characters, or leave it out",
    "reference": "send a string of at most 100 characters, or leave it out",
    "charge_id": "send a charge id as a string, for example ch_Abc123",
    "reason": "send duplicate, fraudulent or requested_by_customer, or leave it out",
}
_OUR_ERRORS = "value_error"
# Bedrock hands every value over as text, and a model writes an empty one as its language does.
_ABSENT: Final = frozenset({"", "none", "null"})


@dataclass(frozen=True, slots=True)
class Invalid:
    """Arguments that is not valid; each problem is a sentence without the caller's values."""

    problems: tuple[str, ...]

    @property
    def message(self) -> str:
        """All problems in one line."""
        return " ".join(self.problems)


def read_arguments(tool: Tool, raw: Mapping[str, object] | None) -> Arguments | Invalid:
    """Check `raw` against the arguments of `tool`, with no coercion.

    Nothing is dropped but what is absent: null, empty text, and the texts that models write for it.
    """
    named = _rename(tool, raw or {})
    if isinstance(named, Invalid):
        return named
    if not set(named) <= set(tool.argument_names()):
        names = ", ".join(tool.argument_names())
        return Invalid((f"An argument is unknown; {tool.name} takes {names}.",))
    given = {name: value for name, value in named.items() if not _is_absent(tool, name, value)}
    try:
        return tool.arguments.model_validate(given)
    except ValidationError as error:
        return Invalid(tuple(_problems(error)))


def read_texts(tool: Tool, *parts: Iterable[tuple[object, object]]) -> dict[str, object] | Invalid:
    """Turn names and text values, as Bedrock sends them, into JSON values for `read_arguments`.

    `parts` are a body's properties and a path's or query's parameters: a name may stand in both
    with the same value, and in one of them once. Integers are written as JSON writes them.
    """
    texts: dict[str, object] = {}
    for part in parts:
        pairs = list(part)
        names = [name for name, _ in pairs if isinstance(name, str)]
        if len(names) != len(pairs):
            return Invalid(("An argument has no name.",))
        if len(set(names)) != len(names):
            return Invalid(("An argument was sent twice. Send it once.",))
        for name, (_, value) in zip(names, pairs, strict=True):
            if name in texts and (type(texts[name]), texts[name]) != (type(value), value):
                return Invalid(("An argument was sent twice with different values.",))
            texts[name] = value
    return {name: _from_text(tool, name, value) for name, value in texts.items()}


def _is_absent(tool: Tool, name: str, value: object) -> bool:
    if value is None:
        return True
    empty = isinstance(value, str) and value.strip().casefold() in _ABSENT
    return empty and name not in tool.said_by_absence


def _rename(tool: Tool, raw: Mapping[str, object]) -> dict[str, object] | Invalid:
    named: dict[str, object] = {}
    for name, value in raw.items():
        current = tool.aliases.get(name, name)
        if current in named:
            return Invalid((f"{current} was sent twice, under its old and its new name.",))
        named[current] = value
    return named


def _from_text(tool: Tool, name: str, value: object) -> object:
    field = tool.arguments.model_fields.get(tool.aliases.get(name, name))
    is_integer = field is not None and int in {field.annotation, *get_args(field.annotation)}
    if is_integer and isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return value


def _problems(error: ValidationError) -> Iterable[str]:
    for detail in error.errors(include_url=False, include_input=False):
        cause = detail.get("ctx", {}).get("error")
        name = str(detail["loc"][0]) if detail["loc"] else ""
        if detail["type"] == _OUR_ERRORS and isinstance(cause, ValueError):
            # Messages of our own checks: they say what to send, never what came.
            yield f"{name}: {cause}" if name else str(cause)
        elif detail["type"] == "missing":
            yield f"{name} is missing: {_HINTS[name]}."
        elif detail["type"] == "string_unicode":
            yield f"{name} holds half of a surrogate pair, which is no text. Send it without."
        else:
            yield f"{name} is not valid: {_HINTS.get(name, 'see its description')}."
