"""What an answer from Stripe proves about a send, whatever else is known; and how its JSON is read.

Floor: above endpoints, below conclude. Pure: status, body and headers in, a proof out. The table is
that of docs/exactly-once.md; whether a no counts depends on open sends, and is conclude's to say.
An answer is read after money may have moved, so whatever is wrong with it (depth, size, encoding,
numbers, half a surrogate pair) must end as "cannot be read" and never as an exception.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import AuditDraft, OperationId
from kb_mcp.proxy.stripe.endpoints import Lifecycle, Route
from kb_mcp.proxy.stripe.messages import Answered, Lost, NotSent, UpstreamAnswer

CANCELED = "canceled"
DEPTH_MAX = 64
# More digits than any amount at Stripe, and few enough that sums of them fit every store.
AMOUNT_MAX = 10**15
LAST_SECOND = 4_102_444_800  # 2100-01-01
_ID = re.compile(r"[A-Za-z0-9_]{1,255}")
_CURRENCY = re.compile(r"[A-Za-z]{3}")
_WORD = re.compile(r"[A-Za-z0-9_.\-]{1,100}")
_REJECTIONS = frozenset({400, 401, 403, 404})


class Made(Struct, frozen=True):
    """Stripe has the object: its own status decides.

    `total` is what it is for and `moved` what it took, in minor units, where it says so. `facts`
    are its amount, currency, customer, charge and livemode, as far as it says them; of an invoice,
    `paid_by` is the charge or the intent that paid it, `paid_at` when (ms).
    """

    object_id: str
    stripe_status: str
    verdict: str  # done | pending | failed
    status: int
    body: bytes
    total: int | None = None
    moved: int | None = None
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The ids by which operations may own it: its own, and of what paid an invoice."""
        paid_by = self.facts.get("paid_by")
        return frozenset({self.object_id, *([paid_by] if isinstance(paid_by, str) else [])})


class Declined(Struct, frozen=True):
    """402: the key is spent on a decline, whoever sent it."""

    object_id: str | None
    status: int
    body: bytes
    code: str


class Rejected(Struct, frozen=True):
    """A 4xx that Stripe gives before it begins; `ours` means our own key was refused."""

    status: int
    body: bytes
    code: str
    ours: bool


class NeverBegan(Struct, frozen=True):
    """Nothing left us, or Stripe turned it away before the key was looked at (429, lock)."""

    code: str
    status: int | None = None
    body: bytes = b""


class Nothing(Struct, frozen=True):
    """Sent, and nobody can say what happened; `foreign` means that others used the key."""

    reason: str
    status: int | None = None
    foreign: bool = False


Proof = Made | Declined | Rejected | NeverBegan | Nothing


def prove(answer: UpstreamAnswer, route: Route) -> Proof:
    """Return what `answer` to a request on `route` proves."""
    if isinstance(answer, NotSent):
        return NeverBegan(answer.reason)
    if isinstance(answer, Lost):
        return Nothing(answer.reason)
    parsed = parse_object(answer.body) or {}
    if 200 <= answer.status < 300:
        made = prove_object(parsed, route, answer.body)
        if made is not None:
            return replace(made, status=answer.status)
    elif isinstance(error := parsed.get("error"), dict):
        return _prove_error(answer, error)
    return Nothing("unreadable", answer.status)


def prove_object(
    body: Mapping[str, Any], route: Route, written: bytes | None = None
) -> Made | None:
    """Return what an object that Stripe shows (in an answer or a list) proves, if it is one.

    `written` is the object as Stripe wrote it, where it came alone.
    """
    made_id, status, facts = object_id(body.get("id")), body.get("status", ""), _facts_of(body)
    if made_id is None or not isinstance(status, str) or (status and word(status) is None):
        return None
    if body.get("object", route.object_type) != route.object_type:
        return None
    verdict = _verdict(route.lifecycle, body)
    if verdict is None or facts is None or not _are_sound(route.lifecycle, body):
        return None
    if route.standing is not None:
        times = body.get("status_transitions")
        paid_at = created_ms(times.get("paid_at")) if isinstance(times, dict) else None
        paid = {"paid_by": payment_of(body), "paid_at": paid_at}
        facts |= {name: value for name, value in paid.items() if value is not None}
    if verdict == "failed" and status in route.lifecycle.done:
        status = CANCELED
    return Made(
        object_id=made_id,
        stripe_status=status,
        verdict=verdict,
        status=200,
        body=json.dumps(body, separators=(",", ":")).encode() if written is None else written,
        total=whole(body.get(route.lifecycle.total)),
        moved=whole(body.get(route.lifecycle.moved or "")),
        facts=facts,
    )


def customer_of(body: Mapping[str, Any]) -> str | None:
    """Return the customer of an object, be it an id or the customer itself."""
    return _id_of(body.get("customer"))


def payment_of(invoice: Mapping[str, Any], status: str = "paid") -> str | None:
    """Return the charge or the intent that paid `invoice`, where that says it.

    Stripe's versions before 2025-03-31 name them in the invoice, later ones in its payments, of
    which the newest of that `status` counts.
    """
    payments = invoice.get("payments")
    listed = payments.get("data") if isinstance(payments, dict) else None
    made = (
        each.get("payment")
        for each in (listed if isinstance(listed, list) else [])
        if isinstance(each, dict) and each.get("status") == status
    )
    values = (
        each.get(name)
        for each in (invoice, *made)
        if isinstance(each, Mapping)
        for name in ("charge", "payment_intent")
    )
    return next(filter(None, map(_id_of, values)), None)


