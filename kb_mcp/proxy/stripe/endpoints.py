"""The table of Stripe endpoints: which money each moves, and how its object is found again.

Floor: wing B, above refusals. Pure. One row an endpoint; `source` names the page of docs.stripe.com
it was taken from. What has no row does not exist for the proxy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping


class Moves(StrEnum):
    """What a request to an endpoint may do to money."""

    READS = "reads"
    METERED = "metered"  # the request tells amount and currency, so caps hold
    READ_FIRST = "read_first"  # its amount stands at Stripe, or is bounded by what stands there
    UNMETERED = "unmetered"  # writes whose amount the request does not tell


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What an object's status says: the money moved, may still move, or did not.

    Kinds of object without a status are done once they exist. `unless` names a boolean field that
    makes a done object pending while it is false: a charge that is authorised, not captured.
    `after` names the field that must say why, before a status in `failed` that also stands at the
    beginning counts as a failure. `moved` names the field that says how much money moved.
    """

    done: frozenset[str] = frozenset()
    pending: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    unless: str | None = None
    after: tuple[str, str] | None = None
    moved: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The list that proves what became of an operation, and what an object must match.

    `filters` narrow the list (beside `created`), `match` are the fields in which an object must
    equal its operation, beside its `keybrake_attempt`. `charge` is what a refund gives back.
    """

    path: str
    filters: tuple[str, ...]
    match: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One endpoint. `*` in `template` stands for one object id of the right prefix.

    `belongs_to` names the endpoint whose operation this one continues, `total` the parameter that
    says what that operation comes to then; `object_type` is what its answers are.
    """

    method: str
    template: str
    moves: Moves
    object_type: str
    lifecycle: Lifecycle
    source: str
    listing: Listing | None = None
    belongs_to: str | None = None
    total: str | None = None

    @property
    def endpoint(self) -> str:
        """The route's name, as allowlists write it: `POST /v1/charges`."""
        return f"{self.method} {self.template}"


def find_route(method: str, path: str) -> Route | Refusal:
    """Find the row of `method` and a canonical `path`."""
    methods = _methods(path)
    if not methods:
        return refuse(Code.PATH_UNKNOWN)
    return methods.get(method) or refuse(Code.METHOD_NOT_ALLOWED)


def object_ids(route: Route, path: str) -> tuple[str, ...]:
    """Return the object ids in `path`, which `route` matches, from left to right."""
    pairs = zip(route.template.split("/"), path.split("/"), strict=True)
    return tuple(segment for pattern, segment in pairs if pattern == "*")


def _methods(path: str) -> Mapping[str, Route]:
    exact = _TEMPLATES.get(path)
    if exact is not None and "*" not in path:
        return exact
    segments = path.split("/")
    for template, methods in _PATTERNS.get(len(segments), {}).items():
        if _fits(template.split("/"), segments):
            return methods
    return {}


def _fits(pattern: list[str], segments: list[str]) -> bool:
    for place, (wanted, segment) in enumerate(zip(pattern, segments, strict=True)):
        if wanted == "*":
            prefix = ID_PREFIXES[pattern[place - 1]]
            if not re.fullmatch(rf"(?:{prefix})_{_ID_BODY}", segment):
                return False
        elif wanted != segment:
            return False
    return True


_ID_BODY = r"[A-Za-z0-9]{1,128}"
ID_PREFIXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "charges": "ch|py",
        "customers": "cus",
        "invoices": "in",
        "payment_intents": "pi",
        "payment_methods": "pm|card|src|ba",
        "payouts": "po",
        "prices": "price",
        "products": "prod",
        "quotes": "qt",
        "refunds": "re|pyr",
        "subscription_items": "si",
        "subscription_schedules": "sub_sched",
        "subscriptions": "sub",
        "topups": "tu",
        "transfers": "tr",
        "reversals": "trr",
        "disputes": "dp|du",
        "balance_transactions": "txn",
        "events": "evt",
    }
)
"""Collection to the prefixes of its ids, as alternatives of a regular expression."""

_CHARGE = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset({"pending"}),
    failed=frozenset({"failed"}),
    unless="captured",
    moved="amount_captured",
)
_INTENT = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset(
        {"processing", "requires_action", "requires_capture", "requires_confirmation"}
    ),
    failed=frozenset({"canceled", "requires_payment_method"}),
    # An intent made without a payment method waits for one; it has failed once it says why.
    after=("requires_payment_method", "last_payment_error"),
    moved="amount_received",
)
_PAYOUT = Lifecycle(
    done=frozenset({"paid"}),
    pending=frozenset({"in_transit", "pending"}),
    failed=frozenset({"canceled", "failed"}),
)
_TOPUP = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset({"pending"}),
    failed=frozenset({"canceled", "failed", "reversed"}),
)
_REFUND = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset({"pending", "requires_action"}),
    failed=frozenset({"canceled", "failed"}),
)
_NONE = Lifecycle()

