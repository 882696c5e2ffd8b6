"""What scenarios do again and again: turn to midnight, act as others, look on."""

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
from kb_mcp.agent.client.line import InProcessLine
from kb_mcp.operators.reports.invariants import Examination
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.ledger.records import Attempt
from kb_mcp.settings import load_settings
from tests.in_process_proxy import InProcessProxy, Issued

STRIPE_KEY = {"Authorization": "Bearer rk_test_sandbox"}
DAY_S = 86_400
PAST_GRACE_S = 700
T = TypeVar("T")


def policy(**fields: Any) -> Policy:
    """Return the billing policy with some fields changed."""
    return built_in("billing").model_copy(update=fields)


def billing(in_process: InProcessProxy, key: Issued) -> Billing:
    """Return the tools' billing over this proxy, as an embedded door has it."""
    keys = {ToolName.CHARGE: lambda: key.token}
    return Billing(keys, InProcessLine(in_process.proxy.app, in_process.loop))


@contextmanager
def another(in_process: InProcessProxy, **environ: str) -> Iterator[InProcessProxy]:
    """Open a second proxy before the same sandbox, on the same store unless `environ` says so."""
    annex = copy.copy(in_process)
    annex.settings = load_settings(in_process.environ | environ)
    annex._open()  # noqa: SLF001 - this is how the embedded door opens its proxy
    try:
        yield annex
    finally:
        annex.run(annex.proxy.stop(0))


def follow(in_process: InProcessProxy) -> int:
    """Let the store's clock follow the sandbox's, and return the time (ms)."""
    in_process.run(in_process.proxy.app.pipeline.follow())
    return in_process.proxy.store.clock.now(0)


def turn_to_midnight(in_process: InProcessProxy, before_s: int) -> None:
    """Turn the sandbox's clock to `before_s` seconds before the next UTC midnight."""
    into_day_s = follow(in_process) // 1000 % DAY_S
    in_process.turn_clock((DAY_S - into_day_s - before_s) % DAY_S)


def post_at_stripe(
    in_process: InProcessProxy, path: str, key: str | None = None, **form: Any
) -> httpx.Response:
    """Post to the sandbox directly, as somebody would who has the Stripe key."""
    named = {name: str(value) for name, value in form.items()}
    headers = STRIPE_KEY | ({} if key is None else {"Idempotency-Key": key})
    return in_process.stripe.post(path, data=named, headers=headers)


def deliver_late(in_process: InProcessProxy, attempt: Attempt) -> httpx.Response:
    """Let the stored request of `attempt` arrive at Stripe, after everybody thought it lost."""
    headers = STRIPE_KEY | {
        "Idempotency-Key": attempt.upstream_key,
        "Content-Type": "application/x-www-form-urlencoded",
    }
    return in_process.stripe.post(attempt.path, content=attempt.body, headers=headers)


def day_windows(in_process: InProcessProxy, scope: str = "key") -> dict[str, tuple[int, int]]:
    """Return (reserved, settled) of each day's money in `scope`, by the day."""
    found = in_process.run(in_process.proxy.store.records.windows(scope=scope))
    return {
        each.key.start: (each.reserved, each.settled)
        for each in found
        if each.key.window == "day" and each.key.currency
    }


def broken_invariants(in_process: InProcessProxy) -> list[str]:
    """Return what does not hold in the ledger, policies left out."""
    records = in_process.proxy.store.records
    audited = {row["operation_id"] for row in in_process.audit()}
    examination = Examination()
    for operation, attempts in in_process.run(records.operations()):
        examination.look(operation, attempts, audited=operation.id in audited)
    return examination.end(in_process.run(records.windows()), {}, {})


def hasten(in_process: InProcessProxy, times: int) -> None:
    """Let the governor's own clock run `times` as fast, so that its waits are over sooner."""
    pipeline = in_process.proxy.app.pipeline
    real = pipeline.governor.boottime_ms
    began = real()
    governor = replace(pipeline.governor, boottime_ms=lambda: began + (real() - began) * times)
    in_process.proxy.app.pipeline = replace(pipeline, governor=governor)


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
