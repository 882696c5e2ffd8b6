"""An adoption: everything that Stripe has since some time and the ledger lacks, one by one.

Floor: operators, above adopt. It reads Stripe and never posts; each object is taken in by one
audited transaction. What failed or waits here may have been charged since, after a restore: the
ledger then remembers an earlier moment, and Stripe's object is the truth.
Beside it stands what an operator says about a store: that it is new, or that marks are not its own.
Nothing of that is taken back by a later walk, so that each refuses where it would hide a loss.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from kb_mcp.operators.actions.adopt import NOBODY, is_refund, operation_of, period_of, proof_of
from kb_mcp.operators.actions.operations import By, NotDone, admin_row
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import (
    HOLDING,
    Attempt,
    Changes,
    KeyId,
    Operation,
    OperationId,
    Refs,
    Window,
)
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import GAP, NEW_STORE, Snapshot
from kb_mcp.proxy.ledger.windows import count, release, windows_of
from kb_mcp.proxy.rules.outcomes.matching import WALKED, Item, holds_money
from kb_mcp.proxy.store_walk import FOREIGN, StoreWalk
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stripe.evidence import mark_of, marks, object_names
from kb_mcp.proxy.stripe.reader import StripeReads, Unread

CHUNK = 100
_REOPENED_SUFFIX = re.compile(r"-r([0-9]{1,9})$")
# An object may be listed under an earlier second than its reservation: clocks differ.
MARGIN_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Taken:
    """One object at Stripe, the operation that it is now or would be, and why it was left."""

    item: Item
    operation: Operation | None = None
    left: NotDone | None = None


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
        asked, known = sorted(spoken), set[str]()
        for at in range(0, len(asked), CHUNK):
            known.update(await self.records.ids("known_objects", ids=asked[at : at + CHUNK]))
        # Stripe lists the newest first, and the newest of a bill is to speak for it.
        lacking = [each for each in reversed(found) if not known.intersection(object_names(each))]
        return sorted(lacking, key=lambda each: (is_refund(each), int(each.get("created", 0))))

    async def take(self, item: Item) -> Taken:
        """Adopt one object, or say why not. Raises: LedgerUnavailableError."""
        if proof_of(item) is None:
            return Taken(item, left=NotDone("its status cannot be read"))
        period, whole = None, item
        if not is_refund(item):
            period = period_of(item, self.period_from)
        else:
            charge = await self.reads.body(f"/v1/charges/{item.get('charge')}")
            if charge is None:
                return Taken(item, left=NotDone("its charge cannot be read"))
            whole = {**item, "customer": charge.get("customer")}
        plain = None if isinstance(period, NotDone) else period
        fresh = OperationId(self.new_id("op"))
        found, attempt = operation_of(whole, plain, self.lineages, self.now, fresh)
        young = self.now - found.reserved_at < self.ledger.settings.recovery_grace_ms
        if young and found.lineage_id != NOBODY:
            # Ours, and so new that the process that sent it may be about to conclude it.
            why = "made within the recovery grace: run this again later"
            return Taken(item, found, NotDone(why))
        known = await self._of_mark(item, found)
        if known is not None and known.state is not S.SUCCEEDED:
            found, attempt = replace(found, id=known.id), replace(attempt, operation_id=known.id)
        elif isinstance(period, NotDone):
            return Taken(item, found, period)
        elif known is not None:
            # Charged twice: the other object is that operation's, this one gets its own.
            found, key = replace(found, id=fresh), f"{NOBODY}-{found.object_id}"
            attempt = replace(attempt, operation_id=fresh, upstream_key=key)
        if not self.applies:
            return Taken(item, found)
        done = await adopt(self.ledger, found, attempt, self.operator)
        return Taken(item, found, done) if isinstance(done, NotDone) else Taken(item, done)

    async def _of_mark(self, item: Item, found: Operation) -> Operation | None:
        """Return the operation here whose mark `item` bears: by its attempt, else by its id."""
        known = await self.records.known_attempts([mark] if (mark := mark_of(item)) else [])
        ids = {trace.operation_id for trace in known.values()} or {found.id}
        operations = await self.records.operations(ids=sorted(ids), limit=1)
        return operations[0][0] if operations else None


async def adopt(
    ledger: Ledger, found: Operation, attempt: Attempt, operator: str
) -> Operation | NotDone:
    """Write what an object at Stripe stands for, and what it counts for, in one transaction.

    `found` and `attempt` are what the object stands for by itself. Where the operation `found.id`
    is here it succeeds with that object under its own name; it counts in the windows of the
    object's creation. Else another operation of the same name becomes the older generation; an
    unresolved one must not, since it may be this very charge.
    """
    by = By(operator)

    def step(snapshot: Snapshot) -> tuple[Operation | NotDone, Changes]:
        current, newest = snapshot.operations.get(found.id), snapshot.newest(found.name)
        why = _why_not(snapshot, current, newest, found)
        if why is not None:
            return NotDone(why), Changes()
        written, made = list[Operation](), attempt
        if current is None:
            # K-r2 alone is the third generation: the next one must not be called K-r2 again.
            suffix = _REOPENED_SUFFIX.search(found.upstream_name)
            behind = 0 if newest is None else newest.generation + 1
            after = replace(found, generation=max(int(suffix[1]) if suffix else 0, behind))
            row = by.row("adopt", after)
            if newest is not None and newest.refunded and newest.successor is None:
                written += [replace(newest, successor=after.id, updated_at=snapshot.now)]
        else:
            made = _attempt_that_made(snapshot, current, attempt)
            after = _succeeded(current, found, made)
            row = by.row("adopt", after, note=f"it was {current.state.value}")
            row = replace(row, attempt=after.attempt)
        changes = Changes(
            operations=(*written, after),
            attempts=(made,),
            windows=_counted(snapshot, current, after),
            audit=(row,),
        )
        return after, changes

    refs = Refs(
        operations=frozenset({found.id}),
        names=frozenset({found.name}),
        charges=frozenset(filter(None, [found.gives_back])),
        objects=frozenset({str(found.object_id)}),
        windows=frozenset(windows_of(found).all()),
    )
    return await ledger.transact(lambda _: refs, step)


def _why_not(
    snapshot: Snapshot, current: Operation | None, newest: Operation | None, found: Operation
) -> str | None:
    owner = snapshot.object_owners.get(str(found.object_id))
    known = owner is not None if current is None else current.state is S.SUCCEEDED
    if known:
        return "the ledger has it meanwhile"
    if current is not None:
        if owner is not None and owner != current.id:
            return f"operation {owner} has it"
        being_sent = "it is being sent or looked up: run this again later"
        return being_sent if snapshot.leased(current) else None
    if newest is not None and found.gives_back is not None and newest.live:
        return f"operation {newest.id} is of the same refund"
    if newest is not None and newest.state in HOLDING:
        return f"operation {newest.id} of the same bill is unresolved"
    return None


def _counted(snapshot: Snapshot, before: Operation | None, after: Operation) -> tuple[Window, ...]:
    """Return the windows once `after` counts in the place of `before`: as spend if it is final."""
    freed = () if before is None or not before.held else release(snapshot, before)
    snapshot.apply(Changes(windows=freed))
    if not after.held:
        return freed
    if after.final:
        counted = count(snapshot, after, settled=after.held)
    else:
        counted = count(snapshot, after, reserved=after.amount)
    return tuple({each.key: each for each in (*freed, *counted)}.values())


def _attempt_that_made(snapshot: Snapshot, current: Operation, attempt: Attempt) -> Attempt:
    """Return the attempt that made the object: the one of its mark, or one that was lost."""
    known = {each.number: each for each in snapshot.attempts_of(current)}
    for each in known.values():
        if each.upstream_key == attempt.upstream_key:
            made = {name: getattr(attempt, name) for name in ("status", "object_id", "outcome")}
            return replace(each, open_sends=0, **made)
    return replace(attempt, number=max(known) + 1) if attempt.number in known else attempt


# What an operation that is here keeps of its own, and of its bill where the object says the same.
_KEPT = ("name", "generation", "named_by", "upstream_name", "approval_id", "created_at")
_BILL = ("period", "period_start", "period_end", "reference", "fingerprint")
_WHOSE = ("key_id", "lineage_id")


def _succeeded(current: Operation, found: Operation, made: Attempt) -> Operation:
    """Return the operation with its object; what it billed is what the object says."""
    same = all(
        getattr(current, name) == getattr(found, name)
        for name in ("amount", "currency", "customer")
    )
    ours = found.lineage_id != NOBODY
    kept = (*_KEPT, *(_BILL if same else ()), *(() if ours else _WHOSE))
    return replace(
        found,
        **{name: getattr(current, name) for name in kept},
        first_arrival_at=max(current.first_arrival_at, found.first_arrival_at),
        attempt=made.number,
        lease_token=current.lease_token + 1,
    )


_LINEAGE = re.compile(r"[A-Za-z0-9_-]{1,64}")


async def confirm_new_store(walk: StoreWalk, operator: str) -> NotDone | None:
    """Take the store for a new one: objects that were made until now are not its own."""
    facts = await walk.records.facts()
    gap = json.loads(facts.get(GAP) or "{}")
    if facts.get(NEW_STORE) != "1" and not gap.get("any_store"):
        return NotDone(
            "this store is not new: what it lacks, it has lost",
            "`kb-mcp adopt --since … --apply` takes it in.",
        )
    await walk.confirm_new((admin_row(operator, "confirm_new_store"),))
    return None


async def name_foreign(walk: StoreWalk, lineage: str, operator: str) -> NotDone | None:
    """Take the objects of `lineage`, made before stores had ids, for another store's."""
    if not _LINEAGE.fullmatch(lineage):
        return NotDone(f"{lineage!r} is no lineage", "It stands in metadata[keybrake_key].")
    if await walk.records.ids("known_lineages", ids=[lineage]):
        return NotDone(f"{lineage} is a lineage of this store: its charges are its own")
    row, fact = admin_row(operator, "foreign_lineage", lineage), (f"{FOREIGN}{lineage}", "1")
    changes = Changes(facts=(fact,), audit=(row,))
    await walk.ledger.transact(lambda _: Refs(), lambda _: (None, changes))
    return None
