"""What an object at Stripe stands for: the operation of a charge, an intent or a refund.

Floor: operators, above reports and the ledger. Pure. Once adopted, a bill is not billed again: its
period, its amount and its name are guarded like those of any succeeded operation. Adopted charges
passed no cap of ours, so they are flagged as overshoot, as one that turns up late is. What is not
final at Stripe is not final here: it is held in the windows of its creation until it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from msgspec.structs import replace

from kb_mcp.idempotency import CUSTOMER_ID, REFERENCE, body_name, idempotency_key, refund_name
from kb_mcp.instants import day_of
from kb_mcp.money import Money
from kb_mcp.operators.actions.operations import NotDone, lost_attempt
from kb_mcp.periods import Period, find_period, parse_period, period_from_description
from kb_mcp.proxy.ledger import records
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.rules.duplicates import refund_fingerprint
from kb_mcp.proxy.rules.outcomes.matching import Item
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Route
from kb_mcp.proxy.stripe.evidence import Made, marks, object_names, prove_object
from kb_mcp.proxy.stripe.forms import Form
from kb_mcp.proxy.stripe.interpret import Reading, fingerprint

# Whose charges they count as that no key of ours made.
NOBODY = "adopted"
_OPERATION_ID = re.compile(r"op_[0-9a-f]{24}")
_ATTEMPT_SUFFIX = re.compile(r"-([0-9]+)$")
# A bill without a period that is made in the last days of a month may be the next month's.
LAST_DAYS = 3
UNREADABLE = (
    "no period can be read from it: say --period-from metadata:NAME, created (the month of its "
    "creation), or none"
)


def period_of(charge: Item, period_from: str) -> Period | NotDone | None:
    """Return the period that a charge is for, None where it has none; NotDone where none is read.

    `period_from` is `description`, `metadata:NAME`, `created` (the month of its creation) or
    `none`. Marked charges are ours: their `billing_period` counts whatever `period_from` says, and
    one without it, whose description names none either, was made without a period.
    """
    metadata, description = marks(charge), charge.get("description")
    ours = "keybrake_operation" in metadata
    described = period_from_description(description) if isinstance(description, str) else None
    texts = [metadata.get("billing_period")] if ours else []
    if period_from.startswith("metadata:"):
        texts.append(metadata.get(period_from.removeprefix("metadata:")))
    found = next(filter(None, map(find_period, texts)), None)
    if found is not None:
        return found
    if described is not None and (ours or period_from == "description"):
        return described
    if period_from == "none" or (ours and "billing_period" not in metadata):
        return None
    if period_from == "created":
        return parse_period(f"{day_of(int(charge['created']) * 1000):%Y-%m}")
    return NotDone(UNREADABLE)


def suspected_days(created_ms: int) -> tuple[str, str]:
    """Return the first and the last day of bills that a charge without a period may be.

    The month of its creation, and the next one where it was made in that month's last days.
    """
    day = day_of(created_ms)
    first, last = (parse_period(f"{each:%Y-%m}") for each in (day, day + timedelta(days=LAST_DAYS)))
    return first.start.isoformat(), last.end.isoformat()


def route_of(item: Item) -> Route:
    """Return the endpoint that made `item`; the charge of an intent was made through the intent."""
    kind = "payment_intent" if len(object_names(item)) > 1 else item.get("object", "charge")
    return ENDPOINTS[f"POST /v1/{kind}s"]


def proof_of(item: Item) -> Made | None:
    """Return what `item` proves by its own status; None where that cannot be read."""
    route = ENDPOINTS.get(f"POST /v1/{item.get('object', 'charge')}s")
    return None if route is None else prove_object(item, route)


def operation_of(
    item: Item,
    period: Period | None,
    lineages: Mapping[str, records.KeyId],
    now: int,
    fresh_id: records.OperationId,
) -> tuple[records.Operation, records.Attempt]:
    """Return the operation that `item` stands for, and its one attempt.

    `item` is a charge, an intent, or a refund with the `customer` of its charge. `lineages` are the
    store's own, each with a key of it; `fresh_id` is used where the item bears no operation's id.
    `created` is in seconds at Stripe.
    """
    metadata, object_id = marks(item), object_names(item)[-1]
    lineage, mark = metadata.get("keybrake_key", ""), metadata.get("keybrake_attempt", "")
    marked_id, number = metadata.get("keybrake_operation", ""), _ATTEMPT_SUFFIX.search(mark)
    created_ms = int(item["created"]) * 1000
    money = Money(int(item["amount"]), str(item["currency"]))
    fields = _of_refund(item, money) if is_refund(item) else _of_charge(item, money, period)
    operation = records.Operation(
        id=records.OperationId(marked_id) if _OPERATION_ID.fullmatch(marked_id) else fresh_id,
        route=route_of(item).endpoint,
        customer=item.get("customer") or None,
        amount=money.amount,
        currency=money.currency,
        period=None if period is None else period.label,
        upstream_name=_ATTEMPT_SUFFIX.sub("", mark or fields["name"]),
        state=S.SUCCEEDED,
        reserved_at=created_ms,
        first_arrival_at=created_ms,
        # 2 for K-2, 1 for K and K-r1.
        attempt=max(int(number[1]), 1) if number and len(number[1]) < 10 else 1,
        key_id=lineages.get(lineage, records.KeyId(NOBODY)),
        lineage_id=records.LineageId(lineage if lineage in lineages else NOBODY),
        object_id=object_id,
        stripe_status=str(item.get("status")),
        overshoot=True,
        refunded_at=now if fields["final"] and item.get("refunded") is True else None,
        next_read_at=None if fields["final"] else now,
        created_at=created_ms,
        updated_at=now,
        **fields,
    )
    attempt = lost_attempt(
        operation, operation.attempt, mark or f"{NOBODY}-{object_id}", created_ms
    )
    ended = records.AttemptOutcome.SUCCEEDED
    made = replace(attempt, open_sends=0, status=200, object_id=object_id, outcome=ended)
    return operation, made


def is_refund(item: Item) -> bool:
    """Say whether an object at Stripe is a refund."""
    return item.get("object") == "refund"


def _of_charge(charge: Item, money: Money, period: Period | None) -> dict[str, Any]:
    made, customer, route = proof_of(charge), charge.get("customer") or None, route_of(charge)
    final = made is not None and made.verdict == "done"
    moved = made.moved if made is not None and final else None
    ours = marks(charge).get("keybrake_operation") and period
    reference = marks(charge).get("reference") if ours else None
    days: tuple[str | None, str | None] = (None, None)
    if period is not None:
        days = period.start.isoformat(), period.end.isoformat()
    elif customer is not None:
        days = suspected_days(int(charge["created"]) * 1000)
    name, named_by = _name(charge, period, reference)
    # The request that the tools would send for this bill.
    reading = Reading(
        route=route,
        path=route.template,
        form=Form(()),
        customer=customer,
        money=money,
        period=period,
        reference=reference,
    )
    by_intent = len(object_names(charge)) > 1
    return {
        "name": name,
        "named_by": named_by,
        "period_start": days[0],
        "period_end": days[1],
        "reference": reference,
        "fingerprint": fingerprint(reading),
        "final": final,
        "held": money.amount if moved is None else moved,
        "answer_status": None if by_intent else 200,
        "answer": None if by_intent else json.dumps(charge, separators=(",", ":")).encode(),
    }


def _of_refund(refund: Item, money: Money) -> dict[str, Any]:
    """Return what is a refund's own; it is no spend, and is read again in any case.

    One without our mark is named by its own id: it stands beside the refunds that are asked for
    here, and leaves them so much less of the charge.
    """
    said = marks(refund).get("reference") if marks(refund).get("keybrake_attempt") else refund["id"]
    reference = said if isinstance(said, str) and REFERENCE.fullmatch(said) else None
    charge = str(refund["charge"])
    return {
        "name": refund_name(charge, reference),
        "named_by": records.NamedBy.CONTENT,
        "reference": reference,
        "fingerprint": refund_fingerprint(charge, money, reference),
        "gives_back": charge,
        "final": refund.get("status") == "succeeded",
        "held": money.amount,
    }


def _name(
    charge: Item, period: Period | None, reference: str | None
) -> tuple[str, records.NamedBy]:
    customer = charge.get("customer")
    if period is not None and isinstance(customer, str) and CUSTOMER_ID.fullmatch(customer):
        sound = reference if reference and REFERENCE.fullmatch(reference) else None
        bill = (customer, charge["amount"], period.label, charge["currency"], sound)
        # Stripe took an amount that we would not: its period is guarded all the same.
        with suppress(ValueError):
            return idempotency_key(*bill), records.NamedBy.CONTENT
    return body_name(str(charge["id"]).encode(), NOBODY), records.NamedBy.EXPLICIT
