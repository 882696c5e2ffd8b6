"""Adopting: operations and windows of charges that Stripe has and the ledger lacks.

Floor: operators, above reports and the ledger. Once adopted, a bill is not billed again: its
period, its amount and its name are guarded like those of any succeeded operation. Adopted charges
passed no cap of ours, so they are flagged as overshoot, as one that turns up late is. What is not
final at Stripe is not final here: it is held in the windows of its creation until it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from msgspec.structs import replace

from kb_mcp.idempotency import CUSTOMER_ID, REFERENCE, body_name, idempotency_key
from kb_mcp.instants import day_of
from kb_mcp.money import Money
from kb_mcp.operators.reports.reconcile import Charge
from kb_mcp.periods import Period, PeriodError, parse_period, period_from_description
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import (
    HOLDING,
    Attempt,
    AttemptOutcome,
    AuditDraft,
    Changes,
    KeyId,
    LineageId,
    NamedBy,
    Operation,
    OperationId,
    Refs,
    Window,
    WindowKey,
)
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_of
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Route
from kb_mcp.proxy.stripe.evidence import Made, prove_object
from kb_mcp.proxy.stripe.forms import Form
from kb_mcp.proxy.stripe.interpret import Reading, fingerprint
from kb_mcp.proxy.stripe.json_objects import marks, object_names

# Whose charges they count as that no key of ours made.
NOBODY = "adopted"
# What a request moves that does not tell its amount, in ISO 4217's code for no currency.
UNTOLD = Money(0, "xxx")
_OPERATION_ID = re.compile(r"op_[0-9a-f]{24}")
_ATTEMPT_SUFFIX = re.compile(r"-([0-9]+)$")
_REOPENED_SUFFIX = re.compile(r"-r([0-9]{1,9})$")
# A bill without a period that is made in the last days of a month may be the next month's.
LAST_DAYS = 3
UNREADABLE = (
    "no period can be read from it: say --period-from metadata:NAME, created (the month of its "
    "creation), or none"
)


@dataclass(frozen=True, slots=True)
class Adopted:
    """A charge that is now an operation, or would be one."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Left:
    """A charge that was not adopted, and why."""

    why: str


