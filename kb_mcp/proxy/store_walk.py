"""The walk: reads Stripe's lists and proves that this store knows every object that it made.

Floor: wing B, above the rules, below recovery. It never posts. A walk begins at the end of the last
whole one, which the store itself keeps: so that a store that was restored, together with all that
lay beside it, finds what it has lost. While it does not know something, nothing is sent.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.json import decode, encode
from msgspec.structs import replace

from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Operation, OperationId, Refs
from kb_mcp.proxy.ledger.snapshot import GAP, NEW_STORE, Snapshot
from kb_mcp.proxy.rules.outcomes.matching import (
    GAP_FOUND,
    WALKED,
    Item,
    Whose,
    holds_money,
    is_ours,
    lost_among,
)
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stripe.endpoints import Route
from kb_mcp.proxy.stripe.evidence import mark_of, marks, object_names
from kb_mcp.proxy.stripe.reader import Missing, Pages, StripeReads, Unread

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
LOOK_BACK_AT_START_MS = 25 * HOUR_MS
LOOK_BACK_HOURLY_MS = 15 * 60_000
# Without a walk before: as far as a new store looks for marks of any store.
LOOK_BACK_FIRST_MS = 40 * DAY_MS
# Stripe's time comes in whole seconds; every look back reaches much further than is needed.
SLACK_MS = 60_000
SHOWN_MAX = 20
READS_A_SECOND = 10

# Facts of the store that the walk keeps.
WALKED_UNTIL = "walked_until_ms"
CHECKPOINT = "walk"
CONFIRMED_NEW = "confirmed_new_ms"
FOREIGN = "foreign_lineage:"


@dataclass(frozen=True, slots=True)
class Whole:
    """Every page was read, and every object of ours made until `began` (ms) is known.

    `owner` is the process that began the walk, which another one may have gone on with. `absent`
    are the lists that Stripe says it does not have: the next walk begins where this one did.
    """

    began: int
    owner: str
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LostObjects:
    """Every page was read; these objects of ours are not known here."""

    objects: tuple[str, ...]
    any_store: bool


@dataclass(frozen=True, slots=True)
class BrokenWalk:
    """A list could not be read: nothing follows. `status` is Stripe's where it answered."""

    path: str
    why: str
    status: int | None


Outcome = Whole | LostObjects | BrokenWalk


class Checkpoint(Struct, frozen=True, kw_only=True):
    """How far a walk has come: the list, the last object of the last page, what was lost so far.

    `since` and `began` bound what it says something about, in ms UTC by Stripe's clock.
    """

    since: int
    began: int
    any_store: bool
    owner: str
    place: int = 0
    after: str | None = None
    lost: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(slots=True)
