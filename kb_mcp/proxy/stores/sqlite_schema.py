"""Migrating and binding a SQLite store.

Floor: inside the stores. Migrations are numbered .sql files, applied and read back through
sqlite-utils, which is imported only when there is something to do (it costs 90 ms).
"""

from __future__ import annotations

import hmac
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import replace

from kb_mcp.proxy.ledger import StoreSettings
from kb_mcp.proxy.stores.queries import load_migrations, load_queries
from kb_mcp.proxy.windows import rfc3339


class SchemaError(Exception):
    """The store has a schema that this version cannot serve; the message says what to do."""


class BindingError(Exception):
    """The store belongs to another account, mode or configuration; the message names both."""


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
    connection: sqlite3.Connection, wanted: StoreSettings, explicit: Mapping[str, object]
) -> StoreSettings:
    """Bind a new store to `wanted`, or return what the store is bound to.

    `explicit` holds the settings that this process was configured with on purpose: they must
    agree with the store's. Raises: BindingError.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        stored = read_facts(connection)
        if "mode" not in stored:
            _write(connection, wanted)
            connection.execute("COMMIT")
            return wanted
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    bound = replace(
        wanted,
        account=stored["account"],
        mode=stored["mode"],
        ceilings=json.loads(stored["ceilings"]),
        upstream_timeout_ms=int(stored["upstream_timeout_ms"]),
        recovery_grace_ms=int(stored["recovery_grace_ms"]),
    )
    _check_binding(bound, wanted, explicit)
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
    if bound != account_id:
        raise BindingError(
            f"the store belongs to Stripe account {bound}, the key in KEYBRAKE_STRIPE_KEY to "
            f"{account_id}: use another KEYBRAKE_DATABASE_URL, one store an account"
        )


def read_facts(connection: sqlite3.Connection) -> dict[str, str]:
    """Return every fact of the store."""
    return {row["name"]: row["value"] for row in connection.execute("SELECT * FROM facts")}


def register_node(connection: sqlite3.Connection, node: str, chain_key: bytes, now: int) -> None:
    """Add `node` to the chained registry of processes that write to this store."""
    queries = load_queries("sqlite")
    connection.execute("BEGIN IMMEDIATE")
    last = connection.execute(queries["last_node"]).fetchone()
    position, previous = (1, "") if last is None else (last["position"] + 1, last["hash"])
    started = rfc3339(now)
    connection.execute(
        "INSERT INTO nodes (position, node, started_at, hash) VALUES (?, ?, ?, ?)",
        (position, node, started, node_hash(chain_key, previous, node, started)),
    )
    connection.execute("COMMIT")


def node_hash(chain_key: bytes, previous: str, node: str, started_at: str) -> str:
    """Return the hash that chains a node to the one registered before it."""
    message = f"{previous}\x00{node}\x00{started_at}".encode()
    return hmac.new(chain_key, message, "sha256").hexdigest()


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


def _write(connection: sqlite3.Connection, settings: StoreSettings) -> None:
    facts = {
        "account": settings.account,
        "mode": settings.mode,
        "ceilings": json.dumps(dict(settings.ceilings)),
        "upstream_timeout_ms": str(settings.upstream_timeout_ms),
        "recovery_grace_ms": str(settings.recovery_grace_ms),
    }
    for name, value in facts.items():
        connection.execute(load_queries("sqlite")["set_fact"], (name, value))


def _check_binding(
    bound: StoreSettings, wanted: StoreSettings, explicit: Mapping[str, object]
) -> None:
    if (bound.account, bound.mode) != (wanted.account, wanted.mode):
        raise BindingError(
            f"the store belongs to account {bound.account!r} in {bound.mode} mode, this process "
            f"is set up for {wanted.account!r} in {wanted.mode} mode: use another "
            "KEYBRAKE_DATABASE_URL, one store an account and mode"
        )
    for name, value in explicit.items():
        held = getattr(bound, name)
        if held != value:
            raise BindingError(
                f"the store says {name} = {held}, this process {value}: set it for all processes "
                f"with `kb-mcp settings set`, and take it out of this one's environment"
            )
