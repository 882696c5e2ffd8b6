"""How fast a revocation bites: from asking for it to its commit, and to the first refusal.

One `up` under four callers, on SQLite and the sandbox; the key is revoked by another process's
ledger on the same file, as `kb-mcp keys revoke` does. Every round asserts that nothing was reserved
after the revocation had committed. `python benchmarks/kill_switch.py [--rounds N] [--json]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kb_mcp.operators.actions.keys import revoke_key
from kb_mcp.proxy.access.tokens import parse_token
from kb_mcp.proxy.ledger.records import KeyId
from kb_mcp.settings import load_settings
from kb_mcp.wiring.stores import Store, open_store
from tests.proxy_processes import Town, charge, town

CALLERS = 4


def main() -> None:
    """Measure, and print medians and the slowest round in milliseconds."""
    wanted = argparse.ArgumentParser(description=__doc__)
    wanted.add_argument("--rounds", type=int, default=20)
    wanted.add_argument("--json", action="store_true")
    options = wanted.parse_args()
    with tempfile.TemporaryDirectory() as folder, town(Path(folder)) as here:
        proxy = here.start_proxy()
        rounds = [measure(here, proxy.url, number) for number in range(options.rounds)]
    named = {"commit_ms": [each[0] for each in rounds], "refusal_ms": [each[1] for each in rounds]}
    figures = {
        name: {"median": round(statistics.median(values), 1), "max": round(max(values), 1)}
        for name, values in named.items()
    }
    figures["rounds"] = {"count": len(rounds), "reserved_after": 0}
    print(json.dumps(figures) if options.json else figures)


def measure(here: Town, url: str, number: int) -> tuple[float, float]:
    """Revoke one key under load; return ms to the commit, and to the first refusal after it."""
    token = here.issue("--role", "billing", "--rate", "100000/min")
    refused_at: list[float] = []
    callers = [
        threading.Thread(target=ask_on, args=(url, token, f"{number}C{caller}", refused_at))
        for caller in range(CALLERS)
    ]
    for caller in callers:
        caller.start()
    parsed = parse_token(token)
    assert parsed is not None
    asked, committed = asyncio.run(revoke(here, parsed[0]))
    for caller in callers:
        caller.join()
    return (committed - asked) * 1000, (min(refused_at) - asked) * 1000


def ask_on(url: str, token: str, tag: str, refused_at: list[float]) -> None:
    """Charge one bill after the other until the key is refused."""
    for bill in range(10_000):
        answer = charge(url, token, customer=f"cus_{tag}{bill}", period="2026-11")
        if answer.status_code == 401:
            refused_at.append(time.perf_counter())
            return
    raise AssertionError("the key was never refused")


async def revoke(here: Town, key_id: KeyId) -> tuple[float, float]:
    """Revoke as the command does, and check that nothing was reserved afterwards."""
    wanted = {name: value for name, value in here.environ().items() if name.startswith("KEYBRAKE")}
    store = open_store(load_settings(wanted))
    try:
        await settled(store, key_id)
        asked = time.perf_counter()
        revoked = await revoke_key(store.ledger, store.records, key_id, "bench", "bench", 0)
        committed = time.perf_counter()
        found = await store.records.operations(lineage_id=revoked.key.lineage_id)
        late = [each for each, _ in found if each.reserved_at > (revoked.key.revoked_at or 0)]
        assert late == [], "a reservation after the revocation"
    finally:
        await store.close()
    return asked, committed


async def settled(store: Store, key_id: KeyId) -> None:
    """Wait until the key has charged, so that it is revoked while it is at work."""
    while True:
        found = await store.ledger.find_key(key_id)
        if found is not None and await store.records.operations(lineage_id=found[1].id, limit=1):
            return
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    main()
