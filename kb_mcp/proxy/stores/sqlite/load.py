"""Loading a snapshot from SQLite: the rows that a whole batch depends on, kind by kind.

Floor: inside the SQLite store. One statement a kind, however many steps wait: each costs a turn of
the interpreter's lock, which the event loop wants, too.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kb_mcp.proxy.ledger.lease_owners import gone_owners
from kb_mcp.proxy.ledger.records import (
    Approval,
    CallerKey,
    Grant,
    Lineage,
    LineageId,
    Refs,
    VaultKey,
    Window,
    WindowKey,
)
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_of
from kb_mcp.proxy.stores.rows import Seal, attempt_of, operation_of, tally_of_row

_WINDOW_KEY = 5


class Loader:
    """Fills standings over one connection; statements are prepared once and cached by sqlite3."""

    def __init__(
        self, connection: sqlite3.Connection, queries: Mapping[str, str], unseal: Seal, owner: str
    ) -> None:
        """Read with `queries` over `connection`; `owner` is the lease name of this process."""
        self._connection = connection
        self._queries = queries
        self._unseal = unseal
        self._owner = owner

    def load(self, snapshot: Snapshot, batch: Sequence[Refs]) -> None:
        """Fill `snapshot` with every row that the refs of a batch name.

        Raises: sqlite3.Error, SealBrokenError.
        """

        def named(part: Callable[[Refs], frozenset[Any]]) -> set[Any]:
            return {item for refs in batch for item in part(refs)}

        tallies, operations = named(lambda refs: refs.tallies), named(lambda refs: refs.operations)
        self._load_operations(snapshot, batch, operations, tallies)
        for row in self._some("tallies", tallies):
            snapshot.tallies[row["key"]] = tally_of_row(row)
        for row in self._some("caller_keys", named(lambda refs: refs.caller_keys)):
            snapshot.caller_keys[row["key"]] = CallerKey(**dict(row))
        for row in self._some("keys", named(lambda refs: refs.keys)):
            snapshot.keys[row["id"]] = VaultKey(**dict(row))
        for row in self._some("objects", named(lambda refs: refs.objects)):
            snapshot.object_owners[row["object_id"]] = row["operation_id"]
        self._load_approvals(snapshot, named(lambda refs: refs.approvals))
        self._load_grants(snapshot, batch)
        self._load_windows(snapshot, named(lambda refs: refs.windows), operations)
        self._load_lineages(snapshot, named(lambda refs: refs.lineages))

    def rows(self, name: str, *values: Any) -> list[sqlite3.Row]:
        """Run the named query and return its rows."""
        return self._connection.execute(self._queries[name], values).fetchall()

    def _some(self, name: str, wanted: Iterable[Any]) -> list[sqlite3.Row]:
        """Return the rows that a list asks for; an empty list asks for nothing."""
        # Sets have no order of their own, and what is loaded first is looked at first.
        listed = sorted(wanted)
        return self.rows(name, json.dumps(listed)) if listed else []

    def _load_operations(
        self, snapshot: Snapshot, batch: Sequence[Refs], ids: set[Any], tallies: set[Any]
    ) -> None:
        asked = {
            "names": sorted(name for refs in batch for name in refs.names),
            "ids": sorted(ids),
            "caller_keys": sorted(key for refs in batch for key in refs.caller_keys),
            "tallies": sorted(tallies),
            "charges": sorted(charge for refs in batch for charge in refs.charges),
            "periods": sorted(
                (each.customer, each.reference, *each.labels, each.start, each.end)
                for refs in batch
                for each in refs.periods
            ),
            "bills": [
                (bill.customer, bill.amount, bill.currency, bill.since)
                for refs in batch
                for bill in refs.bills
            ],
        }
        if not any(asked.values()):
            return
        listed = {name: json.dumps(items) for name, items in asked.items()}
        found = self._connection.execute(self._queries["operations"], listed).fetchall()
        for row in found:
            operation = operation_of(row, self._unseal)
            snapshot.operations[operation.id] = operation
            if operation.lease_owner is not None:
                snapshot.gone_owners |= gone_owners((operation.lease_owner,), self._owner)
        for row in self._some("attempts", snapshot.operations):
            attempt = attempt_of(row, self._unseal)
            snapshot.attempts[attempt.operation_id, attempt.number] = attempt

    def _load_approvals(self, snapshot: Snapshot, named: set[Any]) -> None:
        operations = snapshot.operations.values()
        asked = {each.id for each in operations if each.approval_id is not None}
        for row in (*self._some("approvals", named), *self._some("approvals_of", asked)):
            snapshot.approvals[row["id"]] = Approval(**dict(row))

    def _load_grants(self, snapshot: Snapshot, batch: Sequence[Refs]) -> None:
        ids = {each for refs in batch for each in refs.grants}
        issuers = {each for refs in batch for each in refs.issuers}
        for row in (*self._some("grants", ids), *self._some("issuers", issuers)):
            snapshot.grants[row["id"]] = Grant(**dict(row))

    def _load_windows(
        self, snapshot: Snapshot, named: set[WindowKey], operations: set[Any]
    ) -> None:
        wanted = set(named)
        for operation_id in operations & snapshot.operations.keys():
            wanted.update(windows_of(snapshot.operations[operation_id]).all())
        parts = [(key.scope, key.scope_id, key.window, key.start, key.currency) for key in wanted]
        for row in self._some("windows", parts):
            plain = tuple(row)
            key = WindowKey(*plain[:_WINDOW_KEY])
            snapshot.windows[key] = Window(key, *plain[_WINDOW_KEY:])

    def _load_lineages(self, snapshot: Snapshot, named: set[LineageId]) -> None:
        # A step may change any operation it sees, so the lineage of each is loaded too.
        seen = {operation.lineage_id for operation in snapshot.operations.values()}
        seen |= {key.lineage_id for key in snapshot.keys.values()}
        wanted = sorted(seen | named)
        if not wanted:
            return
        asked = {"wanted": json.dumps(wanted), "now": snapshot.now}
        for row in self._connection.execute(self._queries["lineages"], asked).fetchall():
            lineage_id = LineageId(row["id"])
            if row["known"]:
                lineage = Lineage(lineage_id, row["frozen_at"], row["frozen_reason"])
                snapshot.lineages[lineage_id] = lineage
            snapshot.unresolved[lineage_id] = row["unresolved"]
            snapshot.outstanding_approvals[lineage_id] = row["outstanding"]
