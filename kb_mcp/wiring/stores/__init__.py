"""Opening the store that the settings name: migrate, bind, check its heads, build its ledger.

Floor: wiring. The audit is verified on a connection of its own, in a thread, while the store
serves; a shell that completes reads an embedded store's keys, and makes, migrates or binds none.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kb_mcp.proxy.audit.chain import Head, Journal, Verification, derive_key, verify_audit
from kb_mcp.proxy.audit.heads import Heads
from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.ledger.lease_owners import this_process
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import VaultKey
from kb_mcp.proxy.ledger.snapshot import MOVED_TO, StoreSettings
from kb_mcp.proxy.stores import binding
from kb_mcp.proxy.stores.database import Database, StoreAdmin
from kb_mcp.proxy.stores.group_commit import LedgerParts, StoreLedger
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stores.sqlite.database import SqliteDatabase, migrate, witnesses_in
from kb_mcp.proxy.stores.sqlite.ledger import SqliteLedger
from kb_mcp.serving.machine import boot_id, boottime_ms, host_ms, process_name, random_bytes
from kb_mcp.settings import MASTER_KEY_CHARACTERS_NEW, Settings, SettingsError


def open_store(
    settings: Settings, turned: Turned | None = None, binds: binding.Binds = binding.Binds.LIMITS
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


if TYPE_CHECKING:  # the driver of PostgreSQL may not be installed
    from kb_mcp.proxy.stores.postgres.fence import FencedLine

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


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which store to open, and what a new one is bound to; host files are named after `path`."""

    settings: Settings
    path: Path
    turned: Turned
    binds: binding.Binds


@dataclass(frozen=True, slots=True)
class Engine:
    """A migrated store as its driver reaches it, and how to reach it once more.

    Its time is told by `base_ms`, moved on purpose by `offset_ms`.
    """

    database: Database
    base_ms: Callable[[], int]
    offset_ms: int
    reopen: Callable[[], Database]


class Store:
    """An open store. `behind` lists exported heads that it does not reach.

    This host's own files about it are named after `path`. Where hosts share it, `watch` is of the
    server that answers.
    """

    def __init__(
        self,
        wanted: Wanted,
        master: bytes,
        engine: Engine,
        build: Callable[[LedgerParts], tuple[StoreLedger, FencedLine | None]],
    ) -> None:
        """Bind the migrated store of `engine`, hold it against its heads, and `build` its ledger.

        Raises: BindingError, SettingsError, LedgerUnavailableError.
        """
        turned, self.path, self.engine = wanted.turned, wanted.path, engine
        self.clock = clock = StoreClock(
            lambda: engine.base_ms() + engine.offset_ms + turned.offset_ms,
            lambda: engine.base_ms() + turned.offset_ms,
            boottime_ms,
            followed=lambda: turned.followed,
            boot_id=boot_id(),
        )
        self.node = node = process_name(wanted.settings.node_id)
        self.owner, self.chain_key = this_process(node), derive_key(master, "audit")
        sealer = binding.Sealer(derive_key(master, "answers"), random_bytes)
        self.settings = bind_store(engine.database, wanted.settings, master, wanted.binds)
        self.records = StoreReads(engine.database, sealer.unseal)
        folder = heads_folder(self.path)
        self.heads = Heads(folder, node, self.owner, boottime_ms, lambda: clock.now(0))
        self.behind = self.heads.check(self.records.hash_at)
        if not self.behind:
            self.heads.retire()
        parts = LedgerParts(
            settings=self.settings,
            clock=clock,
            sealer=sealer,
            journal=Journal(node, self.chain_key),
            heads=self.heads,
            owner=self.owner,
        )
        self.ledger, self.watch = build(parts)

    def bind_account(self, account_id: str, label: str) -> None:
        """Bind the store to the account of the upstream key, at the first start.

        Raises: BindingError when it was bound to another one, LedgerUnavailableError.
        """
        if label.startswith("acct_") and label != account_id:
            raise binding.BindingError(
                f"KEYBRAKE_ACCOUNT is {label}, but the key in KEYBRAKE_STRIPE_KEY belongs to "
                f"{account_id}"
            )
        queries = self.records.database.queries
        with self.records.database.binding() as connection:
            bound = binding.read_facts(connection, queries).get("account_id")
            if bound is None:
                binding.write_facts(connection, queries, {"account_id": account_id})
            elif bound != account_id:
                raise binding.BindingError(
                    f"the store belongs to Stripe account {bound}, the key in KEYBRAKE_STRIPE_KEY "
                    f"to {account_id}: use another KEYBRAKE_DATABASE_URL, one store an account"
                )

    def open_store_admin(self) -> StoreAdmin:
        """Open the store once more, for what no decision touches."""
        return StoreAdmin(self.engine.reopen())

    @property
    def defaults(self) -> dict[str, str]:
        """The facts that a serving process would write, where the store does not say them yet."""
        return binding.facts_of(self.settings, binding.Binds.LIMITS)

    async def close(self) -> None:
        """Finish what waits, and close."""
        await self.ledger.close()
        self.records.close()


