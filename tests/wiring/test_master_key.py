"""The master key: a wrong, a new and a lost one refuse to start, and nothing is written."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.cli.machine import Machine
from tests.postgres import MASTER_KEY, Database, database, server
from tests.proxy_processes import ProxyProcesses

__all__ = ["database", "server"]

COMMANDS = (
    ("keys", "list"),
    ("doctor",),
    ("keys", "issue", "--role", "billing", "--uncapped"),
    ("migrate",),
)
OTHER = "another-master-key-0123456789-0123456789"
RELEASED = Path(__file__).parents[1] / "stores" / "v0_1_0"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine that has charged once."""
    made = Machine(tmp_path)
    assert made.charge(made.token(), "2026-11").status_code == 200
    return made


def contents(store: Path) -> list[str]:
    connection = sqlite3.connect(store)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def key_file(machine: Machine) -> Path:
    return machine.store.with_name(f"{machine.store.name}.master-key")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_master_key_is_refused_and_nothing_is_written(
    machine: Machine, command: tuple[str, ...]
) -> None:
    before = contents(machine.store)
    code = 1 if command == ("doctor",) else 2
    told = machine.run(*command, code=code, KEYBRAKE_MASTER_KEY=OTHER)
    assert "another master key" in told.output + told.stderr
    assert contents(machine.store) == before
    machine.run("audit", "verify")


def test_a_lost_master_key_is_not_replaced_by_a_new_one(machine: Machine) -> None:
    before, saved = contents(machine.store), key_file(machine).read_text()
    key_file(machine).unlink()
    told = machine.run("keys", "list", code=2).stderr
    assert "is gone: put its copy back" in told
    assert not key_file(machine).exists()
    assert contents(machine.store) == before
    key_file(machine).write_text(saved)
    assert machine.json("doctor")["ok"] is True


def test_a_new_master_key_file_beside_an_old_store_is_refused(machine: Machine) -> None:
    key_file(machine).write_text(OTHER)
    assert "another master key" in machine.run("operations", "list", code=2).stderr


@pytest.mark.parametrize("lost", [True, False])
def test_a_store_of_a_version_without_a_check_value_refuses_a_wrong_or_lost_key(
    tmp_path: Path, *, lost: bool
) -> None:
    shutil.copytree(RELEASED, tmp_path, dirs_exist_ok=True)
    machine = Machine(tmp_path)
    before = contents(machine.store)
    environ = {} if lost else {"KEYBRAKE_MASTER_KEY": OTHER}
    if lost:
        key_file(machine).unlink()
    assert "master key" in machine.run("migrate", code=2, **environ).stderr
    assert contents(machine.store) == before


def test_a_store_whose_registry_was_emptied_is_still_held_to_its_key(machine: Machine) -> None:
    machine.tamper("DELETE FROM nodes", "DELETE FROM facts WHERE name = 'master_key_check'")
    told = machine.run("keys", "list", code=2, KEYBRAKE_MASTER_KEY=OTHER).stderr
    assert "another master key" in told
    machine.run("keys", "list")


def test_the_first_command_of_a_new_store_makes_its_key(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.run("keys", "list")
    assert key_file(machine).exists()
    key_file(machine).unlink()
    machine.run("keys", "list", code=2)


def test_hosts_with_another_master_key_are_refused_and_nothing_is_written(
    tmp_path: Path, database: Database
) -> None:
    cluster = ProxyProcesses.__new__(ProxyProcesses)
    cluster.folder, cluster.running, cluster.extra = tmp_path, [], dict(database.environ)
    cluster.extra |= {"KEYBRAKE_STRIPE_API_BASE": "http://127.0.0.1:9"}
    key = json.loads(
        cluster.command("keys", "issue", "--role", "billing", "--uncapped", "--json").stdout
    )
    rows = "SELECT (SELECT count(*) FROM audit), (SELECT count(*) FROM nodes), count(*) FROM facts"
    before = database.query(rows)
    cluster.extra["KEYBRAKE_MASTER_KEY"] = OTHER
    up = ("up", "--port", "0", "--admin-port", "0", "--sandbox-port", "0")
    for command in (("keys", "revoke", key["id"]), ("keys", "list"), up):
        done = cluster.command(*command, check=False)
        assert (done.returncode, "another master key" in done.stderr) == (2, True), done.stderr
    assert database.query(rows) == before
    cluster.extra["KEYBRAKE_MASTER_KEY"] = MASTER_KEY
    cluster.command("audit", "verify")
