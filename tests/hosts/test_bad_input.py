"""A store that cannot be served is refused in one line, with exit code 2, by `up` and commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest

from kb_mcp.proxy.stores.binding import SchemaError
from kb_mcp.proxy.stores.postgres import database as postgres_schema
from kb_mcp.proxy.stores.postgres.connection import connector
from tests.postgres import OWNER, PROXY, Database

COMMANDS = (("up", "--port", "0", "--admin-port", "0", "--sandbox-port", "0"), ("keys", "list"))


def refused(environ: Mapping[str, str], tmp_path: Path, *command: str) -> str:
    """Run a command that must end with exit code 2, and return its one line."""
    plain = {name: value for name, value in os.environ.items() if "KEYBRAKE" not in name}  # noqa: TID251 a child needs PATH and the like
    plain |= {"XDG_DATA_HOME": str(tmp_path), **environ}
    done = subprocess.run(
        [sys.executable, "-m", "kb_mcp", *command],
        env=plain, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert lines[0].startswith("Error: ")
    assert all(line.startswith("Hint: ") for line in lines[1:])
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"port": "1"}, "refused"),
        ({"name": "nowhere"}, 'database "nowhere" does not exist'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_url_is_told(
    database: Database, tmp_path: Path, wrong: dict[str, str], said: str, command: tuple[str, ...]
) -> None:
    parts = {"password": "for-tests-only", "port": str(database.server.port),
             "name": database.name} | wrong  # fmt: skip
    url = f"postgresql://{PROXY}:{parts['password']}@127.0.0.1:{parts['port']}/{parts['name']}"
    line = refused(database.environ | {"KEYBRAKE_DATABASE_URL": url}, tmp_path, *command)
    assert said in line
    assert parts["password"] not in line


def test_a_url_that_is_none_is_told(database: Database, tmp_path: Path) -> None:
    url = "postgresql://127.0.0.1/x?nonsense=1"
    assert "KEYBRAKE_DATABASE_URL" in refused(
        database.environ | {"KEYBRAKE_DATABASE_URL": url}, tmp_path, "keys", "list"
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DROP TABLE schema_versions", "no schema yet"),
        ("DELETE FROM schema_versions", "has schema 0, this kb-mcp needs"),
        ("INSERT INTO schema_versions VALUES (999)", "has schema 999, this kb-mcp knows"),
        ("DROP TABLE tallies", "tallies.key is missing"),
        ("ALTER TABLE operations DROP COLUMN waived", "operations.waived is missing"),
        (f"REVOKE INSERT ON audit FROM {PROXY}", "may not INSERT on audit"),
        (f"REVOKE UPDATE ON windows FROM {PROXY}", "may not UPDATE on windows"),
        (f"REVOKE SELECT ON schema_versions FROM {PROXY}", "may not read the store"),
    ],
)
def test_a_store_that_is_not_whole_is_told(
    database: Database, tmp_path: Path, damage: str, said: str
) -> None:
    database.query(damage)
    line = refused(database.environ, tmp_path, *COMMANDS[0])
    assert said in line


def test_a_serving_role_may_not_migrate(database: Database, tmp_path: Path) -> None:
    database.query("DROP TABLE schema_versions")
    assert "cannot be migrated" in refused(database.environ, tmp_path, "migrate")


def test_an_old_server_is_told(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_schema, "OLDEST_SERVER", 990_000)
    with (
        connector(database.url)() as connection,
        pytest.raises(SchemaError, match="the server is PostgreSQL 18; kb-mcp needs 99 or newer"),
    ):
        postgres_schema.check_schema(connection)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET note = 'x'", "DELETE FROM audit", "TRUNCATE audit", "DROP TABLE audit",
        "UPDATE nodes SET hash = ''", "DELETE FROM operations", "DELETE FROM guards",
        "ALTER TABLE audit ADD COLUMN x INT", "CREATE TRIGGER t BEFORE INSERT ON audit EXECUTE "
        "FUNCTION suppress_redundant_updates_trigger()",
    ],
)  # fmt: skip
def test_the_serving_role_can_neither_alter_nor_delete_what_is_recorded(
    database: Database, statement: str
) -> None:
    refusal = r"permission denied|must be owner"
    with connector(database.url)() as connection, pytest.raises(psycopg.Error, match=refusal):
        connection.execute(statement.encode())


def test_migrating_again_changes_nothing(database: Database) -> None:
    with connector(database.owner_url)() as owner:
        assert postgres_schema.migrate(owner, PROXY) == postgres_schema.migrate(owner)
    assert database.query(f"SELECT count(*) FROM pg_tables WHERE tableowner = '{OWNER}'") != [(0,)]
