"""What rests on the master key: sealed values, and under which key a store was written.

Floor: inside the stores. AES-256-GCM from `cryptography`; the label (a row's id) is bound in, so
that a sealed answer cannot be moved to another row. A key is checked before anything is written: a
process with another one could seal and chain nothing that the others can read.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kb_mcp.proxy.audit.chain import GENESIS, derive_key, node_hash, read_row, row_hash

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
