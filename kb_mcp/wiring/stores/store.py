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
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msgspec.structs import replace

from kb_mcp.proxy.audit.chain import Head, Journal, derive_key
from kb_mcp.proxy.audit.heads import Behind, Heads
from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.ledger.lease_owners import this_process
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.snapshot import MOVED_TO, StoreSettings
from kb_mcp.proxy.stores.admin import StoreAdmin
from kb_mcp.proxy.stores.binding import (
    BindingError,
    Binds,
    Connection,
    bind,
    bind_account,
    facts_of,
    read_facts,
)
from kb_mcp.proxy.stores.group_commit import LedgerParts, StoreLedger
from kb_mcp.proxy.stores.queries import load_queries
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stores.sealing import CHECK, Sealer, Witnesses, check_value, witnesses_in
from kb_mcp.proxy.stores.sqlite.ledger import SqliteLedger, connect
from kb_mcp.proxy.stores.sqlite.reads import SqliteAdmin, SqliteReads, exclusive, migrate
from kb_mcp.serving.machine import boot_id, boottime_ms, host_ms, process_name, random_bytes
from kb_mcp.settings import MASTER_KEY_CHARACTERS_NEW, Settings, SettingsError

if TYPE_CHECKING:  # the driver of PostgreSQL may not be installed
    from kb_mcp.wiring.stores.postgres import ServerWatch

MASTER_KEY_BYTES = 32
STORE_ID_BYTES = 12


class StoreError(Exception):
    """The store cannot be used; the message is one line and says what to do."""


class MovedStoreError(StoreError):
    """The store was copied to another one, which serves in its place."""


class MasterKeyError(StoreError):
    """The master key is not the one that the store was written under, or is gone."""


@dataclass(slots=True)
class Turned:
    """How far somebody else turned the clock: the sandbox's. `followed` says that it is there."""

    offset_ms: int = 0
    followed: bool = False


@dataclass(slots=True, kw_only=True)
class Store:
    """An open store. `behind` lists exported heads that it does not reach."""

    path: Path  # what this host's own files about the store are named after
    ledger: StoreLedger
    records: StoreReads
    clock: StoreClock
    heads: Heads
    settings: StoreSettings
    chain_key: bytes
    owner: str
    node: str
    behind: list[Behind]
    bind_id: Callable[[str], None]
    open_store_admin: Callable[[], StoreAdmin]
    base_ms: Callable[[], int]  # the clock that the store's time is told by
    claim_first_run: Callable[[], bool]  # whether this process is the one that issues first keys
    watch: ServerWatch | None = None

    def bind_account(self, account_id: str, label: str) -> None:
        """Bind the store to the account of the upstream key. Raises: BindingError."""
        if label.startswith("acct_") and label != account_id:
            raise BindingError(
                f"KEYBRAKE_ACCOUNT is {label}, but the key in KEYBRAKE_STRIPE_KEY belongs to "
                f"{account_id}"
            )
        self.bind_id(account_id)

    def exported_heads(self) -> dict[str, Head]:
        """Return the newest head of each process that was exported beside the store."""
        return {each.head.node: each.head for each in self.heads.check(lambda _node, _seq: None)}

    @property
    def defaults(self) -> dict[str, str]:
        """The facts that a serving process would write, where the store does not say them yet."""
        return facts_of(self.settings, Binds.LIMITS)

    async def close(self) -> None:
        """Finish what waits, and close."""
        await self.ledger.close()
        self.records.close()


def open_sqlite(settings: Settings, path: Path, turned: Turned, binds: Binds) -> Store:
    """Open the SQLite store at `path`. Raises: StoreError."""
    master = proven_master_key(settings, path)
    chain_key = derive_key(master, "audit")
    sealer = Sealer(derive_key(master, "answers"), random_bytes)
    node = process_name(settings.node_id)
    owner = this_process(node)
    clock = _clock(settings, turned)
    try:
        connection = connect(path)
        migrate(connection)
        _check_not_moved(read_facts(connection, load_queries("sqlite")))
        with exclusive(connection):
            bound = bind_store(connection, "sqlite", settings, master, binds)
        connection.close()
        records = SqliteReads(path, sealer.unseal)
        heads = Heads(heads_folder(path), node, owner, boottime_ms, lambda: clock.now(0))
        behind = heads.check(records.hash_at)
        if not behind:
            heads.retire()
        parts = LedgerParts(
            settings=bound,
            clock=clock,
            sealer=sealer,
            journal=Journal(node, chain_key),
            heads=heads,
            owner=owner,
        )
        ledger = SqliteLedger(path, parts)
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
        bind_id=lambda account_id: _bind_id(path, account_id),
        open_store_admin=lambda: SqliteAdmin(path),
        base_ms=host_ms,
        claim_first_run=lambda: True,
    )


def _clock(settings: Settings, turned: Turned) -> StoreClock:
    return StoreClock(
        lambda: host_ms() + settings.clock_offset_ms + turned.offset_ms,
        lambda: host_ms() + turned.offset_ms,
        boottime_ms,
        followed=lambda: turned.followed,
        boot_id=boot_id(),
    )


