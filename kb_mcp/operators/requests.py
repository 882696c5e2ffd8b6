"""What operators send: bodies and queries, read strictly into values or one error.

Floor: operators, below the admin API and the dashboard. An unknown field, a doubled name or a value
out of range is an error that names it; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import signature
from typing import Annotated, Any, ParamSpec, TypeVar
from urllib.parse import parse_qsl

from pydantic import ConfigDict, Field, ValidationError, create_model
from starlette.exceptions import HTTPException
from starlette.requests import Request

from kb_mcp.instants import past_ms
from kb_mcp.operators.actions import keys
from kb_mcp.operators.actions.grants import NoSuchGrantError, NotGrantedError
from kb_mcp.operators.actions.operations import NoSuchApprovalError, NotPendingError
from kb_mcp.operators.reports.views import NoSuchKeyError, NoSuchOperationError
from kb_mcp.periods import parse_period
from kb_mcp.proxy.access.grants import MatchError
from kb_mcp.proxy.access.policy import policy_errors
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import State
from kb_mcp.strict_json import read_json

BODY_MAX_BYTES = 64 * 1024
LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
OVERLAP_DEFAULT = "24h"
Text = Annotated[str, Field(max_length=keys.TEXT_MAX)]
Reason = Annotated[str, Field(max_length=keys.REASON_MAX)]
Amount = Annotated[int, Field(gt=0, lt=2**53)]
AUDIT_FILTERS = ("key", "customer", "code", "operation", "agent", "session", "subject")
APPROVAL_STATES = ("pending", "approved", "denied", "used", "expired")
OPERATION_FILTERS = {
    "state": "state",
    "customer": "customer_id",
    "period": "billing_period",
    "charge": "charge_id",
}

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)
class InputError(Exception):
    """What an operator asked for cannot be done: a status, a code and one sentence.

    `param` is the field that was wrong; without one, `message` begins as a sentence does.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    def __post_init__(self) -> None:
        """Begin the message."""
        if not self.param:
            self.message = self.message[:1].upper() + self.message[1:]


# Status, code, sentence and field of each; `{}` is what the error says itself.
_TOLD: dict[type[Exception], tuple[int, str, str, str | None]] = {
    NoSuchKeyError: (404, "key_unknown", "There is no vault key with this id.", None),
    NoSuchOperationError: (404, "operation_unknown", "There is no operation with this id.", None),
    NoSuchApprovalError: (404, "approval_unknown", "There is no approval with this id.", None),
    NotPendingError: (409, "approval_not_pending", "{}.", None),
    NoSuchGrantError: (404, "grant_unknown", "There is no grant with this id.", None),
    keys.KeyEndedError: (409, "key_ended", "{}.", None),
    keys.KeyRequestError: (400, "parameter_invalid", "{}", None),
    MatchError: (400, "parameter_invalid", "{}.", "match"),
    NotGrantedError: (409, "grant_refused", "{}.", None),
    keys.CapRequiredError: (
        *(400, "cap_required"),
        "{}. Give caps with daily, monthly or per_customer_daily, or say in so many words that it "
        "shall have none: uncapped.",
        "caps",
    ),
    LedgerUnavailableError: (
        *(503, "ledger_unavailable"),
        # The commit may have gone through, or only the read after it failed.
        "The ledger cannot be reached. Before you send a change again, look whether it was made.",
        None,
    ),
}
_HTTP = {
    404: ("path_unknown", "There is nothing at this path."),
    405: ("method_not_allowed", "This path does not serve that method."),
}
ANSWERED = (InputError, HTTPException, *_TOLD)


