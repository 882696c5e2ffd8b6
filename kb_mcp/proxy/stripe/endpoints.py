"""The table of Stripe endpoints: which money each moves, and how its object is found again.

Floor: wing B, above refusals. Pure. One row an endpoint; what has no row does not exist for the
proxy. Source: docs.stripe.com/api, the endpoints and the object of each kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse


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
class Listing:
    """The list that proves what became of an operation.

    `filters` narrow it, beside `created`; `charge` is what a refund gives back.
    """

    path: str
    filters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint, as allowlists write it: `POST /v1/charges`; `*` stands for one object id.

    `belongs_to` names the endpoint whose operation this one continues, `total` the parameter that
    says what that operation comes to then; `object_type` is what its answers are. `standing` are
    the statuses of an invoice in which the request pays what is left of it, which no request tells.
    """

    endpoint: str
    object_type: str
    moves: Moves = Moves.UNMETERED
    listing: Listing | None = None
    belongs_to: str | None = None
    total: str | None = None
    standing: frozenset[str] | None = None

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.endpoint.partition(" ")[0]

    @property
    def template(self) -> str:
        """The path, with `*` for an object id of the right prefix."""
        return self.endpoint.partition(" ")[2]

    @property
    def lifecycle(self) -> Lifecycle:
        """What the status of its object says; an invoice's, only where the request pays it."""
        return INVOICE if self.standing is not None else _LIFECYCLES.get(self.object_type, NONE)

    def path_of(self, object_id: str) -> str:
        """Return where the object `object_id`, which a request to this endpoint makes, is read."""
        return f"{self.template if self.standing is None else INVOICES}/{object_id}"


def find_route(method: str, path: str) -> Route | Refusal:
    """Find the row of `method` and a canonical `path`."""
    template = _template_of(path)
    if template not in _TEMPLATES:
        return refuse(Code.PATH_UNKNOWN)
    return ENDPOINTS.get(f"{method} {template}") or refuse(Code.METHOD_NOT_ALLOWED)


def object_ids(route: Route, path: str) -> tuple[str, ...]:
    """Return the object ids in `path`, which `route` matches, from left to right."""
    pairs = zip(route.template.split("/"), path.split("/"), strict=True)
    return tuple(segment for pattern, segment in pairs if pattern == "*")


def _template_of(path: str) -> str | None:
    """Return `path` with `*` for each id that stands after its collection."""
    if "*" in path:
        return None
    segments = path.split("/")
    for place, collection in enumerate(segments[:-1], 1):
        prefixes = ID_PREFIXES.get(collection)
        if prefixes and re.fullmatch(rf"(?:{prefixes})_{_ID_BODY}", segments[place]):
            segments[place] = "*"
    return "/".join(segments)


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


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


INVOICES: Final = "/v1/invoices"
INVOICE: Final = Lifecycle(
    _words("paid"),
    _words("draft open"),
    _words("uncollectible void"),
    moved="amount_paid",
    total="amount_remaining",
)
NONE: Final = Lifecycle()
_PENDING_INTENT = "processing requires_action requires_capture requires_confirmation"
_LIFECYCLES: Final[Mapping[str, Lifecycle]] = {
    "charge": Lifecycle(
        _words("succeeded"),
        _words("pending"),
        _words("failed"),
        unless="captured",
        moved="amount_captured",
    ),
    "payment_intent": Lifecycle(
        _words("succeeded"),
        _words(_PENDING_INTENT),
        _words("canceled requires_payment_method"),
        # An intent made without a payment method waits for one; it has failed once it says why.
        after=("requires_payment_method", "last_payment_error"),
        moved="amount_received",
    ),
    "payout": Lifecycle(_words("paid"), _words("in_transit pending"), _words("canceled failed")),
    "topup": Lifecycle(_words("succeeded"), _words("pending"), _words("canceled failed reversed")),
    "refund": Lifecycle(
        _words("succeeded"), _words("pending requires_action"), _words("canceled failed")
    ),
}


def _reads(object_type: str, collection: str, *below: str) -> list[Route]:
    templates = (collection + each for each in ("", *below))
    return [Route(f"GET {each}", object_type, Moves.READS) for each in templates]


