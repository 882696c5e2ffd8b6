"""A store with something of everything to look at: what the pages and their pictures show."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from kb_mcp.instants import day_of
from kb_mcp.operators.actions.grants import NewGrant, add_grant
from kb_mcp.operators.actions.keys import NewKey, issue_key
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.serving.machine import random_bytes
from tests.in_process_proxy import InProcessProxy, Issued

DAYS = 9
CUSTOMERS = ("cus_Acme", "cus_Birch", "cus_Cobalt", "cus_Dune", "cus_Elm", "cus_Fjord", "cus_Gale")


class Billing:
    """Bills customers as three agents would, for some days up to now."""

    def __init__(self, in_process: InProcessProxy) -> None:
        self.in_process = in_process
        self.nightly = self._issue("Nightly run", "nightly", "billing", caps={
            "daily": {"usd": 60_000}, "monthly": {"usd": 900_000}})  # fmt: skip
        self.upgrades = self._issue("Upgrades", "sales", "billing-with-status", caps={
            "daily": {"usd": 30_000, "eur": 20_000}}, approval_above={"usd": 20_000, "eur": 20_000},
        )  # fmt: skip
        self.support = self._issue("Support desk", "support", "billing-with-refunds", caps={
            "daily": {"usd": 10_000}}, refund_caps={"daily": {"usd": 20_000}})  # fmt: skip
        self.trial = self._issue("Trial", None, "billing")
        self._grant()

    def tell(self) -> str:
        """Let the days pass; return the id of the operation with the longest story."""
        for day in range(DAYS):
            self._day(day)
            self.in_process.turn_clock(86_400)
            self.in_process.run(self.in_process.proxy.app.pipeline.follow())
        charge = self._day(DAYS)
        self._today(charge)
        (operation,) = self.in_process.operations(charge_id=charge, kind=None)[-1:]
        return str(operation.id)

    def _day(self, day: int) -> str:
        first = ""
        for number, customer in enumerate(CUSTOMERS[: 3 + day % 5]):
            bill: dict[str, Any] = {"customer": customer, "amount": 2900 + 1000 * (number % 3)}
            made = self.charge(self.nightly, "nightly", **bill)
            first = first or made.json()["id"]
            for again in range((number + day) % 3):
                agent = "supervisor" if again else "nightly"
                self.charge(self.nightly, agent, session=f"run-{day}", **bill)
        for customer in CUSTOMERS[4 : 5 + day % 3]:
            self.charge(self.upgrades, "sales", customer=customer, amount=4900, currency="eur")
        return first

    def _today(self, charge: str) -> None:
        in_process = self.in_process
        bill: dict[str, Any] = {"customer": CUSTOMERS[0], "amount": 2900}
        for session in ("run-10", "run-10", "run-11"):
            self.charge(self.nightly, "nightly", session=session, **bill)
        self.charge(self.nightly, "supervisor", **{**bill, "amount": 3100})
        self.charge(self.nightly, "nightly", customer="cus_Huge", amount=65_000)
        for amount in (25_000, 48_000):
            self.charge(self.upgrades, "sales", customer="cus_Iris", amount=amount, back=amount % 7)
        for _ in range(2):
            in_process.refund(self.support, charge, amount=1000)
        in_process.fault("402", times=1)
        self.charge(self.trial, None, customer="cus_Jade", amount=1900)
        in_process.fault("drop_after")
        self.charge(self.upgrades, "sales", customer="cus_Kite", amount=7900)

    def charge(
        self, key: Issued, agent: str | None, /, session: str | None = None, **bill: Any
    ) -> Any:
        """Charge `amount` to `customer` for today, or a day that lies `back`."""
        headers = {"Authorization": f"Bearer {key.token}"}
        headers |= {"Keybrake-Agent": agent} if agent else {}
        headers |= {"Keybrake-Session": session} if session else {}
        today = day_of(self.in_process.proxy.store.clock.now(0))
        period = today - timedelta(days=bill.pop("back", 0))
        form = {"currency": "usd", "metadata[billing_period]": period.isoformat(), **bill}
        named = {name: str(value) for name, value in form.items()}
        return self.in_process.client.post("/v1/charges", data=named, headers=headers)

    def _issue(self, label: str, agent: str | None, role: str, **narrowed: Any) -> Issued:
        fields = built_in(role).model_dump(mode="json", by_alias=True, exclude_none=True)
        policy = Policy.model_validate(fields | narrowed, strict=False)
        wanted = NewKey(policy=policy, mode="test", label=label, agent=agent, uncapped=True)
        ledger = self.in_process.proxy.store.ledger
        key, minted = self.in_process.run(issue_key(ledger, wanted, random_bytes, "mira"))
        return Issued(key.id, minted.token)

    def _grant(self) -> None:
        given = NewGrant("https://idp.example.com", ["sub=support-*"], self.support.id, "the desk")
        ledger = self.in_process.proxy.store.ledger
        self.in_process.run(add_grant(ledger, given, random_bytes, "mira"))
