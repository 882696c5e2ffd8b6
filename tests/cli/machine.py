"""A machine for tests of the commands: a store and a sandbox in a folder, and ways to use them."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
from click.testing import CliRunner, Result

from kb_mcp.cli import main
from kb_mcp.settings import Settings, load_settings
from kb_mcp.wiring.proxy import Proxy
from kb_mcp.wiring.stores import open_store
from kb_mcp.wiring.upstream import build_sandbox
from tests.months import lately, to_next_day_s

STRIPE_KEY = {"authorization": "Bearer rk_test_sandbox"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
CUSTOMER = "cus_Abc123"


@dataclass(frozen=True)
class Machine:
    """One folder with one store. Every call opens it anew, as every command does."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {"KEYBRAKE_DATABASE_URL": f"sqlite:///{self.store}"}

    @property
    def process_env(self) -> dict[str, str]:
        """Return the environment of a process of its own."""
        return os.environ | self.env  # noqa: TID251 - a child needs PATH and the like

    @property
    def store(self) -> Path:
        return self.folder / "keybrake.db"

    @property
    def settings(self) -> Settings:
        return load_settings(self.env)

    def run(self, *args: str, code: int = 0, **env: str) -> Result:
        """Run a command in this process, and expect its exit code."""
        result = CliRunner().invoke(main, args, env=self.env | env)
        assert result.exit_code == code, (args, result.output, result.exception)
        return result

    def json(self, *args: str, code: int = 0, **env: str) -> Any:
        """Run a command with --json; stdout is one JSON document and nothing else."""
        return json.loads(self.run(*args, "--json", code=code, **env).stdout)

    def serve_once(self, **env: str) -> None:
        """Bind the store as the first process that serves it does."""
        store = open_store(load_settings(self.env | env))
        asyncio.run(store.close())

    def token(self, *args: str) -> str:
        """Issue a billing key, without a cap unless `args` give one."""
        issued = self.json("keys", "issue", "--role", "billing", "--uncapped", *args)
        return str(issued["token"])

    def charge(
        self, token: str, period: str | None = "2026-06", amount: int = 2900, **form: str
    ) -> httpx.Response:
        """Charge through the proxy, today being in the period's window."""
        fields = {"amount": str(amount), "currency": "usd", "customer": CUSTOMER} | form
        if period is not None:
            fields["metadata[billing_period]"] = lately(period)
        return self.post("/v1/charges", fields, token)

    def post(self, path: str, form: Mapping[str, str], token: str) -> httpx.Response:
        """Post through the proxy."""
        return asyncio.run(self._through_proxy(path, form, token))

    def stripe(self, method: str, path: str, form: Mapping[str, str] | None = None) -> Any:
        """Ask the sandbox directly, as somebody with the Stripe key would."""
        return self._sandbox(method, path, urlencode(form or {}).encode(), STRIPE_KEY | FORM)

    def steer(self, path: str, document: object) -> None:
        """Turn the sandbox's clock, or have it fail."""
        self._sandbox("POST", f"/_sandbox/{path}", json.dumps(document).encode(), {})

    def advance(self, seconds: int) -> None:
        """Turn the sandbox's clock, which the store follows."""
        self.steer("clock", {"advance_seconds": seconds})

    def begin_day(self) -> None:
        """Turn the clock to an hour past midnight: the hours from then on are of one day."""
        self.advance(to_next_day_s())

    def fault(self, kind: str, times: int = 1) -> None:
        """Have the next charges fail."""
        self.steer("faults", [{"match": "POST /v1/charges", "kind": kind, "times": times}])

    def charges(self) -> list[dict[str, Any]]:
        """Return what was really charged."""
        return list(self.stripe("GET", "/v1/charges?limit=100")["data"])

    def saved(self) -> bytes:
        """Return a copy of the store, as a backup takes it."""
        connection = sqlite3.connect(self.store)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return self.store.read_bytes()

    def restore(self, saved: bytes) -> None:
        """Put an older copy in the place of the store."""
        for suffix in ("-wal", "-shm"):
            self.store.with_name(self.store.name + suffix).unlink(missing_ok=True)
        self.store.write_bytes(saved)

    def tamper(self, *statements: str) -> None:
        """Change the store as an attacker would who may write the file."""
        connection = sqlite3.connect(self.store)
        for trigger in ("audit_refuses_update", "audit_refuses_delete"):
            connection.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    def _sandbox(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Any:
        sandbox = build_sandbox(self.settings)

        async def ask() -> Any:
            transport = httpx.ASGITransport(app=sandbox)
            async with httpx.AsyncClient(transport=transport, base_url="http://sandbox") as client:
                answer = await client.request(method, path, content=body, headers=headers)
                assert answer.status_code < 300, answer.text
                return answer.json()

        try:
            return asyncio.run(ask())
        finally:
            sandbox.close()

    async def _through_proxy(
        self, path: str, form: Mapping[str, str], token: str
    ) -> httpx.Response:
        sandbox = build_sandbox(self.settings)
        proxy = Proxy(self.settings, sandbox)
        transport = httpx.ASGITransport(app=proxy.app)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
                headers = {"authorization": f"Bearer {token}"}
                return await client.post(path, data=dict(form), headers=headers)
        finally:
            await proxy.stop(0)
            sandbox.close()
