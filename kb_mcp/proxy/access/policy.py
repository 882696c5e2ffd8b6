"""Policies: what a vault key may do, as a record that is checked in every field.

Floor: wing B, above endpoints. Pure. Durations arrive as text ("15m") and are milliseconds here;
caps are minor units by lower-case currency.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    model_validator,
)

from kb_mcp.instants import DAY_MS, format_duration, parse_duration
from kb_mcp.money import check_cap, check_currency
from kb_mcp.periods import PeriodKind
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Moves

MAX_DURATION_MS: Final = 31 * DAY_MS
DEFAULT_RATE: Final = 600

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


def _check_caps(caps: Mapping[str, int]) -> Mapping[str, int]:
    for currency, amount in caps.items():
        check_cap(amount, currency)
    return caps


def _check_thresholds(thresholds: Mapping[str, int]) -> Mapping[str, int]:
    for currency, amount in thresholds.items():
        check_currency(currency)
        if amount < 0:
            raise ValueError("an amount must not be negative")
    return thresholds


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


Caps = Annotated[Mapping[str, int], AfterValidator(_check_caps)]
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
        given = [table for table in self.tables() if table]
        if any(set(table) != set(given[0]) for table in given):
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

    ids: tuple[Annotated[str, StringConstraints(pattern=r"^cus_[A-Za-z0-9]{1,64}$")], ...] = ()
    prefix: Annotated[str, StringConstraints(pattern=r"^cus_[A-Za-z0-9]{1,64}$")] | None = None
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
    approval_above: Annotated[Mapping[str, int], AfterValidator(_check_thresholds)] = Field(
        default_factory=dict
    )
    refund_approval_above: Annotated[Mapping[str, int], AfterValidator(_check_thresholds)] = Field(
        default_factory=dict
    )
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


def is_uncapped(policy: Policy) -> bool:
    """Say whether `policy` moves money and no cap in money bounds its sum."""
    return bool(missing_caps(policy))


def missing_caps(policy: Policy) -> tuple[str, ...]:
    """Return the options of `keys issue` that would bound what `policy` leaves unbounded.

    What is charged and what is given back are bounded apart.
    """
    missing = []
    # The first of each four is the cap of a single act, which bounds no sum.
    if charges(policy) and not any(policy.caps.tables()[1:]):
        missing.append("--daily-cap")
    if REFUND in policy.allow and not any(policy.refund_caps.tables()[1:]):
        missing.append("--refund-daily-cap")
    return tuple(missing)


def charges(policy: Policy) -> bool:
    """Say whether `policy` moves money otherwise than by refunds."""
    return any(
        ENDPOINTS[endpoint].moves is not Moves.READS
        for endpoint in frozenset(policy.allow) - _HARMLESS - {REFUND}
    )
