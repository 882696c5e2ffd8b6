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
from kb_mcp.proxy.stripe import lifecycles

if TYPE_CHECKING:
    from collections.abc import Mapping


class Moves(StrEnum):
    """What a request to an endpoint may do to money."""

    READS = "reads"
    METERED = "metered"  # the request tells amount and currency, so caps hold
    READ_FIRST = "read_first"  # its amount stands at Stripe, or is bounded by what stands there
    UNMETERED = "unmetered"  # writes whose amount the request does not tell


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
    says what that operation comes to then; `object_type` is what its answers are. `standing` is
    the object whose amount it moves, where that stands at Stripe.
    """

    method: str
    template: str
    moves: Moves
    object_type: str
    lifecycle: lifecycles.Lifecycle
    source: str
    listing: Listing | None = None
    belongs_to: str | None = None
    total: str | None = None
    standing: Standing | None = None

    @property
    def endpoint(self) -> str:
        """The route's name, as allowlists write it: `POST /v1/charges`."""
        return f"{self.method} {self.template}"

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

_CHARGE_LIST = Listing("/v1/charges", ("customer",), ("customer", "amount", "currency"))
_INTENT_LIST = Listing("/v1/payment_intents", ("customer",), ("customer", "amount", "currency"))
_PAYOUT_LIST = Listing("/v1/payouts", (), ("amount", "currency"))
_TOPUP_LIST = Listing("/v1/topups", (), ("amount", "currency"))


def _reads(
    object_type: str, *templates: str, lifecycle: lifecycles.Lifecycle = lifecycles.NONE
) -> list[Route]:
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


def _metered(
    template: str, object_type: str, lifecycle: lifecycles.Lifecycle, listing: Listing
) -> Route:
    return Route(
        method="POST",
        template=template,
        moves=Moves.METERED,
        object_type=object_type,
        lifecycle=lifecycle,
        listing=listing,
        source=f"api/{template.split('/')[2]}/create",
    )


def _standing(template: str, *begins: str) -> Route:
    """Return the row of an endpoint that pays, or commits to pay, what is left of an invoice.

    It takes no mark: a charge of that customer and amount may be its own.
    """
    return Route(
        method="POST",
        template=template,
        moves=Moves.READ_FIRST,
        object_type="invoice",
        lifecycle=lifecycles.INVOICE,
        listing=_CHARGE_LIST,
        standing=Standing("/v1/invoices/*", "amount_remaining", "amount_paid", frozenset(begins)),
        source="api/invoices",
    )


