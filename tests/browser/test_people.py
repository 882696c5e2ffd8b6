"""People before the dashboard: two at once, one who was away, one who searches, one who mends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kb_mcp.operators.dashboard import pages
from kb_mcp.operators.sign_in import IDLE_MS
from tests.browser.conftest import StoreAdmin
from tests.in_process_proxy import error_of
from tests.operators.operators_app import OTHER_TOKEN, asking_above


@pytest.fixture
def mira(chromium: Any, store_admin: StoreAdmin) -> Iterator[Any]:
    """A second operator, before a browser of her own."""
    context = chromium.new_context()
    made = context.new_page()
    made.set_default_timeout(20_000)
    store_admin.enter(made, token=OTHER_TOKEN)
    yield made
    context.close()


def decided(store_admin: StoreAdmin) -> list[tuple[str, str | None]]:
    return [
        row
        for row in store_admin.operators_app.admin_rows()
        if row[0] not in {"login", "logout", "issue"}
    ]


def test_two_operators_decide_one_bill_and_the_first_verdict_stands(
    store_admin: StoreAdmin, page: Any, mira: Any
) -> None:
    key = asking_above(store_admin.in_process, 1000)
    assert error_of(store_admin.in_process.charge(key)) == "approval_required"
    store_admin.enter(page)
    mira.reload()
    mira.get_by_role("button", name="Deny 29.00 USD for cus_A1").click()
    mira.get_by_text("This bill was denied by you.").wait_for()
    page.get_by_role("button", name="Approve 29.00 USD for cus_A1").click()
    page.get_by_text("not pending any more").wait_for()
    assert store_admin.in_process.charge(key).status_code == 403
    assert store_admin.in_process.charges() == []
    assert decided(store_admin) == [("deny", "mira")]


def test_two_operators_settle_one_operation_and_it_is_settled_once(
    store_admin: StoreAdmin, page: Any, mira: Any
) -> None:
    key = store_admin.in_process.issue()
    store_admin.in_process.fault("drop_after")
    store_admin.in_process.charge(key)
    (made,), (operation,) = store_admin.in_process.charges(), store_admin.in_process.operations()
    store_admin.enter(page)
    for each in (page, mira):
        each.goto(f"{store_admin.url}/operations/{operation.id}")
        each.get_by_text("It was charged…").click()
        each.get_by_label("The charge that was found").fill(made["id"])
    page.get_by_role("button", name="Settle with this charge").click()
    page.get_by_text("Resolved by you.").wait_for()
    mira.get_by_role("button", name="Settle with this charge").click()
    mira.get_by_role("heading", name="That was not done").wait_for()
    assert decided(store_admin) == [("resolve_succeeded", "admin")]
    assert len(store_admin.in_process.charges()) == 1
    (after,) = store_admin.in_process.operations()
    assert (after.state, after.object_id) == ("succeeded", made["id"])


def test_a_session_that_ran_out_before_the_click_does_nothing(
    store_admin: StoreAdmin, page: Any
) -> None:
    key = store_admin.in_process.issue()
    store_admin.enter(page, f"/keys/{key.id}")
    page.get_by_text("Revoke…").click()
    store_admin.operators_app.later_ms += IDLE_MS
    page.get_by_role("button", name=f"Revoke {key.id} now").click()
    page.get_by_text("Your session is over. Log in again.").wait_for()
    assert page.context.cookies() == [] or "keybrake_session" not in {
        each["name"] for each in page.context.cookies()
    }
    assert decided(store_admin) == []
    assert store_admin.in_process.charge(key).status_code == 200
    assert len(store_admin.in_process.charges()) == 1


def test_a_name_that_was_bound_to_this_machine_afterwards_gets_nothing(
    store_admin: StoreAdmin, page: Any
) -> None:
    store_admin.enter(page)
    rebound = store_admin.url.replace("127.0.0.1", "rebound.example")
    for path in ("/", "/login", "/metrics", "/admin/v1/keys"):
        answer = page.goto(rebound + path)
        assert answer.status == 421, path
        assert "set-cookie" not in answer.headers
        assert page.locator("form").count() == 0


def test_a_bill_is_found_by_everything_it_is_known_by(store_admin: StoreAdmin, page: Any) -> None:
    key = store_admin.in_process.issue()
    other = store_admin.in_process.charge(key, customer="cus_Other", amount=100)
    headers = {
        "Authorization": f"Bearer {key.token}",
        "Keybrake-Agent": "owl",
        "Keybrake-Session": "night-1",
    }
    form = {"customer": "cus_Owl", "amount": "700", "currency": "usd", "description": "Oil"}
    made = store_admin.in_process.client.post("/v1/charges", data=form, headers=headers).json()[
        "id"
    ]
    (operation,) = store_admin.in_process.operations(customer_id="cus_Owl")
    store_admin.enter(page, "/operations")
    for label, value in (
        ("Customer", "cus_Owl"),
        ("Charge id", made),
        ("Agent", "owl"),
        ("Session", "night-1"),
    ):
        page.goto(f"{store_admin.url}/operations")
        page.get_by_label(label, exact=True).fill(value)
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name=operation.id).wait_for()
        assert page.get_by_text("cus_Other").count() == 0, label
    page.get_by_role("link", name=operation.id).click()
    page.get_by_text("Audit rows").click()
    for row in store_admin.in_process.audit(operation=operation.id):
        page.get_by_text(row["id"]).first.wait_for()
    assert {each["id"] for each in store_admin.in_process.charges()} == {made, other.json()["id"]}


def test_a_key_among_many_is_found_by_turning_pages_or_by_its_label_and_revoked(
    store_admin: StoreAdmin, page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "KEYS_MAX", 2)
    billing = {"role": "billing", "uncapped": True}
    bodies = [{**billing, "label": f"worker {number}"} for number in range(5)]
    made = [
        store_admin.operators_app.api("POST", "/keys", json=body).json()["id"] for body in bodies
    ]
    store_admin.enter(page, "/keys")
    page.get_by_text("5 in all: 5 active.").wait_for()
    seen = set[str]()
    older = page.get_by_role("link", name="Older keys")
    for _ in range(3):
        seen |= {text.split()[-1] for text in page.locator("tbody th a").all_inner_texts()}
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
    page.goto(f"{store_admin.url}/keys")
    page.get_by_label("Status").select_option("revoked")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name=made[2]).wait_for()
    assert page.locator("tbody tr").count() == 1


def test_a_frozen_key_is_unfrozen_with_a_reason(store_admin: StoreAdmin, page: Any) -> None:
    key = store_admin.in_process.issue()
    store_admin.in_process.fault("402", times=20)
    for number in range(20):
        store_admin.in_process.charge(key, customer=f"cus_N{number}")
    assert error_of(store_admin.in_process.charge(key)) == "vault_key_frozen"
    store_admin.enter(page, f"/keys/{key.id}")
    page.get_by_text("Unfreeze…").click()
    page.get_by_label("Reason", exact=True).fill("cards were expired <b>checked</b>")
    page.get_by_role("button", name=f"Unfreeze {key.id}").click()
    page.get_by_text("Unfrozen.").wait_for()
    assert store_admin.in_process.charge(key).status_code == 200
    assert len(store_admin.in_process.charges()) == 1
    assert decided(store_admin) == [("unfreeze", "admin")]


def test_a_bill_that_never_reached_stripe_is_voided_and_charged_once(
    store_admin: StoreAdmin, page: Any
) -> None:
    key = store_admin.in_process.issue()
    store_admin.in_process.fault("drop_before")
    assert store_admin.in_process.charge(key).status_code == 504
    store_admin.in_process.turn_clock(3600)
    store_admin.in_process.run(store_admin.in_process.proxy.app.pipeline.follow())
    (operation,) = store_admin.in_process.operations()
    store_admin.enter(page, f"/operations/{operation.id}")
    for said in ("Look a second time", "Resolved by you."):
        page.get_by_text("It was not charged…").click()
        page.get_by_label("How you know").fill("Stripe shows nothing")
        page.get_by_role("button", name=f"Void {operation.id}").click()
        page.get_by_text(said).wait_for()
        store_admin.in_process.turn_clock(61)
        store_admin.in_process.run(store_admin.in_process.proxy.app.pipeline.follow())
        store_admin.enter(page, f"/operations/{operation.id}")
    assert store_admin.in_process.charges() == []
    assert store_admin.in_process.charge(key).status_code == 200
    assert len(store_admin.in_process.charges()) == 1
    assert decided(store_admin) == [("resolve_look", "admin"), ("resolve_void", "admin")]


def test_a_refunded_bill_is_reopened_and_charged_once_more(
    store_admin: StoreAdmin, page: Any
) -> None:
    key = store_admin.in_process.issue()
    first = store_admin.in_process.charge(key, key_header="bill-1").json()["id"]
    stripe = {"Authorization": "Bearer rk_test_sandbox"}
    store_admin.in_process.stripe.post("/v1/refunds", data={"charge": first}, headers=stripe)
    assert store_admin.in_process.charge(key, key_header="bill-1").json()["id"] == first
    (operation,) = store_admin.in_process.operations()
    store_admin.enter(page, f"/operations/{operation.id}")
    page.get_by_text("Reopen…").click()
    page.get_by_label("Why this bill").fill("refunded by mistake")
    page.get_by_role("button", name=f"Reopen {operation.id}").click()
    page.get_by_text("Reopened").first.wait_for()
    again = [store_admin.in_process.charge(key, key_header="bill-1").json()["id"] for _ in range(2)]
    assert again[0] == again[1] != first
    assert {each["id"] for each in store_admin.in_process.charges()} == {first, again[0]}
    assert decided(store_admin) == [("reopen", "admin")]


def test_the_declines_of_a_bill_are_forgotten(store_admin: StoreAdmin, page: Any) -> None:
    key = store_admin.in_process.issue()
    store_admin.in_process.fault("402")
    assert store_admin.in_process.charge(key).status_code == 402
    assert (
        store_admin.in_process.charge(key).status_code == 402
    )  # the decline, once more, and nothing sent
    (operation,) = store_admin.in_process.operations()
    store_admin.enter(page, f"/operations/{operation.id}")
    page.get_by_role("button", name="Forget its declines").click()
    page.get_by_text("Declines forgotten: 1.").wait_for()
    assert store_admin.in_process.charge(key).status_code == 200
    assert len(store_admin.in_process.charges()) == 1
    assert [name for _, name in decided(store_admin)] == ["admin"]
