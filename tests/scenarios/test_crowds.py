"""More callers than there is room for: told so at once, and nothing of them is kept."""

from __future__ import annotations

from pathlib import Path

from kb_mcp.proxy.edge.app import IN_FLIGHT_MAX, ROOM, AdmissionQueue
from tests.in_process_proxy import InProcessProxy, error_of


def test_one_too_many_is_turned_away_before_anything_of_it_is_read(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.proxy.app.in_flight = IN_FLIGHT_MAX
        answer = in_process.charge(key)
        assert (answer.status_code, error_of(answer)) == (503, "overloaded")
        assert answer.headers["stripe-should-retry"] == "true"
        assert answer.headers["request-id"].startswith("req_")
        assert in_process.client.get("/healthz").status_code == 200
        assert in_process.charges() == []
        in_process.proxy.app.in_flight = 0
        assert in_process.charge(key).status_code == 200
        assert len(in_process.charges()) == 1


def test_who_waits_too_long_for_a_turn_is_turned_away_with_nothing_kept(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        began, in_process.proxy.app.turns = (
            in_process.proxy.app.turns,
            AdmissionQueue(lambda: ROOM, wait_max_ms=0),
        )
        answer = in_process.charge(key)
        assert (answer.status_code, error_of(answer)) == (503, "overloaded")
        assert in_process.charges() == []
        assert in_process.proxy.app.in_flight == 0
        in_process.proxy.app.turns = began
        assert in_process.charge(key).status_code == 200


def test_whoever_is_turned_away_is_counted_in_the_audit(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.proxy.app.in_flight = IN_FLIGHT_MAX
        assert [in_process.charge(key).status_code for _ in range(3)] == [503] * 3
        in_process.proxy.app.in_flight = 0
        in_process.run(
            in_process.proxy.app.pipeline.refusal_counts.flush(in_process.proxy.store.ledger)
        )
        rows = list(in_process.proxy.store.records.audit(code="overloaded"))
        assert [(row["kind"], row["note"]) for row in rows] == [("noise", "3 requests")]
