"""The admin API on a real store, in front of the real path of a charge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.operators.sign_in import FAILURES_MAX
from kb_mcp.periods import parse_period
from tests.in_process_proxy import InProcessProxy, Issued, error_of
from tests.months import lately
from tests.operators.operators_app import OTHER_TOKEN, TOKEN, OperatorsApp, asking_above

LISTS = ["keys", "operations", "spend", "audit", "approvals", "grants"]


@pytest.fixture
def operators_app(tmp_path: Path) -> Iterator[OperatorsApp]:
    with InProcessProxy(tmp_path, KEYBRAKE_ACCOUNT_DAILY_CAP="50000.00usd") as in_process:
        yield OperatorsApp(in_process)


@pytest.mark.parametrize("name", LISTS)
def test_every_list_wants_an_operators_token(operators_app: OperatorsApp, name: str) -> None:
    client = operators_app.visitor()
    without = client.get(f"/admin/v1/{name}")
    wrong = operators_app.api("GET", f"/{name}", token="operator-token-that-is-none")
    assert (without.status_code, error_of(without)) == (401, "operator_token_missing")
    assert (wrong.status_code, error_of(wrong)) == (401, "operator_token_unknown")
    assert "bearer" in without.headers["www-authenticate"].lower()
    assert operators_app.api("GET", f"/{name}").json()["object"] == "list"


def test_a_vault_key_is_no_operators_token(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    assert operators_app.api("GET", "/keys", token=key.token).status_code == 401


def test_without_any_operator_the_api_says_how_to_make_one(operators_app: OperatorsApp) -> None:
    operators_app.token, operators_app.named = None, {}
    answer = operators_app.api("GET", "/keys")
    assert (answer.status_code, error_of(answer)) == (503, "operators_not_configured")
    assert "KEYBRAKE_ADMIN_TOKEN" in answer.json()["error"]["message"]


def test_guessing_is_throttled_for_the_peer_that_guesses_and_for_a_minute(
    operators_app: OperatorsApp,
) -> None:
    wrong = [
        operators_app.api("GET", "/keys", token=f"guess-{n}").status_code
        for n in range(FAILURES_MAX)
    ]
    assert wrong == [401] * FAILURES_MAX
    blocked = operators_app.api("GET", "/keys")
    assert (blocked.status_code, error_of(blocked)) == (429, "rate_limited")
    assert 0 < int(blocked.headers["retry-after"]) <= 60
    operators_app.peer = "127.0.0.2"
    assert operators_app.api("GET", "/keys").status_code == 200
    operators_app.peer, operators_app.later_ms = "127.0.0.1", 60_000
    assert operators_app.api("GET", "/keys").status_code == 200


def test_an_issued_key_charges_within_its_caps_and_its_token_is_shown_once(
    operators_app: OperatorsApp,
) -> None:
    body = {
        "role": "billing",
        "label": "nightly",
        "agent": "biller",
        "caps": {"daily": {"usd": 3000}},
        "daily_charges": 5,
        "overlaps": "allow",
        "period_kinds": ["month"],
        "rate": "30/min",
        "expires_at": "30d",
    }
    issued = operators_app.api("POST", "/keys", json=body)
    assert issued.status_code == 201
    record = issued.json()
    token = record.pop("token")
    key = Issued(record["id"], token)
    assert operators_app.in_process.charge(key, period="2026-11").status_code == 200
    assert error_of(operators_app.in_process.charge(key, customer="cus_B2", period="2026-11")) == (
        "spend_cap_exceeded"
    )
    listed = operators_app.api("GET", "/keys")
    assert token not in listed.text
    assert [each["id"] for each in listed.json()["data"]] == [key.id]
    used = {"last_used_at": None}  # the record is of before the charges
    assert operators_app.api("GET", f"/keys/{key.id}").json() | used == record
    assert (record["label"], record["policy"]["rate"], record["policy"]["caps"]["daily"]) == (
        "nightly",
        30,
        {"usd": 3000},
    )
    assert operators_app.admin_rows() == [("issue", "admin")]


@pytest.mark.parametrize(
    "body",
    [
        {"role": "billing"},
        {"role": "billing", "uncapped": False},
        {"role": "billing", "caps": {"per_charge": {"usd": 100}}, "daily_charges": 5},
        {"policy": {"role": "x", "allow": ["POST /v1/payment_intents/*/confirm"]}},
        {"policy": {"role": "x", "allow": ["POST /v1/transfers"]}},
    ],
)
def test_a_key_that_moves_money_needs_a_cap_or_the_word_that_it_has_none(
    operators_app: OperatorsApp, body: dict[str, Any]
) -> None:
    answer = operators_app.api("POST", "/keys", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "cap_required", "caps")
    assert "daily, monthly or per_customer_daily" in error["message"]
    assert operators_app.api("GET", "/keys").json()["data"] == []
    assert operators_app.api("POST", "/keys", json={**body, "uncapped": True}).status_code == 201


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "role"),
        ({"role": "billing", "uncapped": "yes"}, "uncapped"),
        ({"role": "billing", "policy": {}}, "role"),
        ({"role": "no-such-role"}, "role"),
        ({"role": "billing", "colour": "red"}, "colour"),
        ({"role": "billing", "caps": {"daily": {"usd": 12.5}}}, "policy"),
        ({"role": "billing", "caps": {"weekly": {"usd": 100}}}, "policy"),
        ({"role": "billing", "caps": {"daily": {"usd": 0}}}, "policy"),
        ({"role": "billing", "rate": "fast"}, "policy"),
        ({"role": "billing", "label": 7}, "label"),
        ({"role": "billing", "label": "x" * 129}, "label"),
        ({"role": "billing", "expires_at": "yesterday"}, "expires_at"),
        ({"role": "billing", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"policy": {"role": "x", "allow": ["DELETE /v1/charges"]}}, "policy"),
    ],
)
def test_a_key_that_cannot_be_meant_is_refused_and_named(
    operators_app: OperatorsApp, body: dict[str, Any], param: str
) -> None:
    answer = operators_app.api("POST", "/keys", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "parameter_invalid", param)
    assert operators_app.api("GET", "/keys").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"role": "billing", "role": "audit"}', 400),
        (b"[" * 20_000, 400),
        (b'{"role": "' + b"x" * 70_000 + b'"}', 413),
        (b'{"label": "\\ud800", "role": "nope\\ud800"}', 400),
    ],
)
def test_a_body_that_is_no_plain_object_is_refused(
    operators_app: OperatorsApp, body: bytes, status: int
) -> None:
    assert operators_app.api("POST", "/keys", content=body).status_code == status


def test_a_revoked_key_makes_no_further_reservation(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    operators_app.in_process.charge(key, period="2026-10")
    answer = operators_app.api(
        "POST", f"/keys/{key.id}/revoke", json={"reason": "ran away\x1b[31m"}
    )
    assert answer.json()["revoke_reason"] == "ran away[31m"
    assert (answer.json()["under_way"], answer.json()["still_under_way"]) == (0, 0)
    assert error_of(operators_app.in_process.charge(key, period="2026-11")) == "vault_key_revoked"
    assert len(operators_app.in_process.charges()) == 1
    assert operators_app.admin_rows()[-1] == ("revoke", "admin")


def test_a_rotated_key_hands_its_caps_on_and_is_not_rotated_twice(
    operators_app: OperatorsApp,
) -> None:
    key = operators_app.in_process.issue(daily={"usd": 3000})
    operators_app.in_process.charge(key, period="2026-11")
    rotated = operators_app.api("POST", f"/keys/{key.id}/rotate", json={"overlap": "1h"}).json()
    successor = Issued(rotated["id"], rotated["token"])
    assert error_of(
        operators_app.in_process.charge(successor, customer="cus_B2", period="2026-11")
    ) == ("spend_cap_exceeded")
    again = operators_app.api("POST", f"/keys/{key.id}/rotate")
    assert (again.status_code, error_of(again)) == (409, "key_rotated")
    assert (
        operators_app.api(
            "POST", f"/keys/{successor.id}/rotate", json={"overlap": "long"}
        ).status_code
        == 400
    )


def test_a_revoked_key_cannot_come_back_by_rotation(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    operators_app.api("POST", f"/keys/{key.id}/revoke")
    answer = operators_app.api("POST", f"/keys/{key.id}/rotate")
    assert (answer.status_code, error_of(answer)) == (409, "key_revoked")
    assert len(operators_app.api("GET", "/keys").json()["data"]) == 1


def test_a_frozen_key_is_unfrozen_only_with_a_reason(operators_app: OperatorsApp) -> None:
    policy = {"role": "billing", "allow": ["POST /v1/charges"], "daily_declines": 1,
              "caps": {"daily": {"usd": 1_000_000}}}  # fmt: skip
    issued = operators_app.api("POST", "/keys", json={"policy": policy}).json()
    key = Issued(issued["id"], issued["token"])
    operators_app.in_process.charge(key, customer="cus_Declined", period="2026-11")
    assert error_of(operators_app.in_process.charge(key, period="2026-11")) == "vault_key_frozen"
    assert (
        operators_app.api("POST", f"/keys/{key.id}/unfreeze", json={"reason": " "}).status_code
        == 400
    )
    unfrozen = operators_app.api(
        "POST", f"/keys/{key.id}/unfreeze", json={"reason": "looked at it"}
    )
    assert unfrozen.json()["frozen_at"] is None
    again = operators_app.api("POST", f"/keys/{key.id}/unfreeze", json={"reason": "again"})
    assert (again.status_code, error_of(again)) == (409, "key_not_frozen")
    assert operators_app.admin_rows()[-1] == ("unfreeze", "admin")


@pytest.mark.parametrize("action", ["revoke", "unfreeze", "rotate"])
def test_an_action_on_a_key_that_is_not_there_changes_nothing(
    operators_app: OperatorsApp, action: str
) -> None:
    answer = operators_app.api("POST", f"/keys/aaaaaaaaaaaa/{action}", json={})
    assert (answer.status_code, error_of(answer)) == (404, "key_unknown")
    assert operators_app.admin_rows() == []


def test_an_approved_bill_is_charged_by_the_next_identical_call_and_once(
    operators_app: OperatorsApp,
) -> None:
    key = asking_above(operators_app.in_process, 1000)
    assert error_of(operators_app.in_process.charge(key, period="2026-11")) == "approval_required"
    (pending,) = operators_app.api("GET", "/approvals?state=pending").json()["data"]
    assert (pending["amount"], pending["currency"], pending["customer_id"]) == (
        2900,
        "usd",
        "cus_A1",
    )
    decided = operators_app.api("POST", f"/approvals/{pending['id']}/approve", token=OTHER_TOKEN)
    assert (decided.json()["state"], decided.json()["decided_by"]) == ("approved", "mira")
    assert operators_app.admin_rows()[-1] == ("approve", "mira")
    assert operators_app.in_process.charge(key, period="2026-11").status_code == 200
    assert error_of(operators_app.in_process.charge(key, customer="cus_B2", period="2026-11")) == (
        "approval_required"
    )
    assert len(operators_app.in_process.charges()) == 1


def test_two_operators_cannot_both_decide_one_approval(operators_app: OperatorsApp) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    (pending,) = operators_app.api("GET", "/approvals").json()["data"]
    assert operators_app.api("POST", f"/approvals/{pending['id']}/deny").status_code == 200
    late = operators_app.api("POST", f"/approvals/{pending['id']}/approve", token=OTHER_TOKEN)
    assert (late.status_code, error_of(late)) == (409, "approval_not_pending")
    assert "denied by admin" in late.json()["error"]["message"]
    assert error_of(operators_app.in_process.charge(key, period="2026-11")) == "approval_required"
    assert operators_app.in_process.charges() == []


def test_an_expired_approval_cannot_be_given(operators_app: OperatorsApp) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    (pending,) = operators_app.api("GET", "/approvals").json()["data"]
    operators_app.in_process.turn_clock(25 * 3600)
    operators_app.in_process.recover()
    assert operators_app.api("GET", "/approvals").json()["data"][0]["state"] == "expired"
    answer = operators_app.api("POST", f"/approvals/{pending['id']}/approve")
    assert (answer.status_code, "expired" in answer.text) == (409, True)


@pytest.mark.parametrize("path", ["nothing/approve", "nothing/perhaps"])
def test_an_approval_or_a_verdict_that_is_not_there_is_not_found(
    operators_app: OperatorsApp, path: str
) -> None:
    assert operators_app.api("POST", f"/approvals/{path}").status_code == 404


def test_operations_are_found_by_each_filter(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    made = operators_app.in_process.charge(key, period="2026-11").json()["id"]
    operators_app.in_process.charge(key, customer="cus_B2", period="2026-10")

    def found(query: str) -> list[str]:
        listed = operators_app.api("GET", f"/operations?{query}").json()["data"]
        return [each["customer_id"] for each in listed]

    assert found("") == ["cus_B2", "cus_A1"]
    assert found("customer=cus_A1") == ["cus_A1"]
    assert found(f"period={lately('2026-10')}") == ["cus_B2"]
    days = parse_period(lately("2026-10"))
    assert found(f"period={days.start}/{days.end}") == ["cus_B2"]
    assert found(f"charge={made}") == ["cus_A1"]
    assert found("state=succeeded&limit=1") == ["cus_B2"]
    assert found("state=unknown") == []
    (one,) = operators_app.api("GET", "/operations?customer=cus_A1").json()["data"]
    assert operators_app.api("GET", f"/operations/{one['id']}").json() == one
    assert operators_app.api("GET", "/operations/op_none").status_code == 404


def test_spend_shows_cap_settled_and_left_of_account_and_key(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue(daily={"usd": 10_000})
    operators_app.in_process.charge(key, period="2026-11")
    rows = operators_app.api("GET", "/spend").json()["data"]
    figures = [
        (row["scope"], row["window"], row["cap"], row["settled"], row["left"]) for row in rows
    ]
    assert figures == [
        ("account", "day", 5_000_000, 2900, 4_997_100),
        ("key", "day", 10_000, 2900, 7100),
        ("key", "month", None, 2900, None),
    ]
    mine = operators_app.api("GET", f"/spend?key={key.id}").json()["data"]
    assert {row["key_id"] for row in mine} == {key.id}
    other_day = operators_app.api("GET", f"/spend?key={key.id}&day=2020-01-01").json()["data"]
    assert [row["settled"] for row in other_day] == [0]


def test_the_audit_is_filtered_by_key_code_customer_and_time(operators_app: OperatorsApp) -> None:
    key, other = operators_app.in_process.issue(), operators_app.in_process.issue()
    operators_app.in_process.charge(key, period="2026-11")
    operators_app.in_process.charge(other, path="/v1/refunds")
    listed = operators_app.api("GET", "/audit").json()["data"]
    assert [row["id"] for row in listed] == [row["id"] for row in operators_app.in_process.audit()][
        ::-1
    ]
    of_key = operators_app.api("GET", f"/audit?key={key.id}").json()["data"]
    assert {row["key_id"] for row in of_key} == {key.id}
    code = next(row["code"] for row in listed if row["decision"] == "refuse")
    assert len(operators_app.api("GET", f"/audit?code={code}").json()["data"]) == 1
    assert len(operators_app.api("GET", "/audit?customer=cus_A1&limit=1").json()["data"]) == 1
    assert operators_app.api("GET", "/audit?until=2020-01-01").json()["data"] == []
    assert operators_app.api("GET", "/audit?since=2999-01-01T00:00:00%2B02:00").json()["data"] == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("keys?limit=3", "parameter_unknown"),
        ("operations?colour=red", "parameter_unknown"),
        ("operations?state=pending", "parameter_invalid"),
        ("operations?period=June", "parameter_invalid"),
        ("approvals?state=waiting", "parameter_invalid"),
        ("operations?limit=0", "parameter_invalid"),
        ("operations?limit=1001", "parameter_invalid"),
        ("operations?limit=-1", "parameter_invalid"),
        ("operations?limit=ten", "parameter_invalid"),
        ("operations?customer=a&customer=b", "parameter_duplicate"),
        ("spend?day=2026-13-01", "parameter_invalid"),
        ("spend?day=today", "parameter_invalid"),
        ("audit?since=now", "parameter_invalid"),
        ("audit?until=2026-02-30", "parameter_invalid"),
        ("audit?since=0001-01-01T00:00:00%2B10:00", "parameter_invalid"),
    ],
)
def test_a_query_that_cannot_be_meant_is_refused(
    operators_app: OperatorsApp, query: str, code: str
) -> None:
    answer = operators_app.api("GET", f"/{query}")
    assert (answer.status_code, error_of(answer)) == (400, code)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "path_unknown"),
        ("DELETE", "/keys", 405, "method_not_allowed"),
        ("GET", "/keys/x/revoke", 405, "method_not_allowed"),
    ],
)
def test_errors_of_the_router_have_stripes_shape_and_the_safe_headers(
    operators_app: OperatorsApp, method: str, path: str, status: int, code: str
) -> None:
    answer = operators_app.api(method, path)
    assert (answer.status_code, error_of(answer)) == (status, code)
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"


def test_a_closed_ledger_is_unavailable_and_nothing_is_issued(operators_app: OperatorsApp) -> None:
    operators_app.in_process.run(operators_app.in_process.proxy.store.ledger.close())
    answer = operators_app.api("POST", "/keys", json={"role": "audit"})
    assert (answer.status_code, error_of(answer)) == (503, "ledger_unavailable")
    assert TOKEN not in answer.text
    assert "Nothing was changed" not in answer.text
