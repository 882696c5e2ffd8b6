"""The decider: what a request for an operation may do, given what the ledger knows.

Floor: above duplicates and gates, below the governor. Pure: (snapshot, command) -> a
decision with the rows it leaves behind.

state of the operation      same fingerprint                       other fingerprint
--------------------------  -------------------------------------  ---------------------------------
none, reopened, or the      guards, key, approval, attempts, caps  (a new operation)
  window of a body passed     -> Proceed under a new name
reserved/unknown, leased    Join                                   idempotency_key_reused
reserved/unknown, free      Proceed: same key, stored bytes, 23 h  idempotency_key_reused
  later                     outcome_unknown: only reading resolves idempotency_key_reused
succeeded                   Replay                                 period_already_charged where the
                                                                     period names it, else
                                                                     idempotency_key_reused
failed, declined            Replay until decline_retry_after, then the checks below -> a new key
failed, not sent            the checks below -> the same key       the checks below -> a new key
failed, rejected            the checks below -> a new key
voided, not yet 25 h empty  the checks below -> the same key, 23 h idempotency_key_reused
voided by an operator       the checks below -> the same key, 23 h the checks below -> a new key
  25 h later                  Look, then a new key                   Look, then a new key
awaiting approval           approved: the checks below             another approval

A step on an operation's object (`follow_ups`) and an invoice (`duplicates`) have their own tables.

The checks, on every reservation: guards -> key frozen, too many unresolved -> approval ->
attempts -> caps. A key that is unknown, revoked or expired is refused first. What is reserved
already is sent again only past the gates of who asks (`gates.py`); else outcome_unknown.
"""

from __future__ import annotations

import dataclasses

from msgspec.structs import replace

from kb_mcp.proxy.access.tokens import refuse_dead_key
from kb_mcp.proxy.errors.refusals import Code, Refusal, clock_disputed, refuse
from kb_mcp.proxy.ledger.records import (
    HOLDING,
    AttemptOutcome,
    CallerKey,
    KeyId,
    NamedBy,
    Operation,
    State,
    VaultKey,
)
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules import duplicates
from kb_mcp.proxy.rules.command import (
    Command,
    Decision,
    Join,
    Look,
    Proceed,
    ReadAgain,
    Refuse,
    Replay,
    stopped_by,
    why_refused,
)
from kb_mcp.proxy.rules.follow_ups import decide_follow_up
from kb_mcp.proxy.rules.gates import check_send
from kb_mcp.proxy.rules.outcomes.matching import TWIN
from kb_mcp.proxy.rules.reserve import (
    age_disputed,
    new_operation,
    recent_decline,
    resendable,
    reserve,
    send,
)

# A body repeated under another SDK-made key within this time is a runtime's retry.
RUNTIME_RETRY_MS = 15 * 60_000
LAST_USED_EVERY_MS = 60_000


def decide(snapshot: Snapshot, command: Command) -> Decision:
    """Decide one command, with the audit row of the decision among the changes."""
    decision = _decide(snapshot, command)
    if snapshot.latest > snapshot.now:
        # The clocks disagree: what another of them would decide otherwise is not decided at all.
        later = _decide(dataclasses.replace(snapshot, now=snapshot.latest), command)
        if _outcome(decision) != _outcome(later):
            decision = Refuse(clock_disputed(), _known(snapshot, decision))
    if snapshot.unheard and isinstance(decision, Proceed):
        # What is sent before Stripe has told the time may be dated wrongly, and so not be found.
        decision = Refuse(refuse(Code.UPSTREAM_UNREACHABLE), _known(snapshot, decision))
    return _audited(snapshot, command, decision)


def _known(snapshot: Snapshot, decision: Decision) -> Operation | None:
    """Return the operation of `decision`, unless the decision would have begun it."""
    return None if decision.operation is None else snapshot.operations.get(decision.operation.id)


def _outcome(decision: Decision) -> tuple[object, ...]:
    """Return what a decision comes to, without the times that it leaves behind."""
    if isinstance(decision, Refuse):
        return (Refuse, decision.refusal.code)
    attempt = decision.attempt if isinstance(decision, Proceed) else None
    sent = () if attempt is None else (attempt.number, attempt.sends)
    return (type(decision), decision.operation and decision.operation.id, *sent)


def key_refusal(snapshot: Snapshot, key_id: KeyId) -> Refusal | None:
    """Return why the key `key_id` may do nothing at all, or None."""
    key = snapshot.keys.get(key_id)
    if key is None:
        return refuse(Code.VAULT_KEY_UNKNOWN)
    return refuse_dead_key(key, snapshot.now)