_CHARGE_LIST = Listing("/v1/charges", ("customer",), ("customer", "amount", "currency"))
_INTENT_LIST = Listing("/v1/payment_intents", ("customer",), ("customer", "amount", "currency"))
_PAYOUT_LIST = Listing("/v1/payouts", (), ("amount", "currency"))
_TOPUP_LIST = Listing("/v1/topups", (), ("amount", "currency"))


def _reads(object_type: str, *templates: str, lifecycle: Lifecycle = _NONE) -> list[Route]:
    return [
        Route(
            method="GET",
            template=template,
            moves=Moves.READS,
            object_type=object_type,
            lifecycle=lifecycle,
            source=f"api/{template.split('/')[2]}",
        )
        for template in templates
    ]


def _metered(template: str, object_type: str, lifecycle: Lifecycle, listing: Listing) -> Route:
    return Route(
        method="POST",
        template=template,
        moves=Moves.METERED,
        object_type=object_type,
        lifecycle=lifecycle,
        listing=listing,
        source=f"api/{template.split('/')[2]}/create",
    )


def _unmetered(
    object_type: str,
    lifecycle: Lifecycle,
    *endpoints: str,
    belongs_to: str | None = None,
    listing: Listing | None = None,
    total: str | None = None,
) -> list[Route]:
    return [
        Route(
            method=method,
            template=template,
            moves=Moves.UNMETERED,
            object_type=object_type,
            lifecycle=lifecycle,
            belongs_to=belongs_to,
            listing=listing,
            total=total,
            source=f"api/{template.split('/')[2]}",
        )
        for method, template in (endpoint.split(" ") for endpoint in endpoints)
    ]


