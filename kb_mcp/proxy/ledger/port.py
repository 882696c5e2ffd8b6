"""The port that stores implement: how a decision reaches the ledger.

Floor: above the records and the snapshot. No IO of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from kb_mcp.proxy.ledger.counts import Stopped
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Grant, KeyId, Lineage, Refs, VaultKey
from kb_mcp.proxy.ledger.snapshot import Snapshot, StoreSettings

T = TypeVar("T")

Step = Callable[[Snapshot], tuple[T, Changes]]


class LedgerUnavailableError(Exception):
    """The store cannot be reached, or refused to commit: nothing of the transaction happened."""


class CommitUnknownError(LedgerUnavailableError):
    """The store broke while committing: the transaction may or may not have happened."""


class Ledger(Protocol):
    """A store of the ledger. All methods raise `LedgerUnavailableError` when it cannot serve."""

    @property
    def settings(self) -> StoreSettings:
        """What the store is bound to and what all its processes agree on."""
        ...

    async def transact(self, refs: Callable[[int], Refs], step: Step[T]) -> T:
        """Load and lock `refs(now)`, run the pure `step`, persist its changes, return its result.

        Concurrent calls are taken together: one transaction, in arrival order, each step seeing
        the changes of those before it. Returns once the commit is durable.
        """
        ...

    async def find_key(self, key_id: KeyId) -> tuple[VaultKey, Lineage] | None:
        """Return the key and its lineage as committed right now, or None."""
        ...

    async def find_grants(self, issuer: str) -> list[Grant]:
        """Return the grants of `issuer` that are not removed, as committed right now."""
        ...

    async def close(self) -> None:
        """Run what still waits, then close."""
        ...


async def look_up(ledger: Ledger, refs: Refs, read: Callable[[Snapshot], T]) -> T:
    """Return what `read` finds among the rows of `refs`. Raises: LedgerUnavailableError."""
    return await ledger.transact(lambda _: refs, lambda snapshot: (read(snapshot), Changes()))


async def note(ledger: Ledger, *audit: AuditDraft, stopped: tuple[Stopped, ...] = ()) -> None:
    """Write audit rows, and calls that were `stopped`. Raises: LedgerUnavailableError."""
    changes = Changes(audit=audit, stopped=stopped)
    await ledger.transact(lambda _: Refs(), lambda _: (None, changes))
