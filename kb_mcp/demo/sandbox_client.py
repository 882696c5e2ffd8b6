"""The demo's own line to the sandbox: its faults, its clock, and its lists of charges and refunds.

Floor: the demo, ground. Those lists are the only witness: the demo keeps no count of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import httpx

from kb_mcp.demo.machines import DemoError

STRIPE_KEY: Final = "rk_test_sandbox"
_CHARGES_MAX: Final = 100


class SandboxClient:
    """Talks HTTP to a running sandbox; close it when done."""

    def __init__(self, address: str) -> None:
        """Talk to the sandbox at `address`."""
        self._http = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {STRIPE_KEY}"},
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def charges(self, customer_id: str) -> list[str]:
        """Return the ids of the customer's charges that moved money."""
        query = {"customer": customer_id, "limit": str(_CHARGES_MAX)}
        listed = self._done(self._http.get("/v1/charges", params=query))
        if listed["has_more"]:
            raise DemoError("more charges than a demo makes")
        return [charge["id"] for charge in listed["data"] if charge["paid"]]

    def refunds(self, charge_id: str) -> list[str]:
        """Return the ids of the refunds of a charge."""
        query = {"charge": charge_id, "limit": str(_CHARGES_MAX)}
        return [
            refund["id"]
            for refund in self._done(self._http.get("/v1/refunds", params=query))["data"]
        ]

    def lose_answers(self, times: int, endpoint: str = "POST /v1/charges") -> None:
        """Let the next `times` charges (or refunds) happen and their answers get lost."""
        fault = {"match": endpoint, "kind": "drop_after", "times": times}
        self._done(self._http.post("/_sandbox/faults", json=[fault]))

    def answers_still_to_lose(self) -> int:
        """Return how many faults nobody has met."""
        faults = self._done(self._http.get("/_sandbox/faults"))["faults"]
        return sum(fault["times"] for fault in faults)

    def advance(self, seconds: int) -> None:
        """Turn the sandbox's clock forward."""
        self._done(self._http.post("/_sandbox/clock", json={"advance_seconds": seconds}))

    def month(self) -> str:
        """Return the billing period of today, by the sandbox's clock."""
        now_ms = self._done(self._http.get("/_sandbox/clock"))["now_ms"]
        return datetime.fromtimestamp(now_ms // 1000, UTC).strftime("%Y-%m")

    def _done(self, answer: httpx.Response) -> Any:
        if answer.status_code != 200:
            raise DemoError(f"the sandbox says {answer.status_code}: {answer.text}")
        return answer.json()