def open_sqlite(wanted: Wanted) -> Store:
    """Open the SQLite store at the path. Raises: StoreError."""
    settings, path = wanted.settings, wanted.path
    master = proven_master_key(settings, path)
    try:
        database = SqliteDatabase(path)
        migrate(database.connection)
        if place := binding.facts_in(database.ask("facts")).get(MOVED_TO):
            raise MovedStoreError(
                f"this store was moved to {place}, which serves in its place: set "
                "KEYBRAKE_DATABASE_URL to that one"
            )
        # Whoever moves this host's clock on purpose moves the store's.
        engine = Engine(database, host_ms, settings.clock_offset_ms, partial(SqliteDatabase, path))
        return Store(wanted, master, engine, lambda parts: (SqliteLedger(path, parts), None))
    except (sqlite3.Error, OSError, LedgerUnavailableError) as error:
        raise StoreError(f"cannot use the store {path}: {error}") from error


def verify_store(database: Database, chain_key: bytes, heads: Mapping[str, Head]) -> Verification:
    """Walk every chain of the store behind `database`. Raises: LedgerUnavailableError."""
    reads, archived = StoreReads(database), StoreAdmin(database).archived()
    return verify_audit(reads.nodes(), reads.writers(), reads.chain, chain_key, heads, archived)


def bind_store(
    database: Database, settings: Settings, master: bytes, binds: binding.Binds
) -> StoreSettings:
    """Return what the store is bound to, and bind it as far as it is not.

    A default gives way to what the store says; what was set on purpose must agree with it.
    Raises: BindingError, SettingsError, LedgerUnavailableError.
    """
    queries, marks = database.queries, {binding.CHECK: binding.check_value(master)}
    with database.binding() as connection:
        wanted = wanted_settings(settings, binding.read_facts(connection, queries), binds)
        default = StoreSettings(account="", mode="")
        pairs = ((name, getattr(wanted, name)) for name in binding.LIMITS)
        explicit = {name: value for name, value in pairs if value != getattr(default, name)}
        return binding.bind(connection, queries, wanted, explicit, binds, marks)


def shown_place(settings: Settings) -> str:
    """Return where the ledger lies, for people: its file, or its server without a password."""
    if settings.database_path is not None:
        return str(settings.database_path)
    parts = urlsplit(settings.postgres_url or "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def heads_folder(path: Path) -> Path:
    """Return where the audit heads of the store at `path` are exported to, outside the store."""
    return path.with_name(f"{path.name}.heads")


def proven_master_key(settings: Settings, path: Path) -> bytes:
    """Return the master key that the SQLite store at `path` was written under, or begins with.

    It is the configured one, or the one in the file beside the store: of several first processes
    one makes that file, and all read it back. It is looked at before anything is written.
    Raises: StoreError, MasterKeyError.
    """
    file = path.with_name(f"{path.name}.master-key")
    try:
        held = witnesses_in(path)
        if settings.master_key is None and not file.exists():
            if held.any:
                raise MasterKeyError(
                    f"the master key of the store {path} is gone: put its copy back at {file}, or "
                    "set KEYBRAKE_MASTER_KEY to it (docs/runbooks.md: The master key is lost)"
                )
            write_once(file, secrets.token_hex(MASTER_KEY_BYTES))
        key = settings.master_key
        master = (file.read_text().strip() if key is None else key.reveal()).encode()
    except LedgerUnavailableError as error:
        raise StoreError(f"cannot use the store {path}: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot use the master key {file}: {error.strerror}") from error
    check_master_key(held, master)
    return master


def check_master_key(held: binding.Witnesses, master: bytes) -> None:
    """Compare `master` with what a store holds. Raises: MasterKeyError."""
    if not held.speak_for(master):
        raise MasterKeyError(
            "the store was written under another master key: nothing was changed in it. Set "
            "KEYBRAKE_MASTER_KEY (or the file beside the store) to the one it was made with"
        )


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


def wanted_settings(
    settings: Settings, facts: Mapping[str, str], binds: binding.Binds
) -> StoreSettings:
    """Return what a store with `facts` shall be bound to; of a new one, each call names another.

    A new store, without facts, begins with a master key of full length; what was sealed under a
    shorter one stays readable. A process that binds nothing and has no Stripe key wants what the
    store has. Raises: SettingsError.
    """
    key, is_new = settings.master_key, "mode" not in facts
    if is_new and key is not None and len(key.reveal()) < MASTER_KEY_CHARACTERS_NEW:
        hint = f"Set {MASTER_KEY_CHARACTERS_NEW} random characters or more, and keep them for good."
        raise SettingsError(key.variable, "is too short for a new store", hint)
    account, mode = settings.account_label, str(settings.upstream_mode)
    if binds is binding.Binds.NOTHING and settings.stripe_key is None and not is_new:
        account, mode = settings.account or facts["account"], facts["mode"]
        if settings.clock_offset_ms and mode == "live":
            hint = "Leave it out: this store is a live account's."
            raise SettingsError("KEYBRAKE_CLOCK_OFFSET", "would turn a real clock", hint)
    return StoreSettings(
        account=account,
        mode=mode,
        ceilings={each.currency: each.amount for each in settings.account_daily_cap},
        refund_ceilings={each.currency: each.amount for each in settings.account_daily_refund_cap},
        upstream_timeout_ms=settings.upstream_timeout_ms,
        recovery_grace_ms=settings.recovery_grace_ms,
        store_id=f"st_{secrets.token_hex(STORE_ID_BYTES)}",
    )
