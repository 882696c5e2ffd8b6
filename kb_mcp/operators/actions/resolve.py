"""What an operator does to an operation with Stripe at hand: settle it, void it, or reopen it.

Floor: operators, above operations, for commands, admin API and dashboard. Stripe is read first:
what it shows beats anybody's word. A person's word is checked, under the locks, against everything
that the object says: one of another bill, of last month or of another operation settles nothing.
A void needs two whole looks: a person may be wrong and a list may lag, so that the first look is
kept in the operation and the second comes a minute later, with whatever command or form is used
then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from kb_mcp.instants import how_many
from kb_mcp.operators.actions import operations
from kb_mcp.operators.actions.operations import By, NotDone, Reopening
from kb_mcp.periods import PeriodError, parse_period, period_from_description
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.governor import ending_refs
from kb_mcp.proxy.ledger.port import Ledger, look_up
from kb_mcp.proxy.ledger.records import (
    LISTINGS_THAT_FREE,
    Attempt,
    AttemptOutcome,
    AuditDraft,
    Changes,
    Operation,
    Refs,
)
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import release, windows_then
from kb_mcp.proxy.recovery import FOR_AN_OPERATOR, Recovery
from kb_mcp.proxy.rules.outcomes import resolve as readings
from kb_mcp.proxy.rules.outcomes.conclude import conclude
from kb_mcp.proxy.rules.outcomes.matching import BEFORE_MS, MAY_HAVE_ARRIVED, Item
from kb_mcp.proxy.stripe import evidence
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.messages import SEND_WITHIN_MS
from kb_mcp.proxy.stripe.reader import GivenBack, Missing, StripeReads, Unread, read_refund

BETWEEN_LOOKS_MS = 60_000
# Stripe keeps a 5xx under its key for a day: until then nobody can tell what became of it.
STORED_ERROR_MS = 25 * 3_600_000
# What an object says of itself may be anybody's text, and is shown on a terminal.
WHY_MAX = 400
_VOIDABLE = frozenset({S.UNKNOWN, S.VOIDED})
# What is known to have made nothing is settled by its own mark alone.
_NEEDS_A_MARK = frozenset({S.FAILED, S.AWAITING_APPROVAL})
_OBJECT_ID = re.compile(r"[A-Za-z0-9_]{1,128}")


@dataclass(frozen=True, slots=True)
class StripeActs:
    """Acts over `ledger`; `recovery` looks at one operation in Stripe's list."""

    ledger: Ledger
    reads: StripeReads
    recovery: Recovery

    async def resolve(self, operation: Operation, made: str | None, by: By) -> Operation | NotDone:
        """Settle an operation with its object, or void it where an operator says it has none."""
        if made is None:
            return await self._void(operation, by)
        if not _OBJECT_ID.fullmatch(made):
            return NotDone("that is no id of an object at Stripe")
        match await self.reads.get(ENDPOINTS[operation.route].path_of(made)):
            case Missing():
                return NotDone(f"Stripe has no {made}", "Check the id, and the mode of the key.")
            case Unread(why=why):
                return NotDone(f"{made} cannot be read: {why}", "Nothing was changed.")
            case item if item.get("id") == made:
                limit = await self.recovery.daily_declines(operation.key_id)
                return await settle_by_object(self.ledger, operation, item, by, limit)
            case _:
                return NotDone("Stripe answered with another object", "Nothing was changed.")

    async def _void(self, operation: Operation, by: By) -> Operation | NotDone:
        """Void an operation on an operator's word, at the second whole look without its object."""

        def why_not(snapshot: Snapshot) -> NotDone | None:
            current = snapshot.operations[operation.id]
            if current.state is S.VOIDED and not current.live:
                return NotDone(f"operation {current.id} is voided already")
            otherwise = "only unknown ones are resolved by a void"
            return operations.unresolvable(snapshot, current, _VOIDABLE, otherwise)

        refused = await look_up(self.ledger, Refs(operations=frozenset({operation.id})), why_not)
        if refused is not None:
            return refused
        done = await self.recovery.examine(operation.id, partial(_looked, by), FOR_AN_OPERATOR)
        return done or operations.busy(operation)

    async def reopen(self, operation: Operation, by: By, said: Reopening) -> Operation | NotDone:
        """Let a refunded bill be billed once more, or waive a suspicion that was wrong.

        What counts of a charge is what Stripe's list of refunds shows now.
        """
        made, refunded = operation.object_id, False
        # What was given back of an invoice's charge opens no invoice: only a suspicion is waived.
        if made is not None and not operation.pays_invoice and operation.gives_back is None:
            match await read_refund(self.reads, operation):
                case Unread(why=why):
                    hint = "Nothing was changed. The Stripe key must be allowed to read refunds."
                    return NotDone(f"the refunds of {made} cannot be read: {why}", hint)
                case Missing():
                    return NotDone(f"Stripe has no {made}", "Check the key's mode.")
                case GivenBack(waiting=waiting) if waiting is not None:
                    hint = "It may still fail. Run this again once it has succeeded."
                    return NotDone(f"the refund {waiting} of {made} has not succeeded", hint)
                case GivenBack(whole=refunded):
                    pass
        return await operations.reopen(self.ledger, operation, by, said, refunded=refunded)


