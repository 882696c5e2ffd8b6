"""Roles: the built-in policies, and any policy in plain words.

Floor: wing B, above policy. Pure.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from kb_mcp.instants import format_duration, how_many
from kb_mcp.money import Money, format_money
from kb_mcp.proxy.access.policy import DEFAULT_RATE, REFUND, ParameterRule, Policy, charges

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kb_mcp.proxy.access.policy import CapRules, RefundCapRules

CHARGE: Final = "POST /v1/charges"
READ_CHARGE: Final = "GET /v1/charges/*"
INTENT: Final = "POST /v1/payment_intents"
READ_INTENT: Final = "GET /v1/payment_intents/*"
# The tools charge a customer's default payment method, which has to be looked up.
FIND_CARD: Final = ("GET /v1/customers/*", "GET /v1/customers/*/payment_methods")
AUDIT_RATE: Final = 1200

# Without a customer a bill has no period guard and no cap per customer.
_BILL = ParameterRule(required=("amount", "currency", "customer"))
_NAMING: Final = {
    "content": "Customer, amount and period name a bill: the same bill is never charged twice.",
    "strict": "Bills that do not name customer, amount, currency and period are refused.",
    "caller": "Bills are named by the caller's idempotency key alone: a new key charges again.",
}


def _role(name: str, *allow: str, rate: int = DEFAULT_RATE) -> Policy:
    rules = {endpoint: _BILL for endpoint in allow if endpoint in {CHARGE, INTENT}}
    return Policy(role=name, allow=allow, parameters=rules, rate=rate)


_BUILT_IN = (
    _role("billing", CHARGE),
    _role("audit", READ_CHARGE, rate=AUDIT_RATE),
    _role("billing-with-status", CHARGE, READ_CHARGE),
    _role("refunds", REFUND),
    _role("billing-with-refunds", CHARGE, READ_CHARGE, REFUND),
    _role("billing-payment-intents", INTENT, *FIND_CARD),
    _role("audit-payment-intents", READ_INTENT, rate=AUDIT_RATE),
    _role("billing-payment-intents-with-status", INTENT, READ_INTENT, *FIND_CARD),
    _role("refunds-payment-intents", REFUND),
    _role("billing-payment-intents-with-refunds", INTENT, READ_INTENT, *FIND_CARD, REFUND),
)
ROLES: Final[Mapping[str, Policy]] = MappingProxyType({each.role: each for each in _BUILT_IN})


def built_in(role: str) -> Policy:
    """Return the built-in policy of `role`.

    Raises: KeyError when there is none; the message lists those there are.
    """
    if role not in ROLES:
        raise KeyError(f"no built-in role {role!r}; there are {', '.join(ROLES)}")
    return ROLES[role]


def describe(policy: Policy) -> list[str]:
    """Say in plain words what a key with `policy` can do, one sentence a line."""
    return [
        f"Role {policy.role}. It may send: {', '.join(policy.allow)}. Everything else is refused.",
        *_describe_parameters(policy),
        *_describe_caps(policy),
        *_describe_customers(policy),
        *_describe_limits(policy),
        *(_describe_naming(policy) if charges(policy) else ()),
    ]


def _describe_parameters(policy: Policy) -> Iterator[str]:
    for endpoint, rule in policy.parameters.items():
        if rule.allowed:
            yield f"{endpoint} may also carry {', '.join(rule.allowed)}."
        if rule.required:
            yield f"{endpoint} must carry {', '.join(rule.required)}."
        for name, value in rule.fixed.items():
            yield f"{endpoint} may carry {name} only as {value}."
        if rule.forbidden:
            yield f"{endpoint} must not carry {', '.join(rule.forbidden)}."
    if policy.headers.dropped:
        yield f"These headers are ignored: {', '.join(policy.headers.dropped)}."
    if policy.headers.stripe_version:
        yield f"Requests go to Stripe as version {policy.headers.stripe_version}."


def _describe_caps(policy: Policy) -> Iterator[str]:
    if REFUND in policy.allow:
        yield from _describe_refunds(policy)
    if not charges(policy):
        return
    none = "No spend cap of its own: only the account's ceiling, if there is one, limits it."
    yield from _describe_tables("At most", "charge", policy.caps, policy.daily_charges, none)
    for shown in _amounts(policy.approval_above):
        yield f"Above {shown} an operator must approve."
    limits = [set(table) for table in (*policy.caps.tables(), policy.approval_above) if table]
    # A limit that is given for one currency refuses the others.
    passing = sorted(set.intersection(*limits)) if limits else []
    if passing:
        yield f"Charges are in {' and '.join(map(str.upper, passing))} alone."
    elif limits:
        yield "No currency is within all of its limits: it charges nothing."


def _describe_refunds(policy: Policy) -> Iterator[str]:
    none = "No cap on refunds of its own: only the account's ceiling for refunds limits them."
    caps, daily = policy.refund_caps, policy.daily_refunds
    yield from _describe_tables("It refunds at most", "refund", caps, daily, none)
    for shown in _amounts(policy.refund_approval_above):
        yield f"A refund above {shown} needs an operator's approval."
    if policy.refunds_of == "any":
        yield "It may refund charges that were not made through this proxy."
    most = policy.max_refunds_per_charge
    yield (
        "It makes one refund of a charge, until an operator reopens that."
        if most == 1
        else f"At most {most} refunds of one charge; each but the first needs a reference, which "
        "the tool refund cannot give."
    )


def _describe_tables(
    most: str, act: str, caps: CapRules | RefundCapRules, daily: int | None, none: str
) -> Iterator[str]:
    """Say what `caps` are, or `none`, and how many acts a day there may be."""
    for per, table in zip((act, "day", "month", "customer and day"), caps.tables(), strict=True):
        if table:
            yield f"{most} {' or '.join(_amounts(table))} a {per}."
    if not any(caps.tables()):
        yield none
    if daily is not None:
        yield f"At most {how_many(daily, act)} a day."


def _describe_customers(policy: Policy) -> Iterator[str]:
    rules = policy.customers
    if rules.ids:
        yield f"Only for the customers {', '.join(rules.ids)}."
    if rules.prefix:
        yield f"Only for customers whose id begins with {rules.prefix}."
    for name, value in rules.metadata.items():
        yield f"Only for customers whose metadata has {name} as {value}."


def _describe_limits(policy: Policy) -> Iterator[str]:
    yield f"At most {how_many(policy.rate, 'request')} a minute."
    if policy.hours is not None:
        days = ", ".join(policy.hours.days)
        yield f"It serves from {policy.hours.start} to {policy.hours.end} UTC on {days}."
    if charges(policy):
        yield f"It freezes after {how_many(policy.daily_declines, 'decline')} in a day."
    if policy.expires_at is not None:
        yield f"It expires at {policy.expires_at.isoformat()}."


def _describe_naming(policy: Policy) -> Iterator[str]:
    window = policy.period_window
    back, ahead = how_many(window.back, "month"), how_many(window.ahead, "month")
    yield f"It may bill periods from {back} back to {ahead} ahead."
    if policy.period_kinds is not None:
        yield f"A period must be a {' or '.join(policy.period_kinds)}."
    yield _NAMING[policy.idempotency]
    if policy.overlaps == "allow":
        yield "It may bill days that another period's bill holds already; the same period, never."
    if policy.allow_reference:
        yield "A reference may make a second bill in one period."
    wait = format_duration(policy.decline_retry_after_ms)
    tried = how_many(policy.max_attempts, "time")
    yield f"A declined bill is tried again after {wait} at the earliest, {tried} in all."


def _amounts(table: Mapping[str, int]) -> list[str]:
    return [format_money(Money(amount, currency)) for currency, amount in table.items()]
