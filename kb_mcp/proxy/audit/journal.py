"""The journal: this process's audit chain, from drafts to rows.

Floor: inside the stores, above audit. A journal belongs to one writer; `rewind` undoes the
rows of a transaction that did not commit.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import asdict

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.audit.chain import GENESIS, AuditRow, audit_row, row_hash
from kb_mcp.proxy.ledger.records import AuditDraft

AUDIT_COLUMNS = ("id", *AuditRow.__struct_fields__, "hash")


class Journal:
    """Numbers, dates and chains the audit rows of one process (`node`)."""

    def __init__(self, node: str, chain_key: bytes, seq: int = 0, head: str | None = None) -> None:
        """Go on after row `seq`, whose hash is `head`; a new node starts from nothing."""
        self.node = node
        self.chain_key = chain_key
        self._seq = seq
        self._head = GENESIS.hex() if head is None else head

    @property
    def head(self) -> tuple[int, str]:
        """The number and hash of the last row."""
        return self._seq, self._head

    def rewind(self, head: tuple[int, str]) -> None:
        """Forget the rows after `head`: their transaction was rolled back."""
        self._seq, self._head = head

    def values(self, draft: AuditDraft, now: int) -> tuple[Any, ...]:
        """Chain `draft` as the next row and return its column values."""
        self._seq += 1
        row = audit_row(draft, node=self.node, seq=self._seq, time=now)
        self._head = row_hash(self.chain_key, bytes.fromhex(self._head), row)
        columns = asdict(row) | {"time": rfc3339(now)}
        return (row.id, *columns.values(), self._head)
