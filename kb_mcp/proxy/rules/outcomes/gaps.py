"""Gaps: objects at Stripe that this store made and does not know, as after a restore.

Floor: the rules of wing B. Pure. A store that lost commits still has its id, and every object
that it made carries it. Such an object that moved or holds money must be the object of its attempt
here; that the operation exists is not enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from kb_mcp.proxy.ledger.records import HOLDING, AttemptOutcome, OperationId, State
from kb_mcp.proxy.ledger.snapshot import KnownObjects
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Route
from kb_mcp.proxy.stripe.evidence import mark_of, marks, object_names, prove_object

# The lists to walk, each with the endpoint that makes its objects.
WALKED: tuple[tuple[str, Route], ...] = (
    ("/v1/charges", ENDPOINTS["POST /v1/charges"]),
    ("/v1/payment_intents", ENDPOINTS["POST /v1/payment_intents"]),
    ("/v1/refunds", ENDPOINTS["POST /v1/refunds"]),
)
# Codes of the audit rows that are alerted of.
GAP_FOUND = "ledger_gap"
WALK_FAILED = "walk_unread"
Item = Mapping[str, Any]


class Whose(Struct, frozen=True, kw_only=True):
    """Which marks count as this store's.

    `lineages` are the store's own, `foreign` those that an operator named as somebody else's.
    `any_store` is for a new store: every mark counts, whichever store made it.
    """

    store_id: str
    lineages: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()
    any_store: bool = False


def is_ours(item: Item, whose: Whose) -> bool:
    """Say whether `item` bears the mark of this store.

    Objects of a version before stores had ids bear a lineage alone: an unknown one counts as ours
    until it is named foreign.
    """
    metadata = marks(item)
    store, lineage = metadata.get("keybrake_store"), metadata.get("keybrake_key", "")
    if "keybrake_operation" not in metadata and store is None:
        return False
    if whose.any_store and lineage not in whose.foreign:
        return True
    if store is not None:
        return store == whose.store_id
    return lineage in whose.lineages or lineage not in whose.foreign


def holds_money(item: Item, route: Route) -> bool:
    """Say whether `item` moved money or may still; what failed or was cancelled proves nothing.

    What cannot be read counts as money.
    """
    made = prove_object(item, route)
    return made is None or made.verdict != "failed"


def lost_among(items: Iterable[Item], known: KnownObjects) -> tuple[list[str], set[OperationId]]:
    """Return which of `items`, all ours, are unknown here, and operations to look at once more.

    An attempt whose outcome is open is recovery's, and so is one that was voided a short while
    ago: recovery looks for its object again, and here it is.
    """
    lost: list[str] = []
    late: set[OperationId] = set()
    for item in items:
        if known.objects.intersection(object_names(item)):
            continue
        trace = known.attempts.get(mark_of(item) or "")
        if trace is None:
            lost.append(str(item.get("id")))
        elif trace.state in HOLDING and trace.outcome == AttemptOutcome.OPEN:
            continue
        elif trace.state == State.VOIDED and trace.next_read_at is not None:
            late.add(trace.operation_id)
        else:
            lost.append(str(item.get("id")))
    return lost, late
