"""Loading a standing from SQLite: the rows that one step depends on.

Floor: inside the SQLite store. Rows that the batch already holds are never loaded again: what an
earlier step changed is newer than what the table says.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kb_mcp.proxy.ledger import (
    Approval,
    Bill,
    KeyId,
    Lineage,
    LineageId,
    Operation,
    Refs,
    VaultKey,
)
from kb_mcp.proxy.owners import gone_owners
from kb_mcp.proxy.standing import Standing
from kb_mcp.proxy.stores.rows import Seal, attempt_of, operation_of, tally_of_row, window_of
from kb_mcp.proxy.windows import windows_of

Rows = Callable[..., list[sqlite3.Row]]


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

    def load(self, standing: Standing, refs: Refs) -> None:
        """Add to `standing` every row that `refs` names and it does not hold yet."""
        self._load_operations(standing, refs)
        for key in refs.tallies:
            self._load_tally(standing, key)
        self._load_windows(standing, refs)
        for key_id in refs.keys:
            self._load_key(standing, key_id)
        for object_id in refs.objects:
            self._load_object(standing, object_id)
        for approval_id in refs.approvals:
            self._load_approval(standing, approval_id)
        # A step may change any operation it sees, so the lineage of each is loaded too.
        seen = {operation.lineage_id for operation in standing.operations.values()}
        seen |= {key.lineage_id for key in standing.keys.values()}
        for lineage_id in seen | refs.lineages:
            self._load_lineage(standing, lineage_id)

    def rows(self, name: str, *values: Any) -> list[sqlite3.Row]:
        """Run the named query and return its rows."""
        return self._all(name, *values)

    def _all(self, name: str, *values: Any) -> list[sqlite3.Row]:
        return self._connection.execute(self._queries[name], values).fetchall()

    def _one(self, name: str, *values: Any) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._connection.execute(self._queries[name], values).fetchone()
        return row

    def _bill(self, bill: Bill) -> list[sqlite3.Row]:
        named = {
            "customer": bill.customer,
            "amount": bill.amount,
            "currency": bill.currency,
            "since": bill.since,
            "start": bill.start,
            "end": bill.end,
        }
        return self._connection.execute(self._queries["operations_by_bill"], named).fetchall()

    def _load_operations(self, standing: Standing, refs: Refs) -> None:
        for name in refs.names:
            self._add(standing, self._all("operation_by_name", name))
        for operation_id in refs.operations:
            if operation_id not in standing.operations:
                self._add(standing, self._all("operation_by_id", operation_id))
        for period in refs.periods:
            self._add(standing, self._all("operations_by_period", *period))
        for bill in refs.bills:
            self._add(standing, self._bill(bill))

    def _add(self, standing: Standing, rows: Iterable[sqlite3.Row]) -> None:
        for row in rows:
            if row["id"] not in standing.operations:
                self._add_operation(standing, operation_of(row, self._unseal))

    def _add_operation(self, standing: Standing, operation: Operation) -> None:
        standing.operations[operation.id] = operation
        for row in self._all("attempts_of", operation.id):
            attempt = attempt_of(row, self._unseal)
            standing.attempts.setdefault((operation.id, attempt.number), attempt)
        if operation.lease_owner is not None:
            standing.gone_owners |= gone_owners((operation.lease_owner,), self._owner)
        if operation.approval_id is not None:
            self._load_approval(standing, operation.approval_id)

    def _load_windows(self, standing: Standing, refs: Refs) -> None:
        wanted = set(refs.windows)
        for operation_id in refs.operations:
            operation = standing.operations.get(operation_id)
            if operation is not None:
                wanted.update(windows_of(operation).all())
        for key in wanted - standing.windows.keys():
            row = self._one("window", key.scope, key.scope_id, key.window, key.start, key.currency)
            standing.windows[key] = window_of(key, None if row is None else tuple(row))

    def _load_tally(self, standing: Standing, key: str) -> None:
        if key in standing.tallies:
            return
        row = self._one("tally", key)
        if row is None:
            return
        standing.tallies[key] = tally = tally_of_row(row)
        if tally.last_operation is not None and tally.last_operation not in standing.operations:
            self._add(standing, self._all("operation_by_id", tally.last_operation))

    def _load_key(self, standing: Standing, key_id: KeyId) -> None:
        if key_id not in standing.keys:
            row = self._one("key", key_id)
            if row is not None:
                standing.keys[key_id] = VaultKey(**dict(row))

    def _load_lineage(self, standing: Standing, lineage_id: LineageId) -> None:
        if lineage_id in standing.unresolved:
            return
        row = self._one("lineage", lineage_id)
        if row is not None:
            standing.lineages.setdefault(lineage_id, Lineage(**dict(row)))
        standing.unresolved[lineage_id] = self._count("unresolved", lineage_id)
        standing.outstanding_approvals[lineage_id] = self._count(
            "outstanding_approvals", lineage_id
        )

    def _count(self, query: str, lineage_id: LineageId) -> int:
        row = self._one(query, lineage_id)
        return 0 if row is None else int(row[0])

    def _load_object(self, standing: Standing, object_id: str) -> None:
        row = self._one("attempt_by_object", object_id)
        if row is not None:
            standing.object_owners.setdefault(object_id, row["operation_id"])

    def _load_approval(self, standing: Standing, approval_id: str) -> None:
        if approval_id not in standing.approvals:
            row = self._one("approval", approval_id)
            if row is not None:
                standing.approvals[approval_id] = Approval(**dict(row))
