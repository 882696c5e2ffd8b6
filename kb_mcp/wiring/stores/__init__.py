"""Opening the store that the settings name, and reading it without serving from it.

Floor: wiring. The audit is verified on a connection of its own, in a thread, while the store
serves; a shell that completes reads an embedded store's keys, and makes, migrates or binds none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from kb_mcp.proxy.audit.chain import Verification
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import VaultKey
from kb_mcp.proxy.stores.binding import Binds
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stores.sqlite.database import SqliteDatabase
from kb_mcp.settings import Settings
from kb_mcp.wiring.stores.store import Store, StoreError, Turned, Wanted, open_sqlite, verify_store


def open_store(
    settings: Settings, turned: Turned | None = None, binds: Binds = Binds.LIMITS
) -> Store:
    """Open the store that `settings` name.

    `turned` is the sandbox's clock, where there is one. `binds` is what a new store is bound to by
    this: a serving process writes all of it. With `Binds.NOTHING` no Stripe key is needed, whatever
    the store's mode. Raises: StoreError.
    """
    wanted = Wanted(settings, store_path(settings), turned or Turned(), binds)
    if settings.database_path is None:
        from kb_mcp.wiring.stores.postgres import open_postgres

        return open_postgres(wanted)
    return open_sqlite(wanted)


def store_path(settings: Settings) -> Path:
    """Return the SQLite file, or what files about a PostgreSQL store are named after.

    Its folder is made. Raises: StoreError.
    """
    path = settings.database_path
    try:
        if path is None:
            from kb_mcp.wiring.stores.postgres import local_path

            path = local_path(settings)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except ImportError as error:
        message = "PostgreSQL needs its driver: pip install 'kb-mcp-billing[postgres]'"
        raise StoreError(message) from error
    except OSError as error:
        raise StoreError(f"cannot make the folder of {path}: {error.strerror}") from error
    return path


def verifier(store: Store) -> Callable[[], Verification]:
    """Return what walks every chain of `store`, for a thread. Raises: LedgerUnavailableError."""

    def verify() -> Verification:
        # The heads first: the chains only grow meanwhile.
        heads = store.heads.exported()
        with closing(store.engine.reopen()) as database:
            return verify_store(database, store.chain_key, heads)

    return verify


def keys_in(settings: Settings) -> list[VaultKey]:
    """Return the keys of the embedded store, oldest first; none where it cannot be read at once."""
    path = settings.database_path
    if path is None or not path.is_file():
        return []
    try:
        with closing(SqliteDatabase(path)) as database:
            return [key for key, _ in asyncio.run(StoreReads(database).keys())]
    except LedgerUnavailableError:
        return []
