"""What operators search by is indexed, in new stores and in those of an earlier version."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.proxy.stores.binding import SchemaError
from kb_mcp.proxy.stores.postgres_line import connector
from kb_mcp.proxy.stores.postgres_schema import check_schema, migrate
from kb_mcp.proxy.stores.queries import load_migrations, load_queries
from kb_mcp.wiring.verification import verifier
from tests.house import House
from tests.postgres import Database

ADDED = (
    "audit_by_agent", "audit_by_session", "operations_by_period_alone", "operations_unfinished",
    "windows_by_start",
)  # fmt: skip
ALTERED = {
    "audit_by_time": "(time)",
    "audit_by_key": "(key_id, time)",
    "audit_by_customer": "(customer_id, time) WHERE customer_id IS NOT NULL",
    "audit_by_code": "(code, time) WHERE code IS NOT NULL",
}


def charge_as(house: House, agent: str, session: str, **form: Any) -> None:
    headers = {
        "Authorization": f"Bearer {house.issue().token}",
        "Keybrake-Agent": agent,
        "Keybrake-Session": session,
    }
    fields = {"customer": "cus_A1", "amount": "2900", "currency": "usd", **form}
    assert house.client.post("/v1/charges", data=fields, headers=headers).status_code == 200


def check_serves(house: House) -> None:
    """Charge, search what was charged, and verify every chain."""
    charge_as(house, "owl", "night-1", customer="cus_B2")
    assert {row["agent_id"] for row in house.audit(session="night-1")} == {"owl"}
    assert len(house.audit(agent="owl")) == 4
    assert len(house.operations(state="succeeded")) == 2
    assert house.operations(state="failed") == house.operations(state="unheard-of") == []
    outcome = verifier(house.settings, house.proxy.store)()
    assert (outcome.breaks, len(house.charges())) == ((), 2)


def test_an_older_file_is_migrated_as_it_is_opened_with_all_that_is_in_it(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        charge_as(house, "owl", "night-0")
        with sqlite3.connect(tmp_path / "ledger.db") as older:
            for name in ADDED:
                older.execute(f"DROP INDEX {name}")
            older.execute("PRAGMA user_version = 1")
        older.close()
        house.restart()
        with sqlite3.connect(tmp_path / "ledger.db") as newer:
            found = {row[0] for row in newer.execute("SELECT name FROM sqlite_master")}
            (version,) = newer.execute("PRAGMA user_version").fetchone()
        newer.close()
        assert found >= set(ADDED)
        assert version == load_migrations("sqlite")[-1][0]
        check_serves(house)


@pytest.mark.slow
def test_an_older_database_is_refused_until_its_owner_migrates_it(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(House, "store", database.environ)
    with House(tmp_path) as house:
        charge_as(house, "owl", "night-0")
        for name in (*ADDED, *ALTERED):
            database.query(f"DROP INDEX {name}")
        for name, columns in ALTERED.items():
            database.query(f"CREATE INDEX {name} ON audit {columns}")
        database.query("DELETE FROM schema_versions WHERE number > 1")
        with connector(database.url)() as proxy, pytest.raises(SchemaError, match="has schema 1"):
            check_schema(proxy)
        with connector(database.owner_url)() as owner:
            assert migrate(owner) == load_migrations("postgres")[-1][0]
        house.restart()
        there = database.query("SELECT indexname FROM pg_indexes")
        assert {row[0] for row in there} >= {*ADDED, *ALTERED}
        check_serves(house)


HOT: dict[str, Any] = {
    "operations": dict.fromkeys(("names", "ids", "tallies", "periods", "bills"), "[[]]"),
    "to_recover": {"now": 1, "limit": 1},
    "answered_before": (1, 1),
    **dict.fromkeys(("attempts", "objects", "windows", "tallies", "keys"), ("[[]]",)),
    **dict.fromkeys(("approvals", "lineages", "key_with_lineage", "head_of_node"), ("[[]]",)),
}


@pytest.mark.parametrize("name", HOT)
def test_no_charge_and_no_recovery_walks_a_table(tmp_path: Path, name: str) -> None:
    with House(tmp_path), sqlite3.connect(tmp_path / "ledger.db") as store:
        plan = store.execute(f"EXPLAIN QUERY PLAN {load_queries('sqlite')[name]}", HOT[name])
        steps = [row[3] for row in plan]
    store.close()
    # What is walked is the list that was asked for, a subquery of it, or an index of what is open.
    walked = [step for step in steps if step.startswith("SCAN") and "VIRTUAL" not in step]
    allowed = {"SCAN chosen", "SCAN (subquery-1)", "SCAN operations USING INDEX operations_to_read"}
    assert set(walked) <= allowed


AUDIT = ("key", "customer", "code", "operation", "agent", "session", "since", "node")
OPERATIONS = ("customer_id", "billing_period", "charge_id", "operation_id")


@pytest.mark.parametrize("name", [*AUDIT, *OPERATIONS, *("unknown", "awaiting_approval", "failed")])
def test_no_search_walks_a_whole_table(tmp_path: Path, name: str) -> None:
    with House(tmp_path) as house:
        records: Any = house.proxy.store.records
        connection: sqlite3.Connection = records._connection  # noqa: SLF001 what the reads really ask
        said: list[str] = []
        connection.set_trace_callback(said.append)
        if name in AUDIT:
            list(records.audit(limit=30, newest_first=True, **{name: "x"}))
        elif name in OPERATIONS:
            house.operations(limit=30, **{name: "x"})
        else:
            house.operations(limit=30, state=name)
        connection.set_trace_callback(None)
        (asked,) = said
        plan = [row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {asked}")]
        assert all(step.startswith(("SEARCH", "USE TEMP")) for step in plan), plan


def test_a_page_of_one_key_reads_that_key_and_its_windows_alone(tmp_path: Path) -> None:
    named = load_queries("sqlite")
    asked = {"ids": "[]", "day": "", "month": ""}
    with House(tmp_path), sqlite3.connect(tmp_path / "ledger.db") as store:
        for name in ("keys_by_id", "spend_of_keys"):
            plan = [row[3] for row in store.execute(f"EXPLAIN QUERY PLAN {named[name]}", asked)]
            walked = [step for step in plan if step.startswith("SCAN")]
            assert not [step for step in walked if step.split()[1] in {"k", "l", "w"}], plan
    store.close()
