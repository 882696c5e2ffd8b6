"""Whether a policy grants a request: allowlist, headers, parameters, values, in this order.

Floor: wing B, above policy and interpret. Pure. What is not granted is refused. Answers are checked
before they are forwarded, since the path of a read does not say whose object comes back; rates are
token buckets in integers: a key may burst to its whole rate, then refills evenly.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Any, Final, get_args

from kb_mcp.instants import day_of, rfc3339
from kb_mcp.periods import Period, within_window
from kb_mcp.proxy.access.policy import VERSION, CustomerRules, Day, ParameterRule, Policy
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.stripe.endpoints import Moves, Route, object_ids
from kb_mcp.proxy.stripe.evidence import parse_object
from kb_mcp.proxy.stripe.forms import Form
from kb_mcp.proxy.stripe.interpret import KEY_FIELD, REFERENCE_FIELD

# A store is bound to one account, and a method is what the request line says.
REFUSED_HEADERS: Final = frozenset(
    "stripe-account stripe-context x-http-method x-http-method-override x-method-override".split()
)
_BILL = "amount currency customer description metadata[*] receipt_email"
_WORDING = "statement_descriptor statement_descriptor_suffix"
_PAGE = "limit starting_after ending_before"
_MADE = "created created[gt] created[gte] created[lt] created[lte]"
_PAID_OUT = "amount currency description metadata[*] statement_descriptor"
_WORDS: Final[Mapping[str, str]] = {
    "POST /v1/charges": f"{_BILL} {_WORDING}",
    "POST /v1/payment_intents": f"{_BILL} {_WORDING} payment_method payment_method_types[] "
    "automatic_payment_methods[enabled] automatic_payment_methods[allow_redirects] off_session "
    "confirm error_on_requires_action",
    "POST /v1/charges/*": "description metadata[*] receipt_email",
    "POST /v1/charges/*/capture": f"amount receipt_email {_WORDING}",
    "POST /v1/payment_intents/*": "amount description metadata[*] payment_method receipt_email "
    + _WORDING,
    "POST /v1/payment_intents/*/cancel": "cancellation_reason",
    "POST /v1/payment_intents/*/capture": f"amount_to_capture metadata[*] {_WORDING}",
    "POST /v1/payment_intents/*/confirm": "error_on_requires_action off_session payment_method "
    "receipt_email",
    "POST /v1/payment_intents/*/increment_authorization": "amount description metadata[*] "
    "statement_descriptor",
    "GET /v1/charges": f"customer {_MADE} {_PAGE}",
    "GET /v1/payment_intents": f"customer {_MADE} {_PAGE}",
    "GET /v1/refunds": f"charge payment_intent {_MADE} {_PAGE}",
    "GET /v1/customers/*/payment_methods": f"type {_PAGE}",
    "POST /v1/refunds": "amount charge currency metadata[*] payment_intent reason",
    # What marks an invoice as paid without a payment, or forgives it, a policy must name.
    "POST /v1/invoices/*/finalize": "auto_advance",
    "POST /v1/invoices/*/pay": "off_session payment_method",
    "POST /v1/payouts": _PAID_OUT,
    "POST /v1/topups": _PAID_OUT,
}
DEFAULT_PARAMETERS: Final = {endpoint: tuple(words.split()) for endpoint, words in _WORDS.items()}
"""What an endpoint may carry unless a policy says otherwise; without an entry, nothing."""

# `x[*]` is any one key of a map, `x[]` any item of a list: the form numbers them.
_WILDCARDS = {"[*]": r"\[[^\[\]]+\]", "[]": r"\[[0-9]+\]"}
_MARK = "metadata[keybrake_"
_NO_RULE = ParameterRule()
# Kinds of object that belong to the account, not to a customer.
_NOBODYS = frozenset({"account", "balance", "price", "product"})
MINUTE_MS = 60_000
KEYS_MAX = 10_000


def authorize(
    policy: Policy, route: Route, path: str, headers: Mapping[str, str], form: Form
) -> Refusal | None:
    """Return why `policy` does not grant this request, or None where it does.

    `headers` have lower-case names. A customer that only a metadata rule could admit passes here:
    `needs_customer` says when the look-up must follow before anything is sent.
    """
    if route.endpoint not in policy.allow:
        reason = f"{route.endpoint} is not on its allowlist"
        return refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason=reason)
    rule = policy.parameters.get(route.endpoint, _NO_RULE)
    return (
        _check_headers(policy, headers)
        or _check_parameters(policy, route, rule, form)
        or _check_values(policy, route, rule, path, form)
    )


def check_period(policy: Policy, period: Period | None, today: date) -> Refusal | None:
    """Return why `period` may not be billed `today` (UTC), or None where it may."""
    kinds, window = policy.period_kinds, policy.period_window
    if period is None:
        return None
    facts: dict[str, Fact]
    if kinds is not None and period.kind not in kinds:
        facts = {"period_kinds": kinds}
        reason = f"it bills by {' or '.join(kinds)}"
    elif not within_window(period, today, window.back, window.ahead):
        facts = {"back_months": window.back, "ahead_months": window.ahead}
        reason = f"it bills from {window.back} months back to {window.ahead} months ahead"
    else:
        return None
    return refuse(Code.PERIOD_OUT_OF_WINDOW, facts=facts, period=period.label, reason=reason)


def check_hours(policy: Policy, now_ms: int) -> Refusal | None:
    """Return why the key does not serve now (milliseconds UTC), or None where it does."""
    hours = policy.hours
    # Both are HH:MM, so that their order as text is their order in time.
    if hours is None or (
        get_args(Day)[day_of(now_ms).weekday()] in hours.days
        and hours.start <= rfc3339(now_ms)[11:16] < hours.end
    ):
        return None
    return refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason="it does not serve at this hour")


def needs_customer(policy: Policy, customer: str | None) -> bool:
    """Say whether the customer's metadata must be looked up to know if the key may touch it."""
    rules = policy.customers
    return bool(rules.metadata) and not _listed(rules, customer)


