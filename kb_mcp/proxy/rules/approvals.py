"""Approvals: an operator's leave for one fingerprint of one operation by one key lineage.

Floor: beside caps, below reserve. Pure. An approval is used once and expires; the number that
may be outstanding per lineage is bounded, so that one key cannot bury an operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.records import Approval, Changes, Operation
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.windows import rfc3339

if TYPE_CHECKING:
    from kb_mcp.proxy.ledger.snapshot import Snapshot
    from kb_mcp.proxy.rules.command import Command

APPROVAL_LASTS_MS = 24 * 3_600_000
OUTSTANDING_MAX = 20


class ApprovalCheck(Struct, frozen=True):
    """A refusal with the rows it leaves, or, without one, the approval that is used up."""

    refusal: Refusal | None = None
    changes: Changes = field(default_factory=Changes)


def check_approval(snapshot: Snapshot, command: Command, operation: Operation) -> ApprovalCheck:
    """Return whether `command` needs an operator's leave that it does not have."""
    policy = command.policy
    limits = policy.approval_above if command.refund is None else policy.refund_approval_above
    limit = limits.get(command.money.currency)
    if limit is None or command.money.amount <= limit:
        return ApprovalCheck()
    held = snapshot.approvals.get(operation.approval_id or "")
    if held is None or not _covers(snapshot, command, held):
        return _ask(snapshot, command, operation)
    if held.state == "approved":
        return ApprovalCheck(changes=Changes(approvals=(replace(held, state="used"),)))
    return ApprovalCheck(_required(held))


def _covers(snapshot: Snapshot, command: Command, approval: Approval) -> bool:
    return (
        approval.fingerprint == command.fingerprint
        and approval.lineage_id == command.lineage_id
        and approval.state != "used"
        and snapshot.now < approval.expires_at
    )


def _ask(snapshot: Snapshot, command: Command, operation: Operation) -> ApprovalCheck:
    if snapshot.outstanding_approvals.get(command.lineage_id, 0) >= OUTSTANDING_MAX:
        return ApprovalCheck(
            refuse(
                Code.APPROVAL_REQUIRED,
                facts={"outstanding": OUTSTANDING_MAX},
                approval="none asked for: too many are outstanding for this key",
            )
        )
    approval = Approval(
        id=command.fresh_approval_id,
        operation_id=operation.id,
        lineage_id=command.lineage_id,
        fingerprint=command.fingerprint,
        state="pending",
        expires_at=snapshot.now + APPROVAL_LASTS_MS,
        created_at=snapshot.now,
    )
    # A voided operation keeps its guards, one to be raised what it holds; others hold nothing.
    waiting = (
        operation
        if operation.state in {S.VOIDED, S.SUCCEEDED}
        else replace(operation, state=S.AWAITING_APPROVAL, held=0, code="approval_required")
    )
    waiting = replace(waiting, approval_id=approval.id, updated_at=snapshot.now)
    changes = Changes(operations=(waiting,), approvals=(approval,))
    return ApprovalCheck(_required(approval), changes)


def _required(approval: Approval) -> Refusal:
    facts: dict[str, Fact] = {
        "approval": approval.id,
        "state": approval.state,
        "operation": approval.operation_id,
        "expires_at": rfc3339(approval.expires_at),
    }
    shown = f"{approval.id}, {approval.state}"
    return refuse(Code.APPROVAL_REQUIRED, facts=facts, approval=shown)