def bind_store(
    connection: Connection, engine: str, settings: Settings, master: bytes, binds: Binds
) -> StoreSettings:
    """Return what the store is bound to, in the open transaction, and bind it as far as it is not.

    Raises: BindingError, SettingsError.
    """
    queries = load_queries(engine)
    facts = read_facts(connection, queries)
    check_key_of_new_store(settings, facts)
    wanted = (
        keyless_settings(settings, facts) if binds is Binds.NOTHING else wanted_settings(settings)
    )
    marks = {CHECK: check_value(master)}
    return bind(connection, queries, wanted, explicit_settings(settings), binds, marks)


def shown_place(settings: Settings) -> str:
    """Return where the ledger lies, for people: its file, or its server without a password."""
    path = settings.database_path
    if path is not None:
        return str(path)
    parts = urlsplit(settings.postgres_url or "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def heads_folder(path: Path) -> Path:
    """Return where the audit heads of the store at `path` are exported to, outside the store."""
    return path.with_name(f"{path.name}.heads")


def _check_not_moved(facts: Mapping[str, str]) -> None:
    if place := facts.get(MOVED_TO):
        why = f"this store was moved to {place}, which serves in its place: set "
        raise MovedStoreError(f"{why}KEYBRAKE_DATABASE_URL to that one")


def proven_master_key(settings: Settings, path: Path) -> bytes:
    """Return the master key that the SQLite store at `path` was written under, or begins with.

    It is looked at before anything is written. Raises: StoreError, MasterKeyError.
    """
    try:
        held = witnesses_in(path)
    except LedgerUnavailableError as error:
        raise StoreError(f"cannot use the store {path}: {error}") from error
    file = path.with_name(f"{path.name}.master-key")
    if held.any and settings.master_key is None and not file.exists():
        raise MasterKeyError(
            f"the master key of the store {path} is gone: put its copy back at {file}, or set "
            "KEYBRAKE_MASTER_KEY to it (docs/runbooks.md: The master key is lost)"
        )
    master = master_key(settings, path)
    check_master_key(held, master)
    return master


def check_master_key(held: Witnesses, master: bytes) -> None:
    """Compare `master` with what a store holds. Raises: MasterKeyError."""
    if not held.speak_for(master):
        raise MasterKeyError(
            "the store was written under another master key: nothing was changed in it. Set "
            "KEYBRAKE_MASTER_KEY (or the file beside the store) to the one it was made with"
        )


def master_key(settings: Settings, path: Path) -> bytes:
    """Return the master key: the configured one, or the one generated beside the store.

    Of several first processes one creates the file (O_EXCL), and all read it back.
    Raises: StoreError.
    """
    if settings.master_key is not None:
        return settings.master_key.reveal().encode()
    file = path.with_name(f"{path.name}.master-key")
    try:
        if not file.exists():
            write_once(file, secrets.token_hex(MASTER_KEY_BYTES))
        return file.read_text().strip().encode()
    except OSError as error:
        raise StoreError(f"cannot use the master key {file}: {error.strerror}") from error


def check_key_of_new_store(settings: Settings, facts: Mapping[str, str]) -> None:
    """Check that a store without `facts`, a new one, begins with a master key of full length.

    What was sealed under a shorter one stays readable. Raises: SettingsError.
    """
    key = settings.master_key
    if "mode" in facts or key is None or len(key.reveal()) >= MASTER_KEY_CHARACTERS_NEW:
        return
    hint = f"Set {MASTER_KEY_CHARACTERS_NEW} random characters or more, and keep them for good."
    raise SettingsError(key.variable, "is too short for a new store", hint)


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


def wanted_settings(settings: Settings) -> StoreSettings:
    """Return what a new store would be bound to; each call names another store."""
    return StoreSettings(
        account=settings.account_label,
        mode=settings.upstream_mode,
        ceilings={money.currency: money.amount for money in settings.account_daily_cap},
        refund_ceilings={
            money.currency: money.amount for money in settings.account_daily_refund_cap
        },
        upstream_timeout_ms=settings.upstream_timeout_ms,
        recovery_grace_ms=settings.recovery_grace_ms,
        store_id=f"st_{secrets.token_hex(STORE_ID_BYTES)}",
    )


def keyless_settings(settings: Settings, facts: Mapping[str, str]) -> StoreSettings:
    """Return what a process without a Stripe key wants of a store with `facts`: what it has.

    Raises: SettingsError.
    """
    wanted = wanted_settings(settings)
    if settings.stripe_key is not None or "mode" not in facts:
        return wanted
    if settings.clock_offset_ms and facts["mode"] == "live":
        hint = "Leave it out: this store is a live account's."
        raise SettingsError("KEYBRAKE_CLOCK_OFFSET", "would turn a real clock", hint)
    return replace(wanted, mode=facts["mode"], account=settings.account or facts["account"])


def explicit_settings(settings: Settings) -> Mapping[str, object]:
    """Return what was set on purpose: a default gives way to what the store says."""
    wanted, default = wanted_settings(settings), StoreSettings(account="", mode="")
    names = ("ceilings", "refund_ceilings", "upstream_timeout_ms", "recovery_grace_ms")
    return {
        name: getattr(wanted, name)
        for name in names
        if getattr(wanted, name) != getattr(default, name)
    }


def _bind_id(path: Path, account_id: str) -> None:
    connection = connect(path)
    try:
        with exclusive(connection):
            bind_account(connection, load_queries("sqlite"), account_id)
    finally:
        connection.close()
