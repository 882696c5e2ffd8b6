"""Retention: old answers go, what is still needed stays, and a replay is the same."""

from __future__ import annotations

from pathlib import Path

from kb_mcp.proxy.retention import RETAIN_MS
from tests.house import House

DAYS_S = RETAIN_MS // 1000


def drop(house: House) -> int:
    house.run(house.proxy.app.desk.follow())
    return house.run(house.proxy.retention.run(house.proxy.store.clock.now(0)))


def test_only_answers_of_what_is_over_for_good_are_dropped(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        made = house.charge(key, period="2026-11").json()["id"]
        assert house.charge(key, customer="cus_Declined", period="2026-11").status_code == 402
        house.fault("drop_before")
        house.charge(key, customer="cus_C3", period="2026-11")
        house.turn_clock(DAYS_S - 60)
        assert drop(house) == 0
        house.turn_clock(120)
        assert drop(house) == 1
        assert drop(house) == 0
        answers = {op.customer: op.answer is not None for op in house.operations()}
        assert answers == {"cus_A1": False, "cus_Declined": True, "cus_C3": False}
        replayed = house.charge(key, period="2026-11")
        assert (replayed.json()["id"], replayed.headers["idempotent-replayed"]) == (made, "true")
