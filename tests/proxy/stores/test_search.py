"""What operators search by is indexed, in new stores and in those of an earlier version."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.proxy.ledger.records import Window
from kb_mcp.proxy.stores.binding import SchemaError
from kb_mcp.proxy.stores.postgres import database as postgres_schema
from kb_mcp.proxy.stores.postgres.connection import connector
from kb_mcp.proxy.stores.postgres.database import check_schema, migrate
from kb_mcp.proxy.stores.rows import load_grants, load_migrations, load_queries
from kb_mcp.wiring.stores import verifier
from tests.in_process_proxy import InProcessProxy
from tests.postgres import PROXY, Database


def charge_as(in_process: InProcessProxy, agent: str, session: str, **form: Any) -> None:
    headers = {
        "Authorization": f"Bearer {in_process.issue().token}",
        "Keybrake-Agent": agent,
        "Keybrake-Session": session,
    }
    fields = {"customer": "cus_A1", "amount": "2900", "currency": "usd", **form}
    assert in_process.client.post("/v1/charges", data=fields, headers=headers).status_code == 200


def check_serves(in_process: InProcessProxy) -> None:
    """Charge, search what was charged, and verify every chain."""
    charge_as(in_process, "owl", "night-1", customer="cus_B2")
    assert {row["agent_id"] for row in in_process.audit(session="night-1")} == {"owl"}
    assert len(in_process.audit(agent="owl")) == 4
    assert len(in_process.operations(state="succeeded")) == 2
    assert in_process.operations(state="failed") == in_process.operations(state="unheard-of") == []
    outcome = verifier(in_process.proxy.store)()
    assert (outcome.breaks, len(in_process.charges())) == ((), 2)


def shape(store: Path) -> set[tuple[str, str]]:
    """Return what a SQLite file is made of."""
    with closing(sqlite3.connect(store)) as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {(name, sql.replace('"', "")) for name, sql in found}


def indexes(database: Database) -> set[Any]:
    return set(database.query("SELECT indexname, indexdef FROM pg_indexes"))


def windows(in_process: InProcessProxy) -> list[Window]:
    return sorted(in_process.run(in_process.proxy.store.records.windows()), key=str)


def as_of(version: int, store: Path) -> None:
    """Turn a SQLite file into one of an older schema, with all that it can hold of its rows."""
    older = store.with_name("older.db")
    with closing(sqlite3.connect(older)) as connection:
        for number, script in load_migrations("sqlite")[:version]:
            connection.executescript(f"{script}; PRAGMA user_version = {number}")
        connection.execute("ATTACH ? AS newest", (str(store),))
        named = (
            "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_*'"
        )
        for (table,) in connection.execute(named).fetchall():
            columns = ", ".join(columns_of_both(connection, table))
            connection.execute(
                f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM newest.{table}"
            )
        connection.commit()
    older.replace(store)


def columns_of_both(connection: sqlite3.Connection, table: str) -> list[str]:
    main, newest = (
        [f'"{row[1]}"' for row in connection.execute(f"PRAGMA {name}.table_info({table})")]
        for name in ("main", "newest")
    )
    return [name for name in main if name in newest]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_older_file_is_migrated_as_it_is_opened_with_all_that_is_in_it(
    tmp_path: Path, version: int
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    store = tmp_path / "old" / "ledger.db"
    with InProcessProxy(tmp_path / "new"):
        newest = shape(tmp_path / "new" / "ledger.db")
    with InProcessProxy(tmp_path / "old") as in_process:
        charge_as(in_process, "owl", "night-0")
        before = windows(in_process)
    as_of(version, store)
    assert shape(store) != newest
    with InProcessProxy(tmp_path / "old") as in_process:
        assert shape(store) == newest
        assert windows(in_process) == before != []
        check_serves(in_process)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_older_database_is_refused_until_its_owner_migrates_it(
    database: Database, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = indexes(database)
    old = Database(database.server, f"older_{version}")
    old.server.make_store(old.name)
    older = load_migrations("postgres")[:version]
    with connector(old.owner_url)() as owner:
        with monkeypatch.context() as earlier:
            earlier.setattr(postgres_schema, "load_migrations", lambda _: older)
            # An earlier version did not look for the columns that came later.
            earlier.setattr(postgres_schema, "_check_columns", lambda _: None)
            grants = load_grants().replace("caller_keys, grants, stopped, deliveries, ", "")
            earlier.setattr(postgres_schema, "load_grants", lambda: grants)
            migrate(owner, PROXY)
        with connector(old.url)() as proxy, pytest.raises(SchemaError, match="has schema"):
            check_schema(proxy)
        assert indexes(old) != newest
        assert migrate(owner) == load_migrations("postgres")[-1][0]
        assert indexes(old) == newest


HOT = (
    "operations attempts_of objects windows tallies keys caller_keys grants issuers lineages "
    "deliveries approvals approvals_of keys_with_lineages known_objects known_attempts "
    "known_lineages spend_of_keys to_recover refunds_to_watch answered_before audit_head "
    "audit_hash audit_chain"
).split()
VALUES = dict.fromkeys(
    ("names", "ids", "caller_keys", "tallies", "periods", "bills", "charges"), "[[]]"
) | dict.fromkeys(("now", "most", "before", "node", "seq", "after", "day", "month"), "1")


@pytest.mark.parametrize("name", HOT)
def test_no_charge_and_no_recovery_walks_a_table(tmp_path: Path, name: str) -> None:
    with InProcessProxy(tmp_path), sqlite3.connect(tmp_path / "ledger.db") as store:
        plan = store.execute(f"EXPLAIN QUERY PLAN {load_queries('sqlite')[name]}", VALUES)
        steps = [row[3] for row in plan]
    store.close()
    # What is walked is the list that was asked for, or what was found so far.
    walked = [step for step in steps if step.startswith("SCAN") and "VIRTUAL" not in step]
    assert {step.split()[1] for step in walked} <= {"chosen", "named", "due", "s", "CONSTANT"}


AUDIT = ("key", "customer", "code", "operation", "agent", "session", "subject", "since", "node")
OPERATIONS = ("customer_id", "billing_period", "charge_id", "operation_id")


@pytest.mark.parametrize("name", [*AUDIT, *OPERATIONS, *("unknown", "awaiting_approval", "failed")])
def test_no_search_walks_a_whole_table(tmp_path: Path, name: str) -> None:
    with InProcessProxy(tmp_path) as in_process:
        records: Any = in_process.proxy.store.records
        connection: sqlite3.Connection = records.database.connection  # what the reads really ask
        said: list[str] = []
        connection.set_trace_callback(said.append)
        if name in AUDIT:
            list(records.audit(limit=30, newest_first=True, **{name: "x"}))
        elif name in OPERATIONS:
            in_process.operations(limit=30, **{name: "x"})
        else:
            in_process.operations(limit=30, state=name)
        connection.set_trace_callback(None)
        (asked,) = said
        plan = [row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {asked}")]
        walked = {step for step in plan if step.startswith("SCAN")}
        assert walked <= {"SCAN wanted", "SCAN CONSTANT ROW"}, plan


def test_a_page_of_one_key_reads_that_key_and_its_windows_alone(tmp_path: Path) -> None:
    named = load_queries("sqlite")
    asked = {"ids": "[]", "day": "", "month": ""}
    with InProcessProxy(tmp_path), sqlite3.connect(tmp_path / "ledger.db") as store:
        for name in ("keys_with_lineages", "spend_of_keys"):
            plan = [row[3] for row in store.execute(f"EXPLAIN QUERY PLAN {named[name]}", asked)]
            walked = [step for step in plan if step.startswith("SCAN")]
            assert not [step for step in walked if step.split()[1] in {"k", "l", "w"}], plan
    store.close()
