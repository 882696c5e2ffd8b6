"""The audit as a chain: what a row says, how it is sealed, how a break is found.

Floor: wing B, above the records. Pure. Each writing process has a chain of its own, keyed outside
the store: who can write the store but lacks the key can't make an edited chain verify. A
journal numbers, dates and chains rows; `rewind` undoes those of a transaction that did not commit.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct
from msgspec.json import Encoder as JsonEncoder
from msgspec.structs import asdict, astuple
from typing_extensions import override

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.errors.refusals import mask_secrets
from kb_mcp.proxy.ledger.records import AuditDraft

GENESIS: Final = bytes(hashlib.sha256().digest_size)
_VERSION = 1
_SORTED = JsonEncoder(order="sorted")
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Spreadsheets take a cell that begins so for a formula, also after blanks.
_FORMULA_STARTS = ("=", "+", "-", "@", "|")
_BLANK_STARTS = ("\t", "\r", "\n")


class AuditRow(AuditDraft, frozen=True, omit_defaults=True, tag_field="v", tag=_VERSION):
    """A draft as one row of one process's chain: `time` in ms UTC, `seq` counts from 1."""

    node: str
    seq: int
    time: int

    @property
    def id(self) -> str:
        """The row's name in listings: its node and its place in that node's chain."""
        return f"{self.node}:{self.seq}"


class Head(Struct, frozen=True):
    """The end of a chain: the last `seq` and its hash in hex; exported outside the store."""

    node: str
    seq: int
    hash: str


class BreakReason(StrEnum):
    """How a chain, or the registry of nodes, can fail to verify."""

    OUT_OF_ORDER = "out_of_order"  # a row is missing, doubled, moved, or of another node
    EDITED = "edited"  # the row, or the one before it, is not what was sealed
    TAIL_CUT = "tail_cut"  # rows up to the exported head are missing
    HEAD_DIFFERS = "head_differs"  # the chain was rewritten since its head was exported
    NOT_REGISTERED = "not_registered"  # rows of a process that the registry lacks
    REGISTRY_EDITED = "registry_edited"


class WholeChain(Struct, frozen=True):
    """A chain that holds, and its end (None when it is empty)."""

    rows: int
    head: Head | None


class Break(Struct, frozen=True):
    """The first row, by `seq`, at which one chain does not hold; or a place in the registry."""

    node: str
    row: int
    reason: BreakReason

    @override
    def __str__(self) -> str:
        return f"the audit of {self.node} breaks at row {self.row}: {self.reason}"


def audit_row(draft: AuditDraft, *, node: str, seq: int, time: int) -> AuditRow:
    """Place `draft` in the chain of `node`."""
    return AuditRow(node=node, seq=seq, time=time, **asdict(draft))


def canonical(row: AuditRow) -> bytes:
    """Write `row` as the bytes that are sealed: ASCII JSON, keys sorted, nulls left out.

    Leaving out nulls lets a later version add columns without breaking old chains.
    """
    written = _SORTED.encode(row)
    if written.isascii() and b"\\" not in written and b"\x7f" not in written:
        return written
    # Where something is to be escaped, the two writers spell it differently.
    return _CANONICAL.encode(json.loads(written)).encode("ascii")


def row_hash(chain_key: bytes, previous: bytes, row: AuditRow) -> str:
    """Seal `row` after the row whose raw hash is `previous` (GENESIS for the first), in hex.

    Raises: ValueError when `previous` is not a raw SHA-256 digest.
    """
    if len(previous) != len(GENESIS):
        raise ValueError("previous must be a raw digest of 32 bytes")
    return hmac.digest(chain_key, previous + canonical(row), "sha256").hex()


def verify_chain(
    rows: Iterable[tuple[AuditRow, str]],
    chain_key: bytes,
    head: Head | None = None,
    after: Head | None = None,
) -> WholeChain | Break:
    """Verify one node's rows, each with its stored hash, in the order of `seq`.

    `head` is the last exported end, which the chain must still pass through; `after` is the end
    of the segment that was archived before the first row.
    """
    last = after
    count = 0
    for row, stored in rows:
        expected = 1 if last is None else last.seq + 1
        if row.seq != expected or (last is not None and row.node != last.node):
            return Break(row.node, expected, BreakReason.OUT_OF_ORDER)
        previous = GENESIS if last is None else bytes.fromhex(last.hash)
        if not hmac.compare_digest(row_hash(chain_key, previous, row).encode(), stored.encode()):
            return Break(row.node, row.seq, BreakReason.EDITED)
        last = Head(row.node, row.seq, stored)
        count += 1
        if head is not None and row.seq == head.seq and last != head:
            return Break(row.node, row.seq, BreakReason.HEAD_DIFFERS)
    reached = 0 if last is None else last.seq
    if head is not None and reached < head.seq:
        return Break(head.node, reached + 1, BreakReason.TAIL_CUT)
    return WholeChain(count, last)


def node_hash(chain_key: bytes, previous: str, node: str, started_at: str) -> str:
    """Return the hash that chains a node to the one registered before it."""
    message = f"{previous}\x00{node}\x00{started_at}".encode()
    return hmac.new(chain_key, message, hashlib.sha256).hexdigest()


def read_row(columns: Mapping[str, Any]) -> tuple[AuditRow, str]:
    """Return the row and the stored hash in the columns of the `audit` table.

    Raises: KeyError, TypeError, ValueError for what a journal never writes.
    """
    time_ms = (datetime.fromisoformat(columns["time"]) - _EPOCH) // timedelta(milliseconds=1)
    plain = {name: columns[name] for name in AuditRow.__struct_fields__ if name != "time"}
    return AuditRow(time=time_ms, **plain), str(columns["hash"])


def derive_key(master: bytes, purpose: str) -> bytes:
    """Derive a 32-byte key for one purpose from the master key (HKDF-SHA256, RFC 5869)."""
    pseudorandom = hmac.new(b"keybrake:derive:1", master, hashlib.sha256).digest()
    return hmac.new(pseudorandom, purpose.encode() + b"\x01", hashlib.sha256).digest()


def clean_text(text: str, limit: int) -> str:
    """Take what does not print out of `text`, and bound it to `limit` characters.

    Gone are controls, terminal escapes, bidi overrides, line separators, unassigned characters,
    and keys that a client put where none belong.
    """
    # Cut before the walk, so that a huge text costs no more than its limit.
    return mask_secrets("".join(filter(str.isprintable, text[: limit * 4])))[:limit]


def csv_cell(value: str) -> str:
    """Neutralise a cell that a spreadsheet would run as a formula."""
    risky = value.startswith(_BLANK_STARTS) or value.lstrip().startswith(_FORMULA_STARTS)
    return f"'{value}" if risky else value


AUDIT_COLUMNS = ("id", "node", "seq", "time", *AuditDraft.__struct_fields__, "hash")


class Journal:
    """Numbers, dates and chains the audit rows of one process (`node`)."""

    def __init__(self, node: str, chain_key: bytes) -> None:
        """Start from nothing, as each process does, under a name of its own."""
        self.node = node
        self.chain_key = chain_key
        self._seq = 0
        self._head = GENESIS.hex()

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
        return (row.id, row.node, row.seq, rfc3339(now), *astuple(draft), self._head)
