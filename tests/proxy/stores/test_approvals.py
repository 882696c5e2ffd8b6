"""Approvals in both stores, and those of schema 3, which name a fingerprint and no more."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.proxy.ledger.records import Approval, Changes, Lineage, OperationId, Refs, State
from kb_mcp.proxy.stores.postgres import database as postgres_schema
from kb_mcp.proxy.stores.postgres.connection import connector
from kb_mcp.proxy.stores.rows import load_migrations
from kb_mcp.proxy.stores.sqlite import database as sqlite_schema
from kb_mcp.proxy.stores.sqlite.ledger import connect
from tests.postgres import PROXY, Database
from tests.proxy.stores.conftest import Open, Run
from tests.proxy.stores.test_conformance import KEY, LINEAGE, operation, read, write

SCHEMA = 3
DELIVERED_IN = 12
ENDS = 10**14
OPERATION: dict[str, Any] = {
    "id": "op_1", "name": "n", "generation": 0, "named_by": "explicit",
    "route": "POST /v1/charges", "customer": "cus_1", "amount": 30_000, "currency": "usd",
    "period": "2026-11", "reference": "r", "fingerprint": "fp", "upstream_name": "k",
    "state": "awaiting_approval", "final": True, "held": 0, "reserved_at": 0,
    "first_arrival_at": 1, "attempt": 0, "lease_token": 0, "lease_until": 0, "key_id": "key_1",
    "lineage_id": "lin_1", "reopened": False, "waived": False, "overshoot": False,
    "empty_listings": 0, "approval_id": "apr_2", "created_at": 1, "updated_at": 1,
}  # fmt: skip
# By whom, about what, and in which state.
APPROVALS = (
    ("apr_1", "lin_1", "fp", "pending"),
    ("apr_2", "lin_1", "other", "pending"),
    ("apr_3", "lin_1", "fp:40000", "approved"),
    ("apr_4", "lin_2", "fp", "approved"),
    ("apr_5", "lin_1", "other", "used"),
)
KEYS = ("id", "lineage_id", "token_hash", "mode", "role", "policy", "created_at")


def rows() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what schema 3 held, table by table."""
    for lineage in ("lin_1", "lin_2"):
        yield "lineages", {"id": lineage}
    for key, lineage in (("key_1", "lin_1"), ("key_2", "lin_2")):
        yield "keys", dict(zip(KEYS, (key, lineage, "0", "test", "billing", "{}", 1), strict=True))
    yield "operations", OPERATION
    for name, lineage, fingerprint, state in APPROVALS:
        yield "approvals", {
            "id": name, "operation_id": "op_1", "lineage_id": lineage, "fingerprint": fingerprint,
            "state": state, "expires_at": ENDS, "created_at": 7,
        }  # fmt: skip


def statement(table: str, row: dict[str, Any], mark: str) -> str:
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join([mark] * len(row))})"


READ = (
    "SELECT id, key_id, endpoint, customer, amount, currency, period, reference, state, expires_at"
    " FROM approvals ORDER BY id"
)
TOLD = ("POST /v1/charges", "cus_1", 30_000, "usd", "2026-11", "r")
WANTED = [
    ("apr_1", "key_1", *TOLD, "pending", ENDS),
    ("apr_2", "key_1", *TOLD, "pending", 7),
    ("apr_3", "key_1", *TOLD, "approved", 7),
    ("apr_4", "key_2", *TOLD, "approved", ENDS),
    ("apr_5", "key_1", *TOLD, "used", ENDS),
]


def test_a_file_keeps_what_still_says_what_it_covers_and_ends_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(connect(tmp_path / "ledger.db")) as store:
        older = load_migrations("sqlite")[:SCHEMA]
        with monkeypatch.context() as earlier:
            earlier.setattr(sqlite_schema, "load_migrations", lambda _: older)
            sqlite_schema.migrate(store)
        for table, row in rows():
            store.execute(statement(table, row, "?"), list(row.values()))
        sqlite_schema.migrate(store)
        store.row_factory = None
        assert list(store.execute(READ)) == WANTED
        with pytest.raises(sqlite3.IntegrityError):
            store.execute("UPDATE approvals SET amount = NULL")


