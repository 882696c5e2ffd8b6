"""Verifying the audit of an open store while it serves: on a connection of its own.

Floor: wiring. Walked in a thread; the store's own reads see what is committed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from kb_mcp.proxy.audit.verification import AuditReader, Verification, verify_audit
from kb_mcp.proxy.stores.sealing import Sealer
from kb_mcp.proxy.stores.sqlite.reads import SqliteRecords
from kb_mcp.serving.machine import random_bytes
from kb_mcp.settings import Settings
from kb_mcp.wiring.store import Store


def verifier(settings: Settings, store: Store) -> Callable[[], Verification]:
    """Return what walks every chain of `store`, for a thread. Raises: LedgerUnavailableError."""

    def verify() -> Verification:
        # The heads first: the chains only grow meanwhile.
        exported = store.heads.check(lambda _node, _seq: None)
        heads = {behind.head.node: behind.head for behind in exported}
        with ExitStack() as stack:
            store_admin = store.open_store_admin()
            stack.callback(store_admin.close)
            reader: AuditReader = store.records
            if settings.database_path is not None:
                # Nothing is unsealed here, so that any key will do.
                own = SqliteRecords(store.path, Sealer(bytes(32), random_bytes))
                stack.callback(own.close)
                reader = own
            return verify_audit(reader, store.chain_key, heads, store_admin.archived())

    return verify
