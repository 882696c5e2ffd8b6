"""How long the dashboard's pages take over an audit of a million rows.

    python benchmarks/dashboard.py [ROWS]

The rows are written past the journal (they are only read here), a day's worth of them in the last
24 hours. Stops if a page's median takes longer than LIMIT_MS.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from kb_mcp.proxy.ops.admin import create_admin
from kb_mcp.proxy.windows import rfc3339
from kb_mcp.settings import load_settings
from kb_mcp.wiring.machine import host_ms
from kb_mcp.wiring.store import Store, open_store

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
ROUNDS = 20
LIMIT_MS = 300
SPAN_MS = 30 * 24 * 3_600_000
TOKEN = secrets.token_hex(16)
PAGES = [
    *("/", "/keys", "/operations", "/audit", "/metrics"),
    *("/audit?customer=cus_77", "/audit?code=rate_limited", "/audit?agent=agent-3"),
    "/operations?agent=agent-3",
]
INSERT = (
    "INSERT INTO audit (id, time, node, seq, kind, decision, code, key_id, agent_id, method, path, "
    "amount, currency, customer_id, hash) "
    "VALUES (?, ?, 'bench', ?, 'decision', ?, ?, ?, ?, 'POST', '/v1/charges', 2900, 'usd', ?, 'x')"
)


def fill(path: Path) -> None:
    """Write ROWS audit rows, every fifth of them a refusal."""
    begun = host_ms() - SPAN_MS
    connection = sqlite3.connect(path)
    connection.executemany(
        INSERT,
        (
            (
                f"bench:{n}", rfc3339(begun + SPAN_MS * n // ROWS), n,
                *(("proceed", None) if n % 5 else ("refuse", "rate_limited")),
                f"key{n % 20}", f"agent-{n % 7}", f"cus_{n % 1000}",
            )
            for n in range(1, ROWS + 1)
        ),
    )  # fmt: skip
    connection.commit()
    connection.close()


async def measure(store: Store) -> None:
    """Print a line for each page. Stops if one is too slow."""
    app = create_admin(
        ledger=store.ledger, records=store.records, token=lambda: TOKEN,
        now_ms=lambda: store.clock.now(0),
    )  # fmt: skip
    transport = httpx.ASGITransport(app=app)
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
            print(f"{page:28} p50 {median:7.1f} ms   max {max(took):7.1f} ms")
            assert median < LIMIT_MS, page


async def main() -> None:
    """Fill a store and measure it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings({"KEYBRAKE_DATABASE_URL": f"sqlite:///{folder}/ledger.db"})
        store = open_store(settings)
        fill(store.path)
        print(f"{ROWS:,} audit rows")
        await measure(store)
        await store.close()


asyncio.run(main())
