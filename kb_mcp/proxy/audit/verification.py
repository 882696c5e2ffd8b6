"""The audit for operators: verified, exported, and where old segments may be cut off.

Floor: wing B, above the chain. Pure: rows and exported heads arrive as arguments.
"""

from __future__ import annotations

import csv
import hmac
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.audit.chain import (
    AuditRow,
    Break,
    BreakReason,
    Head,
    csv_cell,
    node_hash,
    read_row,
    verify_chain,
)

Columns = dict[str, Any]
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


class AuditReader(Protocol):
    """The part of a store's reads that verifying needs."""

    def chain(self, node: str) -> Iterator[Columns]:
        """Yield the rows of one node, in the order of its chain."""
        ...

    def nodes(self) -> list[Columns]:
        """Return the registry of nodes, in its own order."""
        ...

    def writers(self) -> list[str]:
        """Return every node that has rows."""
        ...


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
    reader: AuditReader,
    chain_key: bytes,
    heads: Mapping[str, Head],
    archived: Mapping[str, Head],
) -> Verification:
    """Walk the registry of nodes and every node's chain, on from what was archived.

    `heads` are the ends that were exported outside the store before this walk began.
    """
    registry = reader.nodes()
    breaks = list(_verify_registry(registry, chain_key))
    known = {node["node"] for node in registry}
    rows, ends = 0, dict[str, Head]()
    for node in sorted({*known, *reader.writers(), *heads}):
        if node not in known:
            breaks.append(Break(node, 1, BreakReason.NOT_REGISTERED))
        head, after = heads.get(node), archived.get(node)
        # A head from before the archived segment was passed through when that was verified.
        passed = head is not None and after is not None and head.seq <= after.seq
        chain = _rows(reader.chain(node))
        outcome = verify_chain(chain, chain_key, None if passed else head, after)
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
