"""Migrating, checking and binding a PostgreSQL store.

Floor: inside the stores. Migrating is its owner's; a serving process only looks whether it can
serve, and says in one line why not. A migration is one transaction with its number.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg import errors, sql

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.audit.chain import node_hash
from kb_mcp.proxy.audit.journal import AUDIT_COLUMNS
from kb_mcp.proxy.ledger.store_settings import StoreSettings
from kb_mcp.proxy.store_admin import Binds
from kb_mcp.proxy.stores.binding import SchemaError, bound_by, check_account, missing_facts
from kb_mcp.proxy.stores.postgres.connection import OLDEST_SERVER, Connection
from kb_mcp.proxy.stores.postgres.locks import Guard, lock
from kb_mcp.proxy.stores.queries import load_grants, load_migrations, load_queries
from kb_mcp.proxy.stores.rows import COLUMNS

_TABLES: Mapping[str, tuple[str, ...]] = dict(COLUMNS) | {
    "audit": AUDIT_COLUMNS,
    "nodes": ("position", "node", "started_at", "hash"),
    "operators": ("name", "token_hash", "created_at"),
    "facts": ("name", "value"),
    "guards": ("kind", "value"),
    "flushes": ("node", "token"),
}
_RIGHTS = {"audit": "SELECT,INSERT", "nodes": "SELECT,INSERT", "operators": "SELECT,INSERT,DELETE"}
_VERSIONS = (
    "CREATE TABLE IF NOT EXISTS schema_versions (number BIGINT PRIMARY KEY, applied_at TEXT)"
)
_MIGRATE = "Run `kb-mcp migrate` with KEYBRAKE_DATABASE_URL of the tables' owner."


def migrate(connection: Connection, grant_to: str | None = None) -> int:
    """Bring the store to the newest schema and return its number; grant it to a role if given.

    Several may call this at once: each migration locks the table of versions. Raises: SchemaError.
    """
    migrations = load_migrations("postgres")
    newest = migrations[-1][0]
    _check_server(connection)
    try:
        connection.execute(_VERSIONS)
        for number, script in migrations:
            with connection.transaction():
                connection.execute("LOCK TABLE schema_versions IN EXCLUSIVE MODE")
                if _version(connection) < number:
                    connection.execute(script.encode())
                    connection.execute(
                        "INSERT INTO schema_versions VALUES (%s, now()::text)", (number,)
                    )
        if grant_to is not None:
            _grant(connection, grant_to)
    except psycopg.ProgrammingError as error:
        raise SchemaError(f"the store cannot be migrated: {_line(error)}") from error
    _check_version(connection)
    _check_columns(connection)
    return newest


def check_schema(connection: Connection) -> int:
    """Return the number of the schema, which this process can serve with its rights.

    Raises: SchemaError when the server is too old, or the schema older, newer, or not whole.
    """
    _check_server(connection)
    number = _check_version(connection)
    _check_columns(connection)
    for table in _TABLES:
        rights = _RIGHTS.get(table, "SELECT,INSERT,UPDATE").split(",")
        for right in rights:
            row = connection.execute(
                "SELECT has_table_privilege(%s, %s) AS granted", (table, right)
            ).fetchone()
            if not (row and row["granted"]):
                raise SchemaError(
                    f"this role may not {right} on {table}: run "
                    "`kb-mcp migrate --grant-to ROLE` as the tables' owner"
                )
    return number


def bind(
    connection: Connection,
    wanted: StoreSettings,
    explicit: Mapping[str, object],
    binds: Binds,
    marks: Mapping[str, str],
) -> StoreSettings:
    """Return what the store is bound to, and bind it to `wanted` as far as it is not yet.

    See `binding.bound_by`. Raises: BindingError.
    """
    queries = load_queries("postgres")
    with connection.transaction():
        _hold(connection, Guard.BINDING)
        stored = read_facts(connection)
        bound = bound_by(stored, wanted, explicit)
        for fact in missing_facts(stored, bound, binds, marks).items():
            connection.execute(queries["set_fact"], fact)
    return bound


def bind_account(connection: Connection, account_id: str) -> None:
    """Bind the store to the Stripe account of the upstream key. Raises: BindingError."""
    with connection.transaction():
        _hold(connection, Guard.BINDING)
        bound = read_facts(connection).get("account_id")
        if bound is None:
            fact = ("account_id", account_id)
            connection.execute(load_queries("postgres")["set_fact"], fact)
    check_account(bound or account_id, account_id)


def read_facts(connection: Connection) -> dict[str, str]:
    """Return every fact of the store."""
    rows = connection.execute("SELECT name, value FROM facts").fetchall()
    return {row["name"]: row["value"] for row in rows}


def claim(connection: Connection, name: str, value: str) -> bool:
    """Write a fact that only the first process writes; say whether this one did."""
    cursor = connection.execute(
        "INSERT INTO facts (name, value) VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, value)
    )
    return cursor.rowcount == 1


def register_node(connection: Connection, node: str, chain_key: bytes, now: int) -> None:
    """Add `node` to the chained registry of processes, and make its fencing row, once."""
    with connection.transaction():
        _hold(connection, Guard.NODES)
        if connection.execute("SELECT 1 FROM flushes WHERE node = %s", (node,)).fetchone():
            return
        last = connection.execute(load_queries("postgres")["last_node"]).fetchone()
        position, previous = (1, "") if last is None else (last["position"] + 1, last["hash"])
        started = rfc3339(now)
        connection.execute(
            "INSERT INTO nodes (position, node, started_at, hash) VALUES (%s, %s, %s, %s)",
            (position, node, started, node_hash(chain_key, previous, node, started)),
        )
        connection.execute("INSERT INTO flushes (node, token) VALUES (%s, 0)", (node,))


def _hold(connection: Connection, kind: Guard) -> None:
    """Lock the one guard row of `kind`, in the transaction that is open."""
    queries, (number, value) = load_queries("postgres"), lock(kind)
    connection.execute(queries["make_guards"], ([number], [value]))
    connection.execute(queries["lock_guards"], ([number], [value]))


def _grant(connection: Connection, role: str) -> None:
    row = connection.execute("SELECT current_schema() AS name").fetchone() or {}
    statements = sql.SQL(load_grants()).format(
        role=sql.Identifier(role), schema=sql.Identifier(row["name"])
    )
    connection.execute(statements.as_string(connection).encode())
    # What may not be granted is warned of, not refused.
    told = connection.execute(
        "SELECT has_schema_privilege(%s, current_schema(), 'USAGE') AS granted", (role,)
    ).fetchone()
    if not (told and told["granted"]):
        raise SchemaError(f"this role may not grant the use of its schema to {role}")


def _check_server(connection: Connection) -> None:
    version = connection.info.server_version
    if version < OLDEST_SERVER:
        raise SchemaError(
            f"the server is PostgreSQL {version // 10_000}; kb-mcp needs "
            f"{OLDEST_SERVER // 10_000} or newer"
        )


def _check_version(connection: Connection) -> int:
    newest = load_migrations("postgres")[-1][0]
    try:
        number = _version(connection)
    except errors.UndefinedTable:
        raise SchemaError(f"the store has no schema yet that this role sees. {_MIGRATE}") from None
    except errors.InsufficientPrivilege:
        raise SchemaError(
            "this role may not read the store: run `kb-mcp migrate --grant-to ROLE` as the "
            "tables' owner"
        ) from None
    if number < newest:
        raise SchemaError(f"the store has schema {number}, this kb-mcp needs {newest}. {_MIGRATE}")
    if number > newest:
        raise SchemaError(
            f"the store has schema {number}, this kb-mcp knows {newest}: "
            "upgrade kb-mcp, or restore the store that belongs to it"
        )
    return number


def _check_columns(connection: Connection) -> None:
    rows = connection.execute(load_queries("postgres")["schema"]).fetchall()
    there = {(row["table_name"], row["column_name"]) for row in rows}
    for table, columns in _TABLES.items():
        for column in columns:
            if (table, column) not in there:
                raise SchemaError(
                    f"the schema is not whole, or not readable by this role: {table}.{column} is "
                    "missing. Restore the store, or run `kb-mcp migrate --grant-to ROLE`"
                )


def _version(connection: Connection) -> int:
    row = connection.execute("SELECT max(number) AS number FROM schema_versions").fetchone()
    return 0 if row is None or row["number"] is None else int(row["number"])


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
