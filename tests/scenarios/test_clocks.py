"""Clocks that were set wrong void nothing, resend nothing, count nothing anew, lose nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kb_mcp.sandbox.app import create_sandbox
from kb_mcp.sandbox.server import start_in_thread
from kb_mcp.wiring.machine import host_ms, random_name
from tests.house import House, error_of
from tests.scenarios.acts import broken_invariants, day_windows, follow, turn_to_midnight

DAY_MS = 86_400_000
HOUR_MS = 3_600_000


class Elsewhere:
    """A Stripe behind a socket, whose clock is `ahead_ms` of this host's."""

    def __init__(self, folder: Path) -> None:
        self.ahead_ms = 0
        self.sandbox = create_sandbox(
            folder / "elsewhere.db",
            clock=lambda: host_ms() + self.ahead_ms,
            new_id=random_name,
        )


@contextmanager
def house_of(folder: Path, stripe: Elsewhere, **more: str) -> Iterator[House]:
    """Build a house in test mode, which compares its clock with Stripe's and follows nobody."""
    with start_in_thread(stripe.sandbox) as url:
        environ = {"KEYBRAKE_STRIPE_KEY": "rk_test_Abc", "KEYBRAKE_STRIPE_API_BASE": url}
        with House(folder, **environ, **more) as house:
            house.run(house.proxy.start())
            yield house


def charge_count(stripe: Elsewhere) -> int:
    with stripe.sandbox._store.transaction() as records:  # noqa: SLF001 - what really happened
        return len(records.everything("charge"))


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_set_a_day_off_sends_nothing_until_it_is_right(tmp_path: Path, days: int) -> None:
    stripe = Elsewhere(tmp_path)
    # First in step, where both are `days` behind what the host will say after it was set.
    stripe.ahead_ms = -days * DAY_MS
    in_step = {"KEYBRAKE_CLOCK_OFFSET": str(-days * 86_400)}
    with house_of(tmp_path, stripe, **in_step) as house:
        key = house.issue(daily={"usd": 2900})
        made = house.charge(key, period="2026-11").json()["id"]
        windows = day_windows(house)
    with house_of(tmp_path, stripe) as house:
        refused = house.charge(key, customer="cus_B2", period="2026-11")
        assert (refused.status_code, error_of(refused)) == (503, "ledger_unavailable")
        assert house.charge(key, period="2026-11").json()["id"] == made
        assert (day_windows(house), charge_count(stripe)) == (windows, 1)
    stripe.ahead_ms = 0
    with house_of(tmp_path, stripe) as house:
        # Set right: forward, that is another day; back, it is a day that was used up already.
        answer = house.charge(key, customer="cus_B2", period="2026-11")
        assert answer.status_code == (200 if days > 0 else 403)
        assert broken_invariants(house) == []


def test_a_skewed_clock_voids_nothing_and_resends_nothing(tmp_path: Path) -> None:
    stripe = Elsewhere(tmp_path)
    with house_of(tmp_path, stripe) as house:
        key = house.issue()
        with stripe.sandbox._store.transaction() as records:  # noqa: SLF001 - a fault, as if posted
            records.run("put_fault", "POST /v1/charges", "drop_before", 1, 0)
        assert house.charge(key, period="2026-11").status_code == 504
        stripe.ahead_ms = HOUR_MS
        house.recover()
        # An hour is past grace; but whose hour it is, nobody knows.
        assert house.operations()[0].state.value == "unknown"
        assert error_of(house.charge(key, period="2026-11")) == "outcome_unknown"
        assert charge_count(stripe) == 0
        stripe.ahead_ms = 0
        house.recover()
        assert house.charge(key, period="2026-11").status_code == 200
        assert charge_count(stripe) == 1


@pytest.mark.parametrize("offset_s", [-86_400, -3_600, 86_400])
def test_time_never_runs_back_for_a_store(tmp_path: Path, offset_s: int) -> None:
    with House(tmp_path) as house:
        turn_to_midnight(house, before_s=12 * 3_600)
        key = house.issue(daily={"usd": 2900})
        made = house.charge(key, period="2026-11").json()["id"]
        now = follow(house)
        moved = {"KEYBRAKE_CLOCK_OFFSET": str(offset_s)}
    with House(tmp_path, **moved) as house:
        assert house.charge(key, period="2026-11").json()["id"] == made
        house.run(house.proxy.app.desk.follow())
        refused = house.charge(key, customer="cus_B2", period="2026-11")
        assert refused.status_code == (200 if offset_s > 0 else 403)
        times = [each.reserved_at for each in house.operations()]
        assert all(at >= now - 60_000 for at in times)
        assert broken_invariants(house) == []
    with House(tmp_path) as house:
        # Back in step: the day that was seen is not seen again with an empty window.
        refused = house.charge(key, customer="cus_C3", period="2026-11")
        assert error_of(refused) == "spend_cap_exceeded"
