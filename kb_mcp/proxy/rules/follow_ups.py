"""Steps: what goes on with an operation's object: confirm, capture, raise, update, cancel.

Floor: above reserve, below decide. Pure. A step belongs to the operation that made the object and
shares its one open send; after a step of which nobody knows the outcome, the object is read before
anything else. What a step adds is reserved before it is sent:

the operation              the step                      what follows
-------------------------  ----------------------------  ----------------------------------------
leased                     the one under way             Join
                           another                       idempotency_key_in_use
last step open, unread     any                           Look
last step open, read       the same                      Proceed: same key, stored bytes, 23 h
held, not final            the last, known to be done    Replay
                           to more than is held          the checks -> the new total is held
                           any other                     Proceed; nothing more is held
succeeded, final           the last, known to be done    Replay
                           to more than was charged      period_already_charged
                           any other                     Proceed; Stripe says what is possible
failed, holding nothing    cancel                        Proceed; nothing is held
                           any other, of an intent of    idempotency_key_reused
                             other values or period
                           any other, of an intent       guards, the checks -> held anew
                           any other, of a charge        Proceed; nothing is held, it is over
reserved, unknown, voided  any                           outcome_unknown

Whoever takes a step that reserves nothing must pass the gates for what is held (`gates.py`):
frozen, hours, approval, caps. A cancel only releases: a frozen key may cancel what its lineage
made.
"""

from __future__ import annotations

from typing import Final, assert_never

from msgspec.structs import replace

from kb_mcp.money import Money, MoneyError, check_amount
from kb_mcp.periods import parse_period
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.port import Ledger, look_up
from kb_mcp.proxy.ledger.records import Attempt, AttemptOutcome, Changes, Operation, Refs, State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import move, windows_of
from kb_mcp.proxy.rules.command import Command, Decision, Join, Look, Proceed, Refuse, Replay
from kb_mcp.proxy.rules.duplicates import suspect
from kb_mcp.proxy.rules.gates import check_cancel, check_key, check_send
from kb_mcp.proxy.rules.operation_names import asked_by
from kb_mcp.proxy.rules.outcomes.matching import MAY_HAVE_ARRIVED
from kb_mcp.proxy.rules.reserve import check, resendable, send
from kb_mcp.proxy.stripe.interpret import PERIOD_FIELD, REFERENCE_FIELD, Reading

CANCEL = "/cancel"
# An intent in one of these waits for a confirmation, though one was answered before.
_CONFIRMABLE = frozenset({"requires_confirmation", "requires_payment_method"})
# Whose bill it is, in what, for when: these name the operation, and its marks find it again.
FIXED: Final = frozenset({"currency", "customer", "metadata", PERIOD_FIELD, REFERENCE_FIELD})
# Between the fingerprint of a bill and what a step raises it to, in an approval.
RAISED_TO: Final = ":"
INCREMENT: Final = "POST /v1/payment_intents/*/increment_authorization"


def decide_follow_up(snapshot: Snapshot, command: Command, read: Operation) -> Decision:
    """Decide a step on an operation as it was `read`; once that moved, the caller asks again."""
    operation, reading = snapshot.operations.get(read.id), command.reading
    if (
        operation is None
        or operation.object_id != read.object_id
        or windows_of(operation) != windows_of(read)
    ):
        return _refused(Code.IDEMPOTENCY_KEY_IN_USE, read)
    step = snapshot.attempt(operation)
    if step is not None and not operation.continued_by(step):
        step = None
    same = step is not None and (step.path, step.body) == (reading.path, reading.form.encode())
    if snapshot.leased(operation):
        return Join(operation) if same else _refused(Code.IDEMPOTENCY_KEY_IN_USE, operation)
    unread = step is not None and step.outcome is AttemptOutcome.OPEN and step.open_sends > 0
    if unread and not operation.final:
        return Look(operation)
    return _go_on(snapshot, command, operation, step if same else None)


def _go_on(
    snapshot: Snapshot, command: Command, operation: Operation, same: Attempt | None
) -> Decision:
    """Decide where nobody is at it; `same` is the last step, where it is the one asked for."""
    maybe_sent = same is not None and same.outcome is AttemptOutcome.OPEN
    keep = resendable(snapshot, same) if maybe_sent else None
    if same is not None and keep is None and not _again(command, operation, same):
        return Replay(operation)
    cancels = command.reading.path.endswith(CANCEL)
    comes_to_life = command.reading.route.lifecycle.after is not None
    match operation.state:
        case State.RESERVED | State.UNKNOWN | State.VOIDED:
            return _refused(Code.OUTCOME_UNKNOWN, operation)
        case State.SUCCEEDED if not cancels:
            raises = (command.reading.total or 0) > operation.held
            go_on = _raise if raises else _go_on_held
            return go_on(snapshot, command, operation, keep)
        case State.FAILED | State.AWAITING_APPROVAL if comes_to_life and not cancels:
            return _hold_anew(snapshot, command, operation)
        case State.SUCCEEDED | State.FAILED | State.AWAITING_APPROVAL:
            if cancels:
                refused = check_cancel(snapshot, command, operation)
            else:
                # Only an intent can come to life again: nothing is held, and Stripe says no.
                refused = check_key(snapshot, command)
            if refused is not None:
                return Refuse(refused, operation)
            return _proceed(snapshot, command, operation, keep, Changes())
        case _:
            assert_never(operation.state)


