"""A glance at an embedded store's keys, for a shell that completes: nothing is opened to serve.

Floor: wiring. No store is made, migrated or bound, and no process is registered in it.
"""

from __future__ import annotations

import asyncio
from contextlib import closing

from kb_mcp.proxy.ledger import LedgerUnavailableError, VaultKey
from kb_mcp.proxy.sealing import Sealer
from kb_mcp.proxy.stores.sqlite_records import SqliteRecords
from kb_mcp.settings import Settings
from kb_mcp.wiring.machine import random_bytes


def keys_in(settings: Settings) -> list[VaultKey]:
    """Return the keys of the embedded store, oldest first; none where it cannot be read at once."""
    path = settings.database_path
    if path is None or not path.is_file():
        return []
    try:
        # Nothing is unsealed here, so that any key will do.
        with closing(SqliteRecords(path, Sealer(bytes(32), random_bytes))) as records:
            return [key for key, _ in asyncio.run(records.keys())]
    except LedgerUnavailableError:
        return []
