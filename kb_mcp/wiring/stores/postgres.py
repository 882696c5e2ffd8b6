"""Opening a PostgreSQL store: look whether it can serve, bind, check its heads, build the ledger.

Floor: wiring. Nothing is migrated here: that is the owner's, this process's role may not.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from kb_mcp.environment import data_folder
from kb_mcp.proxy.audit.chain import Journal, derive_key
from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.ledger.lease_owners import this_process
from kb_mcp.proxy.ledger.snapshot import StoreSettings
from kb_mcp.proxy.stores.binding import Binds, bind_account
from kb_mcp.proxy.stores.group_commit import LedgerParts
from kb_mcp.proxy.stores.postgres.connection import (
    CommittedReader,
    Connect,
    Connection,
    Pool,
    StoreTime,
    Watchdog,
    connector,
    read_grants,
    read_keys,
    told,
)
from kb_mcp.proxy.stores.postgres.fence import FencedLine, PostgresHeads, Server, server_of
from kb_mcp.proxy.stores.postgres.ledger import PostgresLedger, Reach
from kb_mcp.proxy.stores.postgres.load import Guard
from kb_mcp.proxy.stores.postgres.reads import (
    PostgresAdmin,
    PostgresReads,
    check_schema,
    claim,
    exclusive,
    migrate,
    register_node,
)
from kb_mcp.proxy.stores.queries import load_queries
from kb_mcp.proxy.stores.sealing import Sealer, witnesses_of
from kb_mcp.serving.machine import boot_id, boottime_ms, process_name, random_bytes
from kb_mcp.settings import Settings
from kb_mcp.wiring.stores.store import (
    Store,
    StoreError,
    Turned,
    bind_store,
    check_master_key,
)


@dataclass(slots=True)
class ServerWatch:
    """Which server may be served from: the one this host saw last, until another is checked."""

    line: FencedLine
    heads: PostgresHeads
    server: Server

    def begin(self) -> None:
        """Hold the ledger to the server that was seen last."""
        seen = self.heads.seen()
        if seen is None:
            self.heads.remember(self.server)
        self.line.expect(seen or self.server)

    @property
    def moved(self) -> Server | None:
        """The other server that answers now, if one does."""
        return self.line.moved

    def accept(self, server: Server) -> None:
        """Serve from `server`: every charge of ours is found in it."""
        self.heads.remember(server)
        self.line.expect(server)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the pieces of one open store share."""

    url: str
    connect: Connect
    watchdog: Watchdog
    time: StoreTime
    sealer: Sealer


def local_path(settings: Settings) -> Path:
    """Return the name under which this host keeps files of its own about the store."""
    try:
        parts = conninfo_to_dict(settings.postgres_url or "")
    except psycopg.Error as error:
        raise StoreError(f"KEYBRAKE_DATABASE_URL cannot be read: {told(error)}") from error
    named = "|".join(str(parts.get(name, "")) for name in ("host", "port", "dbname"))
    digest = hashlib.sha256(named.encode()).hexdigest()[:12]
    return data_folder() / f"postgresql-{digest}"


def open_postgres(
    settings: Settings,
    path: Path,
    turned: Turned,
    connect: Connect | None = None,
    *,
    binds: Binds = Binds.LIMITS,
) -> Store:
    """Open the PostgreSQL store; files of this host are named after `path`.

    `binds` as for `open_store`. Raises: StoreError, SchemaError, BindingError.
    """
    master = b"" if settings.master_key is None else settings.master_key.reveal().encode()
    url = settings.postgres_url or ""
    parts = _Parts(
        url=url,
        connect=connect or connector(url),
        watchdog=Watchdog(boottime_ms),
        time=StoreTime(boottime_ms),
        sealer=Sealer(derive_key(master, "answers"), random_bytes),
    )
    try:
        with _using():
            return _open(settings, path, parts, master, turned, binds)
    except OSError as error:
        raise StoreError(f"cannot use the folder {path.parent}: {error}") from error


def migrate_postgres(settings: Settings, grant_to: str | None) -> int:
    """Bring the store to the newest schema, as its owner; return its number.

    Raises: StoreError, SchemaError.
    """
    with _using(), connector(settings.postgres_url or "")() as connection:
        return migrate(connection, grant_to)


