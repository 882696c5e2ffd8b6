"""A store that a released version wrote opens, migrates, and is the same store as before."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.proxy.stores.sqlite.database import migrate
from kb_mcp.wiring.stores import open_store
from tests.cli.machine import Machine
from tests.postgres import OWNER, PROXY, Database, database, server
from tests.proxy_processes import ProxyProcesses

__all__ = ["database", "server"]

HERE = Path(__file__).parent
RELEASED = ("v0_1_0",)
STATES = {
    "v0_1_0": ["awaiting_approval"] * 2 + ["failed"] + ["succeeded"] * 5 + ["unknown"] * 2,
}


@pytest.fixture(params=RELEASED)
def released(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(released: str, tmp_path: Path) -> Machine:
    """Return a machine whose store the released version wrote."""
    shutil.copytree(HERE / released, tmp_path, dirs_exist_ok=True)
    return Machine(tmp_path)


@pytest.fixture
def hosts(released: str, tmp_path: Path, database: Database) -> ProxyProcesses:
    """Return commands on a PostgreSQL store that the released version wrote, migrated."""
    database.query("DROP SCHEMA public CASCADE")
    database.query(f"CREATE SCHEMA public AUTHORIZATION {OWNER}")
    written = (HERE / released / "keybrake.postgres.sql").read_text(encoding="utf-8")
    database.query(f"SET ROLE {OWNER};{written}")
    cluster = ProxyProcesses.__new__(ProxyProcesses)
    key = (HERE / released / "keybrake.db.master-key").read_text(encoding="utf-8")
    cluster.folder, cluster.running = tmp_path, []
    cluster.extra = {"KEYBRAKE_DATABASE_URL": database.owner_url, "KEYBRAKE_MASTER_KEY": key}
    cluster.extra |= {"KEYBRAKE_STRIPE_API_BASE": "http://127.0.0.1:9"}
    cluster.command("migrate", "--grant-to", PROXY)
    cluster.extra["KEYBRAKE_DATABASE_URL"] = database.url
    return cluster


def states(operations: list[dict[str, Any]]) -> list[str]:
    return sorted(each["state"] for each in operations)


def test_an_sqlite_store_of_a_released_version_migrates_and_verifies(
    machine: Machine, released: str
) -> None:
    machine.run("migrate")
    assert "The audit holds" in machine.run("audit", "verify").output
    assert states(machine.json("operations", "list")) == STATES[released]
    assert machine.json("doctor")["ok"] is True


def test_its_stored_answers_can_still_be_read(machine: Machine) -> None:
    async def answers() -> list[str]:
        store = open_store(machine.settings)
        try:
            found = await store.records.operations(state="succeeded")
            return [json.loads(each.answer or b"{}").get("id") for each, _ in found]
        finally:
            await store.close()

    charges = [each["charge_id"] for each in machine.json("operations", "list", "--state",
                                                           "succeeded")]  # fmt: skip
    assert asyncio.run(answers()) == charges


def test_its_keys_charge_and_its_unknown_outcomes_are_found_out(
    machine: Machine, released: str
) -> None:
    tokens = json.loads((HERE / released / "tokens.json").read_text(encoding="utf-8"))
    made = len(machine.charges())
    assert machine.charge(tokens["billing"], "2026-11", customer="cus_New").status_code == 200
    machine.run("recover")
    assert len(machine.charges()) == made + 1
    assert states(machine.json("operations", "list", "--state", "unknown")) in ([], ["unknown"])
    assert machine.json("reconcile", "--since", "3650d", code=0)["missing_operations"] == []


def test_a_store_that_was_migrated_once_is_left_alone(machine: Machine) -> None:
    import sqlite3

    machine.run("migrate")
    connection = sqlite3.connect(machine.store, isolation_level=None)
    connection.row_factory = sqlite3.Row
    before = list(connection.iterdump())
    migrate(connection)
    assert list(connection.iterdump()) == before
    connection.close()


def test_a_postgresql_store_of_a_released_version_migrates_and_verifies(
    hosts: ProxyProcesses, released: str
) -> None:
    assert "The audit holds" in hosts.command("audit", "verify").stdout
    assert (
        states(json.loads(hosts.command("operations", "list", "--json").stdout)) == STATES[released]
    )