def input_error(error: Exception) -> InputError:
    """Return how one of ANSWERED is told."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, HTTPException):
        otherwise = ("request_invalid", "This cannot be served.")
        return InputError(error.status_code, *_HTTP.get(error.status_code, otherwise))
    kind = next(each for each in type(error).__mro__ if each in _TOLD)
    status, code, text, param = _TOLD[kind]
    code, param = getattr(error, "code", code), getattr(error, "param", param)
    return InputError(status, code, text.format(error), param)


def invalid(param: str, message: str) -> InputError:
    """Return what was wrong with the field `param`."""
    return InputError(400, "parameter_invalid", message, clean_text(param, keys.TEXT_MAX))


async def read_bytes(request: Request) -> bytes:
    """Return the body, read no further than its limit. Raises: InputError."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            raise InputError(413, "body_too_large", "The body is larger than 64 KiB.")
    return body


async def read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object of a body; an absent body is an empty one. Raises: InputError."""
    body = await read_bytes(request)
    with suppress(ValueError):
        data = read_json(body or b"{}")
        if isinstance(data, dict):
            return data
    message = "The body must be a JSON object in which no name stands twice."
    raise InputError(400, "body_invalid", message)


def read_arguments(act: Callable[..., Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return `said` as the keyword arguments of `act`, of their very types. Raises: InputError."""
    taken = signature(act, eval_str=True).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in taken):
        return dict(said)
    fields: dict[str, Any] = {
        each.name: (each.annotation, ... if each.default is each.empty else each.default)
        for each in taken
        if each.kind is each.KEYWORD_ONLY
    }
    config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)
    try:
        return dict(create_model("Body", __config__=config, **fields).model_validate(said))
    except ValidationError as error:
        place = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
        raise invalid(place, "; ".join(policy_errors(error))) from None


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form, each at most once. Raises: InputError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise InputError(415, "body_invalid", "A form was expected.")
    body = await read_bytes(request)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=64)
    except ValueError:
        raise InputError(400, "body_invalid", "The form cannot be read.") from None
    return _once(pairs)


def read_query(request: Request, allowed: Collection[str]) -> dict[str, str]:
    """Return the query, each name known and given at most once. Raises: InputError.

    An empty value is as good as none: forms send every field.
    """
    given = _once(request.query_params.multi_items())
    for name in given:
        if name not in allowed:
            message = f"There is no filter of that name; there are {', '.join(sorted(allowed))}."
            raise InputError(400, "parameter_unknown", message, clean_text(name, keys.TEXT_MAX))
    return {name: value for name, value in given.items() if value}


def operation_filters(query: Mapping[str, str]) -> dict[str, str | None]:
    """Return which operations are asked for, as `Views.operations` takes it. Raises: InputError."""
    found = {name: query.get(given) for given, name in OPERATION_FILTERS.items()}
    read_choice(query, "state", [state.value for state in State])
    if "period" in query:
        found["billing_period"] = in_field("period", parse_period, query["period"]).label
    return found


def read_choice(query: Mapping[str, str], name: str, choices: Sequence[str]) -> str | None:
    """Return which of `choices` is asked for, None where none is. Raises: InputError."""
    if name in query and query[name] not in choices:
        raise invalid(name, f"The {name} is one of {', '.join(choices)}.")
    return query.get(name)


def read_limit(query: Mapping[str, str]) -> int:
    """Return how many rows are wanted. Raises: InputError."""
    text = query.get("limit", str(LIMIT_DEFAULT))
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= LIMIT_MAX:
        raise invalid("limit", f"The limit is a number from 1 to {LIMIT_MAX}.")
    return int(text)


def read_past(query: Mapping[str, str], name: str, now: int) -> int | None:
    """Return a time, a day or an age before `now`, if given, in ms UTC. Raises: InputError."""
    return in_field(name, past_ms, query[name], now) if name in query else None


def in_field(name: str, read: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """Return what `read` makes of the text in the field `name`. Raises: InputError."""
    try:
        return read(*args, **more)
    except ValueError as error:
        raise invalid(name, f"{name}: {error}") from None


def _once(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        message = "This is given twice."
        raise InputError(400, "parameter_duplicate", message, clean_text(twice, keys.TEXT_MAX))
    return fields
