"""A store outside any decision: what its two drivers do, and the rows that no decision touches.

Floor: inside the stores. A read is one statement: it sees what is committed, and holds nobody up.
Each write (facts, operators, old segments of the audit) is one transaction of its own. The ledger
writes the audit row of what an operator did, and commits it first; nothing here writes the audit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from kb_mcp.proxy.audit.chain import Head
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.stores.binding import Connection, facts_in, write_facts
from kb_mcp.proxy.stores.rows import Row, load_queries

ARCHIVED = "archived:"
_REDATE = ("redate_reads", "redate_voids", "redate_leases", "redate_sends")


class Database(ABC):
    """One migrated store. Raises: LedgerUnavailableError.

    A driver says in what order the audit was written (`order`), in what order the newest come first
    (`newest`), and what a place in it is called (`row`); `tie` is what tells operations of one age
    apart, and `join` how its planner is told to begin with what is wanted.
    """

    engine: ClassVar[str]
    order: ClassVar[tuple[str, ...]]
    newest: ClassVar[tuple[str, ...]]
    row: ClassVar[str]
    tie: ClassVar[str]
    join: ClassVar[str]

    def __init__(self) -> None:
        """Take the named queries of the engine."""
        self.queries = load_queries(self.engine)

    @abstractmethod
    def rows(self, statement: str, values: Mapping[str, Any]) -> Sequence[Row]:
        """Return the rows of a statement; lists in `values` are the driver's to translate."""

    async def read(self, statement: str, values: Mapping[str, Any]) -> Sequence[Row]:
        """Do as `rows` does, without holding up an event loop."""
        return self.rows(statement, values)

    def ask(self, name: str, **values: Any) -> Sequence[Row]:
        """Return the rows of a named query."""
        return self.rows(self.queries[name], values)

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Connection]:
        """Open a transaction, which ends with the block: all of it is written, or none."""

    def binding(self) -> AbstractContextManager[Connection]:
        """Open a transaction in which no other process binds the store."""
        return self.transaction()

    @contextmanager
    def deleting(self) -> Iterator[Connection]:
        """Open a transaction that may delete rows of the audit; by right, where roles have some."""
        with self.transaction() as connection:
            yield connection

    def claim_first_run(self, node: str) -> bool:
        """Say whether `node` is the one process that issues the first keys: on one host, any is."""
        del node
        return True

    @abstractmethod
    def place(self, row: Any) -> Mapping[str, Any]:
        """Return the place in the audit that `row` stands for, by column; 0 is before the first."""

    @abstractmethod
    def schema(self) -> int:
        """Return the number of the store's schema."""

    @abstractmethod
    def log_bytes(self) -> int | None:
        """Return the size of the store's write-ahead log; None where it is a server's own."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A person who may use the admin API: the hash of the token, never the token."""

    name: str
    token_hash: str
    created_at: int


@dataclass(frozen=True, slots=True)
class StoreAdmin:
    """What no decision touches, on a database of its own. Raises: LedgerUnavailableError."""

    database: Database

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def facts(self) -> dict[str, str]:
        """Return every fact of the store."""
        return facts_in(self.database.ask("facts"))

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """Write facts, all or none."""
        with self.database.transaction() as connection:
            write_facts(connection, self.database.queries, facts)

    def confirm_clock(self, facts: Mapping[str, str], now: int) -> None:
        """Write the facts of an operator's word that it is `now` (ms), all or none.

        What an open operation has from later than that was dated by a clock that was ahead: it is
        dated now, or it would wait until then to be read.
        """
        queries = self.database.queries
        with self.database.transaction() as connection:
            for name in _REDATE:
                connection.execute(queries[name], {"now": now})
            write_facts(connection, queries, facts)

    def operators(self) -> list[Operator]:
        """Return the operators by name."""
        return [Operator(**dict(row)) for row in self.database.ask("operators")]

    def operator_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every operator's token, by name."""
        return {operator.name: operator.token_hash for operator in self.operators()}

    def add_operator(self, operator: Operator) -> bool:
        """Add an operator; False when the name is taken."""
        return self._changes_one("add_operator", asdict(operator))

    def remove_operator(self, name: str) -> bool:
        """Remove an operator; False when there is none of that name."""
        return self._changes_one("remove_operator", {"name": name})

    def archived(self) -> dict[str, Head]:
        """Return, for each node, the end of what was moved out of its chain."""
        return archived_in(self.facts())

    def drop_segments(self, ends: Mapping[str, Head]) -> int:
        """Take the rows up to each end out of the audit; return how many there were.

        Raises: LedgerUnavailableError, with nothing removed, when an end is not what was verified,
        or this role may not delete: serving processes' may not.
        """
        removed, queries = 0, self.database.queries
        with self.database.deleting() as connection:
            for node, end in ends.items():
                place = {"node": end.node, "seq": end.seq}
                row = connection.execute(queries["audit_hash"], place).fetchone()
                if row is None or row["hash"] != end.hash:
                    raise LedgerUnavailableError(f"row {node}:{end.seq} changed meanwhile")
                removed += connection.execute(queries["drop_segment"], place).rowcount
                write_facts(connection, queries, {f"{ARCHIVED}{node}": f"{end.seq}:{end.hash}"})
        return removed

    def _changes_one(self, name: str, values: Mapping[str, object]) -> bool:
        with self.database.transaction() as connection:
            return bool(connection.execute(self.database.queries[name], values).rowcount == 1)


def archived_in(facts: Mapping[str, str]) -> dict[str, Head]:
    """Return, for each node, the end of what was archived, as the facts of a store tell it."""
    heads = {}
    for name, value in facts.items():
        if name.startswith(ARCHIVED):
            node = name.removeprefix(ARCHIVED)
            seq, _, digest = value.partition(":")
            heads[node] = Head(node, int(seq), digest)
    return heads
