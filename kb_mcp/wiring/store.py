"""Opening a store: migrate, bind, check its heads, and build the ledger on it.

Floor: wiring.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kb_mcp.proxy.audit import derive_key
from kb_mcp.proxy.clock import StoreClock
from kb_mcp.proxy.ledger import LedgerUnavailableError, StoreSettings
from kb_mcp.proxy.owners import this_process
from kb_mcp.proxy.sealing import Sealer
from kb_mcp.proxy.stores.heads import Behind, Heads
from kb_mcp.proxy.stores.journal import Journal
from kb_mcp.proxy.stores.sqlite import SqliteLedger, connect
from kb_mcp.proxy.stores.sqlite_records import SqliteRecords
from kb_mcp.proxy.stores.sqlite_schema import (
    BindingError,
    bind,
    bind_account,
    migrate,
)
from kb_mcp.settings import Settings
from kb_mcp.wiring.machine import boottime_ms, host_ms, process_name, random_bytes

MASTER_KEY_BYTES = 32


class StoreError(Exception):
    """The store cannot be used; the message is one line and says what to do."""


@dataclass(slots=True, kw_only=True)
class Store:
    """An open store. `behind` lists exported heads that it does not reach (ledger.md: Recovery)."""

    path: Path
    ledger: SqliteLedger
    records: SqliteRecords
    clock: StoreClock
    heads: Heads
    settings: StoreSettings
    chain_key: bytes
    owner: str
    node: str
    behind: list[Behind]

    def bind_account(self, account_id: str, label: str) -> None:
        """Bind the store to the account of the upstream key. Raises: BindingError."""
        if label.startswith("acct_") and label != account_id:
            raise BindingError(
                f"KEYBRAKE_ACCOUNT is {label}, but the key in KEYBRAKE_STRIPE_KEY belongs to "
                f"{account_id}"
            )
        connection = connect(self.path)
        try:
            bind_account(connection, account_id)
        finally:
            connection.close()

    async def close(self) -> None:
        """Finish what waits, and close."""
        await self.ledger.close()
        self.records.close()


def open_store(settings: Settings, clock_offset: Callable[[], int] = lambda: 0) -> Store:
    """Open the store that `settings` name, for serving.

    `clock_offset` is what the sandbox has been turned by, in ms. Raises: StoreError.
    """
    path = store_path(settings)
    master = master_key(settings, path)
    chain_key = derive_key(master, "audit")
    sealer = Sealer(derive_key(master, "answers"), random_bytes)
    node = process_name(settings.node_id)
    owner = this_process(node)
    clock = StoreClock(
        lambda: host_ms() + settings.clock_offset_ms + clock_offset(),
        lambda: host_ms() + clock_offset(),
        lambda: boottime_ms() + clock_offset(),
    )
    try:
        connection = connect(path)
        migrate(connection)
        bound = bind(connection, _wanted(settings), _explicit(settings))
        connection.close()
        records = SqliteRecords(path, sealer)
        heads = Heads(heads_folder(path), node, owner, boottime_ms)
        behind = heads.check(records.hash_at)
        if not behind:
            heads.retire()
        ledger = SqliteLedger(
            path,
            settings=bound,
            clock=clock,
            sealer=sealer,
            journal=Journal(node, chain_key),
            heads=heads,
            owner=owner,
        )
    except (sqlite3.Error, OSError, LedgerUnavailableError) as error:
        raise StoreError(f"cannot use the store {path}: {error}") from error
    return Store(
        path=path,
        ledger=ledger,
        records=records,
        clock=clock,
        heads=heads,
        settings=bound,
        chain_key=chain_key,
        owner=owner,
        node=node,
        behind=behind,
    )


def store_path(settings: Settings) -> Path:
    """Return the SQLite file that `settings` name, its folder made. Raises: StoreError."""
    path = settings.database_path
    if path is None:
        raise StoreError("only sqlite:///PATH stores are served by this version")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder of {path}: {error.strerror}") from error
    return path


def heads_folder(path: Path) -> Path:
    """Return where the audit heads of the store at `path` are exported to, outside the store."""
    return path.with_name(f"{path.name}.heads")


def master_key(settings: Settings, path: Path) -> bytes:
    """Return the master key: the configured one, or the one generated beside the store.

    Of several first processes one creates the file (O_EXCL), and all read it back.
    """
    if settings.master_key is not None:
        return settings.master_key.reveal().encode()
    file = path.with_name(f"{path.name}.master-key")
    write_once(file, secrets.token_hex(MASTER_KEY_BYTES))
    return file.read_text().strip().encode()


def write_once(file: Path, text: str) -> bool:
    """Create `file` (mode 0600) with `text` unless it exists; say whether this process did.

    It is written aside and linked into place, so that nobody reads half of it.
    """
    beside = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(beside, file)
        except FileExistsError:
            return False
    finally:
        beside.unlink(missing_ok=True)
    return True


def _wanted(settings: Settings) -> StoreSettings:
    return StoreSettings(
        account=settings.account_label,
        mode=settings.upstream_mode,
        ceilings={money.currency: money.amount for money in settings.account_daily_cap},
        upstream_timeout_ms=settings.upstream_timeout_ms,
        recovery_grace_ms=settings.recovery_grace_ms,
    )


def _explicit(settings: Settings) -> Mapping[str, object]:
    """Return what was set on purpose: a default gives way to what the store says."""
    wanted, default = _wanted(settings), StoreSettings(account="", mode="")
    names = ("ceilings", "upstream_timeout_ms", "recovery_grace_ms")
    return {
        name: getattr(wanted, name)
        for name in names
        if getattr(wanted, name) != getattr(default, name)
    }
