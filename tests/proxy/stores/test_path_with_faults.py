"""Every test of the path of a charge, with every transaction failing at its commit the first time.

The server refuses to serialize, or finds a deadlock; or the connection breaks before the commit
reaches it, or after, so that the commit has happened and nobody was told. Results do not change.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import errors
from typing_extensions import override

from kb_mcp.proxy.stores.postgres import connection as postgres_line
from kb_mcp.wiring.stores import postgres
from tests.in_process_proxy import InProcessProxy
from tests.postgres import Database
from tests.proxy.test_path_of_a_charge import *  # noqa: F403 the same tests, collected once more

KINDS = ("serialization", "deadlock", "cut_before", "cut_after")


class FaultyConnection(psycopg.Connection[dict[str, Any]]):
    """A connection that fails every other COMMIT, in one way after the other."""

    turns = itertools.count()
    kinds = itertools.cycle(KINDS)
    failed = 0

    @override
    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        turn = next(self.turns) if query == "COMMIT" else 1
        if turn % 2:
            return super().execute(query, params, **options)
        kind = next(self.kinds)
        type(self).failed += 1
        if kind == "serialization":
            raise errors.SerializationFailure("forced")
        if kind == "deadlock":
            raise errors.DeadlockDetected("forced")
        if kind == "cut_after":
            super().execute(query, params, **options)
            assert self._pipeline is not None
            self._pipeline.sync()
        self.close()
        raise psycopg.OperationalError("forced: the connection broke")


def faulty(url: str) -> Callable[[], postgres_line.Connection]:
    return postgres_line.connector(url, FaultyConnection)


@pytest.fixture(autouse=True)
def on_faulty_postgres(database: Database, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(InProcessProxy, "store", database.environ)
    monkeypatch.setattr(postgres, "connector", faulty)
    # From the first COMMIT on: some tests have no second one.
    monkeypatch.setattr(FaultyConnection, "turns", itertools.count())
    before = FaultyConnection.failed
    yield
    assert FaultyConnection.failed > before