def test_a_database_keeps_what_still_says_what_it_covers_and_ends_the_rest(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Database(database.server, "approvals_3")
    old.server.make_store(old.name)
    older = load_migrations("postgres")[:SCHEMA]
    with connector(old.owner_url)() as owner:
        with monkeypatch.context() as earlier:
            earlier.setattr(postgres_schema, "load_migrations", lambda _: older)
            earlier.setattr(postgres_schema, "_check_columns", lambda _: None)
            # Today's grants name tables that came later.
            earlier.setattr(postgres_schema, "load_grants", lambda: "SELECT 1")
            postgres_schema.migrate(owner, PROXY)
        for table, row in rows():
            owner.execute(statement(table, row, "%s").encode(), list(row.values()))
        postgres_schema.migrate(owner)
        assert [tuple(row.values()) for row in owner.execute(READ.encode())] == WANTED


SENT_BEFORE = (("alert|a1", 1, 5, None), ("alert|a1|page", 3, 7, None), ("alert||", 1, 9, "op_1"))
DELIVERIES = [("alert|a1", 1, 5), ("alert|a1|page", 3, 7)]


def test_a_file_keeps_which_alerts_were_sent_and_what_was_declined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(connect(tmp_path / "ledger.db")) as store:
        older = [each for each in load_migrations("sqlite") if each[0] < DELIVERED_IN]
        with monkeypatch.context() as earlier:
            earlier.setattr(sqlite_schema, "load_migrations", lambda _: older)
            sqlite_schema.migrate(store)
        store.executemany("INSERT INTO tallies VALUES (?, ?, ?, ?)", SENT_BEFORE)
        sqlite_schema.migrate(store)
        store.row_factory = None
        assert list(store.execute("SELECT * FROM deliveries ORDER BY key")) == DELIVERIES
        assert list(store.execute("SELECT key FROM tallies")) == [("alert||",)]


def test_a_database_keeps_which_alerts_were_sent_and_what_was_declined(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Database(database.server, "alerts_11")
    old.server.make_store(old.name)
    older = [each for each in load_migrations("postgres") if each[0] < DELIVERED_IN]
    with connector(old.owner_url)() as owner:
        with monkeypatch.context() as earlier:
            earlier.setattr(postgres_schema, "load_migrations", lambda _: older)
            earlier.setattr(postgres_schema, "_check_columns", lambda _: None)
            postgres_schema.migrate(owner)
        for row in SENT_BEFORE:
            owner.execute("INSERT INTO tallies VALUES (%s, %s, %s, %s)", row)
        postgres_schema.migrate(owner)
        moved = owner.execute("SELECT * FROM deliveries ORDER BY key").fetchall()
        assert [tuple(row.values()) for row in moved] == DELIVERIES
        left = owner.execute("SELECT key FROM tallies").fetchall()
        assert [row["key"] for row in left] == ["alert||"]


def test_an_operation_brings_every_approval_that_was_asked_about_it(
    open_one: Open, run: Run
) -> None:
    one, two = open_one(), open_one()
    asked = operation(state=State.AWAITING_APPROVAL, approval_id="ap_2", object_id=None, held=0)
    first, second, elsewhere, over = (
        Approval(
            id=f"ap_{number}", operation_id=OperationId(f"op_{about}"), lineage_id=LINEAGE,
            key_id=KEY.id, endpoint="POST /v1/charges", customer="cus_1", amount=number,
            currency="usd", period=None, reference=None, payment_method=None, destination=None,
            fingerprint=f"f{number}", state="pending", expires_at=ends, created_at=number,
        )
        for number, about, ends in ((1, 1, 10**14), (2, 1, 10**14), (3, 2, 10**14), (4, 1, 5))
    )  # fmt: skip
    changes = Changes(
        operations=(asked,), approvals=(first, second, elsewhere, over),
        lineages=(Lineage(LINEAGE),), keys=(KEY,),
    )  # fmt: skip
    run(write(one, changes))
    found = run(read(two, Refs(names=frozenset({asked.name}), keys=frozenset({KEY.id}))))
    assert found.approvals_of(asked, LINEAGE) == [over, second, first]
    # What has expired waits for nobody.
    assert found.outstanding_approvals == {LINEAGE: 3}
