"""An approval's whole life, decided by each of the three ways an operator has."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from kb_mcp.cli import main
from kb_mcp.proxy.access.policy import CapRules
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.rules.gates import APPROVAL_LASTS_MS, OUTSTANDING_MAX
from tests.in_process_proxy import InProcessProxy, error_of
from tests.operators.operators_app import OperatorsApp, asking_above

DAY_S = APPROVAL_LASTS_MS // 1000
Decide = Callable[[OperatorsApp, str, str], None]


@pytest.fixture
def operators_app(tmp_path: Path) -> Iterator[OperatorsApp]:
    with InProcessProxy(tmp_path) as in_process:
        yield OperatorsApp(in_process)


def by_api(operators_app: OperatorsApp, approval: str, verb: str) -> None:
    assert operators_app.api("POST", f"/approvals/{approval}/{verb}").status_code == 200


def by_dashboard(operators_app: OperatorsApp, approval: str, verb: str) -> None:
    operators_app.log_in()
    assert operators_app.submit("/", f"/approvals/{approval}/{verb}").status_code == 303


def by_command(operators_app: OperatorsApp, approval: str, verb: str) -> None:
    done = CliRunner().invoke(
        main, ["approvals", verb, approval], env=operators_app.in_process.environ
    )
    assert done.exit_code == 0, done.output


WAYS = pytest.mark.parametrize("decide", [by_api, by_dashboard, by_command])


def asked(operators_app: OperatorsApp) -> str:
    """Return the newest approval that waits."""
    return str(operators_app.api("GET", "/approvals?state=pending").json()["data"][0]["id"])


@WAYS
def test_an_approved_bill_is_charged_by_the_next_call_and_by_one(
    operators_app: OperatorsApp, decide: Decide
) -> None:
    key = asking_above(operators_app.in_process, 1000)
    refused = operators_app.in_process.charge(key, period="2026-11")
    assert error_of(refused) == "approval_required"
    assert refused.json()["error"]["keybrake"]["approval"] == asked(operators_app)
    assert operators_app.in_process.charges() == []
    decide(operators_app, asked(operators_app), "approve")
    assert operators_app.in_process.charges() == []
    made = operators_app.in_process.charge(key, period="2026-11")
    again = operators_app.in_process.charge(key, period="2026-11")
    assert (made.status_code, again.status_code) == (200, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert [each["id"] for each in operators_app.in_process.charges()] == [made.json()["id"]]
    assert [
        row["decision"] for row in operators_app.in_process.audit() if row["kind"] == "admin"
    ].count("approve") == 1


ACCEPTED = {"action": "accept", "content": {"confirm": True}}


@pytest.mark.parametrize(
    "answered",
    [
        {},
        {"inputResponses": {"confirm": ACCEPTED, "approval": ACCEPTED}},
        {"inputResponses": {"confirm": ACCEPTED}, "requestState": "approved"},
        {"requestState": "approved"},
    ],
    ids=["nothing", "answers", "answers and a state", "a state"],
)
def test_what_an_mcp_client_says_of_its_own_user_approves_nothing(
    operators_app: OperatorsApp, answered: dict[str, object]
) -> None:
    key = asking_above(operators_app.in_process, 1000)
    meta: dict[str, object] = {
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}
    }
    answers = [operators_app.in_process.charge_over_mcp(key, meta, **answered) for _ in range(2)]
    for answer in answers:
        result = answer.json()["result"]
        # An answer, and no question: what the client's user would say proves no human.
        assert result["resultType"] == "complete"
        assert result["structuredContent"]["code"] == "approval_required"
    assert operators_app.in_process.charges() == []
    assert len(operators_app.api("GET", "/approvals?state=pending").json()["data"]) == 1


@WAYS
def test_a_denied_bill_stays_refused(operators_app: OperatorsApp, decide: Decide) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    decide(operators_app, asked(operators_app), "deny")
    again = operators_app.in_process.charge(key, period="2026-11")
    assert error_of(again) == "approval_required"
    assert "an operator denied it, so do not send it again" in again.json()["error"]["message"]
    meta: dict[str, object] = {"io.modelcontextprotocol/clientCapabilities": {}}
    told = operators_app.in_process.charge_over_mcp(key, meta).json()["result"]
    assert "an operator denied this charge" in told["structuredContent"]["next_step"]
    (shown,) = operators_app.api("GET", "/operations").json()["data"]
    assert (shown["state"], shown["approval"]) == ("awaiting_approval", "denied")
    operators_app.log_in()
    page = operators_app.browser.get(f"/operations/{shown['id']}").text
    assert "approval denied" in page
    assert "after the denial. Nothing was sent." in page
    assert operators_app.in_process.charges() == []


@pytest.mark.parametrize("amount", [2901, 5800])
def test_an_approval_covers_no_other_amount(operators_app: OperatorsApp, amount: int) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    by_api(operators_app, asked(operators_app), "approve")
    other = operators_app.in_process.charge(key, period="2026-11", amount=amount)
    assert error_of(other) == "approval_required"
    assert operators_app.in_process.charges() == []


def test_an_approval_covers_no_second_bill(operators_app: OperatorsApp) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    by_api(operators_app, asked(operators_app), "approve")
    assert operators_app.in_process.charge(key, period="2026-11").status_code == 200
    assert error_of(operators_app.in_process.charge(key, period="2026-10")) == "approval_required"
    assert len(operators_app.in_process.charges()) == 1


def test_an_approval_is_used_up_by_a_decline_too(operators_app: OperatorsApp) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    by_api(operators_app, asked(operators_app), "approve")
    operators_app.in_process.fault("402")
    assert operators_app.in_process.charge(key, period="2026-11").status_code == 402
    operators_app.in_process.turn_clock(3600)
    again = operators_app.in_process.charge(key, period="2026-11")
    assert error_of(again) == "approval_required"
    assert operators_app.in_process.charges() == []


def test_an_approval_given_to_one_key_is_nothing_to_another(operators_app: OperatorsApp) -> None:
    asker, other = (
        asking_above(operators_app.in_process, 1000),
        asking_above(operators_app.in_process, 1000),
    )
    operators_app.in_process.charge(asker, period="2026-11")
    by_api(operators_app, asked(operators_app), "approve")
    assert error_of(operators_app.in_process.charge(other, period="2026-11")) == "approval_required"
    assert operators_app.in_process.charges() == []


def test_an_approval_expires_before_and_after_it_is_given(operators_app: OperatorsApp) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    first = asked(operators_app)
    operators_app.in_process.turn_clock(DAY_S + 60)
    error = operators_app.in_process.charge(key, period="2026-11")
    assert error_of(error) == "approval_required"
    late = operators_app.api("POST", f"/approvals/{first}/approve")
    assert (late.status_code, error_of(late)) == (409, "approval_not_pending")
    second = asked(operators_app)
    assert second != first
    by_api(operators_app, second, "approve")
    operators_app.in_process.turn_clock(DAY_S + 60)
    assert error_of(operators_app.in_process.charge(key, period="2026-11")) == "approval_required"
    assert operators_app.in_process.charges() == []


def test_two_operators_decide_once(operators_app: OperatorsApp) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    approval = asked(operators_app)
    by_api(operators_app, approval, "deny")
    late = operators_app.api("POST", f"/approvals/{approval}/approve")
    assert (late.status_code, error_of(late)) == (409, "approval_not_pending")
    assert error_of(operators_app.in_process.charge(key, period="2026-11")) == "approval_required"
    assert operators_app.in_process.charges() == []


def test_a_key_cannot_bury_operators_in_approvals(operators_app: OperatorsApp) -> None:
    key = asking_above(operators_app.in_process, 1000)
    for number in range(OUTSTANDING_MAX + 2):
        operators_app.in_process.charge(key, customer=f"cus_N{number}", period="2026-11")
    waiting = operators_app.api("GET", "/approvals?state=pending").json()["data"]
    assert len(waiting) == OUTSTANDING_MAX


def test_an_approval_is_no_help_to_a_revoked_key(operators_app: OperatorsApp) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    by_api(operators_app, asked(operators_app), "approve")
    operators_app.api("POST", f"/keys/{key.id}/revoke", json={"reason": "ran away"})
    (told,) = operators_app.api("GET", "/approvals").json()["data"]
    assert told["blocked_by"] == "its key is revoked"
    assert error_of(operators_app.in_process.charge(key, period="2026-11")) == "vault_key_revoked"
    assert operators_app.in_process.charges() == []


def test_an_operator_sees_that_a_cap_would_still_refuse(operators_app: OperatorsApp) -> None:
    policy = built_in("billing").model_copy(
        update={"approval_above": {"usd": 1000}, "caps": CapRules(per_charge={"usd": 2000})}
    )
    key = operators_app.in_process.issue(policy)
    operators_app.in_process.charge(key, period="2026-11")
    operators_app.log_in()
    (told,) = operators_app.api("GET", "/approvals").json()["data"]
    assert told["blocked_by"] == (
        "This charge would exceed a spend cap (per charge): the cap is 20.00 USD and 20.00 USD is "
        "left"
    )
    assert f"{told['blocked_by']}." in html.unescape(operators_app.browser.get("/approvals").text)


def a_charge_of_another_amount(in_process: InProcessProxy) -> str:
    made = in_process.charge(in_process.issue("billing"), period="2026-11", amount=900)
    return f"This customer already has a bill for this period, or for a part of it: {named(made)}"


def a_day_that_is_spent(in_process: InProcessProxy) -> str:
    # The other bill needs no approval, and leaves too little of the account's day.
    key = in_process.issue("billing")
    assert (
        in_process.charge(key, customer="cus_B2", period="2026-11", amount=900).status_code == 200
    )
    return "the cap is 30.00 USD and 21.00 USD is left"


def named(made: httpx.Response) -> str:
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


@pytest.mark.parametrize("happens", [a_charge_of_another_amount, a_day_that_is_spent])
@WAYS
def test_an_operator_sees_what_an_approved_call_would_meet(
    tmp_path: Path, decide: Decide, happens: Callable[[InProcessProxy], str]
) -> None:
    with InProcessProxy(tmp_path, KEYBRAKE_ACCOUNT_DAILY_CAP="30.00usd") as in_process:
        operators_app = OperatorsApp(in_process)
        in_process.begin_day()
        key = asking_above(in_process, 1000)
        in_process.charge(key, period="2026-11")
        (told,) = operators_app.api("GET", "/approvals").json()["data"]
        assert told["blocked_by"] is None
        why = happens(in_process)
        (told,) = operators_app.api("GET", "/approvals").json()["data"]
        assert why in told["blocked_by"]
        decide(operators_app, told["id"], "approve")
        (told,) = operators_app.api("GET", "/approvals").json()["data"]
        assert told["state"] == "approved"
        if decide is by_dashboard:
            page = html.unescape(
                operators_app.browser.get(f"/operations/{told['operation_id']}").text
            )
            assert f"the call would move no money: {told['blocked_by']}." in page
        refused = in_process.charge(key, period="2026-11").json()["error"]["message"]
        assert refused.startswith(told["blocked_by"])


def test_an_operator_sees_that_another_key_made_the_bill(operators_app: OperatorsApp) -> None:
    in_process = operators_app.in_process
    key = asking_above(in_process, 1000)
    in_process.charge(key, period="2026-11")
    made = named(in_process.charge(in_process.issue("billing"), period="2026-11"))
    (told,) = operators_app.api("GET", "/approvals").json()["data"]
    assert told["blocked_by"] == f"it was made already, {made}"
    by_command(operators_app, told["id"], "approve")
    assert named(in_process.charge(key, period="2026-11")) == made
    assert len(in_process.charges()) == 1


def test_an_operator_sees_that_a_charge_has_another_refund(operators_app: OperatorsApp) -> None:
    in_process = operators_app.in_process
    charge = in_process.charge(in_process.issue("billing"), period="2026-11").json()["id"]
    policy = built_in("refunds").model_copy(
        update={
            "refund_approval_above": {"usd": 1000},
            "allow_reference": True,
            "max_refunds_per_charge": 1,
        }
    )
    key = in_process.issue(policy)
    assert error_of(in_process.refund(key, charge, amount=1500)) == "approval_required"
    (told,) = operators_app.api("GET", "/approvals").json()["data"]
    assert told["blocked_by"] is None
    made = in_process.refund(key, charge, amount=500, **{"metadata[reference]": "part"})
    assert made.status_code == 200, made.text
    (told,) = operators_app.api("GET", "/approvals").json()["data"]
    assert told["blocked_by"].startswith("This charge was refunded before: re_")
