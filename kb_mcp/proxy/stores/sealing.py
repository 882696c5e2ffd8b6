"""Sealing: what the store keeps for replay, unreadable without the master key.

Floor: beside tokens and audit. AES-256-GCM from `cryptography`; the label (a row's id) is bound
in, so that a sealed answer cannot be moved to another row.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12


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
