"""Gauges: what a scrape or a page wants to know, counted and chosen by the store itself.

Floor: inside the stores. The named queries give the same columns in every store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from kb_mcp.proxy.access.policy import CapRules, RefundCapRules
from kb_mcp.proxy.ledger.records import KeyId, Lineage, LineageId, VaultKey, Window, WindowKey
from kb_mcp.proxy.ledger.snapshot import KnownAttempt
from kb_mcp.proxy.stores.binding import facts_in
from kb_mcp.proxy.stores.database import Database
from kb_mcp.proxy.stores.rows import Row, key_with_lineage, plain

T = TypeVar("T")
Held = dict[str, tuple[int, int]]
"""Reserved and settled in minor units, by currency."""


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """How many keys have one of KEY_STATUSES; `rotated` ones have a successor."""

    status: str
    rotated: bool
    count: int


class KeyCaps(NamedTuple):
    """What caps a key. A `rotated` key has a successor in its lineage."""

    key_id: KeyId
    lineage_id: LineageId
    caps: CapRules
    refund_caps: RefundCapRules
    rotated: bool


class BilledDays(NamedTuple):
    """The period of a live bill, when it was reserved (ms), and by whose key."""

    customer: str
    reference: str | None
    period: str
    reserved_at: int
    key_id: KeyId


class KeySpend(NamedTuple):
    """What caps a key, what its lineage holds in the running windows, and whether it serves."""

    key_id: KeyId
    caps: CapRules
    refund_caps: RefundCapRules
    serves: bool
    windows: list[Window]


class StoppedCalls(NamedTuple):
    """How many calls were stopped for one reason, and what they asked for, in minor units.

    `why` and `kind` are those of `Stopped`. Calls of all keys have no `key_id`, and a `start`.
    """

    why: str
    kind: str
    currency: str
    calls: int
    amount: int
    start: str = ""
    key_id: str = ""
    agent_id: str = ""


class AuditCounts(NamedTuple):
    """Rows by kind, decision and code, and the place of the last that was counted."""

    counts: Mapping[tuple[str, str, str], int]
    last_row: Any


class Gauges:
    """Reads of a store that return as much as is shown. Raises: LedgerUnavailableError."""

    def __init__(self, database: Database) -> None:
        """Read the store by `database`, which is closed with this."""
        self.database = database

    def log_bytes(self) -> int | None:
        """Return the size of the store's write-ahead log; None where it is a server's own."""
        return self.database.log_bytes()

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    async def ids(self, name: str, **values: Any) -> list[Any]:
        """Return the ids that the named query chooses, in its order."""
        return [row["id"] for row in await self._ask(name, **values)]

    async def facts(self) -> dict[str, str]:
        """Return every fact of the store."""
        return facts_in(await self._ask("facts"))

    async def known_attempts(self, upstream_keys: Sequence[str]) -> dict[str, KnownAttempt]:
        """Return what the ledger knows of attempts, by the upstream keys that objects name."""
        rows = map(plain, await self._ask("known_attempts", ids=list(upstream_keys)))
        return {upstream_key: KnownAttempt(*known) for upstream_key, *known in rows}

    async def ceilings(self, *, refunds: bool = False) -> Mapping[str, int]:
        """Return the account's daily ceiling of each currency, in minor units, as it is now.

        `refunds` asks for the ceiling of what is given back.
        """
        told = facts_in(await self._ask("ceilings"))
        wanted = "refund_ceilings" if refunds else "ceilings"
        return json.loads(told[wanted]) if wanted in told else {}

    async def open_operations(self) -> dict[str, int]:
        """Return how many operations without an end there are, by state."""
        return {row["state"]: row["count"] for row in await self._ask("open_operations")}

    async def billed_days(self) -> list[BilledDays]:
        """Return the periods of all live bills, those of one customer and reference together."""
        return await self._records(BilledDays, "billed_days")

    async def key_counts(self, now: int) -> list[KeyCounts]:
        """Return how many keys there are at `now` (ms), by what they may do."""
        return await self._records(KeyCounts, "key_counts", now=now)

    async def fullest_keys(self, day: str, month: str, now: int, most: int) -> list[KeyId]:
        """Return the keys that stand for their lineages, those nearest to a cap first.

        Then come those that hold money under no cap, then those that hold none.
        """
        return await self.ids("fullest_keys", day=day, month=month, now=now, most=most)

    async def keys_by_id(self, ids: Sequence[str]) -> list[tuple[VaultKey, Lineage]]:
        """Return these keys, as far as there are such, with their lineages, oldest first."""
        found = map(key_with_lineage, await self._ask("keys_with_lineages", ids=list(ids)))
        return sorted(found, key=lambda each: (each[0].created_at, each[0].id))

    async def key_page(
        self,
        now: int,
        most: int,
        *,
        text: str | None = None,
        status: str | None = None,
        after: str | None = None,
    ) -> list[tuple[VaultKey, Lineage]]:
        """Return at most `most` keys with their lineages, newest first.

        `text` is an id, or part of a label, agent or role, its ASCII letters in either case;
        `status` is one of KEY_STATUSES at `now` (ms); `after` is the id of the key before the page.
        """
        wanted = {"text": text, "status": status, "after": after}
        rows = await self._ask("key_page", now=now, most=most, **wanted)
        return [key_with_lineage(row) for row in rows]

    async def spend_of_keys(
        self, ids: Sequence[KeyId], day: str, month: str, now: int
    ) -> list[KeySpend]:
        """Return the caps of these keys, and their windows of `day` and `month` that hold money."""
        found: dict[KeyId, KeySpend] = {}
        for row in await self._ask("spend_of_keys", ids=list(ids), day=day, month=month):
            ended = row["revoked_at"] is not None or (row["expires_at"] or now + 1) <= now
            rules = _caps(row["caps"]), _refund_caps(row["refund_caps"])
            spend = found.setdefault(row["id"], KeySpend(row["id"], *rules, not ended, []))
            if row["currency"] is not None:
                place = (row["scope"], row["lineage_id"], row["window"], row["start"])
                key = WindowKey(*place, row["currency"])
                spend.windows.append(Window(key, reserved=row["reserved"], settled=row["settled"]))
        return list(found.values())

    async def caps_of_keys(self) -> list[KeyCaps]:
        """Return what caps every key, oldest key first."""
        return [
            KeyCaps(key_id, lineage_id, _caps(caps), _refund_caps(refunds), bool(rotated))
            for key_id, lineage_id, caps, refunds, rotated in map(
                plain, await self._ask("caps_of_keys")
            )
        ]

    async def held_of_keys(
        self, scope: str, day: str, month: str
    ) -> dict[tuple[LineageId, str], Held]:
        """Return what keys hold in their windows of `scope`, by lineage and window."""
        found: dict[tuple[LineageId, str], Held] = {}
        for row in await self._ask("held_of_keys", scope=scope, day=day, month=month):
            lineage_id, window, currency, reserved, settled = plain(row)
            found.setdefault((lineage_id, window), {})[currency] = (reserved, settled)
        return found

    async def stopped_on(self, days: Sequence[str]) -> list[StoppedCalls]:
        """Return what was stopped on each of these days, of all keys."""
        return await self._records(StoppedCalls, "stopped_on", ids=list(days))

    async def stopped_most(self, window: str, start: str, most: int) -> list[StoppedCalls]:
        """Return at most `most` counts of one day or month, by key and agent, most calls first."""
        wanted = {"window": window, "start": start, "most": most}
        return await self._records(StoppedCalls, "stopped_most", **wanted)

    def newest_row(self) -> Any:
        """Return the place of the row that was written last, as the filter `after_row` takes it."""
        rows = self.database.ask("newest_row")
        return (rows[0]["row"] if rows else None) or 0

    async def audit_counts(self, after_row: Any, most: int) -> AuditCounts:
        """Count at most `most` audit rows after that one, and say which was the last."""
        rows = await self._ask("audit_counts", **self.database.place(after_row), most=most)
        counts = {
            (row["kind"], row["decision"] or "", row["code"] or ""): row["count"]
            for row in rows
            if row["row"] is None
        }
        last = next((row["row"] for row in rows if row["row"] is not None), after_row)
        return AuditCounts(counts, last)

    async def _ask(self, name: str, **values: Any) -> Sequence[Row]:
        """Return the rows of the named query."""
        return await self.database.read(self.database.queries[name], values)

    async def _records(self, make: Callable[..., T], name: str, **values: Any) -> list[T]:
        """Return a record of each row of the named query."""
        return [make(**dict(row)) for row in await self._ask(name, **values)]


@lru_cache(maxsize=1024)
def _caps(text: str | None) -> CapRules:
    return CapRules.model_validate_json(text or "{}")


@lru_cache(maxsize=1024)
def _refund_caps(text: str | None) -> RefundCapRules:
    return RefundCapRules.model_validate_json(text or "{}")
