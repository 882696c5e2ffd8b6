"""Vault keys as the doors hold them: fixed, or read again when the proxy refuses them.

Floor: wing A, at the bottom. A key is never shown, logged or put into a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

KeySource = str | Callable[[], str]
"""A token, or a function that fetches the current one (a file, a secret store)."""

STALE: Final = frozenset({"vault_key_expired", "vault_key_revoked", "vault_key_unknown"})


class HeldKey:
    """One vault key and where it comes from."""

    def __init__(self, source: KeySource) -> None:
        """Hold `source`; a function is first called when the key is first needed."""
        self._source = source
        self._token = source if isinstance(source, str) else None

    def tokens(self) -> Iterator[str]:
        """Yield the token to try, then a newer one if its source has another by then."""
        first = self._current()
        yield first
        if not isinstance(self._source, str):
            self._token = self._source()
            if self._token != first:
                yield self._token

    def _current(self) -> str:
        if self._token is None:
            self._token = self._source if isinstance(self._source, str) else self._source()
        return self._token


def is_live(token: str) -> bool:
    """Say whether the token may be one for real money: only a test key says that it is not."""
    return not token.startswith("vk_test_")
