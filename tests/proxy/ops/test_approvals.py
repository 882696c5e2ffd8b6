"""An approval's whole life, decided by each of the three ways an operator has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kb_mcp.cli import main
from kb_mcp.proxy.approvals import APPROVAL_LASTS_MS, OUTSTANDING_MAX
from tests.house import House, error_of
from tests.proxy.ops.desk import Desk, asking_above

DAY_S = APPROVAL_LASTS_MS // 1000
Decide = Callable[[Desk, str, str], None]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with House(tmp_path) as house:
        yield Desk(house)


def by_api(desk: Desk, approval: str, verb: str) -> None:
    assert desk.api("POST", f"/approvals/{approval}/{verb}").status_code == 200


def by_dashboard(desk: Desk, approval: str, verb: str) -> None:
    desk.log_in()
    assert desk.submit("/", f"/approvals/{approval}/{verb}").status_code == 303


def by_command(desk: Desk, approval: str, verb: str) -> None:
    done = CliRunner().invoke(main, ["approvals", verb, approval], env=desk.house.environ)
    assert done.exit_code == 0, done.output


WAYS = pytest.mark.parametrize("decide", [by_api, by_dashboard, by_command])


def asked(desk: Desk) -> str:
    """Return the newest approval that waits."""
    return str(desk.api("GET", "/approvals?state=pending").json()["data"][0]["id"])


@WAYS
def test_an_approved_bill_is_charged_by_the_next_call_and_by_one(
    desk: Desk, decide: Decide
) -> None:
    key = asking_above(desk.house, 1000)
    refused = desk.house.charge(key, period="2026-11")
    assert error_of(refused) == "approval_required"
    assert refused.json()["error"]["keybrake"]["approval"] == asked(desk)
    assert desk.house.charges() == []
    decide(desk, asked(desk), "approve")
    assert desk.house.charges() == []
    made = desk.house.charge(key, period="2026-11")
    again = desk.house.charge(key, period="2026-11")
    assert (made.status_code, again.status_code) == (200, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert [each["id"] for each in desk.house.charges()] == [made.json()["id"]]
    assert [row["decision"] for row in desk.house.audit() if row["kind"] == "admin"].count(
        "approve"
    ) == 1


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
    desk: Desk, answered: dict[str, object]
) -> None:
    key = asking_above(desk.house, 1000)
    meta: dict[str, object] = {
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}
    }
    answers = [desk.house.charge_over_mcp(key, meta, **answered) for _ in range(2)]
    for answer in answers:
        result = answer.json()["result"]
        # An answer, and no question: what the client's user would say proves no human.
        assert result["resultType"] == "complete"
        assert result["structuredContent"]["code"] == "approval_required"
    assert desk.house.charges() == []
    assert len(desk.api("GET", "/approvals?state=pending").json()["data"]) == 1


@WAYS
def test_a_denied_bill_stays_refused(desk: Desk, decide: Decide) -> None:
    key = asking_above(desk.house, 1000)
    desk.house.charge(key, period="2026-11")
    decide(desk, asked(desk), "deny")
    assert error_of(desk.house.charge(key, period="2026-11")) == "approval_required"
    assert desk.house.charges() == []


@pytest.mark.parametrize("amount", [2901, 5800])
def test_an_approval_covers_no_other_amount(desk: Desk, amount: int) -> None:
    key = asking_above(desk.house, 1000)
    desk.house.charge(key, period="2026-11")
    by_api(desk, asked(desk), "approve")
    other = desk.house.charge(key, period="2026-11", amount=amount)
    assert error_of(other) == "approval_required"
    assert desk.house.charges() == []


def test_an_approval_covers_no_second_bill(desk: Desk) -> None:
    key = asking_above(desk.house, 1000)
    desk.house.charge(key, period="2026-11")
    by_api(desk, asked(desk), "approve")
    assert desk.house.charge(key, period="2026-11").status_code == 200
    assert error_of(desk.house.charge(key, period="2026-10")) == "approval_required"
    assert len(desk.house.charges()) == 1


def test_an_approval_is_used_up_by_a_decline_too(desk: Desk) -> None:
    key = asking_above(desk.house, 1000)
    desk.house.charge(key, period="2026-11")
    by_api(desk, asked(desk), "approve")
    desk.house.fault("402")
    assert desk.house.charge(key, period="2026-11").status_code == 402
    desk.house.turn_clock(3600)
    again = desk.house.charge(key, period="2026-11")
    assert error_of(again) == "approval_required"
    assert desk.house.charges() == []


def test_an_approval_given_to_one_key_is_nothing_to_another(desk: Desk) -> None:
    asker, other = asking_above(desk.house, 1000), asking_above(desk.house, 1000)
    desk.house.charge(asker, period="2026-11")
    by_api(desk, asked(desk), "approve")
    assert error_of(desk.house.charge(other, period="2026-11")) == "approval_required"
    assert desk.house.charges() == []


def test_an_approval_expires_before_and_after_it_is_given(desk: Desk) -> None:
    key = asking_above(desk.house, 1000)
    desk.house.charge(key, period="2026-11")
    first = asked(desk)
    desk.house.turn_clock(DAY_S + 60)
    error = desk.house.charge(key, period="2026-11")
    assert error_of(error) == "approval_required"
    late = desk.api("POST", f"/approvals/{first}/approve")
    assert (late.status_code, error_of(late)) == (409, "approval_not_pending")
    second = asked(desk)
    assert second != first
    by_api(desk, second, "approve")
    desk.house.turn_clock(DAY_S + 60)
    assert error_of(desk.house.charge(key, period="2026-11")) == "approval_required"
    assert desk.house.charges() == []


def test_two_operators_decide_once(desk: Desk) -> None:
    key = asking_above(desk.house, 1000)
    desk.house.charge(key, period="2026-11")
    approval = asked(desk)
    by_api(desk, approval, "deny")
    late = desk.api("POST", f"/approvals/{approval}/approve")
    assert (late.status_code, error_of(late)) == (409, "approval_not_pending")
    assert error_of(desk.house.charge(key, period="2026-11")) == "approval_required"
    assert desk.house.charges() == []


def test_a_key_cannot_bury_operators_in_approvals(desk: Desk) -> None:
    key = asking_above(desk.house, 1000)
    for number in range(OUTSTANDING_MAX + 2):
        desk.house.charge(key, customer=f"cus_N{number}", period="2026-11")
    waiting = desk.api("GET", "/approvals?state=pending").json()["data"]
    assert len(waiting) == OUTSTANDING_MAX


def test_an_approval_is_no_help_to_a_revoked_key(desk: Desk) -> None:
    key = asking_above(desk.house, 1000)
    desk.house.charge(key, period="2026-11")
    by_api(desk, asked(desk), "approve")
    desk.api("POST", f"/keys/{key.id}/revoke", json={"reason": "ran away"})
    assert error_of(desk.house.charge(key, period="2026-11")) == "vault_key_revoked"
    assert desk.house.charges() == []
