"""The dashboard in a real browser; each flow ends on the sandbox's list and the audit."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from kb_mcp.operators.dashboard import pages as key_pages
from tests.browser.conftest import StoreAdmin
from tests.browser.months_of_billing import Billing
from tests.in_process_proxy import Issued, error_of
from tests.operators.operators_app import TOKEN, asking_above

CANARY = "<script>window.canary=1</script>\"'><img src=x onerror=window.canary=1>"
# Tables wider than their place: a column of theirs is out of sight.
CUT_OFF = """() => [...document.querySelectorAll(".scroll")]
    .filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.ariaLabel)"""
SIZES = {"desk": (1280, 900), "phone": (390, 844)}


def test_a_login_sets_a_cookie_that_no_script_and_no_other_site_can_use(
    store_admin: StoreAdmin, page: Any
) -> None:
    store_admin.enter(page)
    (cookie,) = [each for each in page.context.cookies() if each["name"] == "keybrake_session"]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert page.evaluate("document.cookie") == ""
    assert store_admin.operators_app.admin_rows() == [("login", "admin")]


def test_two_clicks_revoke_a_key_while_its_agent_is_charging(
    store_admin: StoreAdmin, page: Any
) -> None:
    key, begun, done = store_admin.in_process.issue(), Event(), Event()
    answers: list[Any] = []

    def agent() -> None:
        for number in range(2_000):
            answers.append(
                store_admin.in_process.charge(key, customer=f"cus_N{number}", period="2026-11")
            )
            begun.set()
            if answers[-1].status_code == 401:
                done.set()
                return

    store_admin.enter(page, "/keys")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(agent)
        assert begun.wait(60)
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=key.id))
        row.get_by_text("Revoke…").click()
        row.get_by_role("button", name="Revoke").click()
        page.get_by_text("Revoked. Sends under way").wait_for()
        running.result(60)
    assert done.is_set()
    assert error_of(answers[-1]) == "vault_key_revoked"
    rows = store_admin.in_process.audit()
    (revoked,) = [place for place, row in enumerate(rows) if row["decision"] == "revoke"]
    assert rows[revoked]["agent_id"] == "admin"
    assert [row for row in rows[revoked:] if row["decision"] == "proceed"] == []
    made = [answer.json()["id"] for answer in answers if answer.status_code == 200]
    assert len(made) > 0
    assert {each["id"] for each in store_admin.in_process.charges()} == set(made)


def test_an_approval_given_in_the_browser_is_used_once(store_admin: StoreAdmin, page: Any) -> None:
    key = asking_above(store_admin.in_process, 1000)
    assert error_of(store_admin.in_process.charge(key, period="2026-11")) == "approval_required"
    store_admin.enter(page)
    page.get_by_role("button", name="Approve 29.00 USD for cus_A1").click()
    page.get_by_text("This bill was approved by you.").wait_for()
    assert store_admin.in_process.charges() == []
    assert store_admin.in_process.charge(key, period="2026-11").status_code == 200
    assert error_of(store_admin.in_process.charge(key, period="2026-10")) == "approval_required"
    assert len(store_admin.in_process.charges()) == 1
    assert ("approve", "admin") in store_admin.operators_app.admin_rows()


def test_a_key_issued_in_the_browser_charges_within_its_cap(
    store_admin: StoreAdmin, page: Any
) -> None:
    store_admin.enter(page, "/keys")
    page.locator("#label").fill("nightly")
    page.get_by_label("Daily cap").fill("30.00usd")
    page.get_by_role("button", name="Issue key", exact=True).click()
    token = page.locator("#token").inner_text()
    page.reload()
    assert page.locator("#token").count() == 0
    key = Issued(page.url.rsplit("/", 1)[1], token)
    assert store_admin.in_process.charge(key, period="2026-11").status_code == 200
    over = store_admin.in_process.charge(key, customer="cus_B2", period="2026-11")
    assert error_of(over) == "spend_cap_exceeded"
    assert len(store_admin.in_process.charges()) == 1
    page.get_by_text("Rotate…").click()
    page.get_by_role("button", name="Rotate").click()
    rotated = Issued("", page.locator("#token").inner_text())
    assert rotated.token != token
    over = store_admin.in_process.charge(rotated, customer="cus_B2", period="2026-11")
    assert error_of(over) == "spend_cap_exceeded"


def test_a_policy_file_is_chosen_mended_where_the_form_says_so_and_issued(
    store_admin: StoreAdmin, page: Any, tmp_path: Any
) -> None:
    file = tmp_path / "night.toml"
    policy = 'version = 1\nrole = "night"\nallow = ["POST /v1/charges"]\ncolour = "<b>red</b>"\n'
    file.write_text(policy + "caps.daily.usd = 3000\n")
    store_admin.enter(page, "/keys")
    page.get_by_text("From a policy file…").click()
    page.get_by_label("Policy file").set_input_files(file)
    page.get_by_role("button", name="Issue key from policy").click()
    page.get_by_role("alert").get_by_text("colour: there is no such field (line 4)").wait_for()
    field = page.get_by_role("textbox", name="Policy")
    field.fill(field.input_value().replace('colour = "<b>red</b>"', ""))
    page.get_by_role("button", name="Issue key from policy").click()
    token = page.locator("#token").inner_text()
    page.reload()
    assert page.locator("#token").count() == 0
    key = Issued("", token)
    assert store_admin.in_process.charge(key).status_code == 200
    assert error_of(store_admin.in_process.charge(key, customer="cus_B2")) == "spend_cap_exceeded"
    assert len(store_admin.in_process.charges()) == 1
    assert store_admin.operators_app.admin_rows() == [("login", "admin"), ("issue", "admin")]


def test_the_tail_follows_without_a_reload_and_shows_text_as_text(
    store_admin: StoreAdmin, page: Any
) -> None:
    key = store_admin.in_process.issue()
    store_admin.enter(page)
    page.get_by_text("Following").wait_for()
    store_admin.in_process.charge(key, period="2026-11")
    tail = page.locator("[data-tail]")
    tail.get_by_text("cus_A1").first.wait_for()
    headers = {"Authorization": f"Bearer {key.token}", "Keybrake-Agent": "<b>canary</b>"}
    store_admin.in_process.client.post("/v1/charges", data={"customer": "nobody"}, headers=headers)
    tail.get_by_text("<b>canary</b>").first.wait_for()
    assert tail.locator("b").count() == 0
    page.get_by_role("button", name="Pause").click()
    page.get_by_text("Paused").wait_for()


def test_an_unknown_operation_is_settled_with_the_charge_that_was_found(
    store_admin: StoreAdmin, page: Any
) -> None:
    key = store_admin.in_process.issue()
    store_admin.in_process.fault("drop_after")
    assert store_admin.in_process.charge(key, period="2026-11").status_code == 504
    (made,) = store_admin.in_process.charges()
    (operation,) = store_admin.in_process.operations()
    store_admin.enter(page, f"/operations/{operation.id}")
    page.get_by_text("It was charged…").click()
    page.get_by_label("The charge that was found").fill(made["id"])
    page.get_by_role("button", name="Settle with this charge").click()
    page.get_by_text("Resolved by you.").wait_for()
    again = store_admin.in_process.charge(key, period="2026-11")
    assert (again.status_code, again.json()["id"]) == (200, made["id"])
    assert len(store_admin.in_process.charges()) == 1
    assert ("resolve_succeeded", "admin") in store_admin.operators_app.admin_rows()


def test_a_verification_is_shown(store_admin: StoreAdmin, page: Any) -> None:
    store_admin.in_process.charge(store_admin.in_process.issue(), period="2026-11")
    store_admin.enter(page, "/audit")
    page.get_by_role("button", name="Verify now").click()
    page.get_by_text("every chain holds, over").wait_for()
    assert ("verify", "admin") in store_admin.operators_app.admin_rows()


def test_a_form_of_another_page_does_nothing(store_admin: StoreAdmin, page: Any) -> None:
    key = store_admin.in_process.issue()
    store_admin.enter(page)
    page.goto("data:text/html,<form method=post></form>")
    page.evaluate(
        """(url) => { const f = document.forms[0]; f.action = url; f.submit(); }""",
        f"{store_admin.url}/keys/{key.id}/revoke",
    )
    page.wait_for_load_state()
    assert ("revoke", "admin") not in store_admin.operators_app.admin_rows()
    assert store_admin.in_process.charge(key, period="2026-11").status_code == 200


def test_no_other_page_can_frame_it(store_admin: StoreAdmin, page: Any) -> None:
    page.goto("data:text/html,<p>another site</p>")
    page.evaluate(
        """(url) => new Promise((done) => {
            const frame = document.createElement("iframe");
            frame.onload = done; frame.src = url; document.body.append(frame);
            setTimeout(done, 3000);
        })""",
        f"{store_admin.url}/login",
    )
    inner = [each for each in page.frames if each != page.main_frame]
    assert [each.url for each in inner] == ["chrome-error://chromewebdata/"]
    store_admin.faults.clear()


@pytest.mark.parametrize("path", ["/", "/keys", "/operations", "/audit"])
def test_stored_text_never_runs(store_admin: StoreAdmin, page: Any, path: str) -> None:
    body = {
        "role": "billing", "uncapped": True, "label": CANARY[:128], "agent": CANARY[:128],
    }  # fmt: skip
    issued = store_admin.operators_app.api("POST", "/keys", json=body).json()
    key = Issued(issued["id"], issued["token"])
    store_admin.in_process.charge(key, period="2026-11", description=CANARY)
    store_admin.in_process.charge(key, customer=CANARY, key_header=CANARY)
    store_admin.enter(page, path)
    for shown in (path, f"/keys/{key.id}", f"{path}?customer={CANARY}"):
        page.goto(store_admin.url + shown)
        assert page.evaluate("window.canary") is None
    assert store_admin.faults == []
    refused = page.evaluate(
        """() => { const s = document.createElement('script');
        s.textContent = 'window.canary = 1'; document.body.append(s); return window.canary; }"""
    )
    assert refused is None
    assert "Content Security Policy" in store_admin.faults.pop()


def test_an_operator_without_a_mouse_finds_what_waits_and_approves_it(
    store_admin: StoreAdmin, page: Any
) -> None:
    key = asking_above(store_admin.in_process, 1000)
    store_admin.in_process.charge(key, period="2026-11")
    page.goto(f"{store_admin.url}/login")
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Approvals").wait_for()
    walked = walk_to(page, "Approvals")
    assert walked[0] == "Skip to the content"
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Waiting for you").wait_for()
    walk_to(page, "Approve 29.00 USD for cus_A1")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.get_by_text("This bill was approved by you.").wait_for()
    assert store_admin.in_process.charge(key, period="2026-11").status_code == 200


def walk_to(page: Any, name: str) -> list[str]:
    """Press Tab until what is called `name` has the focus; return what had it on the way."""
    walked: list[str] = []
    while name not in walked:
        assert len(walked) < 60, walked
        page.keyboard.press("Tab")
        focused = "document.activeElement.ariaLabel || document.activeElement.innerText"
        walked.append(page.evaluate(focused))
    return walked


def test_a_grant_is_added_and_removed_in_the_browser(store_admin: StoreAdmin, page: Any) -> None:
    key = store_admin.in_process.issue()
    store_admin.enter(page, "/grants")
    page.get_by_label("Issuer").fill("https://idp.example")
    page.get_by_label("Key id").fill("none")
    page.get_by_label("Claims that must all match").fill("sub=agent-*\naud=billing")
    page.get_by_role("button", name="Add grant").click()
    page.get_by_role("alert").get_by_text("There is no vault key with this id.").wait_for()
    assert (
        page.get_by_label("Claims that must all match").input_value() == "sub=agent-*\naud=billing"
    )
    page.get_by_label("Key id").fill(key.id)
    page.get_by_role("button", name="Add grant").click()
    page.get_by_text("Granted as grt_").wait_for()
    (grant,) = store_admin.operators_app.api("GET", "/grants").json()["data"]
    assert grant["match"] == {"sub": "agent-*", "aud": "billing"}
    page.get_by_text("Remove…").click()
    page.get_by_role("button", name=f"Remove {grant['id']} now").click()
    page.get_by_text("Removed. Sends of its key under way when it was: 0").wait_for()
    assert store_admin.operators_app.api("GET", "/grants").json()["data"] == []
    done = [row[0] for row in store_admin.operators_app.admin_rows()]
    assert done[-2:] == ["grant_add", "grant_remove"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_page_is_readable_by_everyone(
    store_admin: StoreAdmin,
    chromium: Any,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    size: str,
) -> None:
    monkeypatch.setattr(key_pages, "KEYS_MAX", 1)
    billing = Billing(store_admin.in_process)
    operation = billing.tell()
    width, height = SIZES[size]
    context = chromium.new_context(
        color_scheme=scheme, viewport={"width": width, "height": height}, bypass_csp=True
    )
    page = context.new_page()
    page.goto(f"{store_admin.url}/login")
    newest = store_admin.operators_app.api("GET", "/keys").json()["data"][-1]["id"]
    searched = ["/keys?q=bill&status=active", f"/keys?after={newest}", "/keys?q=nothing"]
    pages = [
        *("/", "/approvals", "/operations", "/refunds", "/keys", "/grants", "/alerts", "/audit"),
        *(*searched, f"/keys/{billing.nightly.id}", f"/operations/{operation}"),
        *("/operations?customer=nobody", "/refunds?state=unknown", "/nothing"),
    ]
    try:
        found = serious(page, "/login")
        store_admin.enter(page)
        for path in pages:
            page.goto(store_admin.url + path)
            shot = tmp_path / f"{scheme}-{size}{re.sub('[^a-z_]', '-', path)}.png"
            page.screenshot(path=str(shot), full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert page.evaluate(CUT_OFF) == [], path
            found += serious(page, path)
    finally:
        context.close()
    assert found == []


def serious(page: Any, path: str) -> list[str]:
    """Return axe-core's serious findings on a page, one line each."""
    page.add_style_tag(content="* { animation: none !important; }")
    violations = Axe().run(page).response["violations"]
    return [
        f"{path}: {each['id']}: {node['html'][:120]}"
        for each in violations
        if each["impact"] in {"serious", "critical"}
        for node in each["nodes"]
    ]


def test_a_row_of_the_audit_is_short_on_a_phone(store_admin: StoreAdmin, page: Any) -> None:
    key = store_admin.in_process.issue()
    assert store_admin.in_process.charge(key, period="2026-11").status_code == 200
    page.set_viewport_size({"width": 390, "height": 844})
    store_admin.enter(page, "/audit")
    page.get_by_text("succeeded").first.wait_for()
    tallest = (
        "Math.max(...[...document.querySelectorAll('.rows tbody tr')].map((r) => r.clientHeight))"
    )
    assert page.evaluate(tallest) <= 130