def may_touch(
    policy: Policy, customer: str | None, metadata: Mapping[str, str] | None = None
) -> bool:
    """Say whether the key may touch `customer`, whose metadata is given where it is known."""
    rules = policy.customers
    if rules.any or _listed(rules, customer):
        return True
    if customer is None or metadata is None or not rules.metadata:
        return False
    return all(metadata.get(name) == value for name, value in rules.metadata.items())


def _check_headers(policy: Policy, headers: Mapping[str, str]) -> Refusal | None:
    for name in headers:
        if name in REFUSED_HEADERS and name not in policy.headers.dropped:
            return refuse(Code.HEADER_NOT_ALLOWED, param=name)
    version = headers.get("stripe-version")
    if version is not None and not VERSION.fullmatch(version):
        return refuse(Code.HEADER_NOT_ALLOWED, param="Stripe-Version")
    return None


def _check_parameters(
    policy: Policy, route: Route, rule: ParameterRule, form: Form
) -> Refusal | None:
    defaults = DEFAULT_PARAMETERS.get(route.endpoint, ())
    fits = _expression((*defaults, *rule.allowed, *rule.required, *rule.fixed))
    forbidden = _expression(rule.forbidden)
    for name in form:
        if not _granted(policy, route, name, fits) or forbidden.fullmatch(name):
            return refuse(Code.PARAMETER_NOT_ALLOWED, param=name)
    for wanted in rule.required:
        if wanted not in form and not any(map(_expression((wanted,)).fullmatch, form)):
            return refuse(Code.PARAMETER_MISSING, param=wanted)
    return None


