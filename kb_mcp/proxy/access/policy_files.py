"""Policy files, TOML or JSON, and their errors in words an operator can act on.

Floor: wing B, above policy. Pure: text in, a policy or its errors out.
"""

from __future__ import annotations

import json
import re
import tomllib
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from kb_mcp.proxy.access.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Syntax = Literal["toml", "json"]
ERRORS_MAX = 20


class PolicyError(ValueError):
    """A policy that cannot be used; `errors` has one line for each reason."""

    def __init__(self, errors: Sequence[str]) -> None:
        """Take one line for each reason."""
        super().__init__("; ".join(errors))
        self.errors = tuple(errors)


def parse_policy(text: str, syntax: Syntax) -> Policy:
    """Read a policy file. Raises: PolicyError, each error with its line where it has one."""
    try:
        data = tomllib.loads(text) if syntax == "toml" else _parse_json(text)
    except ValueError as error:
        raise PolicyError([f"not {syntax.upper()}: {error}"]) from None
    except RecursionError:
        raise PolicyError(["policy: it is nested too deeply"]) from None
    return load_policy(data, text)


def load_policy(data: object, text: str = "") -> Policy:
    """Check parsed data, as of a file or of the store. Raises: PolicyError."""
    try:
        # By way of JSON, so that strictness means JSON's own types, from TOML too.
        plain = json.dumps(data, default=_plain)
    except (ValueError, RecursionError):
        # TOML may hold numbers of any length in hexadecimal, and nests as deeply as it likes.
        raise PolicyError(["policy: a number is too long, or it is nested too deeply"]) from None
    try:
        return Policy.model_validate_json(plain)
    except ValidationError as error:
        raise PolicyError(policy_errors(error, text)) from None


def dump_policy(policy: Policy) -> str:
    """Write a policy as the JSON that `parse_policy` reads."""
    return policy.model_dump_json(by_alias=True, exclude_none=True)


def policy_errors(error: ValidationError, text: str = "") -> list[str]:
    """Name the field and the reason of each error, and the line of `text` that it stands in."""
    found = []
    details = error.errors(include_url=False, include_input=False, include_context=False)
    if len(details) > ERRORS_MAX:
        # Comparing each with each, and looking each up in the text, must not keep a server busy.
        found.append(f"policy: {len(details)} errors; the first {ERRORS_MAX} are")
        details = details[:ERRORS_MAX]
    for detail in details:
        deeper = (other["loc"][: len(detail["loc"])] == detail["loc"] for other in details)
        if sum(deeper) > 1 and detail["type"] == "too_short":
            continue  # the list is short only because its entries are wrong
        place = [str(part) for part in detail["loc"] if part != "[key]"]
        reason = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            reason = "there is no such field"
        line = _line_of(place, text)
        found.append(f"{'.'.join(place) or 'policy'}: {reason}{f' (line {line})' if line else ''}")
    return found


def _line_of(place: Sequence[str], text: str) -> int | None:
    # The last part of the place that the file spells out, searched after the parts before it.
    names = [part for part in place if not part.isdigit()]
    start, line = 0, None
    for name in names:
        match = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])").search(text, start)
        if match is None:
            break
        start, line = match.end(), text.count("\n", 0, match.start()) + 1
    return line


def _parse_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> Mapping[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return fields


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _plain(value: object) -> str:
    # TOML has times of its own; anything else that is not JSON is a mistake of the caller's.
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in a policy")
