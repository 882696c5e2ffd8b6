"""The store admin: rows that no decision touches: facts, operators, old segments of the audit.

Floor: inside the stores. Each write is one transaction of its own. The ledger writes the audit row
of what an operator did, and commits it first; nothing here writes the audit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass

from kb_mcp.proxy.audit.chain import Head
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.stores.binding import Connection, read_facts, write_facts
from kb_mcp.proxy.stores.queries import load_queries

ARCHIVED = "archived:"
_REDATE = ("redate_reads", "redate_voids", "redate_leases", "redate_sends")


@dataclass(frozen=True, slots=True)
class Operator:
    """A person who may use the admin API: the hash of the token, never the token."""

    name: str
    token_hash: str
    created_at: int


class StoreAdmin(ABC):
    """What no decision touches. Raises: LedgerUnavailableError."""

    def __init__(self, engine: str) -> None:
        """Take the named queries of `engine`."""
        self._queries = load_queries(engine)

    @abstractmethod
    def reading(self) -> AbstractContextManager[Connection]:
        """Hand out the connection for statements that only read."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Connection]:
        """Open a transaction, which ends with the block: all of it is written, or none."""

    @abstractmethod
    def schema(self) -> int:
        """Return the number of the store's schema."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    def facts(self) -> dict[str, str]:
        """Return every fact of the store."""
        with self.reading() as connection:
            return read_facts(connection, self._queries)

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """Write facts, all or none."""
        with self.transaction() as connection:
            write_facts(connection, self._queries, facts)

    def confirm_clock(self, facts: Mapping[str, str], now: int) -> None:
        """Write the facts of an operator's word that it is `now` (ms), all or none.

        What an open operation has from later than that was dated by a clock that was ahead: it is
        dated now, or it would wait until then to be read.
        """
        with self.transaction() as connection:
            for name in _REDATE:
                connection.execute(self._queries[name], {"now": now})
            write_facts(connection, self._queries, facts)

    def operators(self) -> list[Operator]:
        """Return the operators by name."""
        with self.reading() as connection:
            rows = connection.execute(self._queries["operators"]).fetchall()
        return [Operator(**dict(row)) for row in rows]

    def operator_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every operator's token, by name."""
        return {operator.name: operator.token_hash for operator in self.operators()}

    def add_operator(self, operator: Operator) -> bool:
        """Add an operator; False when the name is taken."""
        with self.transaction() as connection:
            cursor = connection.execute(self._queries["add_operator"], asdict(operator))
            return bool(cursor.rowcount == 1)

    def remove_operator(self, name: str) -> bool:
        """Remove an operator; False when there is none of that name."""
        with self.transaction() as connection:
            cursor = connection.execute(self._queries["remove_operator"], {"name": name})
            return bool(cursor.rowcount == 1)

    def archived(self) -> dict[str, Head]:
        """Return, for each node, the end of what was moved out of its chain."""
        return archived_in(self.facts())

    def drop_segments(self, ends: Mapping[str, Head]) -> int:
        """Take the rows up to each end out of the audit; return how many there were.

        Raises: LedgerUnavailableError, with nothing removed, when an end is not what was verified,
        or this role may not delete: serving processes' may not.
        """
        removed = 0
        with self.transaction() as connection, self._deleting(connection):
            for node, end in ends.items():
                place = {"node": end.node, "seq": end.seq}
                row = connection.execute(self._queries["audit_hash"], place).fetchone()
                if row is None or row["hash"] != end.hash:
                    raise LedgerUnavailableError(f"row {node}:{end.seq} changed meanwhile")
                removed += connection.execute(self._queries["drop_segment"], place).rowcount
                archived = {f"{ARCHIVED}{node}": f"{end.seq}:{end.hash}"}
                write_facts(connection, self._queries, archived)
        return removed

    @contextmanager
    def _deleting(self, connection: Connection) -> Iterator[None]:
        """Let rows of the audit be deleted inside the block; by right, where roles have rights."""
        del connection
        yield


def archived_in(facts: Mapping[str, str]) -> dict[str, Head]:
    """Return, for each node, the end of what was archived, as the facts of a store tell it."""
    heads = {}
    for name, value in facts.items():
        if name.startswith(ARCHIVED):
            node = name.removeprefix(ARCHIVED)
            seq, _, digest = value.partition(":")
            heads[node] = Head(node, int(seq), digest)
    return heads
