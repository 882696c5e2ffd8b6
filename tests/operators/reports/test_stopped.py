"""What was stopped, in money: the figures of a story whose numbers are known, on both stores."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from kb_mcp.instants import day_of
from kb_mcp.operators.reports.stopped import Figures, stopped_figures
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.roles import built_in
from tests.in_process_proxy import InProcessProxy, Issued, error_of
from tests.operators.operators_app import asking_above
from tests.postgres import database, server

__all__ = ["database", "server"]

DAY_S = 86_400


@pytest.fixture(params=["sqlite", "postgres"])
def in_process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InProcessProxy]:
    stored: dict[str, str] = {}
    if request.param == "postgres":
        stored = request.getfixturevalue("database").environ
    with InProcessProxy(tmp_path, **stored) as built:
        built.begin_day()
        built.run(built.proxy.app.pipeline.follow())
        yield built


def figures(in_process: InProcessProxy, later: timedelta = timedelta()) -> Figures:
    store = in_process.proxy.store
    today = day_of(store.clock.now(0)) + later
    return in_process.run(stopped_figures(store.records, today))


def refunds_key(in_process: InProcessProxy) -> Issued:
    fields = built_in("refunds").model_dump(mode="json", by_alias=True)
    return in_process.issue(Policy.model_validate(fields, strict=False))


def test_each_repeated_call_counts_once_with_the_amount_of_its_operation(
    in_process: InProcessProxy,
) -> None:
    key = in_process.issue()
    for number in range(4):
        for _ in range(1 + number):
            in_process.charge(key, customer=f"cus_N{number}", period="2026-11")
    for _ in range(3):
        in_process.charge(key, currency="jpy", amount=500, customer="cus_J", period="2026-11")
    assert len(in_process.charges()) == 5
    today = figures(in_process).today
    assert (today.repeated.calls, today.repeated.charges) == (8, {"usd": 6 * 2900, "jpy": 1000})
    assert today == figures(in_process).month
    assert (today.repeated.refunds, today.duplicate.calls, today.refused.calls) == ({}, 0, 0)


def test_callers_that_waited_for_the_same_charge_count_as_repeated(
    in_process: InProcessProxy,
) -> None:
    key = in_process.issue()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: in_process.charge(key, period="2026-11"), range(6)))
    assert [each.status_code for each in answers] == [200] * 6
    assert len(in_process.charges()) == 1
    repeated = figures(in_process).today.repeated
    assert (repeated.calls, repeated.charges) == (5, {"usd": 5 * 2900})


def test_a_decline_that_is_told_again_saved_nothing(in_process: InProcessProxy) -> None:
    key = in_process.issue()
    in_process.fault("402")
    for _ in range(3):
        assert in_process.charge(key, period="2026-11").status_code == 402
    assert figures(in_process).today.repeated.calls == 0


def test_a_step_that_is_told_again_is_no_second_charge(in_process: InProcessProxy) -> None:
    path = "/v1/payment_intents"
    allow = (f"POST {path}", f"POST {path}/*/confirm")
    key = in_process.issue(built_in("billing-payment-intents").model_copy(update={"allow": allow}))
    form = {"payment_method": "pm_card_visa", "confirm": "false"}
    made = [in_process.charge(key, path, period="2026-11", **form).json() for _ in range(2)]
    headers = {"Authorization": f"Bearer {key.token}"}
    for _ in range(3):
        done = in_process.client.post(f"{path}/{made[0]['id']}/confirm", headers=headers)
        assert (done.status_code, done.json()["status"]) == (200, "succeeded"), done.text
    repeated = figures(in_process).today.repeated
    assert (repeated.calls, repeated.charges) == (1, {"usd": 2900})


def test_duplicates_refusals_and_what_is_held_are_told_apart(in_process: InProcessProxy) -> None:
    key, asking = in_process.issue(daily={"usd": 5000}), asking_above(in_process, 1000)
    in_process.charge(key, period="2026-11")
    drifted = in_process.charge(key, period="2026-11", amount=2901)
    assert error_of(drifted) == "period_already_charged"
    over = in_process.charge(key, customer="cus_B2", period="2026-11", amount=4000)
    assert error_of(over) == "spend_cap_exceeded"
    assert error_of(in_process.charge(key, "/v1/payouts")) == "vault_key_not_authorized"
    for _ in range(3):
        held = in_process.charge(asking, customer="cus_Big", period="2026-11", amount=7000)
        assert error_of(held) == "approval_required"
    in_process.fault("drop_after")
    lost = in_process.charge(key, customer="cus_C3", period="2026-11", amount=100)
    assert lost.status_code == 504
    today = figures(in_process).today
    assert (today.duplicate.calls, today.duplicate.charges) == (1, {"usd": 2901})
    assert (today.held.calls, today.held.charges) == (1, {"usd": 7000})
    assert (today.refused.calls, today.refused.charges) == (2, {"usd": 4000})
    assert dict(figures(in_process).codes)["approval_required"] == 2


def test_refunds_stand_beside_charges(in_process: InProcessProxy) -> None:
    charge = in_process.charge(in_process.issue(), period="2026-11").json()["id"]
    key = refunds_key(in_process)
    for _ in range(3):
        assert in_process.refund(key, charge).status_code == 200
    assert error_of(in_process.refund(key, charge, amount=100)) == "already_refunded"
    assert len(in_process.refunds()) == 1
    today = figures(in_process).today
    assert (today.repeated.calls, today.repeated.refunds) == (2, {"usd": 5800})
    assert (today.duplicate.calls, today.duplicate.refunds) == (1, {"usd": 100})
    assert today.repeated.charges == today.duplicate.charges == {}


def test_agents_and_keys_have_figures_of_their_own(in_process: InProcessProxy) -> None:
    day, night = in_process.issue(), in_process.issue()
    form = {"customer": "cus_A1", "amount": "2900", "currency": "usd", "description": "Oil"}
    for agent, key, calls in (("owl", night, 4), ("owl", day, 2), ("lark", day, 1)):
        headers = {"Authorization": f"Bearer {key.token}", "Keybrake-Agent": agent}
        for _ in range(calls):
            in_process.client.post("/v1/charges", data=form, headers=headers)
    assert len(in_process.charges()) == 1
    found = [(each.agent_id, each.key_id, each.month) for each in figures(in_process).by_key]
    # One charge was made; the six calls beside it were answered with it.
    assert [(agent, key, sums.repeated.calls) for agent, key, sums in found] == [
        ("owl", night.id, 3), ("owl", day.id, 2), ("lark", day.id, 1),
    ]  # fmt: skip
    assert found[0][2].repeated.charges == {"usd": 3 * 2900}


def test_a_month_adds_up_its_days_and_a_day_begins_anew(in_process: InProcessProxy) -> None:
    key = in_process.issue()
    for _ in range(2):
        in_process.charge(key, period="2026-11")
    first = figures(in_process)
    next_day = figures(in_process, timedelta(days=1))
    assert first.days[-1][1] == next_day.days[-2][1] == 1
    assert (next_day.today.repeated.calls, next_day.days[-1][1]) == (0, 0)
    month_on = figures(in_process, timedelta(days=40))
    assert (month_on.month.repeated.calls, month_on.by_key) == (0, [])


def test_the_figures_outlive_the_process(in_process: InProcessProxy) -> None:
    key = in_process.issue()
    in_process.charge(key, period="2026-11")
    in_process.restart()
    in_process.charge(key, period="2026-11")
    assert figures(in_process).today.repeated.charges == {"usd": 2900}
