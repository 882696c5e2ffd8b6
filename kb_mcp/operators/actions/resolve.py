"""What an operator does to an operation with Stripe's list at hand: resolve it, or reopen it.

Floor: operators, above operations, for commands, admin API and dashboard. Stripe is read first:
what it shows beats anybody's word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kb_mcp.operators.actions.operations import (
    By,
    Done,
    NotDone,
    Reopening,
    reopen,
)
from kb_mcp.operators.actions.refunds import reopen_refund
from kb_mcp.operators.actions.settle import settle_by_object
from kb_mcp.operators.actions.void import void_by, why_not_now
from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Changes, Operation, Refs
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.recovery import DAILY_DECLINES_DEFAULT, Recovery
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.reader import Found, GivenBack, Missing, StripeReads, Unread, read_refund
from kb_mcp.proxy.watching.list_walks import FOR_AN_OPERATOR

_OBJECT_ID = re.compile(r"[A-Za-z0-9_]{1,128}")


@dataclass(frozen=True, slots=True)
class Resolution:
    """What an operator says of an operation; without `object_id`, that nothing happened."""

    object_id: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class StripeActs:
    """Acts over `ledger`; `recovery` looks at one operation in Stripe's list."""

    ledger: Ledger
    reads: StripeReads
    recovery: Recovery

    async def resolve(self, operation: Operation, said: Resolution, who: str) -> Done | NotDone:
        """Settle or void an operation, in the name of `who`."""
        by = By(who, said.reason)
        if said.object_id is not None:
            return await self.succeed(operation, said.object_id, by)
        return await self.void(operation, by)

    async def succeed(self, operation: Operation, object_id: str, by: By) -> Done | NotDone:
        """Settle an operation with the object that was found at Stripe, once it is compared."""
        route = ENDPOINTS[operation.route]
        item = await self._read(f"{route.template}/{object_id}", object_id)
        if isinstance(item, NotDone):
            return item
        found = await self.ledger.find_key(operation.key_id)
        limit = DAILY_DECLINES_DEFAULT
        if found is not None:
            limit = policy_of(found[0].policy).daily_declines
        return await settle_by_object(self.ledger, operation, item, by, limit)

    async def void(self, operation: Operation, by: By) -> Done | NotDone:
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

        What counts is what Stripe's list of refunds shows now. Of a refund, one more may be made.
        """
        if operation.kind == "refund":
            return await reopen_refund(self.ledger, operation, by)
        refunded = False
        if operation.object_id is not None:
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
