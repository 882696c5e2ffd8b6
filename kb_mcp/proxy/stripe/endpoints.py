"""The table of Stripe endpoints: which money each moves, and how its object is found again.

Floor: wing B, above refusals. Pure. One row an endpoint; what has no row does not exist for the
proxy. Source: docs.stripe.com/api, the endpoints and the object of each kind.
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
    beginning counts as a failure. `moved` names the field that says how much money moved, `total`
    the one that says what the object is for, or what is left of that.
    """

    done: frozenset[str] = frozenset()
    pending: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    unless: str | None = None
    after: tuple[str, str] | None = None
    moved: str | None = None
    total: str = "amount"


@dataclass(frozen=True, slots=True)
class Standing:
    """The object whose amount a request moves, where no request tells it: it is read first.

    `template` is where the object is read, `amount` the field that is reserved, `paid` the one that
    says what was paid before. `begins` are the statuses in which the request has something to do.
    """

    template: str
    amount: str
    paid: str
    begins: frozenset[str]


@dataclass(frozen=True, slots=True)
class Listing:
    """The list that proves what became of an operation.

    `filters` narrow it, beside `created`; `charge` is what a refund gives back.
    """

    path: str
    filters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One endpoint. `*` in `template` stands for one object id of the right prefix.

    `belongs_to` names the endpoint whose operation this one continues, `total` the parameter that
    says what that operation comes to then; `object_type` is what its answers are. `standing` is
    the object whose amount it moves, where that stands at Stripe.
    """

    method: str
    template: str
    moves: Moves
    object_type: str
    listing: Listing | None = None
    belongs_to: str | None = None
    total: str | None = None
    standing: Standing | None = None

    @property
    def endpoint(self) -> str:
        """The route's name, as allowlists write it: `POST /v1/charges`."""
        return f"{self.method} {self.template}"

    @property
    def lifecycle(self) -> Lifecycle:
        """What the status of its object says; an invoice's, only where the request pays it."""
        return INVOICE if self.standing is not None else _LIFECYCLES.get(self.object_type, NONE)

    def path_of(self, object_id: str) -> str:
        """Return where the object `object_id`, which a request to this endpoint makes, is read."""
        if self.standing is not None:
            return self.standing.template.replace("*", object_id)
        return f"{self.template}/{object_id}"


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

CHARGE: Final = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset({"pending"}),
    failed=frozenset({"failed"}),
    unless="captured",
    moved="amount_captured",
)
INTENT: Final = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset(
        {"processing", "requires_action", "requires_capture", "requires_confirmation"}
    ),
    failed=frozenset({"canceled", "requires_payment_method"}),
    # An intent made without a payment method waits for one; it has failed once it says why.
    after=("requires_payment_method", "last_payment_error"),
    moved="amount_received",
)
PAYOUT: Final = Lifecycle(
    done=frozenset({"paid"}),
    pending=frozenset({"in_transit", "pending"}),
    failed=frozenset({"canceled", "failed"}),
)
TOPUP: Final = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset({"pending"}),
    failed=frozenset({"canceled", "failed", "reversed"}),
)
REFUND: Final = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset({"pending", "requires_action"}),
    failed=frozenset({"canceled", "failed"}),
)
INVOICE: Final = Lifecycle(
    done=frozenset({"paid"}),
    pending=frozenset({"draft", "open"}),
    failed=frozenset({"uncollectible", "void"}),
    moved="amount_paid",
    total="amount_remaining",
)
NONE: Final = Lifecycle()
_LIFECYCLES: Final[Mapping[str, Lifecycle]] = {
    "charge": CHARGE,
    "payment_intent": INTENT,
    "payout": PAYOUT,
    "topup": TOPUP,
    "refund": REFUND,
}
_CHARGES = Listing("/v1/charges", ("customer",))


def _reads(object_type: str, *templates: str) -> list[Route]:
    return _writes(object_type, *(f"GET {each}" for each in templates), moves=Moves.READS)


def _writes(
    object_type: str,
    *endpoints: str,
    moves: Moves = Moves.UNMETERED,
    listing: Listing | None = None,
    belongs_to: str | None = None,
    total: str | None = None,
    standing: Standing | None = None,
) -> list[Route]:
    return [
        Route(
            method=method,
            template=template,
            moves=moves,
            object_type=object_type,
            listing=listing,
            belongs_to=belongs_to,
            total=total,
            standing=standing,
        )
        for method, template in (endpoint.split(" ") for endpoint in endpoints)
    ]


def _metered(object_type: str, template: str, *filters: str) -> list[Route]:
    listing = Listing(template, filters)
    return _writes(object_type, f"POST {template}", moves=Moves.METERED, listing=listing)


