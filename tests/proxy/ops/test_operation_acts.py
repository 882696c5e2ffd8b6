"""What an operator does to one operation over HTTP: resolve, reopen, find again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import House, error_of
from tests.months import lately
from tests.proxy.ops.desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with House(tmp_path) as house:
        yield Desk(house)


def test_an_unknown_operation_is_settled_only_with_its_own_charge(desk: Desk) -> None:
    key = desk.house.issue()
    other = desk.house.charge(key, customer="cus_B2", period="2026-11").json()["id"]
    desk.house.fault("drop_after")
    desk.house.charge(key, period="2026-11")
    (made,) = [each["id"] for each in desk.house.charges() if each["customer"] == "cus_A1"]
    path = f"/operations/{desk.house.operations(customer_id='cus_A1')[0].id}/resolve"
    for wrong in (other, "ch_none", "../x", "ch_none?x"):
        answer = desk.api("POST", path, json={"succeeded": wrong})
        assert (answer.status_code, error_of(answer)) == (409, "operation_state")
    settled = desk.api("POST", path, json={"succeeded": made})
    assert (settled.json()["state"], settled.json()["charge_id"]) == ("succeeded", made)
    again = desk.api("POST", path, json={"succeeded": made})
    assert (again.status_code, error_of(again)) == (409, "operation_state")
    assert desk.admin_rows()[-1] == ("resolve_succeeded", "admin")


def test_a_void_loses_to_the_charge_that_stripe_shows(desk: Desk) -> None:
    key = desk.house.issue()
    desk.house.fault("drop_after")
    desk.house.charge(key, period="2026-11")
    path = f"/operations/{desk.house.operations()[0].id}/resolve"
    answer = desk.api("POST", path, json={"void": True, "reason": "I think so"})
    assert (answer.status_code, error_of(answer)) == (409, "operation_state")
    assert desk.house.operations()[0].state == "succeeded"


def test_a_void_waits_until_stripe_cannot_be_at_it_any_more(desk: Desk) -> None:
    key = desk.house.issue()
    desk.house.fault("drop_before")
    desk.house.charge(key, period="2026-11")
    path = f"/operations/{desk.house.operations()[0].id}/resolve"
    said = {"void": True, "reason": "Stripe's dashboard shows nothing"}
    assert desk.api("POST", path, json=said).status_code == 409
    desk.house.turn_clock(3600)
    desk.house.run(desk.house.proxy.app.desk.follow())
    assert desk.api("POST", path, json=said).json()["state"] == "voided"
    assert desk.house.charge(key, period="2026-11").status_code == 200
    assert len(desk.house.charges()) == 1


@pytest.mark.parametrize(
    "body", [{}, {"void": True}, {"succeeded": "ch_1", "void": True}, {"succeeded": ""}]
)
def test_a_resolution_that_cannot_be_meant_changes_nothing(
    desk: Desk, body: dict[str, object]
) -> None:
    key = desk.house.issue()
    desk.house.fault("drop_after")
    desk.house.charge(key, period="2026-11")
    path = f"/operations/{desk.house.operations()[0].id}/resolve"
    answer = desk.api("POST", path, json=body)
    assert (answer.status_code, error_of(answer)) == (400, "parameter_invalid")
    assert desk.house.operations()[0].state == "unknown"


def test_a_refunded_bill_is_reopened_and_charged_once_more(desk: Desk) -> None:
    key = desk.house.issue()
    made = desk.house.charge(key, period="2026-11").json()["id"]
    headers = {"Authorization": "Bearer rk_test_sandbox"}
    desk.house.stripe.post("/v1/refunds", data={"charge": made}, headers=headers)
    assert desk.house.charge(key, period="2026-11").json()["id"] == made
    path = f"/operations/{desk.house.operations()[0].id}/reopen"
    assert desk.api("POST", path, json={"reason": "wrong card"}).status_code == 200
    assert desk.house.charge(key, period="2026-11").json()["id"] != made
    assert len(desk.house.charges()) == 2


def test_operations_and_rows_are_found_by_agent_and_session(desk: Desk) -> None:
    key = desk.house.issue()
    headers = {
        "Authorization": f"Bearer {key.token}",
        "Keybrake-Agent": "biller",
        "Keybrake-Session": "s-1",
    }
    form = {"customer": "cus_A1", "amount": "2900", "currency": "usd"}
    form["metadata[billing_period]"] = lately("2026-11")
    desk.house.client.post("/v1/charges", data=form, headers=headers)
    desk.house.charge(key, customer="cus_B2", period="2026-11")
    desk.log_in()
    for query, found in (
        ("agent=biller", True),
        ("session=s-1", True),
        ("agent=biller&session=s-2", False),
        ("agent=biller&customer=cus_B2", False),
    ):
        page = desk.browser.get(f"/operations?{query}").text
        assert ("cus_A1</td>" in page, "cus_B2</td>" in page) == (found, False)
    rows = desk.api("GET", "/audit?session=s-1").json()["data"]
    assert {row["customer_id"] for row in rows} == {"cus_A1"}
    assert len(rows) == 2
