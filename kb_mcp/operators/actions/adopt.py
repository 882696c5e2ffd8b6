"""Adopting: operations and windows of charges that Stripe has and the ledger lacks.

Floor: wing B, above reconcile and the ledger. Once adopted, a bill is not billed again: its
period, its amount and its name are guarded like those of any succeeded operation. Adopted charges
passed no cap of ours, so they are flagged as overshoot, as one that turns up late is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from kb_mcp.idempotency import CUSTOMER_ID, REFERENCE, body_name, idempotency_key
from kb_mcp.money import Money
from kb_mcp.operators.reports.reconcile import Charge, marks, object_names
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
)
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import settle, windows_of
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Route
from kb_mcp.proxy.stripe.forms import Form
from kb_mcp.proxy.stripe.interpret import Reading, fingerprint

# Whose charges they count as that no key of ours made.
NOBODY = "adopted"
_OPERATION_ID = re.compile(r"op_[0-9a-f]{24}")
_ATTEMPT_SUFFIX = re.compile(r"-[0-9]+$")


@dataclass(frozen=True, slots=True)
class Adopted:
    """A charge that is now an operation, or would be one."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Left:
    """A charge that was not adopted, and why."""

    why: str


def period_of(charge: Charge, period_from: str) -> Period | None:
    """Return the period a charge says it is for.

    `period_from` is `description`, `metadata:NAME` or `none`. Marked charges are ours: their
    `billing_period` counts whatever it says.
    """
    metadata = marks(charge)
    texts = [metadata.get("billing_period")] if "keybrake_operation" in metadata else []
    if period_from.startswith("metadata:"):
        texts.append(metadata.get(period_from.removeprefix("metadata:")))
    for text in texts:
        try:
            return parse_period(text or "")
        except PeriodError:
            continue
    description = charge.get("description")
    if period_from == "description" and isinstance(description, str):
        return period_from_description(description)
    return None


def operation_of(
    charge: Charge,
    period: Period | None,
    lineages: Mapping[str, KeyId],
    now: int,
    fresh_id: OperationId,
) -> tuple[Operation, Attempt]:
    """Return the operation that `charge` stands for, and its one attempt.

    `lineages` are the store's own, each with a key of it; `fresh_id` is used where the charge
    bears no operation's id. `created` is in seconds at Stripe.
    """
    metadata, names = marks(charge), object_names(charge)
    mark, lineage = metadata.get("keybrake_operation", ""), metadata.get("keybrake_key", "")
    intent = len(names) > 1
    route = ENDPOINTS["POST /v1/payment_intents" if intent else "POST /v1/charges"]
    created_ms = int(charge["created"]) * 1000
    final = charge.get("status") == "succeeded" and charge.get("captured") is not False
    reference = metadata.get("reference") if mark and period else None
    name, named_by = _name(charge, period, reference)
    customer = charge.get("customer") or None
    money = Money(int(charge["amount"]), str(charge["currency"]))
    operation = Operation(
        id=OperationId(mark) if _OPERATION_ID.fullmatch(mark) else fresh_id,
        name=name,
        named_by=named_by,
        route=route.endpoint,
        customer=customer,
        amount=money.amount,
        currency=money.currency,
        period=None if period is None else period.label,
        period_start=None if period is None else period.start.isoformat(),
        period_end=None if period is None else period.end.isoformat(),
        reference=reference,
        fingerprint=_fingerprint(route, customer, money, period, reference),
        upstream_name=_ATTEMPT_SUFFIX.sub("", metadata.get("keybrake_attempt", name)),
        state=S.SUCCEEDED,
        final=final,
        held=money.amount,
        reserved_at=created_ms,
        first_arrival_at=created_ms,
        attempt=1,
        key_id=lineages.get(lineage, KeyId(NOBODY)),
        lineage_id=LineageId(lineage if lineage in lineages else NOBODY),
        object_id=names[-1],
        stripe_status=str(charge.get("status")),
        answer_status=None if intent else 200,
        answer=None if intent else json.dumps(charge, separators=(",", ":")).encode(),
        overshoot=True,
        next_read_at=None if final else now,
        created_at=created_ms,
        updated_at=now,
    )
    return operation, _attempt_of(operation, metadata.get("keybrake_attempt"))


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
        generation = 0 if newest is None else newest.generation + 1
        kept = replace(operation, generation=generation)
        changes = Changes(
            operations=(kept,),
            attempts=(attempt,),
            windows=settle(snapshot, kept, kept.held, held=False),
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
        number=1,
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