def _granted(policy: Policy, route: Route, name: str, granted: re.Pattern[str]) -> bool:
    if name.lower().startswith(_MARK):
        return False
    if name == REFERENCE_FIELD:
        if route.standing is not None:
            return False
        further = route.moves is Moves.READ_FIRST and policy.max_refunds_per_charge > 1
        return policy.allow_reference or further
    # The key names a bill and never goes upstream: surface lifts it out.
    lifted_out = name == KEY_FIELD and route.moves is not Moves.READS
    return lifted_out or granted.fullmatch(name) is not None


@lru_cache(maxsize=1024)
def _expression(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return one expression for all of `patterns`; none of them fits nothing."""
    return re.compile("|".join(f"(?:{_source(each)})" for each in patterns) or r"(?!)")


def _source(pattern: str) -> str:
    parts = re.split(r"(\[\*\]|\[\])", pattern)
    return "".join(_WILDCARDS.get(part) or re.escape(part) for part in parts)


def _check_values(
    policy: Policy, route: Route, rule: ParameterRule, path: str, form: Form
) -> Refusal | None:
    for name, value in rule.fixed.items():
        if form.get(name, value) != value:
            return refuse(Code.PARAMETER_NOT_ALLOWED, param=name)
    rules = policy.customers
    if rules.any or rules.metadata or route.object_type in _NOBODYS:
        return None
    named = [name for name in object_ids(route, path) if name.startswith("cus_")]
    named += [form["customer"]] if "customer" in form else []
    # One object tells whose it is in its answer, which is checked before it is forwarded. A list,
    # a search or a write without a customer could be anybody's.
    shown = route.moves is Moves.READS and route.template.endswith("/*")
    # A step goes on with an object whose operation says whose it is: the pipeline asks the ledger.
    # What is read first says it, too.
    shown = shown or route.belongs_to is not None or route.moves is Moves.READ_FIRST
    if (named or shown) and all(_listed(rules, customer) for customer in named):
        return None
    return refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason="the customer is not among its own")


def _listed(rules: CustomerRules, customer: str | None) -> bool:
    return customer is not None and (
        customer in rules.ids or (rules.prefix is not None and customer.startswith(rules.prefix))
    )


@dataclass(slots=True)
class Rates:
    """Token buckets by key id; the least recently used are forgotten beyond KEYS_MAX."""

    # key -> (tokens x MINUTE_MS, last look in ms): integers throughout.
    _buckets: OrderedDict[str, tuple[int, int]] = field(default_factory=OrderedDict, init=False)

    def retry_after(self, key_id: str, per_minute: int, now_ms: int) -> int | None:
        """Take one token of `key_id`; return None, or the seconds until there is one.

        `now_ms` is a monotonic clock in milliseconds.
        """
        full = per_minute * MINUTE_MS
        tokens, at = self._buckets.pop(key_id, (full, now_ms))
        tokens = min(full, tokens + max(now_ms - at, 0) * per_minute)
        self._buckets[key_id] = (tokens - MINUTE_MS if tokens >= MINUTE_MS else tokens, now_ms)
        if len(self._buckets) > KEYS_MAX:
            self._buckets.popitem(last=False)
        if tokens >= MINUTE_MS:
            return None
        return 1 + (MINUTE_MS - tokens) // (per_minute * 1000)


def owners_of(body: bytes) -> list[tuple[str | None, dict[str, str] | None]]:
    """Return the customer of each object in an answer, and its metadata where it is there.

    What cannot be read is nobody's.
    """
    parsed = parse_object(body) or {}
    listed = parsed.get("object") in {"list", "search_result"}
    items = parsed.get("data") if listed else [parsed]
    return [_owner(item) for item in (items if isinstance(items, list) else [None])]


def _owner(item: Any) -> tuple[str | None, dict[str, str] | None]:
    if not isinstance(item, dict):
        return None, None
    if item.get("object") == "customer":
        metadata = item.get("metadata")
        return item.get("id"), metadata if isinstance(metadata, dict) else None
    customer = item.get("customer")
    return _owner(customer) if isinstance(customer, dict) else (customer, None)
