"""What a store is bound to, its nodes, and what rests on the master key: the same for every engine.

Floor: inside the stores. A `Connection` is a driver's own; a store opens the transaction, and holds
what keeps another first process out of it. Values are sealed by AES-256-GCM from `cryptography`;
the label (a row's id) is bound in, so that a sealed answer cannot be moved to another row. A key is
checked before anything is written: a process with another one could seal and chain nothing that the
others can read.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec.structs import replace

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.audit.chain import GENESIS, derive_key, node_hash, read_row, row_hash
from kb_mcp.proxy.ledger.snapshot import NEW_STORE, StoreSettings

Connection = Any
Queries = Mapping[str, str]


_LIVE = ("ceilings", "refund_ceilings", "recovery_grace_ms")  # read in every transaction
LIMITS = ("ceilings", "refund_ceilings", "upstream_timeout_ms", "recovery_grace_ms")


class Binds(Enum):
    """What opening a store writes into a new one: these of its settings."""

    NOTHING = ()  # a command that only keeps keys and settings
    ACCOUNT = ("account", "mode")  # a command that reads Stripe
    LIMITS = ("account", "mode", *LIMITS)  # a serving process: the ceilings and the times, too


class SchemaError(Exception):
    """The store has a schema that this version cannot serve; the message says what to do."""


class BindingError(Exception):
    """The store belongs to another account, mode or configuration; the message names both."""


def newer_schema(number: int, newest: int) -> SchemaError:
    """Return what to say of a store whose schema is newer than any this version knows."""
    return SchemaError(
        f"the store has schema {number}, this kb-mcp knows {newest}: "
        "upgrade kb-mcp, or restore the store that belongs to it"
    )


def facts_of(settings: StoreSettings, binds: Binds) -> dict[str, str]:
    """Return the facts that bind a new store to `settings`."""
    told = {name: getattr(settings, name) for name in binds.value}
    return {
        name: value if isinstance(value, str) else json.dumps(value, default=dict)
        for name, value in told.items()
    }


class LiveSettings:
    """The settings of a store, as each transaction reads them from its rows.

    A ceiling holds from the commit that wrote it, and so does a longer grace; a shorter one begins
    with the next start, since a send under way may rest on the longer.
    """

    def __init__(self, bound: StoreSettings) -> None:
        """Begin with what the store was bound to when it was opened."""
        self.now = self._bound = bound
        self._read: Mapping[str, str | None] = {}

    def read(self, facts: Mapping[str, str | None]) -> StoreSettings:
        """Return the settings that `facts` tell, and keep them in `now`."""
        told = {name: facts.get(name) for name in _LIVE}
        if told != self._read:
            values = {name: json.loads(text) for name, text in told.items() if text is not None}
            grace_ms = max(self._bound.recovery_grace_ms, values.pop("recovery_grace_ms", 0))
            self.now = replace(self._bound, recovery_grace_ms=grace_ms, **values)
            self._read = told
        return self.now


def bound_by(
    facts: Mapping[str, str], wanted: StoreSettings, explicit: Mapping[str, object]
) -> StoreSettings:
    """Return what a store with `facts` is bound to; what they do not say yet is as `wanted`.

    `explicit` holds the settings that this process was configured with on purpose: they must
    agree with the store's. Raises: BindingError.
    """
    told = {**facts_of(wanted, Binds.LIMITS), **facts}
    bound = replace(
        wanted,
        account=told["account"],
        mode=told["mode"],
        store_id=facts.get("store_id", wanted.store_id),
        **{name: json.loads(told[name]) for name in LIMITS},
    )
    if (bound.account, bound.mode) != (wanted.account, wanted.mode):
        raise BindingError(
            f"the store belongs to account {bound.account!r} in {bound.mode} mode, this process "
            f"is set up for {wanted.account!r} in {wanted.mode} mode: use another "
            "KEYBRAKE_DATABASE_URL, one store an account and mode"
        )
    for name, value in explicit.items():
        held = getattr(bound, name)
        if held != value:
            raise BindingError(
                f"the store says {name} = {held}, this process {value}: set it for all processes "
                f"with `kb-mcp settings set`, and take it out of this one's environment"
            )
    return bound


def bind(
    connection: Connection,
    queries: Queries,
    wanted: StoreSettings,
    explicit: Mapping[str, object],
    binds: Binds,
    marks: Mapping[str, str],
) -> StoreSettings:
    """Return what the store is bound to, and bind it to `wanted` as far as it is not yet.

    `explicit` holds the settings that this process was configured with on purpose: they must
    agree with the store's. `marks` are facts of the store that are written once, where an earlier
    version did not yet. Raises: BindingError, also where the store has another of `marks`: of two
    first processes one came first.
    """
    stored = read_facts(connection, queries)
    bound = bound_by(stored, wanted, explicit)
    if any(stored.get(name, value) != value for name, value in marks.items()):
        raise BindingError("another process began this store just now, with another master key")
    kept = {"store_id": bound.store_id, **marks, **facts_of(bound, binds)}
    if not stored:
        # Until its first whole walk: it may stand in for one that was lost.
        kept[NEW_STORE] = "1"
    missing = {name: value for name, value in kept.items() if name not in stored}
    write_facts(connection, queries, missing)
    return bound


def read_facts(connection: Connection, queries: Queries) -> dict[str, str]:
    """Return every fact of the store."""
    return facts_in(connection.execute(queries["facts"]).fetchall())


def facts_in(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the facts in rows of their table."""
    return {row["name"]: row["value"] for row in rows}


