"""A glance at an embedded store's keys, for a shell that completes: nothing is opened to serve.

Floor: wiring. No store is made, migrated or bound, and no process is registered in it.
"""

from __future__ import annotations

import asyncio
from contextlib import closing

from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import VaultKey
from kb_mcp.proxy.stores.sealing import Sealer
from kb_mcp.proxy.stores.sqlite.reads import SqliteRecords
from kb_mcp.serving.machine import random_bytes
from kb_mcp.settings import Settings


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
