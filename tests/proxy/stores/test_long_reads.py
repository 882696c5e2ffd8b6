"""Long reads of either store hold nothing open, and SQLite's write-ahead log stays small."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Refs
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores import reads
from kb_mcp.proxy.stores.sqlite import ledger
from kb_mcp.proxy.stores.sqlite.ledger import LOOKED_AT_EVERY, log_bytes
from kb_mcp.wiring.stores import Store
from tests.proxy.stores.conftest import Open, Run

ROWS = 60


@pytest.fixture
def store(open_one: Open, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(reads, "PAGE_ROWS", 7)
    return open_one()


def write(run: Run, store: Store, rows: int, note: str = "") -> None:
    """Write audit rows in one transaction."""
    drafts = tuple(AuditDraft(kind="admin", note=f"{n}{note}") for n in range(rows))

    def step(_: Snapshot) -> tuple[None, Changes]:
        return None, Changes(audit=drafts)

    run(store.ledger.transact(lambda _: Refs(), step))


def held_open(store: Store, environ: dict[str, str]) -> bool:
    """Say whether anybody holds an older state of the store open."""
    url = environ["KEYBRAKE_DATABASE_URL"]
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(store.path, timeout=0)) as connection:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return bool(busy)
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND state = 'idle in transaction'"
        ).fetchone()
        assert found is not None
        return bool(found[0])


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_reader_of_the_audit_that_stalls_holds_nothing_open(
    store: Store, environ: dict[str, str], run: Run, newest_first: bool
) -> None:
    write(run, store, ROWS)
    rows = store.records.audit(newest_first=newest_first)
    first = list(itertools.islice(rows, 10))

    assert not held_open(store, environ)
    write(run, store, 3, " later")

    notes = [row["note"] for row in [*first, *rows]]
    wanted = [str(number) for number in range(ROWS)]
    assert notes == (wanted[::-1] if newest_first else wanted)


def test_a_reader_of_a_chain_that_stalls_holds_nothing_open(
    store: Store, environ: dict[str, str], run: Run
) -> None:
    write(run, store, ROWS)
    rows = store.records.chain(store.node)
    first = list(itertools.islice(rows, 10))
    assert not held_open(store, environ)
    assert [row["seq"] for row in [*first, *rows]] == list(range(1, ROWS + 1))


@pytest.mark.parametrize(("limit", "count"), [(0, 0), (1, 1), (7, 7), (20, 20), (999, ROWS)])
def test_a_limit_and_a_filter_hold_over_pages(
    store: Store, run: Run, limit: int, count: int
) -> None:
    write(run, store, ROWS)
    for newest_first in (False, True):
        found = store.records.audit(limit=limit, newest_first=newest_first, node=store.node)
        assert len(list(found)) == count
    assert list(store.records.audit(limit=limit, node="another")) == []


@contextmanager
def outside_reader(path: Path) -> Iterator[sqlite3.Connection]:
    """Read a state of the store for as long as the block lasts, as a backup tool may."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM audit").fetchall()
        yield connection


@pytest.mark.parametrize("environ", ["sqlite"], indirect=True)
def test_the_log_is_cut_once_nobody_outside_holds_it(
    open_one: Open, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "LARGE_BYTES", 400_000)
    monkeypatch.setattr(ledger, "KEPT_BYTES", 100_000)
    store = open_one()
    with outside_reader(store.path):
        while log_bytes(store.path) <= 800_000:
            write(run, store, 50, "x" * 100)
        assert store.records.log_bytes() == log_bytes(store.path)
    sizes = []
    for _ in range(LOOKED_AT_EVERY):
        write(run, store, 1)
        sizes.append(log_bytes(store.path))
    assert min(sizes) <= 100_000


@pytest.mark.parametrize("environ", ["sqlite"], indirect=True)
def test_a_reader_that_stays_costs_the_writer_nothing(
    open_one: Open, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "LARGE_BYTES", 0)
    monkeypatch.setattr(ledger, "LOOKED_AT_EVERY", 1)
    store = open_one()
    with outside_reader(store.path) as connection:
        for _ in range(30):
            write(run, store, 5)
        # It still sees what it saw, and every row was written.
        assert connection.execute("SELECT count(*) FROM audit").fetchone() == (0,)
    assert store.records.audit_size() == 150


@pytest.mark.parametrize("environ", ["postgres"], indirect=True)
def test_the_log_of_a_server_is_its_own(open_one: Open) -> None:
    assert open_one().records.log_bytes() is None
