"""Opening a PostgreSQL store: look whether it can serve, bind, check its heads, build the ledger.

Floor: wiring. Nothing is migrated here: that is the owner's, this process's role may not.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from kb_mcp.environment import data_folder
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.stores.binding import witnesses_of
from kb_mcp.proxy.stores.group_commit import LedgerParts
from kb_mcp.proxy.stores.postgres.connection import Reach, connector, told
from kb_mcp.proxy.stores.postgres.database import PostgresDatabase, check_schema, migrate
from kb_mcp.proxy.stores.postgres.fence import FencedLine, server_of
from kb_mcp.proxy.stores.postgres.ledger import PostgresLedger
from kb_mcp.serving.machine import boottime_ms
from kb_mcp.settings import Settings
from kb_mcp.wiring import stores


def local_path(settings: Settings) -> Path:
    """Return the name under which this host keeps files of its own about the store."""
    try:
        parts = conninfo_to_dict(settings.postgres_url or "")
    except psycopg.Error as error:
        raise stores.StoreError(f"KEYBRAKE_DATABASE_URL cannot be read: {told(error)}") from error
    named = "|".join(str(parts.get(name, "")) for name in ("host", "port", "dbname"))
    digest = hashlib.sha256(named.encode()).hexdigest()[:12]
    return data_folder() / f"postgresql-{digest}"


def open_postgres(wanted: stores.Wanted) -> stores.Store:
    """Open the PostgreSQL store. Raises: StoreError, SchemaError, BindingError."""
    master = configured_master_key(wanted.settings)
    reach = Reach(connector(wanted.settings.postgres_url or ""), boottime_ms)
    database = PostgresDatabase(reach)

    def ledger(parts: LedgerParts) -> tuple[PostgresLedger, FencedLine]:
        built = PostgresLedger(reach, parts, server, secrets.randbelow)
        return built, built.line

    try:
        with _using(), ExitStack() as undone:
            undone.callback(reach.close)
            undone.callback(database.close)
            with reach.connect() as connection:
                check_schema(connection)
                stores.check_master_key(witnesses_of(connection), master)
                server = server_of(connection)
                clock = connection.execute(database.queries["clock"]).fetchone() or {}
                reach.set_time(int(clock["now_ms"]))
            engine = stores.Engine(database, reach.now_ms, 0, partial(PostgresDatabase, reach))
            store = stores.Store(wanted, master, engine, ledger)
            undone.pop_all()
            return store
    except OSError as error:
        raise stores.StoreError(f"cannot use the folder {wanted.path.parent}: {error}") from error


def migrate_postgres(settings: Settings, grant_to: str | None) -> int:
    """Bring the store to the newest schema, as its owner; return its number.

    Raises: StoreError, SchemaError.
    """
    with _using(), connector(settings.postgres_url or "")() as connection:
        return migrate(connection, grant_to)


def configured_master_key(settings: Settings) -> bytes:
    """Return the master key that hosts on one store are given."""
    return b"" if settings.master_key is None else settings.master_key.reveal().encode()


@contextmanager
def _using() -> Iterator[None]:
    """Say as a StoreError what the driver says."""
    try:
        yield
    except (psycopg.Error, LedgerUnavailableError) as error:
        raise stores.StoreError(f"cannot use the store: {told(error)}") from error
