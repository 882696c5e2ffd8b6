"""Refusal counts: refused requests that are counted, not recorded one by one.

Floor: below the pipeline. Unauthenticated requests and those over the rate would let anybody fill
the disk, so each code becomes one audit row a minute.
"""

from __future__ import annotations

from collections import Counter

from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Refs


class RefusalCounts:
    """Counts since the last flush, by code."""

    def __init__(self) -> None:
        """Start at zero."""
        self._counts: Counter[str] = Counter()

    def count(self, code: str) -> None:
        """Count one request that was refused with `code`."""
        self._counts[str(code)] += 1

    async def flush(self, ledger: Ledger) -> None:
        """Write what was counted as audit rows. Raises: LedgerUnavailableError, counts kept."""
        if not self._counts:
            return
        taken, self._counts = self._counts, Counter()
        rows = tuple(
            AuditDraft(kind="noise", decision="refuse", code=code, note=f"{count} requests")
            for code, count in sorted(taken.items())
        )
        try:
            await ledger.transact(lambda _: Refs(), lambda _: (None, Changes(audit=rows)))
        except Exception:
            self._counts.update(taken)
            raise
