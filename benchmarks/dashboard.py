"""How long the dashboard's pages take over an audit of a million rows, on both stores.

    python benchmarks/dashboard.py [ROWS] [sqlite|postgres]

The rows are written past the journal (they are only read here): two for each operation, spread over
30 days. One operation in a thousand failed, none is unknown; each agent has a seventh of the rows,
each session twenty. Stops if a page's median takes longer than LIMIT_MS.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from kb_mcp.instants import rfc3339
from kb_mcp.operators.app import create_admin
from kb_mcp.operators.reports.invariants import Verifying
from kb_mcp.proxy.meters import Meters
from kb_mcp.serving.machine import host_ms
from kb_mcp.settings import load_settings
from kb_mcp.wiring.stores import Store, open_store
from tests.postgres import have_postgres, make_database, postgres

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
STORES = sys.argv[2:] or ["sqlite", *(["postgres"] if have_postgres() else [])]
ROUNDS = 20
LIMIT_MS = 300
SPAN_MS = 30 * 24 * 3_600_000
TOKEN = secrets.token_hex(16)
PAGES = [
    *("/", "/keys", "/operations", "/audit", "/metrics", "/audit?customer=cus_77"),
    *("/audit?code=rate_limited", "/audit?agent=agent-3", "/audit?session=session-77"),
    *("/audit?agent=nobody", "/operations?agent=agent-3", "/operations?session=session-77"),
    *("/operations?agent=agent-3&state=failed", "/operations?customer=cus_77"),
    *("/operations?period=2026-06", "/operations?period=2020-01", "/operations?charge=ch_77"),
    *("/operations?state=unknown", "/operations?state=failed", "/operations/op_77"),
]
AUDIT = (
    "id time node seq kind decision code key_id agent_id session_id method path amount currency "
    "operation_id customer_id hash"
).split()
OPERATIONS = (
    "id name generation named_by route customer amount currency period fingerprint upstream_name "
    "state final held reserved_at first_arrival_at attempt lease_token lease_until key_id "
    "lineage_id object_id stripe_status reopened waived overshoot empty_listings created_at "
    "updated_at"
).split()


def audit_rows(begun: int) -> Iterator[tuple[Any, ...]]:
    """Yield ROWS rows of the audit; every fifth is a refusal."""
    for n in range(1, ROWS + 1):
        yield (
            f"bench:{n}", rfc3339(begun + SPAN_MS * n // ROWS), "bench", n, "decision",
            *(("proceed", None) if n % 5 else ("refuse", "rate_limited")),
            f"key{n % 20}", f"agent-{n % 7}", f"session-{n // 20}", "POST", "/v1/charges",
            2900, "usd", f"op_{n // 2}", f"cus_{n % 1000}", "x",
        )  # fmt: skip


def operations(begun: int) -> Iterator[tuple[Any, ...]]:
    """Yield an operation for every two rows."""
    for n in range(1, ROWS // 2 + 1):
        at = begun + SPAN_MS * n // (ROWS // 2)
        failed = n % 1000 == 0
        yield (
            f"op_{n}", f"{n:032}", 1, "content", "POST /v1/charges", f"cus_{n % 1000}", 2900, "usd",
            f"2026-{n % 12 + 1:02}", "f" * 64, f"{n:032}", "failed" if failed else "succeeded",
            True, 0, at, at, 1, 1, 0, f"key{n % 20}", f"key{n % 20}",
            None if failed else f"ch_{n}", "succeeded", False, False, False, 0, at, at,
        )  # fmt: skip


def fill_sqlite(path: Path) -> None:
    """Write all rows to the file."""
    begun = host_ms() - SPAN_MS
    connection = sqlite3.connect(path)
    for table, columns, rows in (
        ("audit", AUDIT, audit_rows(begun)),
        ("operations", OPERATIONS, operations(begun)),
    ):
        places = ", ".join("?" for _ in columns)
        into = f"{table} ({', '.join(columns)})"
        connection.executemany(f"INSERT INTO {into} VALUES ({places})", rows)  # noqa: S608 our own names
    connection.commit()
    connection.close()


def fill_postgres(url: str) -> None:
    """Write all rows to the database, and let it gather its statistics."""
    import psycopg

    begun = host_ms() - SPAN_MS
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        for table, columns, rows in (
            ("audit", AUDIT, audit_rows(begun)),
            ("operations", OPERATIONS, operations(begun)),
        ):
            with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN".encode()) as copy:
                for row in rows:
                    copy.write_row(row)
        cursor.execute("ANALYZE")


async def measure(store: Store) -> None:
    """Print a line for each page. Stops if one is too slow."""
    now_ms = partial(store.clock.now, 0)
    unused: Any = None  # no page that is measured acts at Stripe, verifies or is scraped
    app = create_admin(
        ledger=store.ledger, records=store.records, token=lambda: TOKEN, now_ms=now_ms,
        public_url=None, operators=dict, stripe=unused, verifying=Verifying(unused, now_ms),
        meters=Meters(), workers=unused, stopping=lambda: False,
    )  # fmt: skip
    transport = httpx.ASGITransport(app=app)
    slow = []
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        form = await client.get("/login")
        csrf = form.text.partition('name="csrf" value="')[2].partition('"')[0]
        await client.post("/login", data={"token": TOKEN, "csrf": csrf})
        for page in PAGES:
            took = []
            for _ in range(ROUNDS):
                begun = time.perf_counter()
                answer = await client.get(page)
                took.append((time.perf_counter() - begun) * 1000)
                assert answer.status_code == 200, (page, answer.status_code)
            median = statistics.median(took)
            print(f"{page:40} p50 {median:7.1f} ms   max {max(took):7.1f} ms", flush=True)
            slow += [page] if median >= LIMIT_MS else []
    assert not slow, slow


@contextmanager
def filled(kind: str, folder: Path) -> Iterator[Store]:
    """Open a store of either kind with all the rows in it."""
    os.environ["XDG_DATA_HOME"] = str(folder / "data")  # noqa: TID251 the store's files of this host
    if kind == "sqlite":
        store = open_store(
            load_settings({"KEYBRAKE_DATABASE_URL": f"sqlite:///{folder}/ledger.db"})
        )
        fill_sqlite(folder / "ledger.db")
        yield store
        return
    with postgres(shared_buffers="256MB") as server:
        database = make_database(server, "filled")
        fill_postgres(server.url("filled"))
        yield open_store(load_settings(database.environ))


async def main() -> None:
    """Fill each store and measure it."""
    for kind in STORES:
        with tempfile.TemporaryDirectory() as folder, filled(kind, Path(folder)) as store:
            print(f"{kind}: {ROWS:,} audit rows, {ROWS // 2:,} operations", flush=True)
            await measure(store)
            await store.close()


asyncio.run(main())
