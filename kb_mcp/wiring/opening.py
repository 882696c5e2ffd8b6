"""Opening the store that the settings name: a SQLite file, or PostgreSQL.

Floor: wiring.
"""

from __future__ import annotations

from pathlib import Path

from kb_mcp.proxy.store_admin import Binds
from kb_mcp.settings import Settings
from kb_mcp.wiring.store import NotTurned, Store, StoreError, Turned, open_sqlite


def open_store(
    settings: Settings, turned: Turned | None = None, binds: Binds = Binds.LIMITS
) -> Store:
    """Open the store that `settings` name.

    `turned` is the sandbox's clock, where there is one. `binds` is what a new store is bound to by
    this: a serving process writes all of it. With `Binds.NOTHING` no Stripe key is needed, whatever
    the store's mode. Raises: StoreError.
    """
    turned = turned or NotTurned()
    path = store_path(settings)
    if settings.database_path is None:
        from kb_mcp.wiring.postgres_store import open_postgres

        return open_postgres(settings, path, turned, binds=binds)
    return open_sqlite(settings, path, turned, binds)


def store_path(settings: Settings) -> Path:
    """Return the SQLite file, or what files about a PostgreSQL store are named after.

    Its folder is made. Raises: StoreError.
    """
    path = settings.database_path
    if path is None:
        path = _postgres_path(settings)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder of {path}: {error.strerror}") from error
    return path


def _postgres_path(settings: Settings) -> Path:
    try:
        from kb_mcp.wiring.postgres_store import local_path
    except ImportError as error:
        raise StoreError(
            "PostgreSQL needs its driver: pip install 'kb-mcp-billing[postgres]'"
        ) from error
    return local_path(settings)
