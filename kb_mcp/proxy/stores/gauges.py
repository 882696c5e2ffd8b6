"""Gauges: what a scrape or a page wants to know, counted and chosen by the store itself.

Floor: a store. The same for every store: the named queries give the same columns, and each store
asks them in its own way.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from kb_mcp.proxy.access.policy import CapRules
from kb_mcp.proxy.ledger.records import (
    KeyId,
    Lineage,
    LineageId,
    OperationId,
    VaultKey,
    Window,
    WindowKey,
)
from kb_mcp.proxy.reads import (
    AuditCounts,
    BilledDays,
    Held,
    KeyCaps,
    KeyCounts,
    KeySpend,
    StoppedCalls,
)
from kb_mcp.proxy.rules.outcomes.gaps import Known, Trace
from kb_mcp.proxy.stores.rows import Row, key_with_lineage


class Gauges(ABC):
    """Reads of a store that return as much as is shown. Raises: LedgerUnavailableError."""

    @abstractmethod
    async def _asked(self, name: str, **values: Any) -> Sequence[Row]:
        """Return the rows of the named query."""

    @abstractmethod
    async def _plain(self, name: str, **values: Any) -> Iterable[Iterable[Any]]:
        """Return the rows of the named query as plain columns: names cost, in ten thousand rows."""

    @abstractmethod
    def _after(self, row: Any) -> Mapping[str, Any]:
        """Return the values of a query that goes on after `row`, 0 being before the first."""

    async def facts(self) -> dict[str, str]:
        """Return every fact of the store."""
        return {row["name"]: row["value"] for row in await self._asked("facts")}

    async def known(self, objects: Sequence[str], upstream_keys: Sequence[str]) -> Known:
        """Return what the ledger knows of objects at Stripe and of the attempts they name."""
        found = await self._asked("known_objects", **self._ids(objects))
        attempts = {
            row["upstream_key"]: Trace(
                row["operation_id"], row["outcome"], row["state"], row["next_read_at"]
            )
            for row in await self._asked("known_attempts", **self._ids(upstream_keys))
        }
        return Known(frozenset(row["id"] for row in found), attempts)

    async def known_lineages(self, ids: Sequence[str]) -> frozenset[str]:
        """Return which of `ids` are lineages of this store."""
        return frozenset(row["id"] for row in await self._asked("known_lineages", **self._ids(ids)))

    async def ceilings(self, *, refunds: bool = False) -> Mapping[str, int]:
        """Return the account's daily ceiling of each currency, in minor units, as it is now.

        `refunds` asks for the ceiling of what is given back.
        """
        told = {row["name"]: row["value"] for row in await self._asked("ceilings")}
        wanted = "refund_ceilings" if refunds else "ceilings"
        return json.loads(told[wanted]) if wanted in told else {}

    async def open_operations(self) -> dict[str, int]:
        """Return how many operations without an end there are, by state."""
        return {row["state"]: row["count"] for row in await self._asked("open_operations")}

    async def billed_days(self) -> list[BilledDays]:
        """Return the periods of all live bills, those of one customer and reference together."""
        return [BilledDays(*row) for row in await self._plain("billed_days")]

    async def refunds_to_watch(self, now: int, limit: int) -> list[OperationId]:
        """Return bills whose refund is to be read by `now` (ms), the most overdue first."""
        rows = await self._asked("refunds_to_watch", now=now, limit=limit)
        return [OperationId(row["id"]) for row in rows]

    async def key_counts(self, now: int) -> list[KeyCounts]:
        """Return how many keys there are at `now` (ms), by what they may do."""
        rows = await self._asked("key_counts", now=now)
        return [KeyCounts(row["status"], bool(row["rotated"]), row["count"]) for row in rows]

    async def fullest_keys(self, day: str, month: str, now: int, most: int) -> list[KeyId]:
        """Return the keys that stand for their lineages, those nearest to a cap first.

        Then come those that hold money under no cap, then those that hold none.
        """
        rows = await self._asked("fullest_keys", day=day, month=month, now=now, most=most)
        return [KeyId(row["id"]) for row in rows]

    async def keys_by_id(self, ids: Sequence[str]) -> list[tuple[VaultKey, Lineage]]:
        """Return these keys, as far as there are such, with their lineages, oldest first."""
        return [key_with_lineage(row) for row in await self._asked("keys_by_id", **self._ids(ids))]

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
        rows = await self._asked("key_page", now=now, most=most, **wanted)
        return [key_with_lineage(row) for row in rows]

    async def spend_of_keys(
        self, ids: Sequence[KeyId], day: str, month: str, now: int
    ) -> list[KeySpend]:
        """Return the caps of these keys, and their windows of `day` and `month` that hold money."""
        found: dict[KeyId, KeySpend] = {}
        for row in await self._asked("spend_of_keys", **self._ids(ids), day=day, month=month):
            ended = row["revoked_at"] is not None or (row["expires_at"] or now + 1) <= now
            spend = KeySpend(KeyId(row["id"]), _caps(row["caps"] or "{}"), not ended, [])
            spend = found.setdefault(spend.key_id, spend)
            if row["currency"] is not None:
                lineage = LineageId(row["lineage_id"])
                key = WindowKey("key", lineage, row["window"], row["start"], row["currency"])
                spend.windows.append(Window(key, reserved=row["reserved"], settled=row["settled"]))
        return list(found.values())

    async def caps_of_keys(self) -> list[KeyCaps]:
        """Return what caps every key, oldest key first."""
        return [
            KeyCaps(KeyId(key_id), lineage_id, _caps(caps or "{}"), bool(rotated))
            for key_id, lineage_id, caps, rotated in await self._plain("caps_of_keys")
        ]

    async def held_of_keys(self, day: str, month: str) -> dict[tuple[LineageId, str], Held]:
        """Return what keys hold in their windows of `day` and `month`, by lineage and window."""
        found: dict[tuple[LineageId, str], Held] = {}
        for row in await self._plain("held_of_keys", day=day, month=month):
            lineage_id, window, currency, reserved, settled = row
            found.setdefault((lineage_id, window), {})[currency] = (reserved, settled)
        return found

    async def stopped_on(self, days: Sequence[str]) -> list[StoppedCalls]:
        """Return what was stopped on each of these days, of all keys."""
        rows = await self._asked("stopped_on", **self._ids(days))
        return [StoppedCalls(**dict(row)) for row in rows]

    async def stopped_most(self, window: str, start: str, most: int) -> list[StoppedCalls]:
        """Return at most `most` counts of one day or month, by key and agent, most calls first."""
        rows = await self._asked("stopped_most", window=window, start=start, most=most)
        return [StoppedCalls(**dict(row)) for row in rows]

    @abstractmethod
    def newest_row(self) -> Any:
        """Return the place of the row that was written last, as the filter `after_row` takes it."""

    async def audit_counts(self, after_row: Any, most: int) -> AuditCounts:
        """Count at most `most` audit rows after that one, and say which was the last."""
        counts: dict[tuple[str, str, str], int] = {}
        last = after_row
        for row in await self._asked("audit_counts", **self._after(after_row), most=most):
            if row["row"] is not None:
                last = row["row"]
            else:
                parts = (row["kind"], row["decision"] or "", row["code"] or "")
                counts[parts] = row["count"]
        return AuditCounts(counts, last)

    @abstractmethod
    def _ids(self, ids: Sequence[str]) -> Mapping[str, Any]:
        """Return `ids` as a query takes them."""


@lru_cache(maxsize=1024)
def _caps(text: str) -> CapRules:
    return CapRules.model_validate_json(text)
