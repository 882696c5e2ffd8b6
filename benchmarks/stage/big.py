"""A large store, written past the ledger: as many rows as asked for, and chains that verify.

Operations are spread over the last 80 days and over customers of four bills each; the newest tenth
keeps its sealed answer. Every audit row is chained as the journal would chain it, in ten chains.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from secrets import token_bytes
from typing import Any

from kb_mcp.instants import day_of, rfc3339
from kb_mcp.proxy.audit.chain import GENESIS, canonical, derive_key, node_hash, read_row, row_hash
from kb_mcp.proxy.stores.binding import Sealer
from kb_mcp.serving.machine import host_ms
from stage.house import MASTER_KEY, House

SPAN_MS = 80 * 86_400_000
CHAINS, BILLS_EACH, ROWS_EACH = 10, 4, 5
_BODY, _ANSWER = b"b" * 240, b'{"id":"ch_1","object":"charge"}' + b" " * 880
_CHECK_EVERY = 50_000
_OPERATION = (
    "id name generation named_by route customer amount currency period period_start period_end "
    "fingerprint upstream_name state final held reserved_at first_arrival_at attempt lease_token "
    "lease_until key_id lineage_id object_id stripe_status answer_status answer reopened waived "
    "overshoot empty_listings created_at updated_at"
).split()
_ATTEMPT = (
    "operation_id number upstream_key path body first_sent_at last_sent_at sends open_sends status "
    "object_id outcome key_id"
).split()
_AUDIT = (
    "agent_id amount attempt code currency customer_id decision duration_ms id key_id kind method "
    "node object_id operation_id path request_id role seq stripe_status time hash"
).split()
_WINDOWS = """
INSERT OR IGNORE INTO windows (scope, scope_id, window, start, currency, reserved, settled, sends,
                               declines)
SELECT {scope}, {scope_id}, {window}, {start}, {currency}, 0, {settled}, {sends}, 0
  FROM operations GROUP BY {scope_id}, {start}"""
_DAY = "date(reserved_at / 1000, 'unixepoch')"
_MONTH = "strftime('%Y-%m-01', reserved_at / 1000, 'unixepoch')"


@dataclass(frozen=True)
class Size:
    """How much a store holds."""

    audit: int
    operations: int
    keys: int


def fill(house: House, size: Size) -> None:
    """Fill the store of `house`, which has been migrated and has one key, to `size`."""
    now_ms = host_ms() - 60_000
    with closing(sqlite3.connect(house.store, isolation_level=None)) as store:
        # Without a journal: a log as large as the store would double what it needs of the disk.
        store.execute("PRAGMA journal_mode = DELETE")
        for pragma in (
            "journal_mode = OFF",
            "synchronous = OFF",
            "cache_size = -1000000",
            "foreign_keys = OFF",
        ):
            store.execute(f"PRAGMA {pragma}")
        indexes = store.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        ).fetchall()
        for name, _ in indexes:
            store.execute(f"DROP INDEX {name}")
        store.execute("BEGIN")
        keys = _fill_keys(store, size)
        begun = now_ms - SPAN_MS
        insert(store, "operations", _OPERATION, _operations(size, keys, begun))
        insert(store, "attempts", _ATTEMPT, _attempts(size, keys, begun))
        _fill_windows(store)
        _fill_audit(store, size, keys, begun)
        _fill_stopped(store)
        for _, sql in indexes:
            store.execute(sql)
        store.execute("COMMIT")
        store.execute("ANALYZE" if _has_statistics(store) else "SELECT 1")
        store.execute("PRAGMA journal_mode = WAL")


def insert(
    store: sqlite3.Connection, table: str, columns: list[str], rows: Iterator[tuple[Any, ...]]
) -> None:
    """Insert rows of the named columns."""
    places = ", ".join("?" * len(columns))
    statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"  # noqa: S608 - our own names
    store.executemany(statement, rows)


def _has_statistics(store: sqlite3.Connection) -> bool:
    """Say whether kb-mcp itself keeps the planner's statistics: else a real store has none."""
    found = store.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'").fetchone()
    return found is not None


