"""An adoption: everything that Stripe has since some time and the ledger lacks, one by one.

Floor: wing C, above adopt and readopt. It reads Stripe and never posts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from kb_mcp.operators.actions.adopt import (
    NOBODY,
    Adopted,
    Left,
    adopt,
    operation_of,
    period_of,
    proof_of,
)
from kb_mcp.operators.actions.readopt import adopt_known
from kb_mcp.operators.actions.refunds import adopt_refund, refund_operation
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Attempt, KeyId, Operation, OperationId
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.rules.outcomes.gaps import WALKED, holds_money, mark_of
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stripe.json_objects import marks, object_names
from kb_mcp.proxy.stripe.reader import Found, StripeReads, Unread

Item = Mapping[str, Any]
CHUNK = 100
# An object may be listed under an earlier second than its reservation: clocks differ.
MARGIN_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Taken:
    """One object at Stripe, what it stands for, and what became of it."""

    item: Item
    operation: Operation | None
    result: Adopted | Left


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """Adopts for one store. `lineages` are the store's own, each with a key of it.

    `now` is the store's time in ms; nothing is written unless `applies`.
    """

    ledger: Ledger
    records: StoreReads
    reads: StripeReads
    lineages: Mapping[str, KeyId]
    period_from: str
    operator: str
    now: int
    new_id: Callable[[str], str]
    applies: bool

    async def unknown(
        self, since_ms: int, seen: Callable[[int], None] = lambda _: None
    ) -> list[Item] | Unread:
        """Return what moved or holds money at Stripe and is not in the ledger, oldest first.

        Of intents those alone that kb-mcp made; the charge of an intent speaks for it. Refunds come
        after the charges that they give back.
        """
        found: list[Item] = []
        spoken: set[str] = set()
        for path, route in WALKED:
            listed = await self.reads.walk(path, since_ms - MARGIN_MS, seen, may_lack=True)
            if isinstance(listed, Unread):
                return listed
            for item in listed:
                ours = path != "/v1/payment_intents" or "keybrake_operation" in marks(item)
                names = set(object_names(item))
                if ours and holds_money(item, route) and not names & spoken:
                    found.append(item)
                    spoken |= names
        lacking = [each for chunk in _chunks(found) for each in await self._lacking(chunk)]
        # Stripe lists the newest first, and the newest of a bill is to speak for it.
        lacking.reverse()
        return sorted(lacking, key=lambda each: (_is_refund(each), int(each.get("created", 0))))

    async def take(self, item: Item) -> Taken:
        """Adopt one object, or say why not. Raises: LedgerUnavailableError."""
        if proof_of(item) is None:
            return Taken(item, None, Left("its status cannot be read"))
        period = None if _is_refund(item) else period_of(item, self.period_from)
        plain = None if isinstance(period, Left) else period
        fresh = OperationId(self.new_id("op"))
        if _is_refund(item):
            charge = await self.reads.get(f"/v1/charges/{item.get('charge')}")
            if not isinstance(charge, Found):
                return Taken(item, None, Left("its charge cannot be read"))
            customer = charge.body.get("customer")
            found, attempt = refund_operation(item, customer, self.lineages, self.now, fresh)
        else:
            found, attempt = operation_of(item, plain, self.lineages, self.now, fresh)
        young = self.now - found.reserved_at < self.ledger.settings.recovery_grace_ms
        if young and found.lineage_id != NOBODY:
            # Ours, and so new that the process that sent it may be about to conclude it.
            return Taken(item, found, Left("made within the recovery grace: run this again later"))
        known = await self._of_mark(item, found)
        if known is None or known.state is S.SUCCEEDED:
            if isinstance(period, Left):
                return Taken(item, found, period)
            if known is not None:
                # Charged twice: the other object is that operation's, this one gets its own.
                found = replace(found, id=OperationId(self.new_id("op")))
                key = f"{NOBODY}-{found.object_id}"
                attempt = replace(attempt, operation_id=found.id, upstream_key=key)
            how = adopt_refund if _is_refund(item) else adopt
            return Taken(item, found, await self._write(how, found, attempt))
        found = replace(found, id=known.id)
        return Taken(
            item,
            found,
            await self._write(adopt_known, found, replace(attempt, operation_id=known.id)),
        )

    async def _write(self, how: Any, found: Operation, attempt: Attempt) -> Adopted | Left:
        if not self.applies:
            return Adopted(found)
        result: Adopted | Left = await how(self.ledger, found, attempt, self.operator)
        return result

    async def _of_mark(self, item: Item, found: Operation) -> Operation | None:
        """Return the operation here whose mark `item` bears: by its attempt, else by its id."""
        known = await self.records.known((), [mark] if (mark := mark_of(item)) else [])
        ids = {trace.operation_id for trace in known.attempts.values()} or {found.id}
        operations = await self.records.operations(ids=sorted(ids), limit=1)
        return operations[0][0] if operations else None

    async def _lacking(self, items: Sequence[Item]) -> list[Item]:
        names = sorted({name for each in items for name in object_names(each)})
        known = await self.records.known(names, ())
        return [each for each in items if not known.objects.intersection(object_names(each))]


def _is_refund(item: Item) -> bool:
    return item.get("object") == "refund"


def _chunks(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
