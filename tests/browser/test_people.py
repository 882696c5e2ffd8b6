"""People before the dashboard: two at once, one who was away, one who searches, one who mends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kb_mcp.proxy.ops import pages
from kb_mcp.proxy.ops.sessions import IDLE_MS
from tests.browser.conftest import Office
from tests.house import error_of
from tests.proxy.ops.desk import OTHER_TOKEN, asking_above


@pytest.fixture
def mira(chromium: Any, office: Office) -> Iterator[Any]:
    """A second operator, before a browser of her own."""
    context = chromium.new_context()
    made = context.new_page()
    made.set_default_timeout(20_000)
    office.enter(made, token=OTHER_TOKEN)
    yield made
    context.close()


def decided(office: Office) -> list[tuple[str, str | None]]:
    return [row for row in office.desk.admin_rows() if row[0] not in {"login", "logout", "issue"}]


def test_two_operators_decide_one_bill_and_the_first_verdict_stands(
    office: Office, page: Any, mira: Any
) -> None:
    key = asking_above(office.house, 1000)
    assert error_of(office.house.charge(key)) == "approval_required"
    office.enter(page)
    mira.reload()
    mira.get_by_role("button", name="Deny 29.00 USD for cus_A1").click()
    mira.get_by_text("This bill was denied by you.").wait_for()
    page.get_by_role("button", name="Approve 29.00 USD for cus_A1").click()
    page.get_by_text("not pending any more").wait_for()
    assert office.house.charge(key).status_code == 403
    assert office.house.charges() == []
    assert decided(office) == [("deny", "mira")]


def test_two_operators_settle_one_operation_and_it_is_settled_once(
    office: Office, page: Any, mira: Any
) -> None:
    key = office.house.issue()
    office.house.fault("drop_after")
    office.house.charge(key)
    (made,), (operation,) = office.house.charges(), office.house.operations()
    office.enter(page)
    for each in (page, mira):
        each.goto(f"{office.url}/operations/{operation.id}")
        each.get_by_text("It was charged…").click()
        each.get_by_label("The charge that was found").fill(made["id"])
    page.get_by_role("button", name="Settle with this charge").click()
    page.get_by_text("Resolved by you.").wait_for()
    mira.get_by_role("button", name="Settle with this charge").click()
    mira.get_by_role("heading", name="That was not done").wait_for()
    assert decided(office) == [("resolve_succeeded", "admin")]
    assert len(office.house.charges()) == 1
    (after,) = office.house.operations()
    assert (after.state, after.object_id) == ("succeeded", made["id"])


def test_a_session_that_ran_out_before_the_click_does_nothing(office: Office, page: Any) -> None:
    key = office.house.issue()
    office.enter(page, f"/keys/{key.id}")
    page.get_by_text("Revoke…").click()
    office.desk.later_ms += IDLE_MS
    page.get_by_role("button", name=f"Revoke {key.id} now").click()
    page.get_by_text("Your session is over. Log in again.").wait_for()
    assert page.context.cookies() == [] or "keybrake_session" not in {
        each["name"] for each in page.context.cookies()
    }
    assert decided(office) == []
    assert office.house.charge(key).status_code == 200
    assert len(office.house.charges()) == 1


def test_a_name_that_was_bound_to_this_machine_afterwards_gets_nothing(
    office: Office, page: Any
) -> None:
    office.enter(page)
    rebound = office.url.replace("127.0.0.1", "rebound.example")
    for path in ("/", "/login", "/metrics", "/admin/v1/keys"):
        answer = page.goto(rebound + path)
        assert answer.status == 421, path
        assert "set-cookie" not in answer.headers
        assert page.locator("form").count() == 0


def test_a_bill_is_found_by_everything_it_is_known_by(office: Office, page: Any) -> None:
    key = office.house.issue()
    other = office.house.charge(key, customer="cus_Other", amount=100)
    headers = {
        "Authorization": f"Bearer {key.token}",
        "Keybrake-Agent": "owl",
        "Keybrake-Session": "night-1",
    }
    form = {"customer": "cus_Owl", "amount": "700", "currency": "usd", "description": "Oil"}
    made = office.house.client.post("/v1/charges", data=form, headers=headers).json()["id"]
    (operation,) = office.house.operations(customer_id="cus_Owl")
    office.enter(page, "/operations")
    for label, value in (
        ("Customer", "cus_Owl"),
        ("Charge id", made),
        ("Agent", "owl"),
        ("Session", "night-1"),
    ):
        page.goto(f"{office.url}/operations")
        page.get_by_label(label, exact=True).fill(value)
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name=operation.id).wait_for()
        assert page.get_by_text("cus_Other").count() == 0, label
    page.get_by_role("link", name=operation.id).click()
    for row in office.house.audit(operation=operation.id):
        page.get_by_text(row["id"]).first.wait_for()
    assert {each["id"] for each in office.house.charges()} == {made, other.json()["id"]}


def test_a_key_among_many_is_found_by_turning_pages_or_by_its_label_and_revoked(
    office: Office, page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "KEYS_MAX", 2)
    bodies = [{"role": "billing", "label": f"worker {number}"} for number in range(5)]
    made = [office.desk.api("POST", "/keys", json=body).json()["id"] for body in bodies]
    office.enter(page, "/keys")
    page.get_by_text("5 in all: 5 active.").wait_for()
    seen = set[str]()
    older = page.get_by_role("link", name="Older keys")
    for _ in range(3):
        seen |= set(page.locator("tbody th a").all_inner_texts())
        if older.count():
            older.click()
    assert seen == set(made)
    page.get_by_role("link", name="Newest keys").click()
    page.get_by_label("Find").fill("WORKER 2")
    page.get_by_role("button", name="Search").click()
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=made[2]))
    row.get_by_text("Revoke…").click()
    assert page.locator("tbody tr").count() == 1
    row.get_by_role("button", name="Revoke worker 2 now").click()
    page.get_by_text("Revoked. Sends under way").wait_for()
    page.goto(f"{office.url}/keys")
    page.get_by_label("Status").select_option("revoked")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name=made[2]).wait_for()
    assert page.locator("tbody tr").count() == 1


def test_a_frozen_key_is_thawed_with_a_reason(office: Office, page: Any) -> None:
    key = office.house.issue()
    office.house.fault("402", times=20)
    for number in range(20):
        office.house.charge(key, customer=f"cus_N{number}")
    assert error_of(office.house.charge(key)) == "vault_key_frozen"
    office.enter(page, f"/keys/{key.id}")
    page.get_by_text("Unfreeze…").click()
    page.get_by_label("Reason", exact=True).fill("cards were expired <b>checked</b>")
    page.get_by_role("button", name=f"Unfreeze {key.id}").click()
    page.get_by_text("Thawed.").wait_for()
    assert office.house.charge(key).status_code == 200
    assert len(office.house.charges()) == 1
    assert decided(office) == [("unfreeze", "admin")]


def test_a_bill_that_never_reached_stripe_is_voided_and_charged_once(
    office: Office, page: Any
) -> None:
    key = office.house.issue()
    office.house.fault("drop_before")
    assert office.house.charge(key).status_code == 504
    office.house.turn_clock(3600)
    office.house.run(office.house.proxy.app.desk.follow())
    (operation,) = office.house.operations()
    office.enter(page, f"/operations/{operation.id}")
    page.get_by_text("It was not charged…").click()
    page.get_by_label("How you know").fill("Stripe shows nothing")
    page.get_by_role("button", name=f"Void {operation.id}").click()
    page.get_by_text("Resolved by you.").wait_for()
    assert office.house.charges() == []
    assert office.house.charge(key).status_code == 200
    assert len(office.house.charges()) == 1
    assert decided(office) == [("resolve_void", "admin")]


def test_a_refunded_bill_is_reopened_and_charged_once_more(office: Office, page: Any) -> None:
    key = office.house.issue()
    first = office.house.charge(key, key_header="bill-1").json()["id"]
    stripe = {"Authorization": "Bearer rk_test_sandbox"}
    office.house.stripe.post("/v1/refunds", data={"charge": first}, headers=stripe)
    assert office.house.charge(key, key_header="bill-1").json()["id"] == first
    (operation,) = office.house.operations()
    office.enter(page, f"/operations/{operation.id}")
    page.get_by_text("Reopen…").click()
    page.get_by_label("Why this bill").fill("refunded by mistake")
    page.get_by_role("button", name=f"Reopen {operation.id}").click()
    page.get_by_text("Reopened").first.wait_for()
    again = [office.house.charge(key, key_header="bill-1").json()["id"] for _ in range(2)]
    assert again[0] == again[1] != first
    assert {each["id"] for each in office.house.charges()} == {first, again[0]}
    assert decided(office) == [("reopen", "admin")]


def test_the_declines_of_a_bill_are_forgotten(office: Office, page: Any) -> None:
    key = office.house.issue()
    office.house.fault("402")
    assert office.house.charge(key).status_code == 402
    assert office.house.charge(key).status_code == 402  # the decline, once more, and nothing sent
    (operation,) = office.house.operations()
    office.enter(page, f"/operations/{operation.id}")
    page.get_by_role("button", name="Forget its declines").click()
    page.get_by_text("Forgot 1 declines.").wait_for()
    assert office.house.charge(key).status_code == 200
    assert len(office.house.charges()) == 1
    assert [name for _, name in decided(office)] == ["admin"]
