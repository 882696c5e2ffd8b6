"""What operators send: bodies and queries, read strictly into values or one error.

Floor: operators, below the admin API and the dashboard. An unknown field, a doubled name or a value
out of range is an error that names it; nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from kb_mcp.instants import day_of, rfc3339
from kb_mcp.operators.actions.keys import Wanted
from kb_mcp.proxy.access.policy import Policy, parse_duration
from kb_mcp.proxy.access.policy_files import PolicyError, dump_policy, load_policy, policy_errors
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.access.tokens import Mode
from kb_mcp.proxy.audit.chain import clean_text

BODY_MAX_BYTES = 64 * 1024
LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
TEXT_MAX = 128
REASON_MAX = 500
OVERLAP_DEFAULT = "24h"

Body = TypeVar("Body", bound=BaseModel)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS = 253_402_214_400_000  # the last day of the year 9999, which no offset moves out of it
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MOMENT = re.compile(
    r"\d{4}-\d{2}-\d{2}(?:T\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?:Z|[+-]\d{2}:\d{2}))?", re.ASCII
)


class InputError(Exception):
    """What an operator asked for cannot be done: a status, a code and one sentence."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        *,
        retry_after_s: int | None = None,
    ) -> None:
        """Say what was wrong and where."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class KeyBody(_Body):
    """`POST /admin/v1/keys`: a built-in role or a whole policy, and what narrows it."""

    role: str | None = None
    policy: dict[str, Any] | None = None
    label: str | None = Field(default=None, max_length=TEXT_MAX)
    agent: str | None = Field(default=None, max_length=TEXT_MAX)
    expires_at: str | None = None
    caps: dict[str, Any] | None = None
    refund_caps: dict[str, Any] | None = None
    daily_charges: int | None = None
    daily_refunds: int | None = None
    rate: int | str | None = None
    approval_above: dict[str, Any] | None = None
    refund_approval_above: dict[str, Any] | None = None
    uncapped: bool = False
    overlaps: str | None = None
    period_kinds: list[str] | None = None


class GrantBody(_Body):
    """`POST /admin/v1/grants`: an issuer, the claims to match, and a vault key."""

    issuer: str = Field(max_length=REASON_MAX)
    match: dict[str, str]
    key_id: str = Field(max_length=TEXT_MAX)
    label: str | None = Field(default=None, max_length=TEXT_MAX)


class ReasonBody(_Body):
    """Why a key is revoked."""

    reason: str | None = Field(default=None, max_length=REASON_MAX)


class UnfreezeBody(_Body):
    """Why a key is thawed; it has to be said."""

    reason: str = Field(min_length=1, max_length=REASON_MAX)


class ResolveBody(_Body):
    """What became of an unknown operation: the object it made, or the word that it made none."""

    succeeded: str | None = Field(default=None, max_length=TEXT_MAX)
    void: bool = False
    reason: str | None = Field(default=None, max_length=REASON_MAX)


class ReopenBody(_Body):
    """Why a bill may be billed once more; it has to be said.

    `amount` (minor units) is for another amount than before; `release` frees its days instead.
    """

    reason: str = Field(min_length=1, max_length=REASON_MAX)
    amount: int | None = Field(default=None, gt=0, lt=2**53)
    release: bool = False


class RotateBody(_Body):
    """How long the old key still works."""

    overlap: str = OVERLAP_DEFAULT


class NoBody(_Body):
    """Nothing to say."""


async def read_bytes(request: Request) -> bytes:
    """Return the body, read no further than its limit. Raises: InputError."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            raise InputError(413, "body_too_large", "The body is larger than 64 KiB.")
    return body