def _metered(
    object_type: str, collection: str, filters: tuple[str, ...], steps: Mapping[str, str | None]
) -> list[Route]:
    """Return the row that makes an object, and those of the `steps` that go on with it.

    Of each step, it is the parameter that tells what the whole comes to then, if any.
    """
    made = Route(f"POST {collection}", object_type, Moves.METERED, Listing(collection, filters))
    return [
        made,
        *(
            Route(made.endpoint + step, object_type, belongs_to=made.endpoint, total=total)
            for step, total in steps.items()
        ),
    ]


def _writes(object_type: str, *endpoints: str) -> list[Route]:
    return [Route(each, object_type) for each in endpoints]


def _invoice_paid(endpoint: str, begins: str) -> Route:
    """Return the row of an endpoint that pays, or commits to pay, what is left of an invoice.

    It takes no mark: a charge of that customer and amount may be its own.
    """
    charges = Listing("/v1/charges", ("customer",))
    return Route(endpoint, "invoice", Moves.READ_FIRST, charges, standing=_words(begins))


ROUTES: Final[tuple[Route, ...]] = (
    # A capture's amount is optional: without it, what was authorised.
    *_metered("charge", "/v1/charges", ("customer",), {"/*/capture": "amount", "/*": None}),
    *_reads("charge", "/v1/charges", "/search", "/*"),
    *_metered(
        "payment_intent",
        "/v1/payment_intents",
        ("customer",),
        {
            # These tell a new total, but in the currency of the stored intent.
            "/*": "amount",
            "/*/increment_authorization": "amount",
            "/*/capture": "amount_to_capture",
            "/*/confirm": None,
            "/*/cancel": None,
        },
    ),
    *_reads("payment_intent", "/v1/payment_intents", "/search", "/*"),
    *_metered("payout", "/v1/payouts", (), dict.fromkeys(("/*", "/*/cancel", "/*/reverse"))),
    *_reads("payout", "/v1/payouts", "/*"),
    *_metered("topup", "/v1/topups", (), {"/*/cancel": None}),
    *_reads("topup", "/v1/topups", "/*"),
    *_reads("refund", "/v1/refunds", "/*"),
    # A refund may leave its amount to Stripe, and is never more than what is left of its charge.
    Route(
        "POST /v1/refunds",
        "refund",
        Moves.READ_FIRST,
        Listing("/v1/refunds", ("charge",)),
        total="amount",
    ),
    *_writes("refund", "POST /v1/refunds/*", "POST /v1/refunds/*/cancel"),
    *_reads("transfer", "/v1/transfers", "/*"),
    # Transfers may leave the amount to Stripe: the rest of the charge.
    Route("POST /v1/transfers", "transfer", listing=Listing("/v1/transfers", ("destination",))),
    *_writes("transfer", "POST /v1/transfers/*", "POST /v1/transfers/*/reversals"),
    *_reads("invoice", "/v1/invoices", "/search", "/*"),
    _invoice_paid("POST /v1/invoices/*/finalize", "draft"),
    _invoice_paid("POST /v1/invoices/*/pay", "draft open uncollectible"),
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
    *_reads("subscription", "/v1/subscriptions", "/search", "/*"),
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
    *_reads("dispute", "/v1/disputes", "/*"),
    *_reads("customer", "/v1/customers", "/search", "/*"),
    *_reads("payment_method", "/v1/customers/*/payment_methods", "/*"),
    *_reads("payment_method", "/v1/payment_methods", "/*"),
    *_writes("customer", "POST /v1/customers", "POST /v1/customers/*"),
    *_reads("account", "/v1/account"),
    *_reads("balance", "/v1/balance"),
    *_reads("balance_transaction", "/v1/balance_transactions", "/*"),
    *_reads("event", "/v1/events", "/*"),
    *_reads("product", "/v1/products", "/*"),
    *_reads("price", "/v1/prices", "/*"),
)

ENDPOINTS: Final[Mapping[str, Route]] = MappingProxyType(
    {route.endpoint: route for route in ROUTES}
)

CHARGED_BY: Final = frozenset({"POST /v1/charges", "POST /v1/payment_intents"})
"""The endpoints whose operations are charges, as people count them."""

# Where money is asked for that the request tells.
METERED: Final = tuple(route.endpoint for route in ROUTES if route.moves is Moves.METERED)

_TEMPLATES: Final = frozenset(route.template for route in ROUTES)
