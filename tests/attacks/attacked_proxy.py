"""The proxy under attack: `kb-mcp up` as a process of its own, its sandbox, its store."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from msgspec.structs import replace

from kb_mcp.in_process import start_loop
from kb_mcp.operators.actions.keys import NewKey, issue_key, revoke_key
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.access.tokens import Mode, mint
from kb_mcp.proxy.ledger.records import Changes, KeyId, Refs
from kb_mcp.serving.machine import random_bytes
from kb_mcp.settings import load_settings
from kb_mcp.wiring.stores import Store, open_store

T = TypeVar("T")
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Issued:
    """A vault key for an attack."""

    id: str
    token: str


class AttackedProxy:
    """A running `up`. What its store counts as refused is compared with `expected` at the end."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self.environ = {"KEYBRAKE_DATABASE_URL": f"sqlite:///{folder}/ledger.db", **environ}
        self.expected: Counter[str] = Counter()
        self.serial = 0
        command = [sys.executable, "-m", "kb_mcp", "up", "--port", "0", "--sandbox-port", "0"]
        with socket.create_server(("127.0.0.1", 0)) as free:
            admin_port = free.getsockname()[1]
        self.errors = (folder / "stderr").open("wb")
        self.process = subprocess.Popen(
            [*command, "--admin-port", str(admin_port)],
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **self.environ},  # noqa: TID251 - a child's
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.said: list[str] = []
        self.agents = self._address("Agents: ")
        self.operators = self._address("Operators: ")
        here = self._line("Upstream: ").rpartition(" at ")[2]
        self.sandbox_url = environ.get("KEYBRAKE_STRIPE_API_BASE", here)
        self._line("MCP client configuration")
        self.stripe = httpx.Client(base_url=self.sandbox_url, timeout=30)
        self.loop, self._stop_loop = start_loop()
        self.store: Store = self.run(self._open())
        now_ms = self.stripe.get("/_sandbox/clock").json()["now_ms"]
        self.now = datetime.fromtimestamp(now_ms / 1000, UTC)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def issue(self, policy: Policy | str = "billing", kind: str = "granted") -> Issued:
        """Issue a key: `granted`, or one that is `expired`, `revoked`, `live` or `frozen`.

        The token of a `forged` one has the right id, a good checksum and another secret.
        """
        granted = built_in(policy) if isinstance(policy, str) else policy
        mode: Mode = "live" if kind == "live" else "test"
        wanted = NewKey(policy=granted, mode=mode, uncapped=True)
        if kind == "expired":
            wanted = dataclasses.replace(wanted, expires_at=1)
        key, minted = self.run(issue_key(self.store.ledger, wanted, random_bytes, "test"))
        if kind == "revoked":
            store = self.store
            self.run(revoke_key(store.ledger, store.records, KeyId(key.id), "t", "t", 0))
        if kind == "frozen":
            self.run(self._freeze(key.lineage_id))
        token = _forged(key.id) if kind == "forged" else minted.token
        return Issued(key.id, token)

    def reached(self) -> tuple[int, int]:
        """Return how many requests the sandbox has had, and how many charges it holds."""
        state = self.stripe.get("/_sandbox/state").json()
        return state["request_count"], state["counts"]["charges"]

    def rows(self, key: Issued) -> list[dict[str, Any]]:
        """Return the audit rows of `key` but for its issue, oldest first."""
        return [row for row in self.store.records.audit(key=key.id) if row["kind"] != "admin"]

    def refusal_counts(self) -> Counter[str]:
        """Return what was counted, by code; written at the latest when the process ends."""
        counts: Counter[str] = Counter()
        for row in self.store.records.audit():
            if row["kind"] == "noise":
                counts[row["code"]] += int(row["note"].split(" ")[0])
        return counts

    def next(self) -> int:
        """Return a number that no other attack on this fort has."""
        self.serial += 1
        return self.serial

    def end(self) -> int:
        """Stop the process as an operator does, and return how it ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        self.said += self.process.stdout.readlines()
        return self.process.wait(60)

    def close(self) -> None:
        self.end()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
        self.stripe.close()
        self.run(self.store.close())
        self._stop_loop()

    async def _open(self) -> Store:
        return open_store(load_settings(self.environ))

    async def _freeze(self, lineage_id: Any) -> None:
        def step(snapshot: Any) -> tuple[None, Changes]:
            lineage = snapshot.lineage(lineage_id)
            frozen = replace(lineage, frozen_at=snapshot.now, frozen_reason="too many declines")
            return None, Changes(lineages=(frozen,))

        await self.store.ledger.transact(lambda _: Refs(lineages=frozenset({lineage_id})), step)

    def _line(self, start: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith(start):
                return line.strip()
        self.process.stdout.close()
        self.process.wait(60)
        self.errors.close()
        raise AssertionError((self.folder / "stderr").read_text())

    def _address(self, start: str) -> Address:
        parts = urlsplit(self._line(start).removeprefix(start).split(" ")[0])
        return str(parts.hostname), int(parts.port or 0)


def _forged(key_id: str) -> str:
    octets = base64.b32decode(f"{key_id.upper()}A===")
    forged = mint("test", lambda count: octets if count == len(octets) else bytes(count))
    assert forged.id == key_id
    return forged.token


@contextmanager
def standing_fort(folder: Path, **environ: str) -> Iterator[AttackedProxy]:
    """Run a fort; when it ends, its audit has counted what was expected and its chains verify."""
    attacked = AttackedProxy(folder, **environ)
    try:
        yield attacked
        assert attacked.end() == 0
        counted = attacked.refusal_counts()
        wanted = dict(attacked.expected)
        assert {code: counted[code] for code in wanted} == wanted, (counted, wanted)
        assert "Traceback" not in (folder / "stderr").read_text()
    finally:
        attacked.close()
