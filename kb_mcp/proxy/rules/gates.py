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

from msgspec import Struct
from msgspec.structs import replace

from kb_mcp.instants import rfc3339
from kb_mcp.money import Money
from kb_mcp.proxy.access.authorize import check_hours
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.records import Approval, Attempt, Operation
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules.caps import check_amount_caps, check_caps, currency_refused
from kb_mcp.proxy.rules.command import Command
from kb_mcp.proxy.stripe.interpret import PAYMENT_FIELDS

APPROVAL_LASTS_MS = 24 * 3_600_000
OUTSTANDING_MAX = 20
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
) -> ApprovalCheck:
    """Say whether the sender may send on what `operation` holds already.

    `keep` is the attempt that is sent again. Another lineage than the one that reserved must have
    been allowed to reserve it, too. An approval that it needs, and has, is in the answer.
    """
    refused = check_key(snapshot, command)
    if refused is not None:
        return ApprovalCheck(refused)
    amount = max(operation.amount, operation.held, command.money.amount)
    whole = replace(command, money=Money(amount, operation.currency))
    approval = check_given(snapshot, whole, operation, keep)
    if approval.refusal is not None:
        return approval
    if operation.lineage_id == command.lineage_id:
        over = check_amount_caps(snapshot, whole)
    else:
        over = check_caps(snapshot, whole, operation)
    return approval if over is None else ApprovalCheck(over)


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


class ApprovalCheck(Struct, frozen=True):
    """What the approval gate says of a request.

    Without a `refusal` it passes, and `used` is the approval that this uses up, if it needs one.
    With one, `asked` is the approval that an operator is asked for by it, if a new one is.
    """

    refusal: Refusal | None = None
    asked: Approval | None = None
    used: Approval | None = None


def check_approval(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> ApprovalCheck:
    """Say whether `command` may reserve, by an operator's leave where it needs one.

    `keep` is the attempt whose stored request is sent, rather than that of `command`.
    """
    above = _above(command)
    if not isinstance(above, bool):
        return ApprovalCheck(above)
    if not above:
        return ApprovalCheck()
    wanted = _wanted(snapshot, command, operation, keep)
    for held in snapshot.approvals_of(operation, command.lineage_id):
        if held.state != "used" and snapshot.now < held.expires_at and _same(held, wanted):
            if held.state == "approved":
                return ApprovalCheck(used=replace(held, state="used"))
            return ApprovalCheck(_required(held))
    return _ask(snapshot, wanted)


def check_given(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> ApprovalCheck:
    """Say whether `command` may send what `operation` holds already.

    The approval under which it was reserved covers that; another lineage needs its own.
    """
    wanted = _wanted(snapshot, command, operation, keep)
    given = snapshot.approvals_of(operation, command.lineage_id)
    if any(_reserved_under(held, wanted) for held in given):
        return ApprovalCheck()
    return check_approval(snapshot, command, operation, keep)


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
    reading = command.reading
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
        gives_back=_object_of(command),
        fingerprint=command.fingerprint,
        state="pending",
        expires_at=snapshot.now + APPROVAL_LASTS_MS,
        created_at=snapshot.now,
    )


def _object_of(command: Command) -> str | None:
    """Return the charge that is given back, or the invoice that is paid."""
    if command.refund is not None:
        return command.refund.charge
    return None if command.invoice is None else command.invoice.invoice


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


def _ask(snapshot: Snapshot, wanted: Approval) -> ApprovalCheck:
    if snapshot.outstanding_approvals.get(wanted.lineage_id, 0) >= OUTSTANDING_MAX:
        return ApprovalCheck(
            refuse(
                Code.APPROVAL_REQUIRED,
                facts={"outstanding": OUTSTANDING_MAX},
                approval="none asked for: too many wait for an operator already",
                then="send it again once operators have decided some of those that wait",
            )
        )
    return ApprovalCheck(_required(wanted), asked=wanted)


def _required(approval: Approval) -> Refusal:
    facts: dict[str, Fact] = {
        "approval": approval.id,
        "state": approval.state,
        "operation": approval.operation_id,
        "expires_at": rfc3339(approval.expires_at),
    }
    shown = f"{approval.id}, {approval.state}"
    return refuse(Code.APPROVAL_REQUIRED, facts=facts, approval=shown, then=_THEN[approval.state])
