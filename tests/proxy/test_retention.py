"""Retention: old answers go, what is still needed stays, and a replay is the same."""

from __future__ import annotations

from pathlib import Path

from kb_mcp.proxy.recovery import RETAIN_MS
from tests.in_process_proxy import InProcessProxy

DAYS_S = RETAIN_MS // 1000


def drop(in_process: InProcessProxy) -> int:
    in_process.run(in_process.proxy.app.pipeline.follow())
    return in_process.run(in_process.proxy.recovery.drop_answers())


def test_only_answers_of_what_is_over_for_good_are_dropped(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        made = in_process.charge(key, period="2026-11").json()["id"]
        assert in_process.charge(key, customer="cus_Declined", period="2026-11").status_code == 402
        in_process.fault("drop_before")
        in_process.charge(key, customer="cus_C3", period="2026-11")
        in_process.turn_clock(DAYS_S - 60)
        assert drop(in_process) == 0
        in_process.turn_clock(120)
        assert drop(in_process) == 1
        assert drop(in_process) == 0
        answers = {op.customer: op.answer is not None for op in in_process.operations()}
        assert answers == {"cus_A1": False, "cus_Declined": True, "cus_C3": False}
        replayed = in_process.charge(key, period="2026-11")
        assert (replayed.json()["id"], replayed.headers["idempotent-replayed"]) == (made, "true")
