"""Gates: what stands before every send of a vault key, an operator's approval among them.

Floor: above caps, below reserve. Pure. A first send passes through `reserve.check`; a send of what
is held already, by its own key or another, passes through `check_send`. What is held stays in the
windows in which it was reserved: nothing is counted twice.

Each request has an approval of its own: another amount, currency or payment method neither replaces
nor uses one that waits or was given. An approval is used once and expires; the number that may wait
for each lineage is bounded, so that one key cannot bury an operator.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from msgspec.structs import replace

from kb_mcp.instants import rfc3339
from kb_mcp.money import Money
from kb_mcp.proxy.access.authorize import check_hours
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.records import HOLDING, Approval, Attempt, Changes, Operation, State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules.caps import check_amount_caps, check_caps, currency_refused
from kb_mcp.proxy.rules.command import Command, Refuse
from kb_mcp.proxy.stripe.interpret import PAYMENT_FIELDS

APPROVAL_LASTS_MS = 24 * 3_600_000
OUTSTANDING_MAX = 20
_KEEPS_ROWS = frozenset({State.VOIDED, State.SUCCEEDED, *HOLDING})
_THEN = {
    "pending": "send the same request again after it was approved",
    "denied": "an operator denied it, so do not send it again",
}


def check_key(snapshot: Snapshot, command: Command) -> Refusal | None:
    """Return why the key of `command`, which is alive, may not send now, or None."""
    lineage = snapshot.lineage(command.lineage_id)
    if lineage.frozen_at is not None:
        reason = lineage.frozen_reason or "an operator must look"
        return refuse(Code.VAULT_KEY_FROZEN, reason=reason)
    return check_hours(command.policy, snapshot.now)


def check_send(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> Refuse | Changes:
    """Say whether the sender may send on what `operation` holds already.

    `keep` is the attempt that is sent again. Another lineage than the one that reserved must have
    been allowed to reserve it, too. An approval that it needs, and has, is in the answer.
    """
    refused = check_key(snapshot, command)
    if refused is not None:
        return Refuse(refused, operation)
    amount = max(operation.amount, operation.held, command.money.amount)
    whole = replace(command, money=Money(amount, operation.currency))
    approval = check_approval(snapshot, whole, operation, keep, held=True)
    if isinstance(approval, Refuse):
        return approval
    if operation.lineage_id == command.lineage_id:
        over = check_amount_caps(snapshot, whole)
    else:
        over = check_caps(snapshot, whole, operation)
    return approval if over is None else Refuse(over, operation)


def check_cancel(snapshot: Snapshot, command: Command, operation: Operation) -> Refusal | None:
    """Return why the sender may not cancel the object of `operation`, or None.

    A cancel only releases, so that a frozen key may cancel what its own lineage reserved.
    """
    if operation.lineage_id == command.lineage_id:
        return check_hours(command.policy, snapshot.now)
    money = Money(max(operation.amount, operation.held), operation.currency)
    return check_key(snapshot, command) or check_amount_caps(
        snapshot, replace(command, money=money)
    )


def check_approval(
    snapshot: Snapshot,
    command: Command,
    operation: Operation,
    keep: Attempt | None,
    *,
    held: bool = False,
) -> Refuse | Changes:
    """Say whether `command` may be sent, by an operator's leave where it needs one.

    Return the approval that this uses up, if it needs one, or a refusal with the approval that an
    operator is asked for, if a new one is. `keep` is the attempt whose stored request is sent,
    rather than that of `command`. `held` says that `operation` holds it already: the approval
    under which it was reserved covers that, and another lineage needs its own.
    """
    above = _above(command)
    if above is False:
        return Changes()
    wanted = _wanted(snapshot, command, operation, keep)
    given = snapshot.approvals_of(operation, command.lineage_id)
    if held and any(_reserved_under(each, wanted) for each in given):
        return Changes()
    known = snapshot.operations.get(operation.id)
    if isinstance(above, Refusal):
        return Refuse(above, known)
    for each in given:
        if each.state != "used" and snapshot.now < each.expires_at and _same(each, wanted):
            if each.state == "approved":
                return Changes(approvals=(replace(each, state="used"),))
            return Refuse(_required(each), known)
    if snapshot.outstanding_approvals.get(wanted.lineage_id, 0) >= OUTSTANDING_MAX:
        too_many = refuse(
            Code.APPROVAL_REQUIRED,
            facts={"outstanding": OUTSTANDING_MAX},
            approval="none asked for: too many wait for an operator already",
            then="send it again once operators have decided some of those that wait",
        )
        return Refuse(too_many, known)
    return Refuse(_required(wanted), operation, _asking(snapshot, command, operation, wanted))


def _asking(snapshot: Snapshot, command: Command, operation: Operation, asked: Approval) -> Changes:
    """Return the rows of an approval that an operator is asked for."""
    waiting = replace(operation, approval_id=asked.id, updated_at=snapshot.now)
    # A voided operation keeps its rows, one to go on with what it holds; others hold nothing.
    if operation.state not in _KEEPS_ROWS or operation.id == command.fresh_id:
        asks = command.asks() if command.continues is None else {}
        state = State.AWAITING_APPROVAL
        waiting = replace(waiting, **asks, state=state, held=0, code="approval_required")
    return Changes(operations=(waiting,), approvals=(asked,))


def _above(command: Command) -> bool | Refusal:
    """Say whether the amount is above the limit of its currency; one without a limit is refused."""
    policy, currency = command.policy, command.money.currency
    limits = policy.approval_above if command.refund is None else policy.refund_approval_above
    if limits and currency not in limits:
        return currency_refused(currency, limits)
    return bool(limits) and command.money.amount > limits[currency]


def _wanted(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> Approval:
    """Return the approval that this request would need, as it would be asked for now."""
    reading, gives_back = command.reading, None
    if command.refund is not None:
        gives_back = command.refund.charge
    elif command.invoice is not None:
        gives_back = command.invoice.invoice
    return Approval(
        id=command.fresh_approval_id,
        operation_id=operation.id,
        lineage_id=command.lineage_id,
        key_id=command.key_id,
        endpoint=reading.route.endpoint,
        customer=reading.customer,
        amount=command.money.amount,
        currency=command.money.currency,
        period=None if reading.period is None else reading.period.label,
        reference=reading.reference,
        payment_method=reading.payment_method if keep is None else _sent_with(keep),
        destination=reading.destination,
        gives_back=gives_back,
        fingerprint=command.fingerprint,
        state="pending",
        expires_at=snapshot.now + APPROVAL_LASTS_MS,
        created_at=snapshot.now,
    )


def _sent_with(attempt: Attempt) -> str | None:
    """Return the payment method in the stored request of `attempt`."""
    form = parse_qs(attempt.body.decode("utf-8", "replace"))
    return next((form[name][0] for name in PAYMENT_FIELDS if name in form), None)


def _same(held: Approval, wanted: Approval) -> bool:
    """Say whether `held` is about this very request; its fingerprint covers all the rest."""
    return (
        held.fingerprint == wanted.fingerprint
        and held.endpoint == wanted.endpoint
        and (held.amount, held.currency) == (wanted.amount, wanted.currency)
        and held.payment_method == wanted.payment_method
    )


def _reserved_under(held: Approval, wanted: Approval) -> bool:
    """Say whether `held` was used up by what the operation holds now."""
    method = wanted.payment_method
    return (
        held.state == "used"
        and held.currency == wanted.currency
        and held.amount >= wanted.amount
        and (method is None or method == held.payment_method)
    )


def _required(approval: Approval) -> Refusal:
    facts: dict[str, Fact] = {
        "approval": approval.id,
        "state": approval.state,
        "operation": approval.operation_id,
        "expires_at": rfc3339(approval.expires_at),
    }
    shown = f"{approval.id}, {approval.state}"
    return refuse(Code.APPROVAL_REQUIRED, facts=facts, approval=shown, then=_THEN[approval.state])
