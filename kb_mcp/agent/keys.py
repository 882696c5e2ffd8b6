"""Vault keys as the doors hold them, and what the proxy says that a key grants.

Floor: wing A, above outcomes; below billing. A key is fixed, or read again when the proxy refuses
it; it is never shown, logged or put into a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from kb_mcp.agent.catalogue import ChargeApi, ToolName, tools_granted
from kb_mcp.agent.outcomes import Reply, as_map

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


def granted_tools(reply: Reply, charge_api: ChargeApi) -> frozenset[ToolName] | None:
    """Return the tools that a key grants, from what the proxy says of it; None if it says none."""
    allow = as_map(reply.fields.get("policy")).get("allow")
    if reply.is_error or not isinstance(allow, list):
        return None
    return tools_granted(frozenset(entry for entry in allow if isinstance(entry, str)), charge_api)


def granted_period_kinds(reply: Reply) -> tuple[str, ...]:
    """Return the kinds of period that a key may bill, from what the proxy says of it."""
    kinds = as_map(reply.fields.get("policy")).get("period_kinds")
    if reply.is_error or not isinstance(kinds, list):
        return ()
    return tuple(kind for kind in kinds if isinstance(kind, str))
