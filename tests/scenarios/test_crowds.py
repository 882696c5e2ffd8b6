"""More callers than there is room for: told so at once, and nothing of them is kept."""

from __future__ import annotations

from pathlib import Path

from kb_mcp.proxy.http import IN_FLIGHT_MAX
from kb_mcp.proxy.turns import ROOM, Turns
from tests.house import House, error_of


def test_one_too_many_is_turned_away_before_anything_of_it_is_read(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        house.proxy.app.in_flight = IN_FLIGHT_MAX
        answer = house.charge(key)
        assert (answer.status_code, error_of(answer)) == (503, "overloaded")
        assert answer.headers["stripe-should-retry"] == "true"
        assert answer.headers["request-id"].startswith("req_")
        assert house.client.get("/healthz").status_code == 200
        assert house.charges() == []
        house.proxy.app.in_flight = 0
        assert house.charge(key).status_code == 200
        assert len(house.charges()) == 1


def test_who_waits_too_long_for_a_turn_is_turned_away_with_nothing_kept(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        began, house.proxy.app.turns = house.proxy.app.turns, Turns(lambda: ROOM, wait_max_ms=0)
        answer = house.charge(key)
        assert (answer.status_code, error_of(answer)) == (503, "overloaded")
        assert house.charges() == []
        assert house.proxy.app.in_flight == 0
        house.proxy.app.turns = began
        assert house.charge(key).status_code == 200


def test_whoever_is_turned_away_is_counted_in_the_audit(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        house.proxy.app.in_flight = IN_FLIGHT_MAX
        assert [house.charge(key).status_code for _ in range(3)] == [503] * 3
        house.proxy.app.in_flight = 0
        house.run(house.proxy.app.desk.noise.flush(house.proxy.store.ledger))
        rows = list(house.proxy.store.records.audit(code="overloaded"))
        assert [(row["kind"], row["note"]) for row in rows] == [("noise", "3 requests")]
