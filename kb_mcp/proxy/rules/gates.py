"""Gates: what stands before every send of a vault key, whoever reserved the money.

Floor: above caps and approvals, below reserve. Pure. A first send passes through `reserve.check`;
a send of what is held already, by its own key or another, passes through `check_send`. What is
held stays in the windows in which it was reserved: nothing is counted twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from kb_mcp.money import Money
from kb_mcp.proxy.access.authorize import check_hours
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.ledger.records import Attempt, Operation
from kb_mcp.proxy.rules.approvals import ApprovalCheck, check_given
from kb_mcp.proxy.rules.caps import check_amount_caps, check_caps

if TYPE_CHECKING:
    from kb_mcp.proxy.ledger.snapshot import Snapshot
    from kb_mcp.proxy.rules.command import Command


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