def _invoice_paid(endpoint: str, *begins: str) -> list[Route]:
    """Return the row of an endpoint that pays, or commits to pay, what is left of an invoice.

    It takes no mark: a charge of that customer and amount may be its own.
    """
    standing = Standing("/v1/invoices/*", "amount_remaining", "amount_paid", frozenset(begins))
    return _writes("invoice", endpoint, moves=Moves.READ_FIRST, listing=_CHARGES, standing=standing)


ROUTES: Final[tuple[Route, ...]] = (
    *_metered("charge", "/v1/charges", "customer"),
    *_reads("charge", "/v1/charges", "/v1/charges/search", "/v1/charges/*"),
    # A capture's amount is optional: without it, what was authorised.
    *_writes("charge", "POST /v1/charges/*/capture", belongs_to="POST /v1/charges", total="amount"),
    *_writes("charge", "POST /v1/charges/*", belongs_to="POST /v1/charges"),
    *_metered("payment_intent", "/v1/payment_intents", "customer"),
    *_reads(
        "payment_intent",
        "/v1/payment_intents",
        "/v1/payment_intents/search",
        "/v1/payment_intents/*",
    ),
    # An update or an increment tells a new total, but in the currency of the stored intent.
    *_writes(
        "payment_intent",
        "POST /v1/payment_intents/*",
        "POST /v1/payment_intents/*/increment_authorization",
        belongs_to="POST /v1/payment_intents",
        total="amount",
    ),
    *_writes(
        "payment_intent",
        "POST /v1/payment_intents/*/capture",
        belongs_to="POST /v1/payment_intents",
        total="amount_to_capture",
    ),
    *_writes(
        "payment_intent",
        "POST /v1/payment_intents/*/confirm",
        "POST /v1/payment_intents/*/cancel",
        belongs_to="POST /v1/payment_intents",
    ),
    *_metered("payout", "/v1/payouts"),
    *_reads("payout", "/v1/payouts", "/v1/payouts/*"),
    *_writes(
        "payout",
        "POST /v1/payouts/*",
        "POST /v1/payouts/*/cancel",
        "POST /v1/payouts/*/reverse",
        belongs_to="POST /v1/payouts",
    ),
    *_metered("topup", "/v1/topups"),
    *_reads("topup", "/v1/topups", "/v1/topups/*"),
    *_writes("topup", "POST /v1/topups/*/cancel", belongs_to="POST /v1/topups"),
    *_reads("refund", "/v1/refunds", "/v1/refunds/*"),
    # A refund may leave its amount to Stripe, and is never more than what is left of its charge.
    *_writes(
        "refund",
        "POST /v1/refunds",
        moves=Moves.READ_FIRST,
        listing=Listing("/v1/refunds", ("charge",)),
        total="amount",
    ),
    *_writes("refund", "POST /v1/refunds/*", "POST /v1/refunds/*/cancel"),
    *_reads("transfer", "/v1/transfers", "/v1/transfers/*"),
    # Transfers may leave the amount to Stripe: the rest of the charge.
    *_writes("transfer", "POST /v1/transfers", listing=Listing("/v1/transfers", ("destination",))),
    *_writes("transfer", "POST /v1/transfers/*", "POST /v1/transfers/*/reversals"),
    *_reads("invoice", "/v1/invoices", "/v1/invoices/search", "/v1/invoices/*"),
    *_invoice_paid("POST /v1/invoices/*/finalize", "draft"),
    *_invoice_paid("POST /v1/invoices/*/pay", "draft", "open", "uncollectible"),
    # These move or commit money, and no request of theirs says how much.
    *_writes(
        "invoice",
        "POST /v1/invoices",
        "POST /v1/invoices/*",
        "POST /v1/invoices/*/send",
        "POST /v1/invoices/*/void",
        "POST /v1/invoices/*/mark_uncollectible",
        "DELETE /v1/invoices/*",
        "POST /v1/invoiceitems",
    ),
    *_reads("subscription", "/v1/subscriptions", "/v1/subscriptions/search", "/v1/subscriptions/*"),
    *_writes(
        "subscription",
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
    *_writes("quote", "POST /v1/quotes", "POST /v1/quotes/*/accept", "POST /v1/quotes/*/finalize"),
    *_writes("checkout.session", "POST /v1/checkout/sessions"),
    *_writes("payment_link", "POST /v1/payment_links"),
    *_writes("dispute", "POST /v1/disputes/*", "POST /v1/disputes/*/close"),
    *_reads("dispute", "/v1/disputes", "/v1/disputes/*"),
    *_reads("customer", "/v1/customers", "/v1/customers/search", "/v1/customers/*"),
    *_reads(
        "payment_method",
        "/v1/customers/*/payment_methods",
        "/v1/customers/*/payment_methods/*",
        "/v1/payment_methods",
        "/v1/payment_methods/*",
    ),
    *_writes("customer", "POST /v1/customers", "POST /v1/customers/*"),
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
