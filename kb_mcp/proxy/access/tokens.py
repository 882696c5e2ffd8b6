"""Vault keys: how a token looks, what is stored and compared of it, and until when a key acts.

Floor: wing B, above the records. Pure: randomness arrives as an argument. A token is
`vk_test_<id>_<secret><checksum>`; the checksum lets scanners tell a token from noise, and spares
the store a look-up for every typo.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from msgspec.structs import replace

from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.ledger.records import KeyId, VaultKey

Mode = Literal["test", "live"]

ID_LENGTH: Final = 12
SECRET_LENGTH: Final = 40  # 200 bits in base 32
CHECKSUM_LENGTH: Final = 7
_CHECKSUM_OCTETS: Final = 5
_ID_BYTES = 8
_SECRET_BYTES = 25

_TOKEN = re.compile(
    rf"vk_(test|live)_([a-z2-7]{{{ID_LENGTH}}})_[a-z2-7]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}"
)


@dataclass(frozen=True, slots=True)
class Minted:
    """A new key: `token` is shown once, `token_hash` is what the store keeps."""

    id: KeyId
    token: str = field(repr=False)
    token_hash: str


def mint(mode: Mode, random_bytes: Callable[[int], bytes]) -> Minted:
    """Make a new vault key of `mode`; `random_bytes(n)` yields n unpredictable bytes."""
    key_id = _base32(random_bytes(_ID_BYTES))[:ID_LENGTH]
    body = f"vk_{mode}_{key_id}_{_base32(random_bytes(_SECRET_BYTES))}"
    token = body + _checksum(body)
    return Minted(KeyId(key_id), token, hash_token(token))


def parse_token(text: str) -> tuple[KeyId, Mode] | None:
    """Read which key of which mode a token is; None where form or checksum are wrong."""
    match = _TOKEN.fullmatch(text)
    if match is None or _checksum(text[:-CHECKSUM_LENGTH]) != text[-CHECKSUM_LENGTH:]:
        return None
    return KeyId(match[2]), "live" if match[1] == "live" else "test"


def hash_token(token: str) -> str:
    """Hash a token for the store: SHA-256 in hex. 200 random bits need no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def matches(token: str, stored_hash: str) -> bool:
    """Compare a token with a stored hash, in time that tells nothing of either."""
    return hmac.compare_digest(hash_token(token).encode(), stored_hash.encode())


def _checksum(body: str) -> str:
    digest = hashlib.sha256(b"keybrake:checksum:1\0" + body.encode()).digest()
    # Five octets are eight characters, and no more of them are shown.
    return _base32(digest[:_CHECKSUM_OCTETS])[:CHECKSUM_LENGTH]


def _base32(octets: bytes) -> str:
    return base64.b32encode(octets).decode("ascii").rstrip("=").lower()


def refuse_dead_key(key: VaultKey, now: int) -> Refusal | None:
    """Return why `key` may no longer act at `now` (ms), or None."""
    if key.revoked_at is not None:
        return replace(refuse(Code.VAULT_KEY_REVOKED), key_id=key.id)
    if key.expires_at is not None and key.expires_at <= now:
        return replace(refuse(Code.VAULT_KEY_EXPIRED), key_id=key.id)
    return None
