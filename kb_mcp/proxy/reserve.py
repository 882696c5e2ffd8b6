"""Reserving: the checks that stand before every reservation, and the rows it leaves.

Floor: above guards, caps and approvals, below decide. Pure. First attempts, later attempts,
after voids and after approvals all pass through `reserve` (ledger.md: Rows and locks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from kb_mcp.proxy.approvals import check_approval
from kb_mcp.proxy.caps import check_caps
from kb_mcp.proxy.decisions import Decision, Proceed, Refuse, Replay
from kb_mcp.proxy.guards import find_conflict, permits
from kb_mcp.proxy.ledger import Attempt, AttemptOutcome, Changes, Operation
from kb_mcp.proxy.ledger import State as S
from kb_mcp.proxy.naming import later_name, request_body
from kb_mcp.proxy.refusals import Code, Fact, refuse
from kb_mcp.proxy.windows import hold

if TYPE_CHECKING:
    from kb_mcp.proxy.intent import Intent
    from kb_mcp.proxy.standing import Standing

# Stripe may forget a v1 key after 24 hours (facts: Idempotency at Stripe); we stop an hour before.
RESEND_WITHIN_MS = 23 * 3_600_000


def reserve(
    standing: Standing, intent: Intent, operation: Operation, keep: Attempt | None
) -> Decision:
    """Run the checks that stand before every reservation, then reserve.

    `operation` may be new; `keep` is the attempt whose key and stored bytes are used again.
    """
    checked = check(standing, intent, operation)
    if not isinstance(checked, Changes):
        return checked
    return _proceed(standing, intent, operation, keep, checked)


def check(
    standing: Standing, intent: Intent, operation: Operation, *, raised: bool = False
) -> Refuse | Replay | Changes:
    """Run every check; return the approval that is used up where all pass.

    `raised` says that `operation` holds a part of what `intent` comes to, and its guards, already.
    """
    conflict = None if raised else find_conflict(standing, intent)
    if conflict is not None:
        return Refuse(conflict[0], conflict[1])
    known = standing.operations.get(operation.id)
    if standing.turning:
        return Refuse(refuse(Code.LEDGER_UNAVAILABLE), known)
    lineage = standing.lineage(intent.lineage_id)
    if lineage.frozen_at is not None:
        return Refuse(
            refuse(Code.VAULT_KEY_FROZEN, reason=lineage.frozen_reason or "an operator must look"),
            known,
        )
    if standing.unresolved.get(intent.lineage_id, 0) >= intent.policy.max_unresolved:
        return Refuse(refuse(Code.TOO_MANY_UNRESOLVED), known)
    approval = check_approval(standing, intent, operation)
    if approval.refusal is not None:
        return Refuse(approval.refusal, known, approval.changes)
    declined = recent_decline(standing, intent) or _exhausted(standing, intent, known)
    if declined is not None:
        return declined
    over = check_caps(standing, intent, operation if raised else None)
    if over is not None:
        return Refuse(over, known)
    return approval.changes


def recent_decline(standing: Standing, intent: Intent) -> Replay | None:
    """Return the last decline of this bill while it is too early to try again."""
    tally = standing.tally(intent.tally)
    if tally.last_operation is None:
        return None
    declined = standing.operations.get(tally.last_operation)
    retry_at = tally.last_declined_at + intent.policy.decline_retry_after_ms
    if declined is None or declined.state is not S.FAILED or standing.now >= retry_at:
        return None
    return Replay(declined)


def _exhausted(standing: Standing, intent: Intent, operation: Operation | None) -> Refuse | None:
    declines = standing.tally(intent.tally).declines
    if declines < intent.policy.max_attempts:
        return None
    facts: dict[str, Fact] = {"declines": declines}
    if operation is not None:
        facts["operation"] = operation.id
    return Refuse(refuse(Code.ATTEMPTS_EXHAUSTED, facts=facts), operation)


def new_operation(standing: Standing, intent: Intent, older: Operation | None) -> Operation:
    """Return the operation that `intent` would begin, as the successor of `older` if given."""
    blank = Operation(
        id=intent.fresh_id,
        name=intent.name,
        generation=0 if older is None else older.generation + 1,
        named_by=intent.named_by,
        route=intent.reading.route.endpoint,
        customer=intent.reading.customer,
        amount=intent.money.amount,
        currency=intent.money.currency,
        period=None,
        reference=None,
        fingerprint=intent.fingerprint,
        upstream_name=intent.upstream_name if older is None else later_name(older),
        caller_key=intent.caller_key,
        state=S.RESERVED,
        first_arrival_at=standing.now,
        key_id=intent.key_id,
        lineage_id=intent.lineage_id,
        created_at=standing.now,
        updated_at=standing.now,
    )
    return _described(blank, intent)


def _described(operation: Operation, intent: Intent) -> Operation:
    # A failed operation may take new values: what it describes is what is sent now.
    period = intent.reading.period
    return replace(
        operation,
        customer=intent.reading.customer,
        amount=intent.money.amount,
        currency=intent.money.currency,
        period=None if period is None else period.label,
        period_start=None if period is None else period.start.isoformat(),
        period_end=None if period is None else period.end.isoformat(),
        reference=intent.reading.reference,
        fingerprint=intent.fingerprint,
    )


def _proceed(
    standing: Standing,
    intent: Intent,
    operation: Operation,
    keep: Attempt | None,
    consumed: Changes,
) -> Proceed:
    reserved = replace(
        _described(operation, intent),
        state=S.RESERVED,
        final=True,
        held=intent.money.amount,
        reserved_at=standing.now,
        key_id=intent.key_id,
        lineage_id=intent.lineage_id,
        code=None,
        voided_at=None,
        empty_listings=0,
        next_read_at=None,
    )
    if keep is not None:
        leased, attempt = send_again(standing, intent, reserved, keep)
    else:
        leased, attempt = _send_new(standing, intent, reserved)
    changes = Changes(
        operations=(*used_up(standing, intent), leased),
        attempts=(attempt,),
        windows=hold(standing, leased, intent.money.amount),
        approvals=consumed.approvals,
    )
    return Proceed(leased, attempt, changes)


def _send_new(
    standing: Standing, intent: Intent, operation: Operation
) -> tuple[Operation, Attempt]:
    number = operation.attempt + 1
    key = operation.upstream_name if number == 1 else f"{operation.upstream_name}-{number}"
    body = request_body(intent.reading, operation.id, key, intent.lineage_id)
    return send_next(standing, intent, operation, key, body)


def send_next(
    standing: Standing, intent: Intent, operation: Operation, key: str, body: bytes
) -> tuple[Operation, Attempt]:
    """Send the request of `intent` with `body`, under a `key` of its own."""
    attempt = Attempt(
        operation_id=operation.id,
        number=operation.attempt + 1,
        upstream_key=key,
        path=intent.reading.path,
        stripe_version=intent.stripe_version,
        body=body,
        first_sent_at=standing.now,
        last_sent_at=standing.now,
        key_id=intent.key_id,
    )
    return _lease(standing, intent, replace(operation, attempt=attempt.number)), attempt


def resendable(standing: Standing, attempt: Attempt) -> bool:
    """Say whether the key of `attempt` is still good: Stripe surely remembers it."""
    return not standing.skewed and standing.now < attempt.first_sent_at + RESEND_WITHIN_MS


def send_again(
    standing: Standing, intent: Intent, operation: Operation, attempt: Attempt
) -> tuple[Operation, Attempt]:
    """Send the stored request of `attempt` once more, under its own key."""
    again = replace(
        attempt,
        last_sent_at=standing.now,
        sends=attempt.sends + 1,
        open_sends=attempt.open_sends + 1,
        outcome=AttemptOutcome.OPEN,
    )
    return _lease(standing, intent, operation), again


def _lease(standing: Standing, intent: Intent, operation: Operation) -> Operation:
    return replace(
        operation,
        lease_owner=intent.owner,
        lease_token=operation.lease_token + 1,
        lease_until=standing.now + intent.lease_ms,
        updated_at=standing.now,
    )


def used_up(standing: Standing, intent: Intent) -> list[Operation]:
    """Return the operations whose permit this reservation uses, without it: it holds once."""
    return [
        replace(peer, reopened=False, waived=False, updated_at=standing.now)
        for peer in permits(standing, intent)
    ]