def period_of(charge: Charge, period_from: str) -> Period | Left | None:
    """Return the period that a charge is for, None where it has none; Left where none is read.

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
    for text in texts:
        try:
            return parse_period(text or "")
        except PeriodError:
            continue
    if described is not None and (ours or period_from == "description"):
        return described
    if period_from == "none" or (ours and "billing_period" not in metadata):
        return None
    if period_from == "created":
        return parse_period(f"{day_of(int(charge['created']) * 1000):%Y-%m}")
    return Left(UNREADABLE)


def suspected_days(created_ms: int) -> tuple[str, str]:
    """Return the first and the last day of bills that a charge without a period may be.

    The month of its creation, and the next one where it was made in that month's last days.
    """
    day = day_of(created_ms)
    month = parse_period(f"{day:%Y-%m}")
    last = month.end
    if (last - day).days < LAST_DAYS:
        last = parse_period(f"{last + timedelta(days=1):%Y-%m}").end
    return month.start.isoformat(), last.isoformat()


def route_of(item: Charge) -> Route:
    """Return the endpoint that made `item`; the charge of an intent was made through the intent."""
    if item.get("object") == "refund":
        return ENDPOINTS["POST /v1/refunds"]
    intent = item.get("object") == "payment_intent" or len(object_names(item)) > 1
    return ENDPOINTS["POST /v1/payment_intents" if intent else "POST /v1/charges"]


def proof_of(item: Charge) -> Made | None:
    """Return what `item` proves by its own status; None where that cannot be read."""
    own = {"charge": "POST /v1/charges", "payment_intent": "POST /v1/payment_intents"}
    kind = str(item.get("object", "charge"))
    return prove_object(item, ENDPOINTS[own.get(kind, "POST /v1/refunds")])


def operation_of(
    charge: Charge,
    period: Period | None,
    lineages: Mapping[str, KeyId],
    now: int,
    fresh_id: OperationId,
) -> tuple[Operation, Attempt]:
    """Return the operation that `charge` stands for, and its one attempt.

    `charge` may be an intent or a refund, too. `lineages` are the store's own, each with a key of
    it; `fresh_id` is used where the charge bears no operation's id. `created` is in seconds at
    Stripe. A refund is no spend: it holds nothing in the windows.
    """
    metadata, names = marks(charge), object_names(charge)
    mark, lineage = metadata.get("keybrake_operation", ""), metadata.get("keybrake_key", "")
    attempt_mark = metadata.get("keybrake_attempt")
    route, made = route_of(charge), proof_of(charge)
    refund = route.object_type == "refund"
    created_ms = int(charge["created"]) * 1000
    final = made is not None and made.verdict == "done"
    reference = metadata.get("reference") if mark and period else None
    name, named_by = _name(charge, period, reference)
    customer = charge.get("customer") or None
    money = UNTOLD if refund else Money(int(charge["amount"]), str(charge["currency"]))
    first, last = (None, None) if refund else _days_of(period, customer, created_ms)
    moved = made.moved if final and made is not None and made.moved is not None else money.amount
    operation = Operation(
        id=marked_id(mark, fresh_id),
        name=name,
        named_by=named_by,
        route=route.endpoint,
        customer=customer,
        amount=money.amount,
        currency=money.currency,
        period=None if period is None else period.label,
        period_start=first,
        period_end=last,
        reference=reference,
        fingerprint=_fingerprint(route, customer, money, period, reference),
        upstream_name=_ATTEMPT_SUFFIX.sub("", attempt_mark or name),
        state=S.SUCCEEDED,
        final=final,
        held=0 if refund else moved,
        reserved_at=created_ms,
        first_arrival_at=created_ms,
        attempt=number_of(attempt_mark),
        key_id=lineages.get(lineage, KeyId(NOBODY)),
        lineage_id=LineageId(lineage if lineage in lineages else NOBODY),
        object_id=names[-1],
        stripe_status=str(charge.get("status")),
        answer_status=None if len(names) > 1 else 200,
        answer=None if len(names) > 1 else json.dumps(charge, separators=(",", ":")).encode(),
        overshoot=True,
        refunded_at=now if final and charge.get("refunded") is True else None,
        next_read_at=None if final else now,
        created_at=created_ms,
        updated_at=now,
    )
    return operation, _attempt_of(operation, attempt_mark)


async def adopt(
    ledger: Ledger, operation: Operation, attempt: Attempt, operator: str
) -> Adopted | Left:
    """Write an adopted operation, its attempt and what it counts for, in one transaction.

    Another operation of the same name becomes the older generation; an unresolved one must not,
    since it may be this very charge.
    """

    def step(snapshot: Snapshot) -> tuple[Adopted | Left, Changes]:
        if operation.object_id in snapshot.object_owners or operation.id in snapshot.operations:
            return Left("the ledger has it meanwhile"), Changes()
        newest = snapshot.newest(operation.name)
        if newest is not None and newest.state in HOLDING:
            return Left(f"operation {newest.id} of the same bill is unresolved"), Changes()
        # K-r2 alone is the third generation: the next one must not be called K-r2 again.
        generation = max(_generation_of(operation), 0 if newest is None else newest.generation + 1)
        kept = replace(operation, generation=generation)
        older = (
            (replace(newest, successor=kept.id, updated_at=snapshot.now),)
            if newest is not None and newest.refunded and newest.successor is None
            else ()
        )
        changes = Changes(
            operations=(*older, kept),
            attempts=(attempt,),
            windows=counted(snapshot, None, kept),
            audit=(_row(kept, operator),),
        )
        return Adopted(kept), changes

    refs = Refs(
        operations=frozenset({operation.id}),
        names=frozenset({operation.name}),
        objects=frozenset({str(operation.object_id)}),
        windows=frozenset(windows_of(operation).all()),
    )
    return await ledger.transact(lambda _: refs, step)


def counted(snapshot: Snapshot, before: Operation | None, after: Operation) -> tuple[Window, ...]:
    """Return the windows once `after` counts in the place of `before`: spend if it is final."""
    changed: dict[WindowKey, Window] = {}
    if before is not None and before.held:
        for key in windows_of(before).money():
            window = snapshot.window(key)
            settled = before.state is S.SUCCEEDED and before.final
            changed[key] = (
                replace(window, settled=window.settled - before.held)
                if settled
                else replace(window, reserved=window.reserved - before.held)
            )
    for key in windows_of(after).money() if after.held else ():
        window = changed.get(key) or snapshot.window(key)
        changed[key] = (
            replace(window, settled=window.settled + after.held)
            if after.final
            else replace(window, reserved=window.reserved + after.held)
        )
    return tuple(changed.values())


def _days_of(
    period: Period | None, customer: str | None, created_ms: int
) -> tuple[str, str] | tuple[None, None]:
    """Return the days that a charge bills, or may bill where it says no period."""
    if period is not None:
        return period.start.isoformat(), period.end.isoformat()
    return (None, None) if customer is None else suspected_days(created_ms)


def marked_id(mark: object, fresh_id: OperationId) -> OperationId:
    """Return the id of the operation that a mark names; `fresh_id` where it names none."""
    named = isinstance(mark, str) and _OPERATION_ID.fullmatch(mark)
    return OperationId(str(mark)) if named else fresh_id


def number_of(attempt_mark: str | None) -> int:
    """Return which attempt of its operation a mark stands for: 2 for K-2, 1 for K and K-r1."""
    found = _ATTEMPT_SUFFIX.search(attempt_mark or "")
    return max(int(found[1]), 1) if found and len(found[1]) < 10 else 1


def _generation_of(operation: Operation) -> int:
    found = _REOPENED_SUFFIX.search(operation.upstream_name)
    return int(found[1]) if found else 0


def _name(charge: Charge, period: Period | None, reference: str | None) -> tuple[str, NamedBy]:
    customer = charge.get("customer")
    if period is not None and isinstance(customer, str) and CUSTOMER_ID.fullmatch(customer):
        sound = reference if reference and REFERENCE.fullmatch(reference) else None
        try:
            key = idempotency_key(
                customer, charge["amount"], period.label, charge["currency"], sound
            )
        except ValueError:
            # Stripe took an amount that we would not: its period is guarded all the same.
            pass
        else:
            return key, NamedBy.CONTENT
    return body_name(str(charge["id"]).encode(), NOBODY), NamedBy.EXPLICIT


def _fingerprint(
    route: Route,
    customer: str | None,
    money: Money,
    period: Period | None,
    reference: str | None,
) -> str:
    """Return the fingerprint of the request the tools would send for this bill."""
    reading = Reading(
        route=route,
        path=route.template,
        form=Form(()),
        customer=customer,
        money=money,
        period=period,
        reference=reference,
    )
    return fingerprint(reading)


def _attempt_of(operation: Operation, mark: str | None) -> Attempt:
    return Attempt(
        operation_id=operation.id,
        number=operation.attempt,
        upstream_key=mark or f"{NOBODY}-{operation.object_id}",
        path=ENDPOINTS[operation.route].template,
        stripe_version=None,
        body=b"",
        first_sent_at=operation.reserved_at,
        last_sent_at=operation.reserved_at,
        open_sends=0,
        status=200,
        object_id=operation.object_id,
        outcome=AttemptOutcome.SUCCEEDED,
        key_id=operation.key_id,
    )


def _row(operation: Operation, operator: str) -> AuditDraft:
    return AuditDraft(
        kind="admin",
        decision="adopt",
        agent_id=operator,
        operation_id=operation.id,
        amount=operation.amount,
        currency=operation.currency,
        customer_id=operation.customer,
        object_id=operation.object_id,
    )