def _go_on_held(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> Decision:
    """Send a step that needs no more than is held, if its sender may send that."""
    gate = check_send(snapshot, command, operation, keep)
    if isinstance(gate, Changes):
        return _proceed(snapshot, command, operation, keep, gate)
    if keep is None:
        return gate
    facts: dict[str, Fact] = {"operation": operation.id, "not_sent_again": gate.refusal.code.value}
    return Refuse(refuse(Code.OUTCOME_UNKNOWN, facts=facts), operation)


def _again(command: Command, operation: Operation, step: Attempt) -> bool:
    """Say whether a step that was answered before may be meant once more."""
    if step.outcome is not AttemptOutcome.SUCCEEDED:
        return True
    if operation.final or not command.reading.path.endswith("/confirm"):
        return False
    return operation.stripe_status in _CONFIRMABLE


def _raise(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> Decision:
    """Hold the new total before it is asked for; on a later day, all of it counts in that day."""
    if operation.final:
        return suspect(Code.PERIOD_ALREADY_CHARGED, operation)
    if operation.lineage_id != command.lineage_id:
        reason = "the bill was made by another key, and only that one may raise it"
        return Refuse(refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason=reason), operation)
    checked = check(snapshot, command, operation, keep)
    if not isinstance(checked, Changes):
        return checked
    raised = replace(operation, held=command.money.amount, reserved_at=snapshot.now)
    return _proceed(snapshot, command, raised, keep, checked)


def _hold_anew(snapshot: Snapshot, command: Command, operation: Operation) -> Decision:
    """Hold the amount of an intent that had failed, since a step may bring it to life again."""
    if not _is_for(snapshot, operation):
        # The bill asks for other values since; its next attempt cancels this intent first.
        return suspect(Code.IDEMPOTENCY_KEY_REUSED, operation)
    checked = check(snapshot, command, operation, None)
    if not isinstance(checked, Changes):
        return checked
    held = replace(
        operation,
        state=State.SUCCEEDED,
        final=False,
        held=command.money.amount,
        reserved_at=snapshot.now,
        key_id=command.key_id,
        lineage_id=command.lineage_id,
    )
    counts = snapshot.window(windows_of(held).counts)
    sent = (replace(counts, sends=counts.sends + 1),)
    return _proceed(snapshot, command, held, None, replace(checked, windows=sent))


def _is_for(snapshot: Snapshot, operation: Operation) -> bool:
    """Say whether the intent of `operation` comes to what that asks for, in the same period.

    A failed operation takes other values before its intent is cancelled.
    """
    made = snapshot.maker(operation)
    asked = None if made is None else asked_by(made)
    if made is None or asked is None or asked.money is None:
        return True
    amounts = [asked.money.amount]
    for step in filter(operation.continued_by, snapshot.attempts_of(operation)):
        read = asked_by(step)
        if step.number <= made.number or read is None or "amount" not in read.form:
            continue
        if step.outcome is AttemptOutcome.SUCCEEDED:
            amounts.clear()
        if step.outcome in {AttemptOutcome.SUCCEEDED, *MAY_HAVE_ARRIVED}:
            amounts.append(int(read.form["amount"]))
    label = None if asked.period is None else asked.period.label
    wanted = (operation.amount, operation.currency, operation.period)
    return wanted == (max(amounts), asked.money.currency, label)


def _refused(code: Code, operation: Operation) -> Refuse:
    return Refuse(refuse(code, facts={"operation": operation.id}), operation)


def _proceed(
    snapshot: Snapshot, command: Command, after: Operation, keep: Attempt | None, beside: Changes
) -> Proceed:
    leased, step = send(snapshot, command, after, keep)
    if not after.final:
        # Whoever sends may die: recovery then reads the object once the lease has ended.
        leased = replace(leased, next_read_at=leased.lease_until)
    rows = replace(
        beside,
        operations=(leased, *beside.operations),
        attempts=(step,),
        windows=(*move(snapshot, snapshot.operations[after.id], leased), *beside.windows),
    )
    return Proceed(leased, step, rows)


async def find_made(ledger: Ledger, reading: Reading) -> Operation | None:
    """Return the operation that made the object `reading` goes on with, or None.

    Raises: LedgerUnavailableError.
    """
    object_id = reading.object_id
    if reading.route.belongs_to is None or object_id is None:
        return None
    refs = Refs(objects=frozenset({object_id}))
    operation_id = await look_up(ledger, refs, lambda each: each.object_owners.get(object_id))
    if operation_id is None:
        return None
    refs = Refs(operations=frozenset({operation_id}))
    found = await look_up(ledger, refs, lambda each: each.operations.get(operation_id))
    made = (object_id, reading.route.belongs_to)
    return found if found is not None and (found.object_id, found.route) == made else None


def as_step(reading: Reading, made: Operation) -> Reading | Refusal:
    """Return `reading` with what the operation it goes on with says of the bill."""
    fixed = next((name for name in reading.form if name in FIXED), None)
    if fixed is not None:
        return refuse(Code.PARAMETER_NOT_ALLOWED, param=fixed)
    if reading.total is None and reading.route.endpoint == INCREMENT:
        return refuse(Code.PARAMETER_MISSING, param="amount")
    total = made.amount if reading.total is None else reading.total
    try:
        check_amount(total, made.currency)
    except MoneyError as error:
        return refuse(Code.PARAMETER_INVALID, param=reading.route.total, reason=str(error))
    return replace(
        reading,
        customer=made.customer,
        money=Money(total, made.currency),
        period=None if made.period is None else parse_period(made.period),
        reference=made.reference,
    )


def step_fingerprint(reading: Reading, made: Operation) -> str:
    """Return what an approval of a step covers: the bill, and what it is raised to."""
    total = reading.total
    return made.fingerprint if total is None else f"{made.fingerprint}{RAISED_TO}{total}"
