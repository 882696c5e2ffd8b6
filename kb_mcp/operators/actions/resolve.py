"""What an operator does to an operation with Stripe's list at hand: resolve it, or reopen it.

Floor: operators, above operations, for commands, admin API and dashboard. Stripe is read first:
what it shows beats anybody's word.
A void needs two whole looks: a person may be wrong and a list may lag, so that the first look is
kept in the operation and the second comes a minute later, with whatever command or form is used
then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from kb_mcp.instants import how_many
from kb_mcp.operators.actions.operations import (
    By,
    Done,
    NotDone,
    Reopening,
    reopen,
    unresolvable,
)
from kb_mcp.operators.actions.settle import settle_by_object
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import LISTINGS_THAT_FREE, AttemptOutcome, Changes, Operation, Refs
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import release
from kb_mcp.proxy.recovery import FOR_AN_OPERATOR, Recovery
from kb_mcp.proxy.rules.outcomes.resolve import (
    LAST_LISTING_MS,
    LEASE_MS,
    Absent,
    Finding,
    Present,
    resolve,
    unowned_twins,
)
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.messages import SEND_WITHIN_MS
from kb_mcp.proxy.stripe.reader import Found, GivenBack, Missing, StripeReads, Unread, read_refund

BETWEEN_LOOKS_MS = 60_000
# Stripe keeps a 5xx under its key for a day: until then nobody can tell what became of it.
STORED_ERROR_MS = 25 * 3_600_000
_VOIDABLE = frozenset({S.UNKNOWN, S.VOIDED})
_UNPROVEN = frozenset({AttemptOutcome.OPEN, AttemptOutcome.VOIDED})
Step = Callable[[Snapshot, Operation, Finding, int], tuple[Done | NotDone, Changes]]


def why_not_now(snapshot: Snapshot, operation: Operation) -> NotDone | None:
    """Return why nobody may look for an operator's void of `operation`, or None."""
    if operation.state is S.VOIDED and not operation.live:
        return NotDone(f"operation {operation.id} is voided already")
    return unresolvable(snapshot, operation, _VOIDABLE, "only unknown ones are resolved by a void")


def void_by(by: By) -> Step:
    """Return what follows from one reading of Stripe's list for an operator's void."""

    def step(
        snapshot: Snapshot, leased: Operation, finding: Finding, daily_declines: int
    ) -> tuple[Done | NotDone, Changes]:
        operation = snapshot.operations[leased.id]
        if operation.lease_token != leased.lease_token:
            why = f"operation {operation.id} was sent or read meanwhile"
            return NotDone(why, "Try again."), Changes()
        if not isinstance(finding, Absent):
            return _not_absent(snapshot, leased, finding, daily_declines)
        looked_at = finding.begun_at or leased.lease_until - LEASE_MS
        refusal = _too_early(snapshot, operation, looked_at)
        if refusal is not None:
            return refusal, Changes(operations=(_freed(snapshot, operation),))
        first = operation.void_look_at
        if first is None or looked_at < first + BETWEEN_LOOKS_MS:
            return _looked_once(snapshot, operation, finding, looked_at, by)
        return _void(snapshot, operation, by)

    return step


def _not_absent(
    snapshot: Snapshot, leased: Operation, finding: Finding, daily_declines: int
) -> tuple[NotDone, Changes]:
    """Conclude by what was found, or say that nothing could be."""
    after, changes = resolve(snapshot, leased, finding, daily_declines)
    if isinstance(finding, Present):
        shown = f"Stripe shows {finding.proof.object_id}, {finding.proof.stripe_status}"
        word = "has succeeded" if after.state is S.SUCCEEDED else f"is {after.state.value}"
        why = f"{shown}: operation {after.id} {word}"
        return NotDone(why, "It was settled with that object just now."), changes
    # The first look is still good: nothing was sent since.
    hint = "Nothing was changed. Try again once Stripe answers; `kb-mcp doctor` asks it."
    return NotDone("Stripe's list could not be read to its end", hint), changes