def _decide(snapshot: Snapshot, command: Command) -> Decision:
    if (dead := key_refusal(snapshot, command.key_id)) is not None:
        return Refuse(dead)
    grant = snapshot.grants.get(command.grant_id or "")
    if command.grant_id is not None and (grant is None or grant.removed_at is not None):
        return Refuse(refuse(Code.IDENTITY_NOT_GRANTED))
    if command.continues is not None:
        over = duplicates.decide_payment_of_finalized(snapshot, command)
        return over or decide_follow_up(snapshot, command, command.continues)
    answered = _answered(snapshot, command)
    if answered is not None and answered.name != command.name:
        return duplicates.suspect(Code.IDEMPOTENCY_KEY_REUSED, answered)
    operation = answered or _newest(snapshot, command)
    if operation is None or (answered is None and _begins_anew(snapshot, command, operation)):
        command = duplicates.with_amount(snapshot, command, None)
        return reserve(snapshot, command, new_operation(snapshot, command, operation), None)
    command = duplicates.with_amount(snapshot, command, operation)
    if not _may_see(command, operation):
        return _another_endpoint(command, operation)
    return _again(snapshot, command, operation)


def _again(snapshot: Snapshot, command: Command, operation: Operation) -> Decision:
    """Decide where the operation is known, by what became of it."""
    same = operation.fingerprint == command.fingerprint
    if (invoice := duplicates.decide_again(snapshot, command, operation, same=same)) is not None:
        return invoice
    if operation.state is State.SUCCEEDED:
        return _settled(snapshot, command, operation, same=same)
    if operation.live:
        return _live(snapshot, command, operation, same=same)
    attempt, keep = snapshot.attempt(operation), None
    match operation.state:
        case State.VOIDED:
            due = operation.next_read_at is not None and snapshot.now >= operation.next_read_at
            if due and operation.code != TWIN:
                # The last look at Stripe's list comes before a new key. Of an object without a
                # mark the operator knew.
                return Look(operation)
            # Freed by an operator's word, which may be wrong: while Stripe remembers the key, or
            # where the clocks do not agree on that, no other may make a second object.
            if same and attempt is not None and age_disputed(snapshot, attempt):
                return Refuse(clock_disputed(), operation)
            keep = resendable(snapshot, attempt) if same else None
        case State.FAILED if same:
            if (declined := recent_decline(snapshot, command)) is not None:
                return declined
            unsent = attempt is not None and attempt.outcome is AttemptOutcome.NOT_SENT
            # A step that was not sent is no request for this bill: its key and bytes are not used.
            if attempt is not None and unsent and not operation.continued_by(attempt):
                keep = resendable(snapshot, attempt)
    return reserve(snapshot, command, operation, keep)


def _settled(snapshot: Snapshot, command: Command, operation: Operation, *, same: bool) -> Decision:
    if operation.refunded and (same or operation.period is not None):
        # What was given back is not told as paid; what took its place is named instead.
        stands = snapshot.successor(operation) or operation
        return duplicates.suspect(duplicates.known_as(operation), stands)
    if same and not operation.final and (operation.answer_status or 0) >= 400:
        # It had failed, and a step may have brought it to life: what was told then is no answer.
        leased = snapshot.leased(operation)
        return Join(operation) if leased else replace(duplicates.unknown(operation), operation=None)
    if same:
        return _late_body(snapshot, command, operation) or Replay(operation)
    if operation.gives_back is None and operation.named_by is NamedBy.CONTENT:
        return duplicates.suspect(Code.PERIOD_ALREADY_CHARGED, operation)
    return _differs(operation)


def _differs(operation: Operation) -> Refuse:
    if operation.gives_back is not None:
        return duplicates.already_refunded(operation)
    return duplicates.suspect(Code.IDEMPOTENCY_KEY_REUSED, operation)


def _live(snapshot: Snapshot, command: Command, operation: Operation, *, same: bool) -> Decision:
    """Decide where money is held, or was until a void that is not certain yet."""
    if not same:
        return _differs(operation)
    holding = operation.state in HOLDING
    if holding and snapshot.leased(operation):
        return Join(operation)
    keep = resendable(snapshot, snapshot.attempt(operation))
    if keep is None:
        return duplicates.unknown(operation)
    if not holding:
        return reserve(snapshot, command, operation, keep)
    gate = check_send(snapshot, command, operation, keep)
    if isinstance(gate, Refuse):
        # Money is held, and may have moved: that is what this caller must know first.
        return duplicates.unknown(operation, not_sent_again=gate.refusal.code.value)
    leased, sent = send(snapshot, command, operation, keep)
    return Proceed(leased, sent, replace(gate, operations=(leased,), attempts=(sent,)))


