"""The store admin: rows that no decision touches: facts, operators, old segments of the audit.

Floor: beside the ledger's port; stores implement it. The ledger writes the audit row of what an
operator did, and commits it first; nothing here writes the audit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from kb_mcp.proxy.audit.chain import Head

ARCHIVED = "archived:"


class Binds(StrEnum):
    """What opening a store writes into a new one."""

    NOTHING = "nothing"  # a command that only keeps keys and settings
    ACCOUNT = "account"  # a command that reads Stripe
    LIMITS = "limits"  # a serving process: the ceiling and the times, too


@dataclass(frozen=True, slots=True)
class Operator:
    """A person who may use the admin API: the hash of the token, never the token."""

    name: str
    token_hash: str
    created_at: int


class StoreAdmin(Protocol):
    """What no decision touches. Raises: LedgerUnavailableError."""

    def schema(self) -> int:
        """Return the number of the store's schema."""
        ...

    def facts(self) -> dict[str, str]:
        """Return every fact of the store."""
        ...

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """Write facts, all or none."""
        ...

    def operators(self) -> list[Operator]:
        """Return the operators by name."""
        ...

    def operator_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every operator's token, by name."""
        ...

    def add_operator(self, operator: Operator) -> bool:
        """Add an operator; False when the name is taken."""
        ...

    def remove_operator(self, name: str) -> bool:
        """Remove an operator; False when there is none of that name."""
        ...

    def archived(self) -> dict[str, Head]:
        """Return, for each node, the end of what was moved out of its chain."""
        ...

    def drop_segments(self, ends: Mapping[str, Head]) -> int:
        """Take the rows up to each end out of the audit; return how many there were."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def archived_in(facts: Mapping[str, str]) -> dict[str, Head]:
    """Return, for each node, the end of what was archived, as the facts of a store tell it."""
    heads = {}
    for name, value in facts.items():
        if name.startswith(ARCHIVED):
            node = name.removeprefix(ARCHIVED)
            seq, _, digest = value.partition(":")
            heads[node] = Head(node, int(seq), digest)
    return heads