def write_facts(connection: Connection, queries: Queries, facts: Mapping[str, str]) -> None:
    """Write facts, in one order for every process."""
    for name, value in sorted(facts.items()):
        connection.execute(queries["set_fact"], {"name": name, "value": value})


def add_node(
    connection: Connection, queries: Queries, node: str, chain_key: bytes, now: int
) -> None:
    """Add `node` to the chained registry of writing processes."""
    last = connection.execute(queries["last_node"]).fetchone()
    position, previous = (1, "") if last is None else (last["position"] + 1, last["hash"])
    started = rfc3339(now)
    row = {"position": position, "node": node, "started_at": started}
    row["hash"] = node_hash(chain_key, previous, node, started)
    connection.execute(queries["add_node"], row)


NONCE_BYTES = 12
CHECK = "master_key_check"

_NODES = "SELECT * FROM nodes ORDER BY position LIMIT 8"
_FIRST_ROWS = "SELECT * FROM audit WHERE seq = 1 LIMIT 8"


class SealBrokenError(Exception):
    """What the store holds was not sealed under this master key, or was changed."""


class Sealer:
    """Seals and unseals under one 32-byte key; `random_bytes` makes the nonces."""

    def __init__(self, key: bytes, random_bytes: Callable[[int], bytes]) -> None:
        """Take the key derived for sealing from the master key."""
        self._cipher = AESGCM(key)
        self._random_bytes = random_bytes

    def seal(self, plain: bytes, label: str) -> bytes:
        """Return `plain` sealed for the row called `label`."""
        nonce = self._random_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, label.encode())

    def unseal(self, sealed: bytes, label: str) -> bytes:
        """Return what was sealed for the row called `label`. Raises: SealBrokenError."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], label.encode())
        except (InvalidTag, ValueError) as error:
            message = f"the row {label} was not sealed under this KEYBRAKE_MASTER_KEY"
            raise SealBrokenError(message) from error


def stays_sealed(_sealed: bytes, label: str) -> bytes:
    """Open nothing, where a store is read without a master key. Raises: SealBrokenError."""
    raise SealBrokenError(f"the row {label} is read without a master key")


@dataclass(frozen=True, slots=True)
class Witnesses:
    """What a store holds that a master key can be held against; empty for a new store."""

    facts: Mapping[str, str] = field(default_factory=dict)
    nodes: Sequence[Mapping[str, Any]] = ()
    first_rows: Sequence[Mapping[str, Any]] = ()

    @property
    def any(self) -> bool:
        """Say whether the store was written under some key."""
        return bool(self.facts.get(CHECK) or self.nodes or self.first_rows)

    def speak_for(self, master: bytes) -> bool:
        """Say whether nothing here was written under another key than `master`."""
        if held := self.facts.get(CHECK):
            return hmac.compare_digest(held, check_value(master))
        # A store of an earlier version: one link of a chain that verifies is enough.
        chain_key, previous, links = derive_key(master, "audit"), "", list[bool]()
        for node in self.nodes:
            ours = node_hash(chain_key, previous, str(node["node"]), str(node["started_at"]))
            previous = str(node["hash"])
            links.append(hmac.compare_digest(ours, previous))
        links += [_begins_chain(chain_key, row) for row in self.first_rows]
        return not self.any or any(links)


def check_value(master: bytes) -> str:
    """Return what a store keeps of `master`, in hex: it tells keys apart and gives none away."""
    return derive_key(master, "check").hex()


def witnesses_of(connection: Any) -> Witnesses:
    """Return the witnesses that a store's `connection` reads. Raises: the driver's errors."""
    facts, nodes, rows = (
        [dict(row) for row in connection.execute(query).fetchall()]
        for query in ("SELECT name, value FROM facts", _NODES, _FIRST_ROWS)
    )
    return Witnesses({row["name"]: row["value"] for row in facts}, nodes, rows)


def _begins_chain(chain_key: bytes, columns: Mapping[str, Any]) -> bool:
    try:
        row, stored = read_row(columns)
    except (KeyError, TypeError, ValueError):
        return False
    return hmac.compare_digest(row_hash(chain_key, GENESIS, row), stored)
