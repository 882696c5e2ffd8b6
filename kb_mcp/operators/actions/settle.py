"""Settling an operation by the object that an operator names, in one audited transaction.

Floor: operators, above the ledger. The object was read from Stripe before; everything that it says
is compared here, under the locks, so that no object concludes two operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from kb_mcp.operators.actions.named_object import marked_key, names_of, why_not_its
from kb_mcp.operators.actions.operations import By, Done, NotDone, unresolvable
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.governor import ending_refs
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Attempt, AuditDraft, Changes, Operation, Refs
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_then
from kb_mcp.proxy.rules.outcomes.conclude import conclude
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.evidence import Ending, Made, prove_object
from kb_mcp.proxy.stripe.json_objects import created_ms

# What an object says of itself may be anybody's text, and is shown on a terminal.
WHY_MAX = 400
_SETTLED_BY_OBJECT = frozenset({S.UNKNOWN, S.FAILED, S.VOIDED, S.AWAITING_APPROVAL})


async def settle_by_object(
    ledger: Ledger, operation: Operation, item: Mapping[str, Any], by: By, daily_declines: int
) -> Done | NotDone:
    """Conclude an operation with the object `item`, as Stripe shows it.

    One that counted as failed, voided or waiting turns out to be charged: that is recorded as a
    charge that turned up late.
    """
    made = prove_object(item, ENDPOINTS[operation.route])
    if made is None:
        return NotDone(f"{item.get('id')} is not operation {operation.id}: another kind of object")
    if made.verdict == "failed":
        why = f"{made.object_id} is {made.stripe_status}: it took no money"
        return NotDone(why, "Void the operation instead, if it is unknown.")

    def step(snapshot: Snapshot) -> tuple[Done | NotDone, Changes]:
        current = snapshot.operations[operation.id]
        busy = unresolvable(
            snapshot, current, _SETTLED_BY_OBJECT, "its outcome is known or not asked yet"
        )
        if busy is not None:
            return busy, Changes()
        different = why_not_its(snapshot, current, item)
        if different is not None:
            why = f"{made.object_id} is not operation {current.id}: {different}"
            return NotDone(clean_text(why, WHY_MAX)), Changes()
        return _settle(snapshot, current, item, made, by, daily_declines)

    def refs(now: int) -> Refs:
        named = ending_refs(operation, made, now)
        made_in = windows_then(operation, _made_at(item))
        return replace(
            named,
            objects=named.objects | names_of(item),
            windows=named.windows | frozenset(made_in.all()),
        )

    return await ledger.transact(refs, step)


def _settle(
    snapshot: Snapshot,
    current: Operation,
    item: Mapping[str, Any],
    made: Made,
    by: By,
    daily_declines: int,
) -> tuple[Done | NotDone, Changes]:
    attempt = _attempt_of(snapshot, current, item)
    if (current.id, attempt.number) not in snapshot.attempts:
        # A store that lost records knows nothing of this send: it counts when it was made.
        current = replace(current, attempt=attempt.number, reserved_at=_made_at(item))
        snapshot.apply(Changes(operations=(current,), attempts=(attempt,)))
    ending = Ending(
        operation_id=current.id,
        attempt=attempt.number,
        token=current.lease_token,
        proof=made,
        daily_declines=daily_declines,
        request=AuditDraft(kind="admin", agent_id=by.operator),
    )
    after, changes = conclude(snapshot, ending)
    rows = (*changes.audit, by.row("resolve_succeeded", after))
    return Done(after), replace(changes, audit=rows)


def _attempt_of(snapshot: Snapshot, operation: Operation, item: Mapping[str, Any]) -> Attempt:
    """Return the attempt that made `item`: by its mark, else the current one, else a new one."""
    attempts, mark = snapshot.attempts_of(operation), marked_key(operation, item)
    marked = next((each for each in attempts if each.upstream_key == mark), None)
    if marked is not None:
        return marked
    if mark is None and attempts:
        return attempts[-1]
    at = _made_at(item)
    return Attempt(
        operation_id=operation.id,
        number=operation.attempt + 1,
        upstream_key=mark or operation.upstream_name,
        path=ENDPOINTS[operation.route].template,
        stripe_version=None,
        body=b"",
        first_sent_at=at,
        last_sent_at=at,
        key_id=operation.key_id,
    )


def _made_at(item: Mapping[str, Any]) -> int:
    return created_ms(item.get("created")) or 0
