"""Clocks that were set wrong void nothing, resend nothing, count nothing anew, lose nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kb_mcp.sandbox.app import Sandbox
from kb_mcp.serving.machine import host_ms, random_name
from tests.in_process_proxy import InProcessProxy, error_of
from tests.sandbox.driver import start_in_thread
from tests.scenarios.acts import broken_invariants, day_windows, follow, turn_to_midnight

DAY_MS = 86_400_000
HOUR_MS = 3_600_000


class Elsewhere:
    """A Stripe behind a socket, whose clock is `ahead_ms` of this host's."""

    def __init__(self, folder: Path) -> None:
        self.ahead_ms = 0
        self.sandbox = Sandbox(
            folder / "elsewhere.db",
            clock=lambda: host_ms() + self.ahead_ms,
            new_id=random_name,
        )


@contextmanager
def house_of(folder: Path, stripe: Elsewhere, **more: str) -> Iterator[InProcessProxy]:
    """Build a proxy in test mode, which compares its clock with Stripe's and follows nobody."""
    with start_in_thread(stripe.sandbox) as url:
        environ = {"KEYBRAKE_STRIPE_KEY": "rk_test_Abc", "KEYBRAKE_STRIPE_API_BASE": url}
        with InProcessProxy(folder, **environ, **more) as in_process:
            in_process.run(in_process.proxy.start())
            yield in_process


def charge_count(stripe: Elsewhere) -> int:
    with stripe.sandbox._store.transaction() as records:  # noqa: SLF001 - what really happened
        return len(records.select("charge"))


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_set_a_day_off_sends_nothing_until_it_is_right(tmp_path: Path, days: int) -> None:
    stripe = Elsewhere(tmp_path)
    # First in step, where both are `days` behind what the host will say after it was set.
    stripe.ahead_ms = -days * DAY_MS
    in_step = {"KEYBRAKE_CLOCK_OFFSET": str(-days * 86_400)}
    with house_of(tmp_path, stripe, **in_step) as in_process:
        key = in_process.issue(daily={"usd": 2900})
        made = in_process.charge(key, period="2026-11").json()["id"]
        windows = day_windows(in_process)
    with house_of(tmp_path, stripe) as in_process:
        refused = in_process.charge(key, customer="cus_B2", period="2026-11")
        assert (refused.status_code, error_of(refused)) == (503, "ledger_unavailable")
        assert in_process.charge(key, period="2026-11").json()["id"] == made
        assert (day_windows(in_process), charge_count(stripe)) == (windows, 1)
    stripe.ahead_ms = 0
    with house_of(tmp_path, stripe) as in_process:
        # Set right: forward, that is another day; back, the store has seen a later time, and only
        # an operator may say that it never was.
        answer = in_process.charge(key, customer="cus_B2", period="2026-11")
        assert answer.status_code == (200 if days > 0 else 503)
        assert broken_invariants(in_process) == []


def test_a_skewed_clock_voids_nothing_and_resends_nothing(tmp_path: Path) -> None:
    stripe = Elsewhere(tmp_path)
    with house_of(tmp_path, stripe) as in_process:
        key = in_process.issue()
        with stripe.sandbox._store.transaction() as records:  # noqa: SLF001 - a fault, as if posted
            records.run("put_fault", "POST /v1/charges", "drop_before", 1, 0)
        assert in_process.charge(key, period="2026-11").status_code == 504
        stripe.ahead_ms = HOUR_MS
        in_process.recover()
        # An hour is past grace; but whose hour it is, nobody knows.
        assert in_process.operations()[0].state.value == "unknown"
        assert error_of(in_process.charge(key, period="2026-11")) == "outcome_unknown"
        assert charge_count(stripe) == 0
        stripe.ahead_ms = 0
        in_process.recover()
        assert in_process.charge(key, period="2026-11").status_code == 200
        assert charge_count(stripe) == 1


@pytest.mark.parametrize("offset_s", [-86_400, -3_600, 86_400])
def test_time_never_runs_back_for_a_store(tmp_path: Path, offset_s: int) -> None:
    with InProcessProxy(tmp_path) as in_process:
        turn_to_midnight(in_process, before_s=12 * 3_600)
        key = in_process.issue(daily={"usd": 2900})
        made = in_process.charge(key, period="2026-11").json()["id"]
        now = follow(in_process)
        moved = {"KEYBRAKE_CLOCK_OFFSET": str(offset_s)}
    with InProcessProxy(tmp_path, **moved) as in_process:
        assert in_process.charge(key, period="2026-11").json()["id"] == made
        in_process.run(in_process.proxy.app.pipeline.follow())
        refused = in_process.charge(key, customer="cus_B2", period="2026-11")
        assert refused.status_code == (200 if offset_s > 0 else 403)
        times = [each.reserved_at for each in in_process.operations()]
        assert all(at >= now - 60_000 for at in times)
        assert broken_invariants(in_process) == []
    with InProcessProxy(tmp_path) as in_process:
        # Back in step: the day that was seen is not seen again with an empty window.
        refused = in_process.charge(key, customer="cus_C3", period="2026-11")
        assert error_of(refused) == "spend_cap_exceeded"
