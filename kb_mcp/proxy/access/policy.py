"""Policies: what a vault key may do, as a record that is checked in every field, and its files.

Floor: wing B, above endpoints. Pure. Durations arrive as text ("15m") and are milliseconds here;
caps are minor units by lower-case currency. Files are TOML or JSON; their errors are in words that
an operator can act on.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from functools import partial
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    model_validator,
)

from kb_mcp.instants import DAY_MS, format_duration, parse_duration
from kb_mcp.money import check_cap, check_currency
from kb_mcp.periods import PeriodKind
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Moves
from kb_mcp.strict_json import LoneSurrogateError, read_json

MAX_DURATION_MS: Final = 31 * DAY_MS
DEFAULT_RATE: Final = 600
ERRORS_MAX: Final = 20
Syntax = Literal["toml", "json"]

_RATE = re.compile(r"([1-9][0-9]{0,5})(?:/min)?")
_PARAMETER = re.compile(r"[a-z][a-z0-9_]*(?:\[(?:\*|[A-Za-z0-9_ -]*)\]){0,4}")
_HEADER = re.compile(r"[a-z0-9-]{1,64}")
VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:\.[a-z]+)?")
_CLOCK = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00")
Duration = Annotated[
    int,
    BeforeValidator(partial(parse_duration, most_ms=MAX_DURATION_MS)),
    PlainSerializer(format_duration),
]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
REFUND: Final = "POST /v1/refunds"
# Writes that only release what is held, or change no more than wording.
_HARMLESS: Final = frozenset(
    {
        "POST /v1/charges/*",
        "POST /v1/payment_intents/*/cancel",
        "POST /v1/payouts/*",
        "POST /v1/payouts/*/cancel",
        "POST /v1/refunds/*",
        "POST /v1/refunds/*/cancel",
        "POST /v1/topups/*/cancel",
        "POST /v1/transfers/*",
    }
)


def _parse_rate(value: object) -> object:
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and match is None:
        raise ValueError('a rate is a number a minute, like 600 or "600/min"')
    return int(match[1]) if match else value


def _each(check: Callable[[int, str], object]) -> AfterValidator:
    def check_all(amounts: Mapping[str, int]) -> Mapping[str, int]:
        for currency, amount in amounts.items():
            check(amount, currency)
        return amounts

    return AfterValidator(check_all)


def _check_threshold(amount: int, currency: str) -> None:
    check_currency(currency)
    if amount < 0:
        raise ValueError("an amount must not be negative")


def _check_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("each is named once")
    return names


def _check_endpoint(text: str) -> str:
    if text not in ENDPOINTS:
        raise ValueError(
            "an entry is a method and a path that the proxy serves, with * for one object id, "
            'like "POST /v1/charges" or "GET /v1/charges/*"'
        )
    return text


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"it must be {what}")
        return text

    return AfterValidator(check)


Caps = Annotated[Mapping[str, int], _each(check_cap)]
Thresholds = Annotated[Mapping[str, int], _each(_check_threshold)]
Customer = Annotated[str, StringConstraints(pattern=r"^cus_[A-Za-z0-9]{1,64}$")]
Endpoint = Annotated[str, AfterValidator(_check_endpoint)]
Parameter = Annotated[str, _matching(_PARAMETER, "a parameter, like metadata[order] or expand[]")]
HeaderName = Annotated[str, _matching(_HEADER, "a header's name in lower case")]
Clock = Annotated[str, _matching(_CLOCK, "a time of day in UTC, like 08:00")]


class _Record(BaseModel):
    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        serialize_by_alias=True,
        # Secrets and customers' data have no place in a policy, but an error need not repeat it.
        hide_input_in_errors=True,
    )


class _Caps(_Record):
    @model_validator(mode="after")
    def _same_currencies(self) -> Self:
        if len({frozenset(table) for table in self.tables() if table}) > 1:
            raise ValueError("every cap that is given must name the same currencies")
        return self

    def tables(self) -> tuple[Mapping[str, int], ...]:
        """Return the four kinds of cap, in the record's order."""
        return tuple(getattr(self, name) for name in type(self).model_fields)


class CapRules(_Caps):
    """Spend caps; an empty one does not cap. All that are given name the same currencies."""

    per_charge: Caps = Field(default_factory=dict)
    daily: Caps = Field(default_factory=dict)
    monthly: Caps = Field(default_factory=dict)
    per_customer_daily: Caps = Field(default_factory=dict)


CAP_KINDS: Final = tuple(CapRules.model_fields)


class RefundCapRules(_Caps):
    """Caps on what is given back, never netted with spend; as `CapRules` otherwise."""

    per_refund: Caps = Field(default_factory=dict)
    daily: Caps = Field(default_factory=dict)
    monthly: Caps = Field(default_factory=dict)
    per_customer_daily: Caps = Field(default_factory=dict)


