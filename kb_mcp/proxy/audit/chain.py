"""The audit as a chain: what a row says, how it is sealed, verified, exported and cut off.

Floor: wing B, above the records. Pure: rows and exported heads arrive as arguments. Each writing
process has a chain of its own, keyed outside the store: who can write the store but lacks the key
can't make an edited chain verify. A journal numbers, dates and chains rows; `rewind` undoes those
of a transaction that did not commit.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct
from msgspec.json import Encoder as JsonEncoder
from msgspec.structs import asdict, astuple
from typing_extensions import override

from kb_mcp.instants import epoch_ms, rfc3339
from kb_mcp.proxy.errors.refusals import mask_secrets
from kb_mcp.proxy.ledger.records import AuditDraft

Columns = dict[str, Any]
GENESIS: Final = bytes(hashlib.sha256().digest_size)
_VERSION = 1
_SORTED = JsonEncoder(order="sorted")
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
FIELDS: Final = (
    "id time node kind decision code key_id role agent_id session_id subject method path "
    "operation_id attempt amount currency stripe_status request_id object_id duration_ms "
    "customer_id note hash"
).split()
_ECS_VERSION = "8.11.0"
# Elastic Common Schema name -> ours; what it has no name for goes under "keybrake".
_ECS: Final = {
    "@timestamp": "time",
    "event.id": "id",
    "event.action": "kind",
    "event.outcome": "decision",
    "event.reason": "code",
    "event.hash": "hash",
    "service.node.name": "node",
    "user.id": "key_id",
    "user.roles": "role",
    "http.request.id": "request_id",
    "http.request.method": "method",
    "http.response.status_code": "stripe_status",
    "url.path": "path",
}


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
    """The end of a chain: the last `seq` and its hash in hex; exported outside the store.

    `began_ms` and `at_ms` tell when its process wrote its first row and this one, by the store's
    clock; None where an exported file does not say.
    """

    node: str
    seq: int
    hash: str
    began_ms: int | None = None
    at_ms: int | None = None


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
        if head is not None and row.seq == head.seq and stored != head.hash:
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
    time_ms = epoch_ms(datetime.fromisoformat(columns["time"]))
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


@dataclass(slots=True)
class Journal:
    """Numbers, dates and chains the audit rows of one process, under a name (`node`) of its own.

    `head` is the number and the hash of the last row.
    """

    node: str
    chain_key: bytes = field(repr=False)
    head: tuple[int, str] = field(default=(0, GENESIS.hex()), init=False)

    def rewind(self, head: tuple[int, str]) -> None:
        """Forget the rows after `head`: their transaction was rolled back."""
        self.head = head

    def values(self, draft: AuditDraft, now: int) -> tuple[Any, ...]:
        """Chain `draft` as the next row and return its column values."""
        seq, previous = self.head
        row = AuditRow(node=self.node, seq=seq + 1, time=now, **asdict(draft))
        self.head = row.seq, row_hash(self.chain_key, bytes.fromhex(previous), row)
        return (row.id, row.node, row.seq, rfc3339(now), *astuple(draft), self.head[1])


@dataclass(frozen=True, slots=True)
class Verification:
    """What was walked, the end of each chain that holds, and every chain that does not.

    `heads` are how many of those that hold have an exported head: of others, no cut tail is seen.
    """

    rows: int
    ends: Mapping[str, Head]
    breaks: tuple[Break, ...]
    heads: int


def audit_record(columns: Mapping[str, Any]) -> Columns:
    """Return a row of the audit as commands and APIs show it."""
    return {name: columns[name] for name in FIELDS}


def verify_audit(
    registry: Sequence[Columns],
    writers: Iterable[str],
    chain: Callable[[str], Iterator[Columns]],
    chain_key: bytes,
    heads: Mapping[str, Head],
    archived: Mapping[str, Head],
) -> Verification:
    """Walk the `registry` of nodes and every node's `chain`, on from what was archived.

    `writers` are the nodes that have rows; `chain` yields those of one, in their order. `heads` are
    the ends that were exported outside the store before this walk began.
    """
    breaks = list(_verify_registry(registry, chain_key))
    known = {node["node"] for node in registry}
    rows, ends = 0, dict[str, Head]()
    for node in sorted({*known, *writers, *heads}):
        if node not in known:
            breaks.append(Break(node, 1, BreakReason.NOT_REGISTERED))
        head, after = heads.get(node), archived.get(node)
        # A head from before the archived segment was passed through when that was verified.
        passed = head is not None and after is not None and head.seq <= after.seq
        outcome = verify_chain(_rows(chain(node)), chain_key, None if passed else head, after)
        if isinstance(outcome, Break):
            breaks.append(outcome)
        else:
            rows += outcome.rows
            ends |= {} if outcome.head is None else {node: outcome.head}
    return Verification(rows, ends, tuple(breaks), len(ends.keys() & heads.keys()))


def segment_end(
    rows: Iterable[Columns], before: str, exported: Head | None, end: Head
) -> Head | None:
    """Return the last row of a verified chain that may be archived, or None.

    `before` is RFC 3339. The row an exported head names, and each chain's last, stay: by them a
    store that lost its tail is known.
    """
    stays = min(end.seq, end.seq if exported is None else exported.seq)
    last: Head | None = None
    for columns in rows:
        if columns["time"] >= before or columns["seq"] >= stays:
            break
        last = Head(columns["node"], columns["seq"], columns["hash"])
    return last


def export_lines(rows: Iterable[Columns], form: str) -> Iterator[str]:
    """Write rows as `jsonl`, `ecs` (Elastic Common Schema, a JSON line each) or `csv`."""
    if form == "csv":
        yield _csv_line(FIELDS)
    for columns in rows:
        record = audit_record(columns)
        if form == "csv":
            yield _csv_line(["" if value is None else str(value) for value in record.values()])
        else:
            document = record if form == "jsonl" else _ecs(record)
            # ASCII, so that nothing in a client's text can act on a terminal or end a line.
            yield json.dumps(document, separators=(",", ":"))


def _verify_registry(registry: Sequence[Columns], chain_key: bytes) -> Iterator[Break]:
    previous = ""
    for position, node in enumerate(registry, 1):
        sealed = node_hash(chain_key, previous, node["node"], node["started_at"])
        same = hmac.compare_digest(sealed.encode(), str(node["hash"]).encode())
        if node["position"] != position or not same:
            yield Break(str(node["node"]), position, BreakReason.REGISTRY_EDITED)
            return
        previous = node["hash"]


def _rows(chain: Iterator[Columns]) -> Iterator[tuple[AuditRow, str]]:
    """Yield each row with its hash; one that no journal writes, without a hash that could hold."""
    for columns in chain:
        shown = AuditRow(kind="", node=columns["node"], seq=columns["seq"], time=0), ""
        with suppress(KeyError, ValueError, TypeError, OverflowError):
            row, stored = read_row(columns)
            # Neither the id nor the way the time is written is sealed; both follow from what is.
            if (columns["id"], columns["time"]) == (row.id, rfc3339(row.time)):
                shown = row, stored
        yield shown


def _csv_line(values: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(csv_cell(value) for value in values)
    return line.getvalue()


def _ecs(record: Columns) -> Columns:
    document: Columns = {"ecs": {"version": _ECS_VERSION}}
    for name, ours in _ECS.items():
        if record[ours] is not None:
            _put(document, name.split(".") if name[0] != "@" else [name], record[ours])
    duration_ms = record["duration_ms"]
    if duration_ms is not None:
        _put(document, ["event", "duration"], duration_ms * 1_000_000)  # nanoseconds
    named = {*_ECS.values(), "duration_ms"}
    rest = {key: value for key, value in record.items() if key not in named and value is not None}
    return document | ({"keybrake": rest} if rest else {})


def _put(document: Columns, path: list[str], value: object) -> None:
    for step in path[:-1]:
        document = document.setdefault(step, {})
    document[path[-1]] = value