def _looked(
    by: By, snapshot: Snapshot, leased: Operation, finding: readings.Finding, daily_declines: int
) -> tuple[Operation | NotDone, Changes]:
    """Return what follows from one reading of Stripe's list for an operator's void."""
    operation = snapshot.operations[leased.id]
    if operation.lease_token != leased.lease_token:
        why = f"operation {operation.id} was sent or read meanwhile"
        return NotDone(why, "Try again."), Changes()
    if not isinstance(finding, readings.Absent):
        return _not_absent(snapshot, leased, finding, daily_declines)
    looked_at = finding.begun_at or leased.lease_until - readings.LEASE_MS
    freed = replace(operation, lease_owner=None, updated_at=snapshot.now)
    refusal = _too_early(snapshot, operation, looked_at)
    if refusal is not None:
        return refusal, Changes(operations=(freed,))
    first = operation.void_look_at or looked_at
    if looked_at >= first + BETWEEN_LOOKS_MS:
        return _void(snapshot, operation, by)
    left_s = -(-max(first + BETWEEN_LOOKS_MS - snapshot.now, 1) // 1000)
    why = f"Stripe's list does not show operation {operation.id}, but a list may lag behind"
    if twins := readings.unowned_twins(snapshot, operation, finding):
        why = (
            f"Stripe's list shows {twins[0]} without a mark, of the same customer, amount and "
            f"currency: if it is the charge of operation {operation.id}, resolve with "
            f"--succeeded {twins[0]}"
        )
    hint = f"Look a second time: ask for the same in {_spoken(left_s)}, and it is voided."
    looked = replace(freed, void_look_at=first)
    row = by.row("resolve_look", looked, note=why)
    return NotDone(why, hint), Changes(operations=(looked,), audit=(row,))


def _not_absent(
    snapshot: Snapshot, leased: Operation, finding: readings.Finding, daily_declines: int
) -> tuple[NotDone, Changes]:
    """Conclude by what was found, or say that nothing could be."""
    after, changes = readings.resolve(snapshot, leased, finding, daily_declines)
    if isinstance(finding, readings.Present):
        shown = f"Stripe shows {finding.proof.object_id}, {finding.proof.stripe_status}"
        word = "has succeeded" if after.state is S.SUCCEEDED else f"is {after.state.value}"
        why = f"{shown}: operation {after.id} {word}"
        return NotDone(why, "It was settled with that object just now."), changes
    # The first look is still good: nothing was sent since.
    hint = "Nothing was changed. Try again once Stripe answers; `kb-mcp doctor` asks it."
    return NotDone("Stripe's list could not be read to its end", hint), changes


def _void(snapshot: Snapshot, operation: Operation, by: By) -> tuple[Operation, Changes]:
    """Release what is held and free the guards; a late object still beats the word."""
    voided = replace(
        operation,
        state=S.VOIDED,
        held=0,
        code="voided_by_operator",
        voided_at=snapshot.now,
        empty_listings=LISTINGS_THAT_FREE,
        next_read_at=snapshot.now + readings.LAST_LISTING_MS,
        lease_owner=None,
        updated_at=snapshot.now,
    )
    attempt = snapshot.attempt(operation)
    closed = () if attempt is None else (replace(attempt, outcome=AttemptOutcome.VOIDED),)
    changes = Changes(
        operations=(voided,),
        attempts=closed,
        windows=release(snapshot, operation) if operation.held else (),
        audit=(by.row("resolve_void", voided),),
    )
    return voided, changes


def _too_early(snapshot: Snapshot, operation: Operation, at: int) -> NotDone | None:
    """Return why a look `at` that moment (ms) that showed nothing proves nothing."""
    if snapshot.skewed:
        why = "this host's clock and Stripe's differ, so that nothing can be told to be old enough"
        return NotDone(why, "Set the clock right; `kb-mcp doctor` shows it.")
    attempts = snapshot.attempts_of(operation)
    maybe = (each for each in attempts if each.outcome in MAY_HAVE_ARRIVED)
    if any((each.status or 0) >= 500 for each in maybe):
        after_ms, name = STORED_ERROR_MS, f"operation {operation.id}"
        why = f"Stripe answered {name} with an error that it keeps under the key for a day"
    else:
        after_ms = SEND_WITHIN_MS + snapshot.settings.recovery_grace_ms
        why = f"operation {operation.id} was sent so lately that Stripe may still be at it"
    left_ms = max((each.last_sent_at for each in attempts), default=0) + after_ms - at
    hint = f"Try again in {_spoken(left_ms // 1000 + 1)}."
    return None if left_ms < 0 else NotDone(why, hint)


def _spoken(seconds: int) -> str:
    hours = -(-seconds // 3_600)
    return how_many(seconds, "second") if seconds < 3_600 else how_many(hours, "hour")


async def settle_by_object(
    ledger: Ledger, operation: Operation, item: Item, by: By, daily_declines: int
) -> Operation | NotDone:
    """Conclude an operation with the object `item`, as Stripe shows it, in one transaction.

    One that counted as failed, voided or waiting turns out to be charged: that is recorded as a
    charge that turned up late. No object concludes two operations.
    """
    made = evidence.prove_object(item, ENDPOINTS[operation.route])
    if made is None:
        return NotDone(f"{item.get('id')} is not operation {operation.id}: another kind of object")
    if made.verdict == "failed":
        why = f"{made.object_id} is {made.stripe_status}: it took no money"
        return NotDone(why, "Void the operation instead, if it is unknown.")

    def step(snapshot: Snapshot) -> tuple[Operation | NotDone, Changes]:
        current, states = snapshot.operations[operation.id], _VOIDABLE | _NEEDS_A_MARK
        otherwise = "its outcome is known or not asked yet"
        refusal = operations.unresolvable(snapshot, current, states, otherwise)
        if refusal is not None:
            return refusal, Changes()
        different = why_not_its(snapshot, current, item)
        if different is not None:
            why = f"{made.object_id} is not operation {current.id}: {different}"
            return NotDone(clean_text(why, WHY_MAX)), Changes()
        return _settle(snapshot, current, item, made, by, daily_declines)

    def refs(now: int) -> Refs:
        named = ending_refs(operation, made, now)
        made_in = windows_then(operation, _made_at(item)).all()
        objects, windows = named.objects | names_of(item), named.windows | frozenset(made_in)
        return replace(named, objects=objects, windows=windows)

    return await ledger.transact(refs, step)


def _settle(
    snapshot: Snapshot,
    current: Operation,
    item: Item,
    made: evidence.Made,
    by: By,
    daily_declines: int,
) -> tuple[Operation, Changes]:
    attempt = _attempt_of(snapshot, current, item)
    if (current.id, attempt.number) not in snapshot.attempts:
        # A store that lost records knows nothing of this send: it counts when it was made.
        current = replace(current, attempt=attempt.number, reserved_at=_made_at(item))
        snapshot.apply(Changes(operations=(current,), attempts=(attempt,)))
    ending = evidence.Ending(
        operation_id=current.id,
        attempt=attempt.number,
        token=current.lease_token,
        proof=made,
        daily_declines=daily_declines,
        request=AuditDraft(kind="admin", agent_id=by.operator),
    )
    after, changes = conclude(snapshot, ending)
    rows = (*changes.audit, by.row("resolve_succeeded", after))
    return after, replace(changes, audit=rows)


def _attempt_of(snapshot: Snapshot, operation: Operation, item: Item) -> Attempt:
    """Return the attempt that made `item`: by its mark, else the current one, else a new one."""
    attempts, mark = snapshot.attempts_of(operation), marked_key(operation, item)
    marked = next((each for each in attempts if each.upstream_key == mark), None)
    if marked is not None or (mark is None and attempts):
        return marked or attempts[-1]
    key = mark or operation.upstream_name
    return operations.lost_attempt(operation, operation.attempt + 1, key, _made_at(item))


def _made_at(item: Item) -> int:
    return evidence.created_ms(item.get("created")) or 0


def names_of(item: Item) -> frozenset[str]:
    """Return the ids under which another operation may own `item`: its own, and its intent's."""
    intent = None if item.get("object") == "refund" else item.get("payment_intent")
    return frozenset(filter(None, map(evidence.object_id, (item.get("id"), intent))))


def marked_key(operation: Operation, item: Item) -> str | None:
    """Return the upstream key in the mark of `item`, if `operation` may have sent it."""
    mark, ours = evidence.mark_of(item), re.escape(operation.upstream_name)
    return mark if isinstance(mark, str) and re.fullmatch(rf"{ours}(-\d*)?", mark) else None


def why_not_its(snapshot: Snapshot, operation: Operation, item: Item) -> str | None:
    """Return why `item` cannot be the object of `operation`, or None where it can."""
    reasons = _other_invoice if operation.pays_invoice else _other_object
    return next(reasons(snapshot, operation, item), None)


def _other_invoice(_: Snapshot, operation: Operation, item: Item) -> Iterator[str]:
    """Yield why `item` is not the invoice that `operation` paid; it bears no mark of anybody."""
    if item.get("id") != operation.object_id:
        yield f"the invoice of this operation is {operation.object_id}"
    if item.get("status") != "paid":
        yield f"it is {item.get('status')}, not paid"


def _other_object(snapshot: Snapshot, operation: Operation, item: Item) -> Iterator[str]:
    attempts, metadata = snapshot.attempts_of(operation), evidence.marks(item)
    owners = {snapshot.object_owners.get(name) for name in names_of(item)}
    owner, mark = metadata.get("keybrake_operation"), metadata.get("keybrake_attempt")
    for other in sorted(owners - {None, operation.id}, key=str):
        yield f"it already concluded operation {other}"
    if owner and owner != operation.id:
        yield f"it belongs to operation {owner}"
    known = any(each.upstream_key == mark for each in attempts)
    if mark and not known and marked_key(operation, item) is None:
        yield "it belongs to another operation: its mark keybrake_attempt says so"
    if not (owner or mark) and operation.state in _NEEDS_A_MARK:
        yield f"it bears no mark of this operation, which is {operation.state.value}"
    yield from _other_values(snapshot, operation, item)
    created = evidence.created_ms(item.get("created"))
    sent = min((each.first_sent_at for each in attempts), default=operation.first_arrival_at)
    if created is None or created < sent - BEFORE_MS:
        yield "it was created before the operation was first sent"
    if operation.gives_back is None:
        yield from _other_bill(operation, item)


def _other_values(snapshot: Snapshot, operation: Operation, item: Item) -> Iterator[str]:
    live = snapshot.settings.mode == "live"
    whose: tuple[str, object, object] = ("customer", evidence.customer_of(item), operation.customer)
    if operation.gives_back is not None:
        # A refund does not say whose it is, nor in which mode: its charge does.
        whose = ("charge", item.get("charge"), operation.gives_back)
    for name, found, wanted in (
        ("amount", item.get("amount"), operation.amount),
        ("currency", item.get("currency"), operation.currency),
        whose,
        ("livemode", item.get("livemode", live), live),
    ):
        # Refunds, payouts and top-ups say no customer.
        if found != wanted and (name != "customer" or "customer" in item):
            yield f"its {name} is {found}, the operation's is {wanted}"


def _other_bill(operation: Operation, item: Item) -> Iterator[str]:
    metadata, described = evidence.marks(item), str(item.get("description") or "")
    reference, said = metadata.get("reference"), metadata.get("billing_period")
    if reference and reference != operation.reference:
        yield f"its reference is {reference}, the operation's is {operation.reference}"
    try:
        period = parse_period(str(said)) if said else period_from_description(described)
    except PeriodError:
        yield f"its billing period {said!r} cannot be read"
    else:
        if period is not None and period.label != operation.period:
            yield f"its billing period is {period.label}, the operation's is {operation.period}"