def _unmetered(
    object_type: str,
    lifecycle: lifecycles.Lifecycle,
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
    _metered("/v1/charges", "charge", lifecycles.CHARGE, _CHARGE_LIST),
    *_reads(
        "charge", "/v1/charges", "/v1/charges/search", "/v1/charges/*", lifecycle=lifecycles.CHARGE
    ),
    # A capture's amount is optional: without it, what was authorised.
    *_unmetered(
        "charge",
        lifecycles.CHARGE,
        "POST /v1/charges/*/capture",
        belongs_to="POST /v1/charges",
        total="amount",
    ),
    *_unmetered("charge", lifecycles.CHARGE, "POST /v1/charges/*", belongs_to="POST /v1/charges"),
    _metered("/v1/payment_intents", "payment_intent", lifecycles.INTENT, _INTENT_LIST),
    *_reads(
        "payment_intent",
        "/v1/payment_intents",
        "/v1/payment_intents/search",
        "/v1/payment_intents/*",
        lifecycle=lifecycles.INTENT,
    ),
    # An update or an increment tells a new total, but in the currency of the stored intent.
    *_unmetered(
        "payment_intent",
        lifecycles.INTENT,
        "POST /v1/payment_intents/*",
        "POST /v1/payment_intents/*/increment_authorization",
        belongs_to="POST /v1/payment_intents",
        total="amount",
    ),
    *_unmetered(
        "payment_intent",
        lifecycles.INTENT,
        "POST /v1/payment_intents/*/capture",
        belongs_to="POST /v1/payment_intents",
        total="amount_to_capture",
    ),
    *_unmetered(
        "payment_intent",
        lifecycles.INTENT,
        "POST /v1/payment_intents/*/confirm",
        "POST /v1/payment_intents/*/cancel",
        belongs_to="POST /v1/payment_intents",
    ),
    _metered("/v1/payouts", "payout", lifecycles.PAYOUT, _PAYOUT_LIST),
    *_reads("payout", "/v1/payouts", "/v1/payouts/*", lifecycle=lifecycles.PAYOUT),
    *_unmetered(
        "payout",
        lifecycles.PAYOUT,
        "POST /v1/payouts/*",
        "POST /v1/payouts/*/cancel",
        "POST /v1/payouts/*/reverse",
        belongs_to="POST /v1/payouts",
    ),
    _metered("/v1/topups", "topup", lifecycles.TOPUP, _TOPUP_LIST),
    *_reads("topup", "/v1/topups", "/v1/topups/*", lifecycle=lifecycles.TOPUP),
    *_unmetered(
        "topup", lifecycles.TOPUP, "POST /v1/topups/*/cancel", belongs_to="POST /v1/topups"
    ),
    *_reads("refund", "/v1/refunds", "/v1/refunds/*", lifecycle=lifecycles.REFUND),
    # A refund may leave its amount to Stripe, and is never more than what is left of its charge.
    Route(
        method="POST",
        template="/v1/refunds",
        moves=Moves.READ_FIRST,
        object_type="refund",
        lifecycle=lifecycles.REFUND,
        listing=Listing("/v1/refunds", ("charge",), ("charge", "amount", "currency")),
        total="amount",
        source="api/refunds/create",
    ),
    *_unmetered("refund", lifecycles.REFUND, "POST /v1/refunds/*", "POST /v1/refunds/*/cancel"),
    *_reads("transfer", "/v1/transfers", "/v1/transfers/*"),
    # Transfers may leave the amount to Stripe: the rest of the charge.
    *_unmetered(
        "transfer",
        lifecycles.NONE,
        "POST /v1/transfers",
        listing=Listing("/v1/transfers", ("destination",), ("amount", "currency", "destination")),
    ),
    *_unmetered(
        "transfer", lifecycles.NONE, "POST /v1/transfers/*", "POST /v1/transfers/*/reversals"
    ),
    *_reads("invoice", "/v1/invoices", "/v1/invoices/search", "/v1/invoices/*"),
    _standing("/v1/invoices/*/finalize", "draft"),
    _standing("/v1/invoices/*/pay", "draft", "open", "uncollectible"),
    # These move or commit money, and no request of theirs says how much.
    *_unmetered(
        "invoice",
        lifecycles.NONE,
        "POST /v1/invoices",
        "POST /v1/invoices/*",
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
        lifecycles.NONE,
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
        lifecycles.NONE,
        "POST /v1/quotes",
        "POST /v1/quotes/*/accept",
        "POST /v1/quotes/*/finalize",
    ),
    *_unmetered("checkout.session", lifecycles.NONE, "POST /v1/checkout/sessions"),
    *_unmetered("payment_link", lifecycles.NONE, "POST /v1/payment_links"),
    *_unmetered("dispute", lifecycles.NONE, "POST /v1/disputes/*", "POST /v1/disputes/*/close"),
    *_reads("dispute", "/v1/disputes", "/v1/disputes/*"),
    *_reads("customer", "/v1/customers", "/v1/customers/search", "/v1/customers/*"),
    *_reads(
        "payment_method",
        "/v1/customers/*/payment_methods",
        "/v1/customers/*/payment_methods/*",
        "/v1/payment_methods",
        "/v1/payment_methods/*",
    ),
    *_unmetered("customer", lifecycles.NONE, "POST /v1/customers", "POST /v1/customers/*"),
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