def _fill_keys(store: sqlite3.Connection, size: Size) -> list[str]:
    """Copy the key that there is, under other names."""
    keys = [f"big{number:09}" for number in range(size.keys)]
    columns = [row[1] for row in store.execute("PRAGMA table_info(keys)")]
    first = dict(zip(columns, store.execute("SELECT * FROM keys").fetchone(), strict=True))
    rows = (
        tuple((first | {"id": key, "lineage_id": key, "token_hash": _mark("t", n, 32)}).values())
        for n, key in enumerate(keys)
    )
    insert(store, "lineages", ["id"], ((key,) for key in keys))
    insert(store, "keys", columns, rows)
    return keys


def _operations(size: Size, keys: list[str], begun: int) -> Iterator[tuple[Any, ...]]:
    seal = Sealer(derive_key(MASTER_KEY.encode(), "answers"), token_bytes).seal
    months = _months()
    customers = max(size.operations // BILLS_EACH, 1)
    for n in range(size.operations):
        at = begun + SPAN_MS * n // size.operations
        name, key, month = _mark("n", n), keys[n % size.keys], months[n // customers % 12]
        answer = seal(_ANSWER, f"op_{n:024}") if n >= size.operations * 9 // 10 else None
        yield (
            f"op_{n:024}", name, 0, "content", "POST /v1/charges", f"cus_big{n % customers}", 2900,
            "usd", month, f"{month}-01", f"{month}-28", _mark("f", n, 32), name, "succeeded", 1,
            2900, at, at, 1, 1, at + 35_000, key, key, f"ch_{name}", "succeeded", 200, answer,
            0, 0, 0, 0, at, at + 5,
        )  # fmt: skip


def _attempts(size: Size, keys: list[str], begun: int) -> Iterator[tuple[Any, ...]]:
    seal = Sealer(derive_key(MASTER_KEY.encode(), "answers"), token_bytes).seal
    for n in range(size.operations):
        at = begun + SPAN_MS * n // size.operations
        name = _mark("n", n)
        yield (
            f"op_{n:024}", 1, name, "/v1/charges", seal(_BODY, name), at, at, 1, 0, 200,
            f"ch_{name}", "succeeded", keys[n % size.keys],
        )  # fmt: skip


def _fill_windows(store: sqlite3.Connection) -> None:
    money = {"currency": "'usd'", "settled": "sum(held)", "sends": "0"}
    counts = {"currency": "''", "settled": "0", "sends": "count(*)"}
    day, month = {"window": "'day'", "start": _DAY}, {"window": "'month'", "start": _MONTH}
    key, customer = {"scope": "'key'", "scope_id": "lineage_id"}, {"scope_id": "customer"}
    for parts in (
        key | day | money, key | month | money, key | day | counts,
        customer | day | money | {"scope": "'customer'"},
        day | money | {"scope": "'account'", "scope_id": "''"},
    ):  # fmt: skip
        store.execute(_WINDOWS.format(**parts))


def _fill_audit(store: sqlite3.Connection, size: Size, keys: list[str], begun: int) -> None:
    chain_key = derive_key(MASTER_KEY.encode(), "audit")
    last = store.execute("SELECT position, hash FROM nodes ORDER BY position DESC").fetchone()
    position, previous = last or (0, "")
    for chain in range(CHAINS):
        node = f"big-{chain}"
        started = rfc3339(begun + SPAN_MS * chain // CHAINS)
        previous = node_hash(chain_key, previous, node, started)
        position += 1
        values = (position, node, started, previous)
        insert(store, "nodes", ["position", "node", "started_at", "hash"], iter([values]))
        rows = range(size.audit * chain // CHAINS, size.audit * (chain + 1) // CHAINS)
        insert(store, "audit", _AUDIT, _chain(node, rows, size, keys, begun, chain_key))


def _fill_stopped(store: sqlite3.Connection) -> None:
    """Count the refusals, as the ledger counts them when it writes their rows."""
    for window, start, key, agent in (
        ("day", "substr(time, 1, 10)", "''", "''"),
        ("day", "substr(time, 1, 10)", "key_id", "agent_id"),
        ("month", "substr(time, 1, 7) || '-01'", "key_id", "agent_id"),
    ):
        store.execute(
            f"INSERT INTO stopped SELECT {start}, '{window}', {key}, {agent}, code, '', '',"  # noqa: S608 - our own names
            " count(*), 0 FROM audit WHERE decision = 'refuse' GROUP BY 1, 3, 4, 5"
        )


def _chain(
    node: str, rows: range, size: Size, keys: list[str], begun: int, chain_key: bytes
) -> Iterator[tuple[Any, ...]]:
    customers = max(size.operations // BILLS_EACH, 1)
    previous = GENESIS
    for seq, number in enumerate(rows, 1):
        n, kind = number // ROWS_EACH % size.operations, number % ROWS_EACH
        at = begun + SPAN_MS * number // size.audit
        text, row = _row(kind, n, seq, node, at, keys[n % size.keys], f"cus_big{n % customers}")
        sealed = hmac.digest(chain_key, previous + text.encode(), "sha256")
        if seq % _CHECK_EVERY == 1:
            _check_as_the_journal(row, sealed, previous, chain_key, text)
        previous = sealed
        yield (*row, sealed.hex())


def _row(
    kind: int, n: int, seq: int, node: str, at: int, key: str, customer: str
) -> tuple[str, tuple[Any, ...]]:
    """Return what is sealed, as `canonical` writes it, and the columns of _AUDIT but the hash."""
    operation, charge, agent = f"op_{n:024}", f"ch_{_mark('n', n)}", f"agent-{n % 7}"
    request, row_id, moment = f"req_{n:08x}{kind}", f"{node}:{seq}", rfc3339(at)
    if kind in {0, 1}:
        what, decision = (("decision", "proceed"), ("outcome", "succeeded"))[kind]
        status, made = (None, None) if kind == 0 else (200, charge)
        shown = "" if kind == 0 else f'"object_id":"{charge}",'
        answered = "" if kind == 0 else '"stripe_status":200,'
        text = (
            f'{{"agent_id":"{agent}","amount":2900,"attempt":1,"currency":"usd",'
            f'"customer_id":"{customer}","decision":"{decision}","duration_ms":5,'
            f'"key_id":"{key}","kind":"{what}","method":"POST","node":"{node}",{shown}'
            f'"operation_id":"{operation}","path":"/v1/charges","request_id":"{request}",'
            f'"role":"bench","seq":{seq},{answered}"time":{at},"v":1}}'
        )
        return text, (
            agent, 2900, 1, None, "usd", customer, decision, 5, row_id, key, what, "POST", node,
            made, operation, "/v1/charges", request, "bench", seq, status, moment,
        )  # fmt: skip
    refused = kind == 4
    what, decision = ("decision", "refuse") if refused else ("read", "forward")
    code, status = ("rate_limited", None) if refused else (None, 200)
    said, answered = ('"code":"rate_limited",', "") if refused else ("", '"stripe_status":200,')
    text = (
        f'{{"agent_id":"{agent}",{said}'
        f'"customer_id":"{customer}","decision":"{decision}","duration_ms":2,"key_id":"{key}",'
        f'"kind":"{what}","method":"GET","node":"{node}","object_id":"{charge}",'
        f'"path":"/v1/charges/{charge}","request_id":"{request}","role":"bench","seq":{seq},'
        f'{answered}"time":{at},"v":1}}'
    )
    return text, (
        agent, None, None, code, None, customer, decision, 2, row_id, key, what, "GET", node,
        charge, None, f"/v1/charges/{charge}", request, "bench", seq, status, moment,
    )  # fmt: skip


def _check_as_the_journal(
    row: tuple[Any, ...], sealed: bytes, previous: bytes, chain_key: bytes, text: str
) -> None:
    """See that this row is sealed exactly as kb-mcp would seal it."""
    blank = dict.fromkeys(("session_id", "subject", "note"))
    columns = blank | dict(zip(_AUDIT, (*row, sealed.hex()), strict=True))
    read, _ = read_row(columns)
    assert canonical(read).decode() == text
    assert row_hash(chain_key, previous, read) == sealed.hex()


def _months() -> list[str]:
    """Return the twelve months up to this one, the newest last."""
    today = day_of(host_ms())
    count = today.year * 12 + today.month - 1
    return [f"{(count - back) // 12}-{(count - back) % 12 + 1:02}" for back in range(11, -1, -1)]


def _mark(kind: str, n: int, size: int = 16) -> str:
    """Return hex that looks like chance and is the same for the same number."""
    return hashlib.blake2b(f"{kind}{n}".encode(), digest_size=size).hexdigest()
