"""What an operator does to one operation over HTTP: resolve, reopen, find again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.in_process_proxy import InProcessProxy, error_of
from tests.months import lately
from tests.operators.operators_app import OperatorsApp


@pytest.fixture
def operators_app(tmp_path: Path) -> Iterator[OperatorsApp]:
    with InProcessProxy(tmp_path) as in_process:
        yield OperatorsApp(in_process)


def test_an_unknown_operation_is_settled_only_with_its_own_charge(
    operators_app: OperatorsApp,
) -> None:
    key = operators_app.in_process.issue()
    other = operators_app.in_process.charge(key, customer="cus_B2", period="2026-11").json()["id"]
    operators_app.in_process.fault("drop_after")
    operators_app.in_process.charge(key, period="2026-11")
    (made,) = [
        each["id"] for each in operators_app.in_process.charges() if each["customer"] == "cus_A1"
    ]
    path = f"/operations/{operators_app.in_process.operations(customer_id='cus_A1')[0].id}/resolve"
    for wrong in (other, "ch_none", "../x", "ch_none?x"):
        answer = operators_app.api("POST", path, json={"succeeded": wrong})
        assert (answer.status_code, error_of(answer)) == (409, "operation_state")
    settled = operators_app.api("POST", path, json={"succeeded": made})
    assert (settled.json()["state"], settled.json()["charge_id"]) == ("succeeded", made)
    again = operators_app.api("POST", path, json={"succeeded": made})
    assert (again.status_code, error_of(again)) == (409, "operation_state")
    assert operators_app.admin_rows()[-1] == ("resolve_succeeded", "admin")


def test_a_void_loses_to_the_charge_that_stripe_shows(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    operators_app.in_process.fault("drop_after")
    operators_app.in_process.charge(key, period="2026-11")
    path = f"/operations/{operators_app.in_process.operations()[0].id}/resolve"
    answer = operators_app.api("POST", path, json={"void": True, "reason": "I think so"})
    assert (answer.status_code, error_of(answer)) == (409, "operation_state")
    assert operators_app.in_process.operations()[0].state == "succeeded"


def test_a_void_waits_until_stripe_cannot_be_at_it_any_more(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    operators_app.in_process.fault("drop_before")
    operators_app.in_process.charge(key, period="2026-11")
    path = f"/operations/{operators_app.in_process.operations()[0].id}/resolve"
    said = {"void": True, "reason": "Stripe's dashboard shows nothing"}
    assert operators_app.api("POST", path, json=said).status_code == 409
    operators_app.in_process.turn_clock(3600)
    operators_app.in_process.run(operators_app.in_process.proxy.app.pipeline.follow())
    first = operators_app.api("POST", path, json=said)
    assert (first.status_code, error_of(first)) == (409, "operation_state")
    assert "ask for the same in 60 seconds" in first.json()["error"]["message"]
    operators_app.in_process.turn_clock(61)
    operators_app.in_process.run(operators_app.in_process.proxy.app.pipeline.follow())
    assert operators_app.api("POST", path, json=said).json()["state"] == "voided"
    assert operators_app.in_process.charge(key, period="2026-11").status_code == 200
    assert len(operators_app.in_process.charges()) == 1


@pytest.mark.parametrize(
    "body", [{}, {"void": True}, {"succeeded": "ch_1", "void": True}, {"succeeded": ""}]
)
def test_a_resolution_that_cannot_be_meant_changes_nothing(
    operators_app: OperatorsApp, body: dict[str, object]
) -> None:
    key = operators_app.in_process.issue()
    operators_app.in_process.fault("drop_after")
    operators_app.in_process.charge(key, period="2026-11")
    path = f"/operations/{operators_app.in_process.operations()[0].id}/resolve"
    answer = operators_app.api("POST", path, json=body)
    assert (answer.status_code, error_of(answer)) == (400, "parameter_invalid")
    assert operators_app.in_process.operations()[0].state == "unknown"


def test_a_refunded_bill_is_reopened_and_charged_once_more(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    made = operators_app.in_process.charge(key, period="2026-11").json()["id"]
    headers = {"Authorization": "Bearer rk_test_sandbox"}
    operators_app.in_process.stripe.post("/v1/refunds", data={"charge": made}, headers=headers)
    assert operators_app.in_process.charge(key, period="2026-11").json()["id"] == made
    path = f"/operations/{operators_app.in_process.operations()[0].id}/reopen"
    assert operators_app.api("POST", path, json={"reason": "wrong card"}).status_code == 200
    assert operators_app.in_process.charge(key, period="2026-11").json()["id"] != made
    assert len(operators_app.in_process.charges()) == 2


def test_what_waives_a_suspicion_is_not_told_as_a_bill_that_may_be_made_once_more(
    operators_app: OperatorsApp,
) -> None:
    in_process = operators_app.in_process
    in_process.charge(in_process.issue(), period="2026-11")
    path = f"/operations/{in_process.operations()[0].id}"
    operators_app.log_in()
    page = operators_app.submit(path, f"{path}/reopen", {"reason": "a second seat"})
    told = operators_app.browser.get(page.headers["location"]).text
    assert "this bill stays charged" in told
    assert "once more" not in told.split("Reopen…")[0]
    assert "admin waived a suspicion" in told
    assert operators_app.admin_rows()[-1] == ("waive", "admin")


def test_operations_and_rows_are_found_by_agent_and_session(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    headers = {
        "Authorization": f"Bearer {key.token}",
        "Keybrake-Agent": "biller",
        "Keybrake-Session": "s-1",
    }
    form = {"customer": "cus_A1", "amount": "2900", "currency": "usd"}
    form["metadata[billing_period]"] = lately("2026-11")
    operators_app.in_process.client.post("/v1/charges", data=form, headers=headers)
    operators_app.in_process.charge(key, customer="cus_B2", period="2026-11")
    operators_app.log_in()
    for query, found in (
        ("agent=biller", True),
        ("session=s-1", True),
        ("agent=biller&session=s-2", False),
        ("agent=biller&customer=cus_B2", False),
    ):
        page = operators_app.browser.get(f"/operations?{query}").text
        assert ("cus_A1</td>" in page, "cus_B2</td>" in page) == (found, False)
    rows = operators_app.api("GET", "/audit?session=s-1").json()["data"]
    assert {row["customer_id"] for row in rows} == {"cus_A1"}
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/operations/%00"),
        ("POST", "/operations/%00/reset"),
        ("POST", "/approvals/%00/approve"),
        ("GET", "/spend?key=%00"),
    ],
)
def test_an_id_that_cannot_be_printed_is_not_found(
    operators_app: OperatorsApp, method: str, path: str
) -> None:
    assert operators_app.api(method, path).status_code == 404


def test_what_no_row_can_hold_is_found_nowhere(operators_app: OperatorsApp) -> None:
    operators_app.in_process.charge(operators_app.in_process.issue(), period="2026-11")
    for query in ("operations?customer=%00", "operations?charge=%00", "audit?code=%00"):
        assert operators_app.api("GET", f"/{query}").json()["data"] == []
    grant = {"issuer": "https://idp.example", "match": {"sub": "a"}}
    answer = operators_app.api("POST", "/grants", json={**grant, "key_id": "\0"})
    assert answer.status_code == 404
    body = {**grant, "issuer": "https://idp.example/\0", "key_id": "x"}
    assert operators_app.api("POST", "/grants", json=body).status_code == 400
