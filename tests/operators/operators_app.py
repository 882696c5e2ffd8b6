"""The operators' application on a proxy of the tests, and a browser before it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import httpx

from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.operators.app import create_admin
from kb_mcp.operators.reports.invariants import Verifying
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.access.tokens import hash_token
from kb_mcp.proxy.meters import Measured
from kb_mcp.proxy.stripe.reader import StripeReads
from kb_mcp.serving.machine import boottime_ms, random_bytes
from kb_mcp.wiring.stores import verifier
from tests.asgi_transport import AsgiTransport
from tests.in_process_proxy import InProcessProxy, Issued

TOKEN = "operator-token-for-tests-0123456789"
OTHER_TOKEN = "operator-token-of-mira-0123456789"
_CSRF = re.compile(r'name="csrf" value="([0-9a-f]+)"')


async def no_workers() -> dict[str, Measured]:
    """Return what the workers of a process measured that has none."""
    return {}


class OperatorsApp:
    """The operators' application of `in_process`; `peer` is where requests seem to come from."""

    def __init__(self, in_process: InProcessProxy, public_url: str | None = None) -> None:
        self.in_process = in_process
        self.token: str | None = TOKEN
        self.named = {"mira": hash_token(OTHER_TOKEN)}
        self.later_ms = 0
        self.peer = "127.0.0.1"
        proxy = in_process.proxy
        reads = StripeReads(proxy.upstream, proxy.store.clock, boottime_ms)
        self.stopping = False
        self.app = create_admin(
            ledger=in_process.proxy.store.ledger,
            records=in_process.proxy.store.records,
            token=lambda: self.token,
            now_ms=self.now_ms,
            random_bytes=random_bytes,
            public_url=public_url,
            operators=lambda: self.named,
            stripe=StripeActs(proxy.store.ledger, reads, proxy.recovery),
            verifying=Verifying(verifier(proxy.store), self.now_ms),
            meters=proxy.meters,
            workers=no_workers,
            stopping=lambda: self.stopping,
        )
        self.browser = self.visitor()

    def now_ms(self) -> int:
        """Return the store's time, turned by `later_ms`."""
        return self.in_process.proxy.store.clock.now(0) + self.later_ms

    def visitor(self, base_url: str = "http://127.0.0.1:8786") -> httpx.Client:
        """Return a client with cookies of its own."""

        async def from_peer(scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, "client": (self.peer, 4711)}, receive, send)

        transport = AsgiTransport(from_peer, self.in_process.loop)
        return httpx.Client(transport=transport, base_url=base_url, timeout=60)

    def api(self, method: str, path: str, token: str = TOKEN, **more: Any) -> httpx.Response:
        """Call the admin API as an operator's program."""
        headers = {"Authorization": f"Bearer {token}"}
        return self.visitor().request(method, f"/admin/v1{path}", headers=headers, **more)

    def log_in(self, token: str = TOKEN, browser: httpx.Client | None = None) -> httpx.Response:
        """Log in by the form."""
        client = browser or self.browser
        csrf = csrf_of(client.get("/login"))
        return client.post("/login", data={"token": token, "csrf": csrf})

    def submit(
        self, page: str, action: str, fields: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Send a form of `page` to `action`."""
        csrf = csrf_of(self.browser.get(page))
        return self.browser.post(action, data={"csrf": csrf, **(fields or {})})

    def admin_rows(self) -> list[tuple[str, str | None]]:
        """Return what operators did, and who did it, oldest first."""
        rows = self.in_process.audit()
        return [(row["decision"], row["agent_id"]) for row in rows if row["kind"] == "admin"]


def csrf_of(page: httpx.Response) -> str:
    """Return the CSRF token in the forms of a page."""
    found = _CSRF.search(page.text)
    assert found is not None, page.text
    return found[1]


def asking_above(in_process: InProcessProxy, amount: int) -> Issued:
    """Issue a billing key whose charges above `amount` cents need an approval."""
    policy: Policy = built_in("billing").model_copy(update={"approval_above": {"usd": amount}})
    return in_process.issue(policy)