async def read_json(request: Request, model: type[Body]) -> Body:
    """Return the JSON body as `model`; an absent body is an empty object. Raises: InputError."""
    body = await read_bytes(request)
    try:
        data = json.loads(body or b"{}", object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        message = "The body must be a JSON object in which no name stands twice."
        raise InputError(400, "body_invalid", message) from None
    if not isinstance(data, dict):
        raise InputError(400, "body_invalid", "The body must be a JSON object.")
    return check_body(model, data)


def check_body(model: type[Body], data: Mapping[str, Any]) -> Body:
    """Return `data` as `model`. Raises: InputError."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        place = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
        raise _invalid(place, "; ".join(policy_errors(error))) from None


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
            raise InputError(400, "parameter_unknown", message, clean_text(name, TEXT_MAX))
    return {name: value for name, value in given.items() if value}


def read_limit(query: Mapping[str, str]) -> int:
    """Return how many rows are wanted. Raises: InputError."""
    text = query.get("limit", str(LIMIT_DEFAULT))
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= LIMIT_MAX:
        raise _invalid("limit", f"The limit is a number from 1 to {LIMIT_MAX}.")
    return int(text)


def read_day(query: Mapping[str, str], now: int) -> date:
    """Return the UTC day that is asked for, today by default. Raises: InputError."""
    text = query.get("day")
    if text is None:
        return day_of(now)
    if _DAY.fullmatch(text):
        try:
            return date.fromisoformat(text)
        except ValueError:
            pass
    raise _invalid("day", "A day is written like 2026-06-15.")


def read_moment(query: Mapping[str, str], name: str) -> str | None:
    """Return a time as the audit writes it, from RFC 3339 or a day. Raises: InputError."""
    text = query.get(name)
    return None if text is None else rfc3339(_moment_ms(name, text))


def read_wanted(body: KeyBody, mode: Mode, now: int) -> Wanted:
    """Return the key that `body` describes. Raises: InputError."""
    return read_policy(_policy(body), body, mode, now)


def read_policy(policy: Policy, body: KeyBody, mode: Mode, now: int) -> Wanted:
    """Return a key under `policy`, with what `body` says of whom it is for. Raises: InputError."""
    if policy.expires_at is not None and _ms(policy.expires_at) <= now:
        raise _invalid("policy", "expires_at: this is already past")
    expires_at = None if body.expires_at is None else read_expiry(body.expires_at, now)
    return Wanted(
        policy=policy,
        mode=mode,
        label=_text(body.label),
        agent=_text(body.agent),
        expires_at=expires_at,
        uncapped=body.uncapped,
    )


def read_expiry(text: str, now: int) -> int:
    """Return when a key ends, ms UTC: RFC 3339, `end-of-month`, or a duration like `30d`.

    Raises: InputError.
    """
    if text == "end-of-month":
        today = day_of(now)
        year, month = today.year + today.month // 12, today.month % 12 + 1
        return _ms(datetime(year, month, 1, tzinfo=UTC))
    try:
        at = now + parse_duration(text)
    except ValueError:
        at = _moment_ms("expires_at", text)
    if at <= now:
        raise _invalid("expires_at", "The expiry must lie in the future.")
    return at


def read_overlap(text: str) -> int:
    """Return how long a rotated key still works, in ms. Raises: InputError."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise _invalid("overlap", f"{error}") from None


def clean_reason(text: str | None) -> str | None:
    """Bound a reason and take out what does not print; an empty one is none."""
    return _text(text, REASON_MAX)


def _policy(body: KeyBody) -> Policy:
    if (body.role is None) == (body.policy is None):
        raise _invalid("role", "Give either a built-in role or a policy.")
    if body.policy is not None:
        data = dict(body.policy)
    else:
        try:
            data = json.loads(dump_policy(built_in(body.role or "")))
        except KeyError as error:
            raise _invalid("role", f"{error.args[0]}.") from None
    if body.caps is not None:
        data["caps"] = {**data.get("caps", {}), **body.caps}
    if body.refund_caps is not None:
        data["refund_caps"] = {**data.get("refund_caps", {}), **body.refund_caps}
    narrowed = {
        "daily_charges": body.daily_charges,
        "rate": body.rate,
        "daily_refunds": body.daily_refunds,
        "approval_above": body.approval_above,
        "refund_approval_above": body.refund_approval_above,
        "overlaps": body.overlaps,
        "period_kinds": body.period_kinds,
    }
    data |= {name: value for name, value in narrowed.items() if value is not None}
    try:
        return load_policy(data)
    except PolicyError as error:
        raise _invalid("policy", "; ".join(error.errors)) from None


def _moment_ms(name: str, text: str) -> int:
    if _MOMENT.fullmatch(text):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = _EPOCH
        at = _ms(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        if 0 < at < _LAST_MS:
            return at
    raise _invalid(name, "A time is written like 2026-06-15T08:00:00Z, or as a day.")


def _ms(moment: datetime) -> int:
    since = moment - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def _text(text: str | None, limit: int = TEXT_MAX) -> str | None:
    return (clean_text(text, limit).strip() or None) if text else None


def _once(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        message = "This is given twice."
        raise InputError(400, "parameter_duplicate", message, clean_text(twice, TEXT_MAX))
    return fields


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return fields


def _invalid(param: str, message: str) -> InputError:
    return InputError(400, "parameter_invalid", message, clean_text(param, TEXT_MAX))
