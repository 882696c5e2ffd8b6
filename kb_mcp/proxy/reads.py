"""Gauges as the store hands them over: counts, and the windows of some keys.

Floor: wing B, beside the records. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from kb_mcp.proxy.access.policy import CapRules
from kb_mcp.proxy.ledger.records import KeyId, LineageId, Window

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
    rotated: bool


class BilledDays(NamedTuple):
    """The period of a live bill, when it was reserved (ms), and by whose key."""

    customer: str
    reference: str | None
    period: str
    reserved_at: int
    key_id: KeyId


@dataclass(frozen=True, slots=True)
class KeySpend:
    """What caps a key, what its lineage holds in the running windows, and whether it serves."""

    key_id: KeyId
    caps: CapRules
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


@dataclass(frozen=True, slots=True)
class AuditCounts:
    """Rows by kind, decision and code, and the place of the last that was counted."""

    counts: Mapping[tuple[str, str, str], int]
    last_row: Any


class GaugeRecords(Protocol):
    """The reads of a scrape. Raises: LedgerUnavailableError."""

    async def open_operations(self) -> dict[str, int]:
        """Return how many operations without an end there are, by state."""
        ...

    async def key_counts(self, now: int) -> list[KeyCounts]:
        """Return how many keys there are at `now` (ms), by what they may do."""
        ...

    async def fullest_keys(self, day: str, month: str, now: int, most: int) -> list[KeyId]:
        """Return the keys that stand for their lineages, those nearest to a cap first.

        Then come those that hold money under no cap, then those that hold none.
        """
        ...

    async def spend_of_keys(
        self, ids: Sequence[KeyId], day: str, month: str, now: int
    ) -> list[KeySpend]:
        """Return the caps of these keys, and their windows of `day` and `month` that hold money."""
        ...

    async def caps_of_keys(self) -> list[KeyCaps]:
        """Return what caps every key, oldest key first."""
        ...

    async def held_of_keys(self, day: str, month: str) -> dict[tuple[LineageId, str], Held]:
        """Return what keys hold in their windows of `day` and `month`, by lineage and window."""
        ...

    async def stopped_on(self, days: Sequence[str]) -> list[StoppedCalls]:
        """Return what was stopped on each of these days, of all keys."""
        ...

    async def stopped_most(self, window: str, start: str, most: int) -> list[StoppedCalls]:
        """Return at most `most` counts of one day or month, by key and agent, most calls first."""
        ...

    def newest_row(self) -> Any:
        """Return the place of the row that was written last, as the filter `after_row` takes it."""
        ...

    def log_bytes(self) -> int | None:
        """Return the size of the store's write-ahead log; None where it is a server's own."""
        ...

    async def audit_counts(self, after_row: Any, most: int) -> AuditCounts:
        """Count at most `most` audit rows after that one, and say which was the last."""
        ...
