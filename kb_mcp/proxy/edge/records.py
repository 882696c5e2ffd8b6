"""Records for people: what `--json`, the admin API and `/keybrake/v1` show.

Floor: the bottom of the edge. What is shown is handed over or read from the store. Money is integer
minor units beside `currency`, times are RFC 3339 UTC.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.access.grants import claims_of
from kb_mcp.proxy.access.policy import CapRules, Policy, RefundCapRules
from kb_mcp.proxy.ledger.records import Attempt, Grant, Lineage, Operation, State, VaultKey
from kb_mcp.proxy.ledger.windows import REFUNDS
from kb_mcp.proxy.stores.gauges import KeySpend
from kb_mcp.proxy.stores.reads import StoreReads

Record = dict[str, Any]
PAGE = 1_000  # operations held at a time: a ledger may hold millions


class Spend(Struct, frozen=True, gc=False):
    """What is held in a window against its cap, in minor units; `window_start` is its first day.

    A struct and no record: there are two for each of tens of thousands of keys.
    """

    key_id: str | None
    scope: str
    window: str
    window_start: str
    currency: str
    cap: int | None
    settled: int
    reserved: int
    left: int | None


async def every_operation(records: StoreReads) -> AsyncIterator[tuple[Operation, list[Attempt]]]:
    """Yield every operation with its attempts, newest first: a page at a time, of any ledger.

    Raises: LedgerUnavailableError.
    """
    page = await records.operations(limit=PAGE)
    while page:
        for each in page:
            yield each
        page = await records.operations(limit=PAGE, after=page[-1][0].id)


def payment_of_invoice(operation: Operation, attempts: Iterable[Attempt]) -> str | None:
    """Return the charge or intent that paid the invoice of `operation`, as far as it is known."""
    paid = (each.object_id for each in attempts if each.object_id is not None)
    return next(paid, None) if operation.pays_invoice else None


async def operation_records(
    records: StoreReads, found: Iterable[tuple[Operation, list[Attempt]]], now: int
) -> list[Record]:
    """Return operations as commands and APIs show them at `now` (ms).

    `approval` is the state of the approval that one waits for, which may be decided by now.
    Raises: LedgerUnavailableError.
    """
    found = list(found)
    waiting = [each.id for each, _ in found if each.state is State.AWAITING_APPROVAL]
    asked = await records.approvals_of(waiting) if waiting else []
    states = {each.id: each.state_at(now) for each in asked}
    return [operation_record(*each, states.get(each[0].approval_id or "")) for each in found]


def operation_record(
    operation: Operation, attempts: Iterable[Attempt], approval: str | None = None
) -> Record:
    """Return an operation; `approval` is the state of the approval that it waits for."""
    attempts, named = list(attempts), dict[str, Any]()
    charge = operation.object_id
    if operation.pays_invoice:
        charge, named = payment_of_invoice(operation, attempts), {"invoice_id": charge}
    elif operation.gives_back is not None:
        charge, named = operation.gives_back, {"refund_id": charge}
    return {
        "kind": operation.kind,
        "id": operation.id,
        "state": operation.state.value,
        "approval": approval,
        "final": operation.final,
        "amount": operation.amount,
        "currency": operation.currency,
        "customer_id": operation.customer,
        "billing_period": operation.period,
        "reference": operation.reference,
        "charge_id": charge,
        **named,
        "stripe_status": operation.stripe_status,
        "idempotency_key": operation.upstream_name,
        "attempts": [attempt_record(attempt) for attempt in attempts],
        "key_id": operation.key_id,
        "code": operation.code,
        "overshoot": operation.overshoot,
        "created_at": rfc3339(operation.created_at),
        "updated_at": rfc3339(operation.updated_at),
    }


def attempt_record(attempt: Attempt) -> Record:
    """Return an attempt as commands and APIs show it."""
    return {
        "upstream_key": attempt.upstream_key,
        "first_sent_at": rfc3339(attempt.first_sent_at),
        "last_sent_at": rfc3339(attempt.last_sent_at),
        "status": attempt.outcome.value,
        "object_id": attempt.object_id,
    }


def key_record(key: VaultKey, lineage: Lineage, policy: Policy) -> Record:
    """Return a vault key without its token."""
    return {
        "id": key.id,
        "role": key.role,
        "mode": key.mode,
        "label": key.label,
        "agent": key.agent,
        "policy": policy.model_dump(mode="json", by_alias=True, exclude_none=True),
        "created_at": rfc3339(key.created_at),
        "expires_at": None if key.expires_at is None else rfc3339(key.expires_at),
        "revoked_at": None if key.revoked_at is None else rfc3339(key.revoked_at),
        "revoke_reason": key.revoke_reason,
        "frozen_at": None if lineage.frozen_at is None else rfc3339(lineage.frozen_at),
        "frozen_reason": lineage.frozen_reason,
        "rotated_to": key.rotated_to,
        "last_used_at": None if key.last_used_at is None else rfc3339(key.last_used_at),
        "lineage": key.lineage_id,
    }


def grant_record(grant: Grant) -> Record:
    """Return a grant."""
    return {
        "id": grant.id,
        "issuer": grant.issuer,
        "match": dict(claims_of(grant.claims)),
        "key_id": grant.key_id,
        "label": grant.label,
        "created_at": rfc3339(grant.created_at),
        "removed_at": None if grant.removed_at is None else rfc3339(grant.removed_at),
    }


def spend_rows(
    key_id: str | None,
    place: tuple[str, str, str],
    caps: Mapping[str, int],
    held: Mapping[str, tuple[int, int]],
) -> Iterator[Spend]:
    """Yield what is held in one window against its caps: a row for each currency.

    `place` is its scope, `day` or `month`, and its first day; `held` is reserved and settled.
    """
    for currency in sorted(caps.keys() | held):
        cap, (reserved, settled) = caps.get(currency), held.get(currency, (0, 0))
        left = None if cap is None else max(cap - settled - reserved, 0)
        yield Spend(key_id, *place, currency, cap, settled, reserved, left)


def spans(caps: CapRules | RefundCapRules, starts: tuple[str, str]) -> Iterable[tuple[Any, ...]]:
    """Return day and month, each with its first day of `starts` and the caps that hold it."""
    return zip(("day", "month"), starts, (caps.daily, caps.monthly), strict=True)


def spend_records(key: KeySpend, starts: tuple[str, str]) -> list[Spend]:
    """Return the spend of a key's lineage, and what it gave back, with the caps that hold them.

    There is a row for each window; `starts` are the first days of the day and of the month.
    """
    held: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for each in key.windows:
        of = held.setdefault((each.key.scope, each.key.window), {})
        of[each.key.currency] = each.reserved, each.settled
    return [
        row
        for scope, rules in (("key", key.caps), (f"key{REFUNDS}", key.refund_caps))
        for window, start, caps in spans(rules, starts)
        for row in spend_rows(
            key.key_id, (scope, window, start), caps, held.get((scope, window), {})
        )
    ]