def _id_of(value: object) -> str | None:
    """Return the id of an object that stands as its id, or as itself."""
    return object_id(value.get("id") if isinstance(value, dict) else value)


def _facts_of(body: Mapping[str, Any]) -> dict[str, object] | None:
    """Return what an object says of the request it came from; None where a value has no sense."""
    flag = body.get("livemode")
    read = {
        "amount": whole(body.get("amount")),
        "currency": currency(body.get("currency")),
        "livemode": flag if isinstance(flag, bool) else None,
        "customer": customer_of(body),
    }
    if any(body.get(name) is not None and value is None for name, value in read.items()):
        return None
    charge = body.get("charge")
    read |= {"charge": charge if isinstance(charge, str) else None}
    # That it has no customer is said, too.
    said = {"customer"} & body.keys()
    return {name: value for name, value in read.items() if value is not None or name in said}


def _are_sound(lifecycle: Lifecycle, body: Mapping[str, Any]) -> bool:
    """Say whether the fields by which a verdict is reached are of their kind, where they are."""
    flags = (body.get(lifecycle.unless or ""), body.get("refunded") if lifecycle.unless else None)
    amounts = (body.get(lifecycle.moved or ""), body.get(lifecycle.total))
    return all(flag is None or isinstance(flag, bool) for flag in flags) and all(
        amount is None or whole(amount) is not None for amount in amounts
    )


def _verdict(lifecycle: Lifecycle, body: Mapping[str, Any]) -> str | None:
    """Return done, pending or failed; None for a status that Stripe did not document."""
    status = body.get("status")
    if not lifecycle.done:
        return "done"
    if status in lifecycle.failed:
        begins, why = lifecycle.after or ("", "")
        return "pending" if status == begins and not body.get(why) else "failed"
    if status in lifecycle.pending:
        return "pending"
    if status not in lifecycle.done:
        return None
    if not lifecycle.unless or body.get(lifecycle.unless) is not False:
        return "done"
    # An authorisation that was let go of is shown as refunded, and never captured.
    return "failed" if body.get("refunded") is True else "pending"


def _prove_error(answer: Answered, error: Mapping[str, Any]) -> Proof:
    code, kind = word(error.get("code")), word(error.get("type"))
    if kind == "idempotency_error" or code == "idempotency_key_in_use":
        return Nothing("the key is in use outside the ledger", answer.status, foreign=True)
    if answer.status == 402:
        intent = error.get("payment_intent")
        left = _id_of(intent) if isinstance(intent, dict) else object_id(error.get("charge"))
        return Declined(left, 402, answer.body, code or "card_declined")
    if answer.status == 429 or code == "lock_timeout":
        return NeverBegan(code or "rate_limited", answer.status, answer.body)
    if answer.status in _REJECTIONS:
        ours = answer.status in {401, 403}
        return Rejected(answer.status, answer.body, code or kind or "rejected", ours)
    return Nothing(f"status {answer.status}", answer.status)


class Ending(Struct, frozen=True, kw_only=True):
    """One send, or one reading of Stripe begun at `read_at`, that ended with `proof`.

    `token` is the fencing token under which it was sent or read. `daily_declines` is the policy's
    limit, past which the lineage freezes.
    """

    operation_id: OperationId
    attempt: int
    token: int
    proof: Proof
    daily_declines: int
    request: AuditDraft
    read_at: int | None = None


def parse_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object in `body`, or None where it is no object that can be kept."""
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict) or _is_deeper(parsed, DEPTH_MAX):
        return None
    return parsed


def object_id(value: object) -> str | None:
    """Return `value` where it can be the id of an object: it goes into paths and into the store."""
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def word(value: object) -> str | None:
    """Return `value` where it is a code or a status: a short word, safe to store."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def whole(value: object) -> int | None:
    """Return `value` where it is an amount that can be: a boolean or a float is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= AMOUNT_MAX else None


def created_ms(value: object) -> int | None:
    """Return when an object was created, in ms; None where it says no second of our time."""
    seconds = whole(value)
    return seconds * 1000 if seconds is not None and seconds <= LAST_SECOND else None


def currency(value: object) -> str | None:
    """Return `value` where it is a currency's code, in lower case."""
    return value.lower() if isinstance(value, str) and _CURRENCY.fullmatch(value) else None


def _is_deeper(value: dict[str, Any] | list[Any], levels: int) -> bool:
    """Say whether objects and lists stand in each other more than `levels` deep."""
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(
        _is_deeper(each, levels - 1) for each in inside if isinstance(each, dict | list)
    )


def marks(item: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of an object; what is no text is left out."""
    metadata = item.get("metadata")
    if not isinstance(metadata, dict):
        return {}
    return {name: value for name, value in metadata.items() if isinstance(value, str)}


def mark_of(item: Mapping[str, Any]) -> str | None:
    """Return the upstream key that an object of ours is marked with."""
    return marks(item).get("keybrake_attempt")


def object_names(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ids under which an operation may know an object: its own, or its intent's.

    A refund names the intent of its charge, which is not its own.
    """
    intent = item.get("payment_intent")
    if item.get("object", "charge") == "charge" and isinstance(intent, str):
        return (str(item["id"]), intent)
    return (str(item["id"]),)
