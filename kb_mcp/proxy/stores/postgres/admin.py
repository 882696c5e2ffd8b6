"""The store admin on PostgreSQL: rows that no decision touches: facts, operators, old segments.

Floor: inside the stores; `store_admin` says what it is for. Each write is one transaction.
Taking archived rows out of the audit needs the rights of the tables' owner.
"""

from __future__ import annotations

from collections.abc import Mapping

from kb_mcp.proxy.audit.chain import Head
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.store_admin import ARCHIVED, Operator, archived_in
from kb_mcp.proxy.stores.postgres.connection import telling
from kb_mcp.proxy.stores.postgres.pool import Pool
from kb_mcp.proxy.stores.postgres.schema import claim, read_facts
from kb_mcp.proxy.stores.queries import load_queries


class PostgresAdmin:
    """Facts, operators and archived segments of one PostgreSQL store."""

    def __init__(self, pool: Pool) -> None:
        """Work over connections of `pool`, which is closed with this."""
        self._pool = pool
        self._set_fact = load_queries("postgres")["set_fact"]

    def schema(self) -> int:
        """Return the number of the store's schema."""
        with telling(), self._pool.connection() as connection:
            row = connection.execute("SELECT max(number) AS n FROM schema_versions").fetchone()
            return int(row["n"]) if row and row["n"] is not None else 0

    def facts(self) -> dict[str, str]:
        """Return every fact of the store."""
        with telling(), self._pool.connection() as connection:
            return read_facts(connection)

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """Write facts, all or none."""
        with telling(), self._pool.connection() as connection, connection.transaction():
            for fact in sorted(facts.items()):
                connection.execute(self._set_fact, fact)

    def claim(self, name: str, value: str) -> bool:
        """Write a fact that only the first process writes; say whether this one did."""
        with telling(), self._pool.connection() as connection:
            return claim(connection, name, value)

    def operators(self) -> list[Operator]:
        """Return the operators by name."""
        with telling(), self._pool.connection() as connection:
            rows = connection.execute("SELECT * FROM operators ORDER BY name").fetchall()
        return [Operator(**row) for row in rows]

    def operator_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every operator's token, by name."""
        return {operator.name: operator.token_hash for operator in self.operators()}

    def add_operator(self, operator: Operator) -> bool:
        """Add an operator; False when the name is taken."""
        with telling(), self._pool.connection() as connection:
            cursor = connection.execute(
                "INSERT INTO operators (name, token_hash, created_at) VALUES (%s, %s, %s) "
                "ON CONFLICT (name) DO NOTHING",
                (operator.name, operator.token_hash, operator.created_at),
            )
            return cursor.rowcount == 1

    def remove_operator(self, name: str) -> bool:
        """Remove an operator; False when there is none of that name."""
        with telling(), self._pool.connection() as connection:
            cursor = connection.execute("DELETE FROM operators WHERE name = %s", (name,))
            return cursor.rowcount == 1

    def archived(self) -> dict[str, Head]:
        """Return, for each node, the end of what was moved out of its chain."""
        return archived_in(self.facts())

    def drop_segments(self, ends: Mapping[str, Head]) -> int:
        """Take the rows up to each end out of the audit; return how many there were.

        Raises: LedgerUnavailableError, with nothing removed, when an end is not what was verified,
        or this role may not delete: serving processes' may not.
        """
        removed = 0
        with telling(), self._pool.connection() as connection, connection.transaction():
            for node, end in ends.items():
                row = connection.execute(
                    "SELECT hash FROM audit WHERE node = %s AND seq = %s", (end.node, end.seq)
                ).fetchone()
                if row is None or row["hash"] != end.hash:
                    raise LedgerUnavailableError(f"row {node}:{end.seq} changed meanwhile")
                removed += connection.execute(
                    "DELETE FROM audit WHERE node = %s AND seq <= %s", (node, end.seq)
                ).rowcount
                connection.execute(self._set_fact, (f"{ARCHIVED}{node}", f"{end.seq}:{end.hash}"))
        return removed

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()