class Pace:
    """At most READS_A_SECOND; `pause` waits some ms, `now_ms` never jumps."""

    now_ms: Callable[[], int]
    pause: Callable[[int], Awaitable[None]]
    _taken: deque[int] = field(default_factory=lambda: deque(maxlen=READS_A_SECOND), init=False)

    async def take(self) -> None:
        """Wait until one more read may be made."""
        full = len(self._taken) == READS_A_SECOND
        left_ms = self._taken[0] + 1_000 - self.now_ms() if full else 0
        if left_ms > 0:
            await self.pause(left_ms)
        self._taken.append(self.now_ms())


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreWalk:
    """Walks for one store.

    `look` settles one operation as recovery does; `stripe_ms` is Stripe's time as far as it is
    known. With `warns` (the sandbox), a new store is never held up by the marks of another.
    """

    ledger: Ledger
    records: StoreReads
    reads: StripeReads
    pace: Pace
    look: Callable[[OperationId], Awaitable[Operation | None]]
    stripe_ms: Callable[[], int]
    owner: str
    warns: bool = False

    async def run(
        self,
        look_back_ms: int,
        *,
        writes: bool = True,
        resume: bool = False,
        reach_back_to: int | None = None,
    ) -> Outcome:
        """Walk from the end of the last whole walk, less `look_back_ms`; keep what was found.

        `reach_back_to` (ms) is where it begins at the latest. `resume` goes on where an earlier
        one was broken off. With `writes` false nothing is kept: for a store that may not be written
        to yet, and for those who only look. Raises: LedgerUnavailableError.
        """
        facts = await self.records.facts()
        begun = await self._begin(facts, look_back_ms, resume=resume)
        if reach_back_to is not None:
            begun = replace(begun, since=min(begun.since, max(reach_back_to, 0)))
        named = {name.removeprefix(FOREIGN) for name in facts if name.startswith(FOREIGN)}
        whose = Whose(
            store_id=self.ledger.settings.store_id,
            foreign=frozenset(lineage for lineage in named if facts[FOREIGN + lineage]),
            any_store=begun.any_store,
        )
        outcome = await self._lists(begun, whose, writes=writes)
        if writes:
            await self._keep(outcome)
        return outcome

    async def confirm_new(self, audit: tuple[AuditDraft, ...] = ()) -> None:
        """Take this store for a new one: no object that was made until now is its own."""
        now = str(self.stripe_ms())
        facts = {WALKED_UNTIL: now, CONFIRMED_NEW: now, NEW_STORE: "", CHECKPOINT: "", GAP: ""}
        await self._write(facts, audit)

    async def _begin(
        self, facts: Mapping[str, str], look_back_ms: int, *, resume: bool
    ) -> Checkpoint:
        """Return where to begin: where an earlier walk was broken off, if it reaches back."""
        now = self.stripe_ms()
        until = int(facts.get(WALKED_UNTIL) or 0)
        any_store = facts.get(NEW_STORE) == "1" or (
            not until and not await self.records.operations(limit=1)
        )
        # A clock that was wrong once may have dated the last walk too late.
        since = min(until, now) - look_back_ms if until else now - LOOK_BACK_FIRST_MS
        confirmed = int(facts.get(CONFIRMED_NEW) or 0)
        if confirmed:
            # Stripe dates objects in whole seconds: from the next one on they may be this store's.
            since = max(since, (confirmed // 1000 + 1) * 1000)
        earlier = _read_checkpoint(facts.get(CHECKPOINT)) if resume else None
        reaches = earlier is not None and earlier.since <= since + SLACK_MS
        if earlier is not None and reaches and earlier.any_store == any_store:
            return earlier
        return Checkpoint(since=since, began=now, any_store=any_store, owner=self.owner)

    async def _lists(self, state: Checkpoint, whose: Whose, *, writes: bool) -> Outcome:
        for place in range(state.place, len(WALKED)):
            if place != state.place:
                state = replace(state, place=place, after=None)
            ended = await self._pages(state, whose, writes=writes)
            if isinstance(ended, Unread):
                return BrokenWalk(WALKED[place][0], ended.why, ended.status)
            state = ended
        if state.lost:
            return LostObjects(state.lost, whose.any_store)
        if len(state.absent) == len(WALKED):
            return BrokenWalk(state.absent[0], "Stripe knows none of the lists", 404)
        return Whole(state.began, state.owner, state.absent)

    async def _pages(self, state: Checkpoint, whose: Whose, *, writes: bool) -> Checkpoint | Unread:
        """Read one list to its end, from where `state` stands."""
        path, route = WALKED[state.place]
        pages = Pages(self.reads, path, {}, state.since, state.after)
        while True:
            await self.pace.take()
            page = await pages.next()
            if isinstance(page, Missing):
                return replace(state, absent=(*state.absent, path))
            if isinstance(page, Unread):
                return page
            lost = await self._lost(page.items, path, route, whose, writes=writes)
            lost = list(dict.fromkeys((*state.lost, *lost)))
            state = replace(state, lost=tuple(lost), after=pages.after)
            if not page.more:
                return state
            if writes:
                await self._write({CHECKPOINT: encode(state).decode()})

    async def _lost(
        self, items: list[Item], path: str, route: Route, whose: Whose, *, writes: bool
    ) -> list[str]:
        """Return which objects of a page are ours, hold money, and are not known here."""
        lineages = {lineage for each in items if (lineage := marks(each).get("keybrake_key"))}
        known = await self.records.ids("known_lineages", ids=sorted(lineages))
        whose = replace(whose, lineages=frozenset(known))
        ours = [each for each in items if is_ours(each, whose) and holds_money(each, route)]
        lost, late = await self._unknown(ours)
        if late and writes:
            # Voided, and here it is: recovery concludes with it, and freezes the key that sent it.
            for operation_id in sorted(late):
                await self.look(operation_id)
            lost, _ = await self._unknown(ours)
        # What the page showed may have been cancelled since.
        again = [await self._again(path, each) for each in ours if each["id"] in lost]
        lost, _ = await self._unknown([each for each in again if holds_money(each, route)])
        return lost

    async def _again(self, path: str, item: Item) -> Item:
        await self.pace.take()
        return await self.reads.body(f"{path}/{item['id']}") or item

    async def _unknown(self, items: list[Item]) -> tuple[list[str], set[OperationId]]:
        """Return which of `items` are unknown here, and operations to look at once more."""
        if not items:
            return [], set()
        names = sorted({name for each in items for name in object_names(each)})
        keys = sorted({mark for each in items if (mark := mark_of(each))})
        objects = await self.records.ids("known_objects", ids=names)
        return lost_among(items, objects, await self.records.known_attempts(keys))

    async def _keep(self, outcome: Outcome) -> None:
        match outcome:
            case BrokenWalk(status=int(status)) if 400 <= status < 500:
                # The place that was kept may be what Stripe refuses: the next walk begins anew.
                await self._write({CHECKPOINT: ""})
            case BrokenWalk():
                pass
            case Whole(began=began, absent=absent):
                until = {} if absent else {WALKED_UNTIL: str(began)}
                await self._write({CHECKPOINT: "", NEW_STORE: "", GAP: "", **until})
            case LostObjects(any_store=True) if self.warns:
                await self.confirm_new()
            case LostObjects(objects=lost, any_store=any_store):
                gap = {"objects": lost[:SHOWN_MAX], "count": len(lost), "any_store": any_store}
                await self._write({GAP: json.dumps(gap), CHECKPOINT: ""})

    async def _write(self, facts: Mapping[str, str], audit: tuple[AuditDraft, ...] = ()) -> None:
        """Write facts, with an audit row where the gap opens, changes or closes."""

        def step(snapshot: Snapshot) -> tuple[None, Changes]:
            before, after = snapshot.facts.get(GAP, ""), facts.get(GAP)
            rows = () if after is None or after == before else (_row(before, after),)
            return None, Changes(facts=tuple(facts.items()), audit=(*rows, *audit))

        await self.ledger.transact(lambda _: Refs(), step)


def gap_text(gap: str) -> str:
    """Return what the fact of a gap says, for people."""
    held = json.loads(gap)
    more = held["count"] - len(held["objects"])
    named = ", ".join(held["objects"]) + (f" and {more} more" if more else "")
    whose = "made by this store, which does not know them"
    if held["any_store"]:
        whose = "made by another store, or by this one before it was lost"
    return f"{named}: {whose}"


def _row(before: str, after: str) -> AuditDraft:
    if not after:
        return AuditDraft(kind="recovery", decision="gap_closed", note=gap_text(before)[:200])
    note = gap_text(after)[:200]
    return AuditDraft(kind="recovery", decision="gap_found", code=GAP_FOUND, note=note)


def _read_checkpoint(text: str | None) -> Checkpoint | None:
    try:
        return decode(text.encode(), type=Checkpoint) if text else None
    except ValueError:
        return None
