"""What scenarios do again and again, beside `House`: turn to midnight, act as others, look on."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import httpx
from typing_extensions import override

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ToolName
from kb_mcp.agent.transport import AsgiTransport
from kb_mcp.proxy.ledger import Attempt
from kb_mcp.proxy.ops.invariants import Examination
from kb_mcp.proxy.policy import Policy
from kb_mcp.proxy.roles import built_in
from kb_mcp.settings import load_settings
from tests.house import House, Issued

STRIPE_KEY = {"Authorization": "Bearer rk_test_sandbox"}
DAY_S = 86_400
PAST_GRACE_S = 700
T = TypeVar("T")


def policy(**fields: Any) -> Policy:
    """Return the billing policy with some fields changed."""
    return built_in("billing").model_copy(update=fields)


def billing(house: House, key: Issued) -> Billing:
    """Return the tools' billing over this house's proxy, as an embedded door has it."""
    keys = {ToolName.CHARGE: lambda: key.token}
    transport = AsgiTransport(house.proxy.app, house.loop)
    return Billing(keys, "http://127.0.0.1", transport=transport)


@contextmanager
def another(house: House, **environ: str) -> Iterator[House]:
    """Open a second proxy before the same sandbox, on the same store unless `environ` says so."""
    annex = copy.copy(house)
    annex.settings = load_settings(house.environ | environ)
    annex._open()  # noqa: SLF001 - a house has one proxy; this is how it opens it
    try:
        yield annex
    finally:
        annex.run(annex.proxy.stop(0))


def follow(house: House) -> int:
    """Let the store's clock follow the sandbox's, and return the time (ms)."""
    house.run(house.proxy.app.desk.follow())
    return house.proxy.store.clock.now(0)


def turn_to_midnight(house: House, before_s: int) -> None:
    """Turn the sandbox's clock to `before_s` seconds before the next UTC midnight."""
    into_day_s = follow(house) // 1000 % DAY_S
    house.turn_clock((DAY_S - into_day_s - before_s) % DAY_S)


def post_at_stripe(house: House, path: str, key: str | None = None, **form: Any) -> httpx.Response:
    """Post to the sandbox directly, as somebody would who has the Stripe key."""
    named = {name: str(value) for name, value in form.items()}
    headers = STRIPE_KEY | ({} if key is None else {"Idempotency-Key": key})
    return house.stripe.post(path, data=named, headers=headers)


def deliver_late(house: House, attempt: Attempt) -> httpx.Response:
    """Let the stored request of `attempt` arrive at Stripe, after everybody thought it lost."""
    headers = STRIPE_KEY | {
        "Idempotency-Key": attempt.upstream_key,
        "Content-Type": "application/x-www-form-urlencoded",
    }
    return house.stripe.post(attempt.path, content=attempt.body, headers=headers)


def day_windows(house: House, scope: str = "key") -> dict[str, tuple[int, int]]:
    """Return (reserved, settled) of each day's money in `scope`, by the day."""
    found = house.run(house.proxy.store.records.windows(scope=scope))
    return {
        each.key.start: (each.reserved, each.settled)
        for each in found
        if each.key.window == "day" and each.key.currency
    }


def broken_invariants(house: House) -> list[str]:
    """Return what does not hold in the ledger, policies left out."""
    records = house.proxy.store.records
    audited = {row["operation_id"] for row in house.audit()}
    examination = Examination()
    for operation, attempts in house.run(records.operations()):
        examination.look(operation, attempts, audited=operation.id in audited)
    return examination.end(house.run(records.windows()), {}, {})


def hasten(house: House, times: int) -> None:
    """Let the governor's own clock run `times` as fast, so that its waits are over sooner."""
    desk = house.proxy.app.desk
    real = desk.governor.boottime_ms
    began = real()
    governor = replace(desk.governor, boottime_ms=lambda: began + (real() - began) * times)
    house.proxy.app.desk = replace(desk, governor=governor)


class Aside(threading.Thread):
    """Runs `work` beside the test; `result` waits for what it returned."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._result: Any = None
        self.start()

    @override
    def run(self) -> None:
        self._result = self._work()

    def result(self) -> Any:
        self.join(60)
        assert not self.is_alive(), "it did not end within a minute"
        return self._result
