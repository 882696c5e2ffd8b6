"""kb-mcp as a contender: `up` in a process of its own on SQLite, with every rule on."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage.children import Child, started
from stage.machine import pinned
from stage.upstream import UPSTREAM_KEY

CONFIG = (
    "kb-mcp up, one process, SQLite with synchronous FULL, operators' listener off; key with caps "
    "per charge, day, month, customer and day, charges a day, and a ceiling over all keys; audit "
    "chain, sealed answers, rate at 1,000,000 a minute; a test-mode key, so no sandbox"
)
MASTER_KEY = "only-for-benchmarks-0123456789-0123"
CEILING = "9000000000.00usd"
_START_WITHIN_S = 120
_PORT = re.compile(r"Agents: (http://127\.0\.0\.1:\d+)")
_CAPS = {"per_charge": 10_000, "daily": 900_000_000_000, "monthly": 900_000_000_000,
         "per_customer_daily": 1_000_000}  # fmt: skip
POLICY = {
    "version": 1,
    "role": "bench",
    "allow": ["POST /v1/charges", "GET /v1/charges/*"],
    "parameters": {"POST /v1/charges": {"required": ["amount", "currency", "customer"]}},
    "caps": {kind: {"usd": amount} for kind, amount in _CAPS.items()},
    "daily_charges": 1_000_000,
    "rate": 1_000_000,
}


@dataclass
class House:
    """A store and the settings of every process on it."""

    folder: Path
    upstream_url: str
    database_url: str = ""

    @property
    def store(self) -> Path:
        """The SQLite file."""
        return self.folder / "ledger.db"

    def environ(self) -> dict[str, str]:
        """Return the environment of every process of it."""
        inherited = os.environ.items()  # noqa: TID251 - for a child process
        return {name: value for name, value in inherited if "KEYBRAKE" not in name} | {
            "KEYBRAKE_DATABASE_URL": self.database_url or f"sqlite:///{self.store}",
            "KEYBRAKE_STRIPE_KEY": UPSTREAM_KEY,
            "KEYBRAKE_STRIPE_API_BASE": self.upstream_url,
            "KEYBRAKE_ACCOUNT_DAILY_CAP": CEILING,
            "KEYBRAKE_MASTER_KEY": MASTER_KEY,
            "XDG_DATA_HOME": str(self.folder),
        }

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what the store says, read past kb-mcp."""
        if self.database_url:
            import psycopg

            with psycopg.connect(self.database_url) as connection:
                return connection.execute(query.encode()).fetchall()
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as store:
            return store.execute(query).fetchall()

    def command(self, *arguments: str, within_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run one command of kb-mcp to its end, which must be good."""
        done = subprocess.run(
            [sys.executable, "-m", "kb_mcp", *arguments], env=self.environ(), text=True,
            capture_output=True, timeout=within_s, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def issue(self) -> str:
        """Issue a key with every cap, and return its token."""
        file = self.folder / "policy.json"
        file.write_text(json.dumps(POLICY))
        done = self.command("keys", "issue", "--policy", str(file), "--json")
        return str(json.loads(done.stdout)["token"])


@contextmanager
def serving(
    house: House, core: int | None, *options: str, environ: dict[str, str] | None = None
) -> Iterator[tuple[Child, str]]:
    """Run `up` on the store, held on `core`; yield the process and its address.

    The operators' listener is off, unless `options` say otherwise.
    """
    command = [sys.executable, "-m", "kb_mcp", "up", "--port", "0", "--admin-port", "0", *options]
    whole = command if core is None else pinned(core, command)
    env = house.environ() | (environ or {})
    with started(whole, "MCP client configuration", env=env, within_s=_START_WITHIN_S) as up:
        found = _PORT.search("".join(up.said))
        assert found is not None, up.said
        yield up, found[1]