def _looked_once(
    snapshot: Snapshot, operation: Operation, finding: Absent, looked_at: int, by: By
) -> tuple[NotDone, Changes]:
    first = operation.void_look_at or looked_at
    looked = replace(_freed(snapshot, operation), void_look_at=first)
    left_ms = max(first + BETWEEN_LOOKS_MS - snapshot.now, 1)
    twins = unowned_twins(snapshot, operation, finding)
    why = f"Stripe's list does not show operation {operation.id}, but a list may lag behind"
    if twins:
        why = (
            f"Stripe's list shows {twins[0]} without a mark, of the same customer, amount and "
            f"currency: if it is the charge of operation {operation.id}, resolve with "
            f"--succeeded {twins[0]}"
        )
    seconds = -(-left_ms // 1000)
    hint = f"Look a second time: ask for the same in {_spoken(seconds)}, and it is voided."
    row = by.row("resolve_look", looked, note=why)
    return NotDone(why, hint), Changes(operations=(looked,), audit=(row,))


def _void(snapshot: Snapshot, operation: Operation, by: By) -> tuple[Done, Changes]:
    """Release what is held and free the guards; a late object still beats the word."""
    voided = replace(
        _freed(snapshot, operation),
        state=S.VOIDED,
        held=0,
        code="voided_by_operator",
        voided_at=snapshot.now,
        empty_listings=LISTINGS_THAT_FREE,
        next_read_at=snapshot.now + LAST_LISTING_MS,
    )
    attempt = snapshot.attempt(operation)
    closed = () if attempt is None else (replace(attempt, outcome=AttemptOutcome.VOIDED),)
    changes = Changes(
        operations=(voided,),
        attempts=closed,
        windows=release(snapshot, operation) if operation.held else (),
        audit=(by.row("resolve_void", voided),),
    )
    return Done(voided), changes


def _freed(snapshot: Snapshot, operation: Operation) -> Operation:
    return replace(operation, lease_owner=None, updated_at=snapshot.now)


def _too_early(snapshot: Snapshot, operation: Operation, at: int) -> NotDone | None:
    """Return why a look `at` that moment (ms) that showed nothing proves nothing."""
    if snapshot.skewed:
        why = "this host's clock and Stripe's differ, so that nothing can be told to be old enough"
        return NotDone(why, "Set the clock right; `kb-mcp doctor` shows it.")
    attempts = snapshot.attempts_of(operation)
    sent = max((each.last_sent_at for each in attempts), default=0)
    left_ms = sent + SEND_WITHIN_MS + snapshot.settings.recovery_grace_ms - at
    why = f"operation {operation.id} was sent so lately that Stripe may still be at it"
    if any((each.status or 0) >= 500 for each in attempts if each.outcome in _UNPROVEN):
        left_ms = sent + STORED_ERROR_MS - at
        why = (
            f"Stripe answered operation {operation.id} with an error that it keeps under the key "
            "for a day"
        )
    if left_ms < 0:
        return None
    return NotDone(why, f"Try again in {_spoken(left_ms // 1000 + 1)}.")


def _spoken(seconds: int) -> str:
    hours = -(-seconds // 3_600)
    return how_many(seconds, "second") if seconds < 3_600 else how_many(hours, "hour")


_OBJECT_ID = re.compile(r"[A-Za-z0-9_]{1,128}")


@dataclass(frozen=True, slots=True)
class StripeActs:
    """Acts over `ledger`; `recovery` looks at one operation in Stripe's list."""

    ledger: Ledger
    reads: StripeReads
    recovery: Recovery

    async def resolve(self, operation: Operation, object_id: str | None, by: By) -> Done | NotDone:
        """Settle an operation with its object, or void it where an operator says it has none."""
        if object_id is None:
            return await self._void(operation, by)
        return await self._succeed(operation, object_id, by)

    async def _succeed(self, operation: Operation, object_id: str, by: By) -> Done | NotDone:
        route = ENDPOINTS[operation.route]
        item = await self._read(route.path_of(object_id), object_id)
        if isinstance(item, NotDone):
            return item
        limit = await self.recovery.daily_declines(operation.key_id)
        return await settle_by_object(self.ledger, operation, item, by, limit)

    async def _void(self, operation: Operation, by: By) -> Done | NotDone:
        """Void an operation on an operator's word, at the second whole look without its object."""
        refs = Refs(operations=frozenset({operation.id}))

        def refusal(snapshot: Snapshot) -> tuple[NotDone | None, Changes]:
            return why_not_now(snapshot, snapshot.operations[operation.id]), Changes()

        refused = await self.ledger.transact(lambda _: refs, refusal)
        if refused is not None:
            return refused
        done = await self.recovery.examine(operation.id, void_by(by), FOR_AN_OPERATOR)
        if done is None:
            why = f"operation {operation.id} is being sent or read right now"
            return NotDone(why, "Try again.")
        return done

    async def reopen(self, operation: Operation, by: By, said: Reopening) -> Done | NotDone:
        """Let a refunded bill be billed once more, or waive a suspicion that was wrong.

        What counts of a charge is what Stripe's list of refunds shows now.
        """
        refunded = False
        # What was given back of an invoice's charge opens no invoice: only a suspicion is waived.
        if (
            operation.object_id is not None
            and not operation.pays_invoice
            and operation.gives_back is None
        ):
            seen = await read_refund(self.reads, operation)
            match seen:
                case Unread():
                    why = f"the refunds of {operation.object_id} cannot be read: {seen.why}"
                    hint = "Nothing was changed. The Stripe key must be allowed to read refunds."
                    return NotDone(why, hint)
                case Missing():
                    return NotDone(f"Stripe has no {operation.object_id}", "Check the key's mode.")
                case GivenBack(waiting=waiting) if waiting is not None:
                    why = f"the refund {waiting} of {operation.object_id} has not succeeded"
                    return NotDone(why, "It may still fail. Run this again once it has succeeded.")
                case GivenBack():
                    refunded = seen.whole
        return await reopen(self.ledger, operation, by, said, refunded=refunded)

    async def _read(self, path: str, object_id: str) -> Mapping[str, Any] | NotDone:
        if not _OBJECT_ID.fullmatch(object_id):
            return NotDone("that is no id of an object at Stripe")
        seen = await self.reads.get(path)
        if isinstance(seen, Found):
            if seen.body.get("id") != object_id:
                return NotDone("Stripe answered with another object", "Nothing was changed.")
            return seen.body
        if isinstance(seen, Unread):
            return NotDone(f"{object_id} cannot be read: {seen.why}", "Nothing was changed.")
        return NotDone(f"Stripe has no {object_id}", "Check the id, and the mode of the key.")
