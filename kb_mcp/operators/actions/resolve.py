"""What an operator does to an operation with Stripe's list at hand: resolve it, or reopen it.

Floor: wing B, above operations_ops, for the admin API and the dashboard. Stripe is read first: what
it shows beats anybody's word.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kb_mcp.operators.actions.operations import (
    By,
    Done,
    NotDone,
    mismatch,
    reopen,
    settle_by_object,
    void_by_operator,
)
from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Operation, OperationId, State
from kb_mcp.proxy.recovery import DAILY_DECLINES_DEFAULT
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.evidence import prove_object
from kb_mcp.proxy.stripe.reader import Found, StripeReads, Unread

_OBJECT_ID = re.compile(r"[A-Za-z0-9_]{1,128}")
_INTENTS = "POST /v1/payment_intents"


@dataclass(frozen=True, slots=True)
class Resolution:
    """What an operator says of an unknown operation; without `object_id`, that nothing happened."""

    object_id: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class StripeActs:
    """Acts over `ledger`; `resolve_one` is recovery's look at one operation."""

    ledger: Ledger
    reads: StripeReads
    resolve_one: Callable[[OperationId], Awaitable[Operation | None]]

    async def resolve(self, operation: Operation, said: Resolution, who: str) -> Done | NotDone:
        """Settle or void an unknown operation, in the name of `who`."""
        by = By(who, said.reason)
        if said.object_id is not None:
            return await self.succeed(operation, said.object_id, by)
        return await self.void(operation, by)

    async def succeed(self, operation: Operation, object_id: str, by: By) -> Done | NotDone:
        """Settle an unknown operation with the object that was found at Stripe."""
        route = ENDPOINTS[operation.route]
        item = await self._read(f"{route.template}/{object_id}", object_id)
        if isinstance(item, NotDone):
            return item
        made = prove_object(item, route)
        different = mismatch(item, operation)
        if made is None or different is not None:
            return NotDone(f"{object_id} is not its charge: {different or 'another kind'}")
        if made.verdict == "failed":
            return NotDone(f"{object_id} is {made.stripe_status}", "Void the operation instead.")
        found = await self.ledger.find_key(operation.key_id)
        limit = DAILY_DECLINES_DEFAULT
        if found is not None:
            limit = policy_of(found[0].policy).daily_declines
        return await settle_by_object(self.ledger, operation, made, by, limit)

    async def void(self, operation: Operation, by: By) -> Done | NotDone:
        """Void an unknown operation on an operator's word, unless Stripe shows its charge."""
        if operation.state is State.UNKNOWN:
            read = await self.resolve_one(operation.id)
            if read is not None and read.state is State.SUCCEEDED:
                why = f"Stripe shows {read.object_id}: it was settled with that just now"
                return NotDone(why)
        elif operation.state is State.VOIDED:
            return NotDone(f"operation {operation.id} is voided already")
        return await void_by_operator(self.ledger, operation, by)

    async def reopen(self, operation: Operation, by: By) -> Done | NotDone:
        """Let a refunded bill be billed once more, or waive a suspicion that was wrong."""
        refunded = False
        if operation.object_id is not None:
            intent = operation.route == _INTENTS
            path = f"/v1/charges/{operation.object_id}"
            if intent:
                path = f"/v1/payment_intents/{operation.object_id}?expand[]=latest_charge"
            item = await self._read(path, operation.object_id)
            if isinstance(item, NotDone):
                return item
            charge = item.get("latest_charge") if intent else item
            refunded = isinstance(charge, Mapping) and charge.get("refunded") is True
        return await reopen(self.ledger, operation, by, refunded=refunded)

    async def _read(self, path: str, object_id: str) -> Mapping[str, Any] | NotDone:
        if not _OBJECT_ID.fullmatch(object_id):
            return NotDone("that is no id of an object at Stripe")
        seen = await self.reads.get(path)
        if isinstance(seen, Found):
            return seen.body
        if isinstance(seen, Unread):
            return NotDone(f"{object_id} cannot be read: {seen.why}", "Nothing was changed.")
        return NotDone(f"Stripe has no {object_id}", "Check the id, and the mode of the key.")