class ParameterRule(_Record):
    """Parameters of one endpoint, added to or taken from those allowed by default.

    `fixed` ones are refused with any other value; `name[*]` stands for any one key of a map.
    """

    allowed: tuple[Parameter, ...] = ()
    required: tuple[Parameter, ...] = ()
    fixed: Mapping[Parameter, str] = Field(default_factory=dict)
    forbidden: tuple[Parameter, ...] = ()


class HeaderRules(_Record):
    """`dropped` headers are ignored where they would be refused; a pinned version replaces all."""

    dropped: tuple[HeaderName, ...] = ()
    stripe_version: (
        Annotated[str, _matching(VERSION, "a version of Stripe's, like 2026-10-28.endive")] | None
    ) = None


class CustomerRules(_Record):
    """Customers a key may touch: any that one of the rules fits. Without rules, all."""

    ids: tuple[Customer, ...] = ()
    prefix: Customer | None = None
    metadata: Mapping[str, str] = Field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Say whether every customer may be touched."""
        return not (self.ids or self.prefix or self.metadata)


class Hours(_Record):
    """When a key serves: from `start` up to `end`, UTC, on `days`."""

    days: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    start: Clock = "00:00"
    end: Clock = "24:00"

    @model_validator(mode="after")
    def _forwards(self) -> Hours:
        if self.start >= self.end:
            raise ValueError("start must be before end; hours do not cross midnight")
        return self


class PeriodWindow(_Record):
    """How many calendar months back and ahead of this one may be billed."""

    back: int = Field(default=12, ge=0, le=120)
    ahead: int = Field(default=1, ge=0, le=24)


class Policy(_Record):
    """What a vault key may do. Fields are those of the policy record (`docs/policies.md`)."""

    version: Literal[1] = 1
    role: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
    allow: Annotated[tuple[Endpoint, ...], Field(min_length=1)]
    parameters: Mapping[Endpoint, ParameterRule] = Field(default_factory=dict)
    headers: HeaderRules = HeaderRules()
    customers: CustomerRules = CustomerRules()
    caps: CapRules = CapRules()
    refund_caps: RefundCapRules = RefundCapRules()
    daily_charges: Count | None = None
    daily_refunds: Count | None = None
    daily_declines: Count = 20
    rate: Annotated[Count, BeforeValidator(_parse_rate)] = DEFAULT_RATE
    hours: Hours | None = None
    idempotency: Literal["content", "strict", "caller"] = "content"
    duplicate_window_ms: Duration = Field(default=20 * 3_600_000, alias="duplicate_window")
    period_window: PeriodWindow = PeriodWindow()
    period_kinds: (
        Annotated[tuple[PeriodKind, ...], Field(min_length=1), AfterValidator(_check_once)] | None
    ) = None
    overlaps: Literal["refuse", "allow"] = "refuse"
    allow_reference: bool = False
    decline_retry_after_ms: Duration = Field(default=15 * 60_000, alias="decline_retry_after")
    max_attempts: Count = 4
    max_unresolved: Count = 20
    approval_above: Thresholds = Field(default_factory=dict)
    refund_approval_above: Thresholds = Field(default_factory=dict)
    refunds_of: Literal["ledger", "any"] = "ledger"
    max_refunds_per_charge: Count = 1
    expires_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _parameters_of_allowed(self) -> Policy:
        for endpoint in self.parameters:
            if endpoint not in self.allow:
                raise ValueError(f"parameters has rules for {endpoint}, which is not in allow")
        return self

    @property
    def capped(self) -> bool:
        """Say whether money is limited, so that requests must tell how much they move."""
        return any(self.caps.tables()) or bool(self.approval_above)


def missing_caps(policy: Policy) -> tuple[str, ...]:
    """Return the options of `keys issue` that would bound what `policy` leaves unbounded.

    Without any, the policy moves no money, or a cap in money bounds its sum.
    What is charged and what is given back are bounded apart.
    """
    # The first of each four is the cap of a single act, which bounds no sum.
    moved = (
        ("--daily-cap", charges(policy), policy.caps),
        ("--refund-daily-cap", REFUND in policy.allow, policy.refund_caps),
    )
    return tuple(option for option, moves, caps in moved if moves and not any(caps.tables()[1:]))


def charges(policy: Policy) -> bool:
    """Say whether `policy` moves money otherwise than by refunds."""
    return any(
        ENDPOINTS[endpoint].moves is not Moves.READS
        for endpoint in frozenset(policy.allow) - _HARMLESS - {REFUND}
    )


class PolicyError(ValueError):
    """A policy that cannot be used; `errors` has one line for each reason."""

    def __init__(self, errors: Sequence[str]) -> None:
        """Take one line for each reason."""
        super().__init__("; ".join(errors))
        self.errors = tuple(errors)


def parse_policy(text: str, syntax: Syntax) -> Policy:
    """Read a policy file. Raises: PolicyError, each error with its line where it has one."""
    try:
        data = tomllib.loads(text) if syntax == "toml" else read_json(text)
    except LoneSurrogateError as error:
        raise PolicyError([f"policy: {error}"]) from None
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


def _plain(value: object) -> str:
    # TOML has times of its own; anything else that is not JSON is a mistake of the caller's.
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in a policy")