@contextmanager
def _using() -> Iterator[None]:
    """Say as a StoreError what the driver says."""
    try:
        yield
    except psycopg.Error as error:
        raise StoreError(f"cannot use the store: {told(error)}") from error


def _open(
    settings: Settings,
    path: Path,
    parts: _Parts,
    master: bytes,
    turned: Turned,
    binds: Binds,
) -> Store:
    chain_key = derive_key(master, "audit")
    node = process_name(settings.node_id)
    owner = this_process(node)
    clock = _clock(parts, turned)
    with parts.connect() as connection:
        server, bound = _join(settings, parts, connection, master, binds)
    records = PostgresReads(Pool(parts.connect, parts.watchdog), parts.sealer.unseal)
    heads = PostgresHeads(
        path.with_name(f"{path.name}.heads"), node, owner, boottime_ms, lambda: clock.now(0)
    )
    behind = heads.check(records.hash_at)
    if not behind:
        heads.retire()
    journal = Journal(node, chain_key)
    line = FencedLine(
        connect=parts.connect,
        watchdog=parts.watchdog,
        time=parts.time,
        node=node,
        rewind=journal.rewind,
        register=lambda connection: register_node(connection, node, chain_key, clock.now(0)),
        boottime_ms=boottime_ms,
    )
    return Store(
        path=path,
        ledger=_ledger(parts, bound, clock, journal, heads, owner, line),
        records=records,
        clock=clock,
        heads=heads,
        settings=bound,
        chain_key=chain_key,
        owner=owner,
        node=node,
        behind=behind,
        bind_id=lambda account_id: _bind_id(parts.connect, account_id),
        open_store_admin=lambda: PostgresAdmin(Pool(connector(parts.url), parts.watchdog)),
        base_ms=parts.time.now_ms,
        # The file with the first keys is the first host's alone: others are given keys.
        claim_first_run=lambda: _claim_first_run(parts.connect, node),
        watch=ServerWatch(line, heads, server),
    )


def _clock(parts: _Parts, turned: Turned) -> StoreClock:
    return StoreClock(
        lambda: parts.time.now_ms() + turned.offset_ms,
        steady_ms=boottime_ms,
        followed=lambda: turned.followed,
        boot_id=boot_id(),
    )


def _join(
    settings: Settings, parts: _Parts, connection: Connection, master: bytes, binds: Binds
) -> tuple[Server, StoreSettings]:
    """Check that the store can be served, take its time, and bind it."""
    check_schema(connection)
    check_master_key(witnesses_of(connection), master)
    queries = load_queries("postgres")
    clock = connection.execute(queries["clock"]).fetchone() or {}
    parts.time.set(int(clock["now_ms"]))
    with exclusive(connection, Guard.BINDING):
        bound = bind_store(connection, "postgres", settings, master, binds)
    return server_of(connection, queries), bound


def _ledger(
    parts: _Parts,
    bound: StoreSettings,
    clock: StoreClock,
    journal: Journal,
    heads: PostgresHeads,
    owner: str,
    line: FencedLine,
) -> PostgresLedger:
    queries = load_queries("postgres")
    reach = Reach(
        line=line,
        keys=CommittedReader(
            parts.connect, parts.watchdog, queries["keys_with_lineages"], read_keys
        ),
        grants=CommittedReader(parts.connect, parts.watchdog, queries["issuers"], read_grants),
        watchdog=parts.watchdog,
        time=parts.time,
        jitter=secrets.randbelow,
        boottime_ms=boottime_ms,
    )
    ledger_parts = LedgerParts(
        settings=bound,
        clock=clock,
        sealer=parts.sealer,
        journal=journal,
        heads=heads,
        owner=owner,
    )
    return PostgresLedger(reach, ledger_parts)


def _bind_id(connect: Connect, account_id: str) -> None:
    with _using(), connect() as connection, exclusive(connection, Guard.BINDING):
        bind_account(connection, load_queries("postgres"), account_id)


def _claim_first_run(connect: Connect, node: str) -> bool:
    with _using(), connect() as connection:
        return claim(connection, "first_run", node)