ROUTES: Final[tuple[Route, ...]] = (
    _metered("/v1/charges", "charge", _CHARGE, _CHARGE_LIST),
    *_reads("charge", "/v1/charges", "/v1/charges/search", "/v1/charges/*", lifecycle=_CHARGE),
    # A capture's amount is optional: without it, what was authorised.
    *_unmetered(
        "charge",
        _CHARGE,
        "POST /v1/charges/*/capture",
        belongs_to="POST /v1/charges",
        total="amount",
    ),
    *_unmetered("charge", _CHARGE, "POST /v1/charges/*", belongs_to="POST /v1/charges"),
    _metered("/v1/payment_intents", "payment_intent", _INTENT, _INTENT_LIST),
    *_reads(
        "payment_intent",
        "/v1/payment_intents",
        "/v1/payment_intents/search",
        "/v1/payment_intents/*",
        lifecycle=_INTENT,
    ),
    # An update or an increment tells a new total, but in the currency of the stored intent.
    *_unmetered(
        "payment_intent",
        _INTENT,
        "POST /v1/payment_intents/*",
        "POST /v1/payment_intents/*/increment_authorization",
        belongs_to="POST /v1/payment_intents",
        total="amount",
    ),
    *_unmetered(
        "payment_intent",
        _INTENT,
        "POST /v1/payment_intents/*/capture",
        belongs_to="POST /v1/payment_intents",
        total="amount_to_capture",
    ),
    *_unmetered(
        "payment_intent",
        _INTENT,
        "POST /v1/payment_intents/*/confirm",
        "POST /v1/payment_intents/*/cancel",
        belongs_to="POST /v1/payment_intents",
    ),
    _metered("/v1/payouts", "payout", _PAYOUT, _PAYOUT_LIST),
    *_reads("payout", "/v1/payouts", "/v1/payouts/*", lifecycle=_PAYOUT),
    *_unmetered(
        "payout",
        _PAYOUT,
        "POST /v1/payouts/*",
        "POST /v1/payouts/*/cancel",
        "POST /v1/payouts/*/reverse",
        belongs_to="POST /v1/payouts",
    ),
    _metered("/v1/topups", "topup", _TOPUP, _TOPUP_LIST),
    *_reads("topup", "/v1/topups", "/v1/topups/*", lifecycle=_TOPUP),
    *_unmetered("topup", _TOPUP, "POST /v1/topups/*/cancel", belongs_to="POST /v1/topups"),
    *_reads("refund", "/v1/refunds", "/v1/refunds/*", lifecycle=_REFUND),
    # A refund may leave its amount to Stripe, and is never more than what is left of its charge.
    Route(
        method="POST",
        template="/v1/refunds",
        moves=Moves.READ_FIRST,
        object_type="refund",
        lifecycle=_REFUND,
        listing=Listing("/v1/refunds", ("charge",), ("charge", "amount", "currency")),
        total="amount",
        source="api/refunds/create",
    ),
    *_unmetered("refund", _REFUND, "POST /v1/refunds/*", "POST /v1/refunds/*/cancel"),
    *_reads("transfer", "/v1/transfers", "/v1/transfers/*"),
    # Transfers may leave the amount to Stripe: the rest of the charge.
    *_unmetered(
        "transfer",
        _NONE,
        "POST /v1/transfers",
        listing=Listing("/v1/transfers", ("destination",), ("amount", "currency", "destination")),
    ),
    *_unmetered("transfer", _NONE, "POST /v1/transfers/*", "POST /v1/transfers/*/reversals"),
    *_reads("invoice", "/v1/invoices", "/v1/invoices/search", "/v1/invoices/*"),
    # These move or commit money, and no request of theirs says how much.
    *_unmetered(
        "invoice",
        _NONE,
        "POST /v1/invoices",
        "POST /v1/invoices/*",
        "POST /v1/invoices/*/finalize",
        "POST /v1/invoices/*/pay",
        "POST /v1/invoices/*/send",
        "POST /v1/invoices/*/void",
        "POST /v1/invoices/*/mark_uncollectible",
        "DELETE /v1/invoices/*",
        "POST /v1/invoiceitems",
    ),
    *_reads(
        "subscription",
        "/v1/subscriptions",
        "/v1/subscriptions/search",
        "/v1/subscriptions/*",
    ),
    *_unmetered(
        "subscription",
        _NONE,
        "POST /v1/subscriptions",
        "POST /v1/subscriptions/*",
        "POST /v1/subscriptions/*/resume",
        "DELETE /v1/subscriptions/*",
        "POST /v1/subscription_items",
        "POST /v1/subscription_items/*",
        "DELETE /v1/subscription_items/*",
        "POST /v1/subscription_schedules",
        "POST /v1/subscription_schedules/*",
    ),
    *_unmetered(
        "quote",
        _NONE,
        "POST /v1/quotes",
        "POST /v1/quotes/*/accept",
        "POST /v1/quotes/*/finalize",
    ),
    *_unmetered("checkout.session", _NONE, "POST /v1/checkout/sessions"),
    *_unmetered("payment_link", _NONE, "POST /v1/payment_links"),
    *_unmetered("dispute", _NONE, "POST /v1/disputes/*", "POST /v1/disputes/*/close"),
    *_reads("dispute", "/v1/disputes", "/v1/disputes/*"),
    *_reads("customer", "/v1/customers", "/v1/customers/search", "/v1/customers/*"),
    *_reads(
        "payment_method",
        "/v1/customers/*/payment_methods",
        "/v1/customers/*/payment_methods/*",
        "/v1/payment_methods",
        "/v1/payment_methods/*",
    ),
    *_unmetered("customer", _NONE, "POST /v1/customers", "POST /v1/customers/*"),
    *_reads("account", "/v1/account"),
    *_reads("balance", "/v1/balance"),
    *_reads("balance_transaction", "/v1/balance_transactions", "/v1/balance_transactions/*"),
    *_reads("event", "/v1/events", "/v1/events/*"),
    *_reads("product", "/v1/products", "/v1/products/*"),
    *_reads("price", "/v1/prices", "/v1/prices/*"),
)

ENDPOINTS: Final[Mapping[str, Route]] = MappingProxyType(
    {route.endpoint: route for route in ROUTES}
)

CHARGED_BY: Final = frozenset({"POST /v1/charges", "POST /v1/payment_intents"})
"""The endpoints whose operations are charges, as people count them."""

# Where money is asked for that the request tells.
METERED: Final = tuple(route.endpoint for route in ROUTES if route.moves is Moves.METERED)

_TEMPLATES: dict[str, dict[str, Route]] = {}
for _route in ROUTES:
    _TEMPLATES.setdefault(_route.template, {})[_route.method] = _route
_PATTERNS: dict[int, dict[str, dict[str, Route]]] = {}
for _template, _methods_of in _TEMPLATES.items():
    if "*" in _template:
        _PATTERNS.setdefault(_template.count("/") + 1, {})[_template] = _methods_of