def _begins_anew(snapshot: Snapshot, command: Command, operation: Operation) -> bool:
    """Say whether the newest generation is over: reopened, waived, or past the window of a body."""
    again = operation.refunded or operation.gives_back is not None
    made = operation.state is State.SUCCEEDED
    if again and made and duplicates.may_bill_again(snapshot, command, operation):
        return True
    # One that waits was never charged: what an operator was asked is about this very bill.
    stays = operation.state in {State.AWAITING_APPROVAL, *HOLDING}
    if operation.named_by is not NamedBy.BODY or stays:
        return False
    if operation.waived and operation.successor is None:
        return True
    if operation.state is State.VOIDED and operation.live:
        return False
    # Paid late in the window, after declines: a runtime may still be repeating that very call.
    over = max(
        operation.first_arrival_at + command.policy.duplicate_window_ms,
        operation.reserved_at + RUNTIME_RETRY_MS,
    )
    return snapshot.now >= over


def _newest(snapshot: Snapshot, command: Command) -> Operation | None:
    """Return the newest operation of this name, or of one that an older version gave it."""
    found = (snapshot.newest(name) for name in (command.name, *command.older_names))
    return next((each for each in found if each is not None), None)


def _answered(snapshot: Snapshot, command: Command) -> Operation | None:
    """Return the operation whose request this is, by a key that an SDK made up, or None.

    A key whose request came to nothing is free for another, as at Stripe.
    """
    answered = snapshot.answered_under((*command.caller_keys, *command.older_caller_keys))
    if answered is None:
        return None
    if answered.live:
        # A request that was given back and may be made once more is the newest of its name.
        same = answered.name == command.name
        return None if answered.refunded and same else answered
    attempt = snapshot.attempt(answered)
    declined = attempt is not None and attempt.outcome is AttemptOutcome.DECLINED
    return answered if declined and answered.name != command.name else None


def _late_body(snapshot: Snapshot, command: Command, operation: Operation) -> Refuse | None:
    """Refuse the same body under another SDK-made key once a runtime's retry is unlikely."""
    if operation.named_by is not NamedBy.BODY or not command.caller_keys:
        return None
    lately = snapshot.now <= operation.first_arrival_at + RUNTIME_RETRY_MS
    if lately or _answered(snapshot, command) is operation:
        return None
    return duplicates.suspect(Code.DUPLICATE_SUSPECTED, operation)


def _may_see(command: Command, operation: Operation) -> bool:
    """A key must be authorised for the stored operation before it may replay or join it."""
    reading = command.reading
    same = operation.route == reading.route.endpoint or command.invoice is not None
    return same and operation.customer == reading.customer


def _another_endpoint(command: Command, operation: Operation) -> Refuse:
    reading = command.reading
    if operation.named_by is NamedBy.CALLER and operation.customer == reading.customer:
        # A key that the caller chose is one act's, wherever it is sent, as at Stripe.
        return duplicates.suspect(Code.IDEMPOTENCY_KEY_REUSED, operation)
    reason = "this bill was made through another endpoint"
    return Refuse(refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason=reason), operation)


def _audited(snapshot: Snapshot, command: Command, decision: Decision) -> Decision:
    if isinstance(decision, Look | ReadAgain) or (command.joined and isinstance(decision, Join)):
        # Looking again is no new request.
        return decision
    operation, amount = decision.operation, command.money.amount
    if command.refund is not None and isinstance(decision, Proceed):
        # A request that leaves the amount out means what was left when this was decided.
        amount = decision.operation.amount
    row = replace(
        command.request,
        kind="decision",
        decision=type(decision).__name__.lower(),
        code=decision.refusal.code.value if isinstance(decision, Refuse) else None,
        note=why_refused(decision),
        amount=amount,
        currency=command.money.currency,
        customer_id=command.reading.customer,
        operation_id=None if operation is None else operation.id,
        attempt=None if operation is None else operation.attempt,
        object_id=None if operation is None else operation.object_id,
    )
    changes = replace(
        decision.changes,
        keys=(*decision.changes.keys, *_used(snapshot, command)),
        caller_keys=_remembered(snapshot, command, decision),
        audit=(*decision.changes.audit, row),
        stopped=stopped_by(command, decision),
    )
    return replace(decision, changes=changes)


def _remembered(snapshot: Snapshot, command: Command, decision: Decision) -> tuple[CallerKey, ...]:
    """Note under which keys that an SDK made up this operation answers: the same one is the same.

    A refusal answers nothing: its key names nothing yet.
    """
    operation = decision.operation
    if isinstance(decision, Refuse) or operation is None:
        return ()
    rows = (CallerKey(key, operation.id) for key in command.caller_keys)
    return tuple(row for row in rows if snapshot.caller_keys.get(row.key) != row)


def _used(snapshot: Snapshot, command: Command) -> tuple[VaultKey, ...]:
    """Note when the key was used, at most once a minute: the row is written for that alone."""
    key = snapshot.keys.get(command.key_id)
    if key is None or snapshot.now < (key.last_used_at or 0) + LAST_USED_EVERY_MS:
        return ()
    return (replace(key, last_used_at=snapshot.now),)
