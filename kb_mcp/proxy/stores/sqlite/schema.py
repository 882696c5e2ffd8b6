"""Migrating and binding a SQLite store.

Floor: inside the stores. Migrations are numbered .sql files, applied and read back through
sqlite-utils, which is imported only when there is something to do (it costs 90 ms).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.audit.chain import node_hash
from kb_mcp.proxy.ledger.store_settings import StoreSettings
from kb_mcp.proxy.store_admin import Binds
from kb_mcp.proxy.stores.binding import (
    BindingError,
    SchemaError,
    bound_by,
    check_account,
    missing_facts,
)
from kb_mcp.proxy.stores.queries import load_migrations, load_queries

__all__ = ["BindingError", "SchemaError", "bind", "bind_account", "migrate",
           "read_facts", "register_node"]  # fmt: skip


def migrate(connection: sqlite3.Connection) -> int:
    """Bring the store to the newest schema and return its number.

    Several first processes may call this at once: each migration is one exclusive transaction.
    Raises: SchemaError when the store is newer than this version.
    """
    migrations = load_migrations("sqlite")
    newest = migrations[-1][0]
    if _version(connection) == newest:
        return newest
    import sqlite_utils

    database = sqlite_utils.Database(connection)
    for number, script in migrations:
        connection.execute("BEGIN EXCLUSIVE")
        if _version(connection) >= number:
            connection.execute("ROLLBACK")
            continue
        _run_script(connection, script)
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    if "operations" not in database.table_names():
        raise SchemaError("the migrations ran, but the ledger's tables cannot be read back")
    if _version(connection) > newest:
        raise SchemaError(
            f"the store has schema {_version(connection)}, this kb-mcp knows {newest}: "
            "upgrade kb-mcp, or restore the store that belongs to it"
        )
    return newest


def bind(
    connection: sqlite3.Connection,
    wanted: StoreSettings,
    explicit: Mapping[str, object],
    binds: Binds,
    marks: Mapping[str, str],
) -> StoreSettings:
    """Return what the store is bound to, and bind it to `wanted` as far as it is not yet.

    `explicit` holds the settings that this process was configured with on purpose: they must
    agree with the store's. `marks` are facts of the store that are written once, where an earlier
    version did not yet. Raises: BindingError.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        stored = read_facts(connection)
        bound = bound_by(stored, wanted, explicit)
        missing = missing_facts(stored, bound, binds, marks)
        if missing:
            connection.executemany(load_queries("sqlite")["set_fact"], missing.items())
            connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return bound


def bind_account(connection: sqlite3.Connection, account_id: str) -> None:
    """Bind the store to the Stripe account that the upstream key belongs to, at the first start.

    Raises: BindingError when it was bound to another one.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        bound = read_facts(connection).setdefault("account_id", account_id)
        if bound == account_id:
            connection.execute(load_queries("sqlite")["set_fact"], ("account_id", account_id))
            connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    check_account(bound, account_id)


def read_facts(connection: sqlite3.Connection) -> dict[str, str]:
    """Return every fact of the store."""
    return {row["name"]: row["value"] for row in connection.execute("SELECT * FROM facts")}


def register_node(connection: sqlite3.Connection, node: str, chain_key: bytes, now: int) -> None:
    """Add `node` to the chained registry of writing processes, in the open transaction."""
    last = connection.execute(load_queries("sqlite")["last_node"]).fetchone()
    position, previous = (1, "") if last is None else (last["position"] + 1, last["hash"])
    started = rfc3339(now)
    connection.execute(
        "INSERT INTO nodes (position, node, started_at, hash) VALUES (?, ?, ?, ?)",
        (position, node, started, node_hash(chain_key, previous, node, started)),
    )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    """Run every statement of `script` in the open transaction (executescript would commit it)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
