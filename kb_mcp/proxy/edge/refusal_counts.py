"""Refusal counts: refused requests that are counted, not recorded one by one.

Floor: below the pipeline. Unauthenticated requests and those over the rate would let anybody fill
the disk, so each code becomes one audit row a minute. Whose genuine token was refused has a row of
its own, so that an operator sees to whom a grant may be missing.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Refs

SUBJECTS_MAX: Final = 100
SUBJECT_MAX: Final = 512  # characters


class RefusalCounts:
    """Counts since the last flush, by code and subject; beyond SUBJECTS_MAX by code alone."""

    def __init__(self) -> None:
        """Start at zero."""
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, code: str, subject: str | None = None) -> None:
        """Count one request that was refused with `code`; `subject` is whose token it carried."""
        named = (str(code), clean_text(subject or "", SUBJECT_MAX))
        many = len(self._counts) >= SUBJECTS_MAX and named not in self._counts
        self._counts[(named[0], "") if many else named] += 1

    async def flush(self, ledger: Ledger) -> None:
        """Write what was counted as audit rows. Raises: LedgerUnavailableError, counts kept."""
        if not self._counts:
            return
        taken, self._counts = self._counts, Counter()
        rows = tuple(
            AuditDraft(
                kind="noise",
                decision="refuse",
                code=code,
                subject=subject or None,
                note=f"{count} requests",
            )
            for (code, subject), count in sorted(taken.items())
        )
        try:
            await ledger.transact(lambda _: Refs(), lambda _: (None, Changes(audit=rows)))
        except Exception:
            self._counts.update(taken)
            raise
