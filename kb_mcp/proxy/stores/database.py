"""A store as its driver reaches it, outside any decision: two drivers of one interface.

Floor: inside the stores. A read is one statement: it sees what is committed, and holds nobody up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

from kb_mcp.proxy.stores.queries import load_queries
from kb_mcp.proxy.stores.rows import Row

Connection = Any  # a driver's own


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
