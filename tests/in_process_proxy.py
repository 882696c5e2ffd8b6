"""A whole proxy for tests: with its sandbox, in this process, on real files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import httpx

from kb_mcp.in_process import start_loop
from kb_mcp.operators.actions.keys import NewKey, issue_key
from kb_mcp.operators.actions.operations import By, forget_answers
from kb_mcp.proxy.access.policy import CapRules, Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.sandbox.app import Sandbox
from kb_mcp.serving.host_check import guard_hosts
from kb_mcp.serving.machine import host_ms, random_bytes, random_name
from kb_mcp.settings import load_settings
from kb_mcp.wiring.app import Agents
from kb_mcp.wiring.proxy import Proxy
from tests.asgi_transport import AsgiTransport
from tests.months import lately, to_next_day_s

T = TypeVar("T")
PERIOD = "metadata[billing_period]"


@dataclass(frozen=True, slots=True)
class Issued:
    """A vault key for a test."""

    id: str
    token: str


class InProcessProxy:
    """`with InProcessProxy(folder) as in_process:` builds it; `restart` is a crash."""

    # Settings of another store than the SQLite file in its own folder.
    store: ClassVar[dict[str, str]] = {}

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self.environ = {"KEYBRAKE_DATABASE_URL": f"sqlite:///{folder}/ledger.db"}
        self.environ |= self.store | environ
        self.settings = load_settings(self.environ)
        self.sandbox = Sandbox(folder / "sandbox.db", clock=host_ms, new_id=random_name)
        self.loop, self._stop_loop = start_loop()
        self.stripe = httpx.Client(
            transport=AsgiTransport(self.sandbox, self.loop), base_url="http://sandbox"
        )
        self.proxy: Proxy
        self.agents: Agents
        self.client: httpx.Client
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.run(self.proxy.stop(0))
        self.run(self.agents.close())
        self._stop_loop()

    def run(self, work: Awaitable[T]) -> T:
        """Run a coroutine on the proxy's loop."""

        async def awaited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(60)

    def issue(self, policy: Policy | str = "billing", **caps: dict[str, int]) -> Issued:
        """Issue a key for a role or a policy, with caps."""
        granted = built_in(policy) if isinstance(policy, str) else policy
        if caps:
            granted = granted.model_copy(update={"caps": CapRules(**caps)})
        wanted = NewKey(policy=granted, mode="test", uncapped=True)
        key, minted = self.run(issue_key(self.proxy.store.ledger, wanted, random_bytes, "test"))
        return Issued(key.id, minted.token)

    def charge(self, key: Issued, /, path: str = "/v1/charges", **form: Any) -> httpx.Response:
        """Send a charge; `period` and `key_header` are spelled out, the rest is the form."""
        fields = {"customer": "cus_A1", "amount": 2900, "currency": "usd", **form}
        headers = {"Authorization": f"Bearer {key.token}"}
        if "key_header" in fields:
            headers["Idempotency-Key"] = str(fields.pop("key_header"))
        if fields.pop("looked_up", False):
            headers["Keybrake-Looked-Up"] = "payment_method"
        if "period" in fields:
            period = fields.pop("period")
            fields[PERIOD] = None if period is None else lately(period)
        named = {name: str(value) for name, value in fields.items() if value is not None}
        return self.client.post(path, data=named, headers=headers)

    def refund(self, key: Issued, charge: str, /, **form: Any) -> httpx.Response:
        """Send a refund of `charge`; `key_header` is spelled out, the rest is the form."""
        of = "payment_intent" if charge.startswith("pi_") else "charge"
        fields: dict[str, Any] = {of: charge, **form}
        headers = {"Authorization": f"Bearer {key.token}"}
        if "key_header" in fields:
            headers["Idempotency-Key"] = str(fields.pop("key_header"))
        named = {name: str(value) for name, value in fields.items() if value is not None}
        return self.client.post("/v1/refunds", data=named, headers=headers)

    def charge_over_mcp(
        self, key: Issued, meta: Mapping[str, object], **params: object
    ) -> httpx.Response:
        """Call the tool `charge` at `/mcp`; `meta` is what a client adds of its own."""
        version = "2026-07-28"
        bill = {"customer_id": "cus_A1", "amount_cents": 2900, "billing_period": lately("2026-11")}
        named = {"io.modelcontextprotocol/protocolVersion": version, **meta}
        asked = {"name": "charge", "arguments": bill, "_meta": named, **params}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": asked}
        headers = {
            "Authorization": f"Bearer {key.token}",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": version,
            "Mcp-Method": "tools/call",
            "Mcp-Name": "charge",
        }
        return self.client.post("/mcp", json=call, headers=headers)

    def get(self, key: Issued, path: str) -> httpx.Response:
        """Read as `key`."""
        return self.client.get(path, headers={"Authorization": f"Bearer {key.token}"})

    def fault(self, kind: str, match: str = "POST /v1/charges", times: int = 1) -> None:
        """Let the sandbox fail the next `times` requests."""
        answer = self.stripe.post(
            "/_sandbox/faults", json=[{"match": match, "kind": kind, "times": times}]
        )
        assert answer.status_code == 200, answer.text

    def turn_clock(self, seconds: int) -> None:
        """Advance the sandbox's clock, which the proxy follows."""
        self.stripe.post("/_sandbox/clock", json={"advance_seconds": seconds})

    def begin_day(self) -> None:
        """Turn the clock to an hour past midnight: the hours from then on are of one day."""
        self.turn_clock(to_next_day_s())

    def charges(self) -> list[dict[str, Any]]:
        """Return the charges that succeeded, from all pages of the sandbox's own list."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            page = self.stripe.get(
                f"/v1/charges?limit=100{after}", headers={"Authorization": "Bearer rk_test_sandbox"}
            ).json()
            found += page["data"]
            if not page["has_more"]:
                return [each for each in found if each["status"] == "succeeded"]
            after = f"&starting_after={page['data'][-1]['id']}"

    def refunds(self) -> list[dict[str, Any]]:
        """Return the refunds that stand at Stripe, newest first, whoever made them."""
        listed = self.stripe.get(
            "/v1/refunds?limit=100", headers={"Authorization": "Bearer rk_test_sandbox"}
        )
        gone = {"failed", "canceled"}
        return [each for each in listed.json()["data"] if each["status"] not in gone]

    def operations(self, **filters: Any) -> list[Any]:
        """Return the ledger's operations, newest first."""
        return [op for op, _ in self.run(self.proxy.store.records.operations(**filters))]

    def audit(self, **filters: Any) -> list[dict[str, Any]]:
        """Return the audit's rows, oldest first."""
        return list(self.proxy.store.records.audit(**filters))

    def forget(self, customer: str) -> None:
        """Erase the stored answers of a customer, as an operator does."""
        found = self.operations(customer_id=customer)
        self.run(forget_answers(self.proxy.store.ledger, found, By("test")))

    def watch_refunds(self) -> None:
        """Read the refunds that are due, by the sandbox's time."""
        self.run(self.proxy.app.pipeline.follow())
        self.run(self.proxy.recovery.watch_refunds())

    def recover(self) -> None:
        """Make one recovery pass, by the sandbox's time."""
        self.run(self.proxy.app.pipeline.follow())
        self.run(self.proxy.recovery.run())

    def restart(self) -> None:
        """Open the store anew, as after a crash: nothing of the old process is asked."""
        self.run(self.proxy.stop(0))
        self.run(self.agents.close())
        self._open()

    def upstream(self) -> Any:
        """Return the application that the proxy takes for Stripe."""
        return self.sandbox

    def _open(self) -> None:
        async def build() -> Proxy:
            return Proxy(self.settings, self.upstream())

        self.proxy = self.run(build())
        self.agents = Agents(self.proxy)
        app = guard_hosts(self.agents, self.settings.allowed_hosts)
        self.client = httpx.Client(
            transport=AsgiTransport(app, self.loop), base_url="http://127.0.0.1", timeout=60
        )


def error_of(answer: httpx.Response) -> str:
    """Return the code of an error in Stripe's shape."""
    return str(json.loads(answer.content)["error"]["code"])
