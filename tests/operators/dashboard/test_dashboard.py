"""The dashboard as a browser without scripts sees it, over the real path of a charge."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from typing_extensions import override

from kb_mcp.operators.sign_in import FAILURES_MAX, IDLE_MS, LIFETIME_MS
from tests.in_process_proxy import InProcessProxy, Issued, error_of
from tests.months import lately
from tests.operators.operators_app import OTHER_TOKEN, TOKEN, OperatorsApp, asking_above, csrf_of

PAGES = ["/", "/approvals", "/operations", "/refunds", "/keys", "/grants", "/alerts", "/audit"]
CANARY = "<script>alert('canary')</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture
def operators_app(tmp_path: Path) -> Iterator[OperatorsApp]:
    with InProcessProxy(tmp_path) as in_process:
        yield OperatorsApp(in_process)


class Tags(HTMLParser):
    """Collects the tags of a page and the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts: list[str | None] = []
        self.forms = self.tokens = 0
        self.feed(text)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "script":
            self.scripts.append(dict(attrs).get("src"))
        self.attributes.update(name for name, _ in attrs)
        self.forms += tag == "form" and ("method", "post") in attrs
        self.tokens += tag == "input" and ("name", "csrf") in attrs


@pytest.mark.parametrize("page", [*PAGES, "/keys/x", "/operations/x"])
def test_without_a_session_every_page_leads_to_the_login(
    operators_app: OperatorsApp, page: str
) -> None:
    answer = operators_app.browser.get(page)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_a_login_begins_a_session_in_a_cookie_no_script_or_other_site_can_use(
    operators_app: OperatorsApp,
) -> None:
    answer = operators_app.log_in()
    cookie = answer.headers["set-cookie"].split("keybrake_login")[0].lower()
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    assert TOKEN not in answer.headers["set-cookie"]
    assert operators_app.browser.get("/").status_code == 200
    assert operators_app.admin_rows() == [("login", "admin")]


def test_behind_https_the_session_cookie_is_secure(operators_app: OperatorsApp) -> None:
    public = OperatorsApp(operators_app.in_process, "https://ops.example.com")
    browser = public.visitor("https://ops.example.com")
    cookie = public.log_in(browser=browser).headers["set-cookie"].lower()
    assert "secure" in cookie
    assert browser.get("/").status_code == 200


def test_off_loopback_without_https_the_dashboard_refuses_even_to_ask(
    operators_app: OperatorsApp,
) -> None:
    browser = operators_app.visitor("http://ops.example.com")
    for answer in (browser.get("/login"), browser.get("/"), browser.post("/login")):
        assert answer.status_code == 403
        assert "KEYBRAKE_PUBLIC_URL" in answer.text
        assert "set-cookie" not in answer.headers


def test_a_wrong_token_is_refused_throttled_and_noted_without_the_token(
    operators_app: OperatorsApp,
) -> None:
    statuses = [operators_app.log_in(f"wrong-{n}").status_code for n in range(FAILURES_MAX + 1)]
    assert statuses == [401] * FAILURES_MAX + [429]
    assert operators_app.log_in().status_code == 429
    assert operators_app.admin_rows() == [("login_failed", None)] * FAILURES_MAX
    assert not any("wrong-" in str(row) for row in operators_app.in_process.audit())
    operators_app.later_ms = 60_000
    assert operators_app.log_in().status_code == 303


def test_a_login_form_of_another_site_is_refused(operators_app: OperatorsApp) -> None:
    other = operators_app.visitor()
    csrf = csrf_of(operators_app.browser.get("/login"))
    assert other.post("/login", data={"token": TOKEN, "csrf": csrf}).status_code == 403
    assert other.post("/login", data={"token": TOKEN, "csrf": ""}).status_code == 403
    assert operators_app.admin_rows() == []


@pytest.mark.parametrize("idle", [True, False])
def test_a_session_ends_when_it_idles_or_grows_old(
    operators_app: OperatorsApp, *, idle: bool
) -> None:
    operators_app.log_in()
    step = IDLE_MS // 2  # real time passes too
    while not idle and operators_app.later_ms + step < LIFETIME_MS:
        operators_app.later_ms += step
        assert operators_app.browser.get("/").status_code == 200
    operators_app.later_ms += IDLE_MS if idle else step
    answer = operators_app.browser.get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?ended=1")


def test_a_changed_token_ends_the_sessions_it_began(operators_app: OperatorsApp) -> None:
    operators_app.log_in(OTHER_TOKEN)
    operators_app.named = {}
    assert operators_app.browser.get("/").status_code == 303


def test_a_session_that_ended_mid_action_does_nothing(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    operators_app.log_in()
    csrf = csrf_of(operators_app.browser.get(f"/keys/{key.id}"))
    operators_app.later_ms = IDLE_MS
    answer = operators_app.browser.post(f"/keys/{key.id}/revoke", data={"csrf": csrf})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?ended=1")
    assert operators_app.in_process.charge(key, period="2026-11").status_code == 200


def test_logging_out_ends_the_session_on_the_server(operators_app: OperatorsApp) -> None:
    operators_app.log_in()
    cookie = operators_app.browser.cookies["keybrake_session"]
    operators_app.submit("/", "/logout")
    stolen = operators_app.visitor()
    stolen.cookies.set("keybrake_session", cookie)
    assert stolen.get("/").status_code == 303
    assert operators_app.admin_rows()[-1] == ("logout", "admin")


def test_revoking_takes_one_page_and_one_form_and_no_reservation_follows(
    operators_app: OperatorsApp,
) -> None:
    key = operators_app.in_process.issue()
    operators_app.in_process.charge(key, period="2026-10")
    operators_app.log_in(OTHER_TOKEN)
    answer = operators_app.submit(
        f"/keys/{key.id}", f"/keys/{key.id}/revoke", {"reason": "ran away"}
    )
    assert answer.status_code == 303
    assert (
        "Revoked. Sends under way when it was: 0"
        in operators_app.browser.get(f"/keys/{key.id}").text
    )
    assert error_of(operators_app.in_process.charge(key, period="2026-11")) == "vault_key_revoked"
    assert len(operators_app.in_process.charges()) == 1
    assert operators_app.admin_rows()[-1] == ("revoke", "mira")


ACTIONS = ["/keys", "/keys/{key}/revoke", "/keys/{key}/unfreeze", "/keys/{key}/rotate",
           "/approvals/{approval}/approve", "/approvals/{approval}/deny", "/grants",
           "/grants/any/remove", "/logout"]  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("how", ["no token", "another session's token", "another site"])
def test_no_action_happens_without_this_sessions_token(
    operators_app: OperatorsApp, action: str, how: str
) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    (approval,) = operators_app.api("GET", "/approvals").json()["data"]
    operators_app.log_in()
    other = operators_app.visitor()
    operators_app.log_in(OTHER_TOKEN, other)
    csrf = {
        "no token": "",
        "another session's token": csrf_of(other.get("/keys")),
        "another site": csrf_of(operators_app.browser.get("/keys")),
    }[how]
    headers = {"Sec-Fetch-Site": "same-site"} if how == "another site" else {}
    before = operators_app.admin_rows()
    path = action.format(key=key.id, approval=approval["id"])
    fields = {"csrf": csrf, "reason": "x", "role": "billing"}
    assert operators_app.browser.post(path, data=fields, headers=headers).status_code == 403
    assert operators_app.admin_rows() == before


def test_a_key_is_issued_by_form_and_its_token_is_shown_on_one_page_once(
    operators_app: OperatorsApp,
) -> None:
    operators_app.log_in()
    fields = {"role": "billing", "label": "nightly", "daily": "30.00usd, 20.00eur"}
    answer = operators_app.submit("/keys", "/keys", fields)
    page = operators_app.browser.get(answer.headers["location"])
    found = re.search(r"vk_test_[a-z2-7]+_[a-z2-7]+", page.text)
    assert found is not None
    assert found[0] not in operators_app.browser.get(answer.headers["location"]).text
    key = Issued(answer.headers["location"].removeprefix("/keys/"), found[0])
    assert operators_app.in_process.charge(key, period="2026-11").status_code == 200
    refused = operators_app.in_process.charge(key, customer="cus_B2", period="2026-11")
    assert error_of(refused) == "spend_cap_exceeded"


POLICY = 'role = "mine"\nallow = ["POST /v1/charges"]'


@pytest.mark.parametrize("fields", [{"role": "billing", "label": "nightly"}, {"policy": POLICY}])
def test_a_form_for_a_key_without_a_cap_is_shown_again_until_that_is_chosen(
    operators_app: OperatorsApp, fields: dict[str, str]
) -> None:
    operators_app.log_in()
    answer = operators_app.submit("/keys", "/keys", fields)
    assert (answer.status_code, "no key was issued" in answer.text.lower()) == (400, True)
    assert "no cap per day, month or customer holds it" in answer.text
    assert operators_app.api("GET", "/keys").json()["data"] == []
    chosen = operators_app.submit("/keys", "/keys", {**fields, "uncapped": "1"})
    assert chosen.status_code == 303
    assert len(operators_app.api("GET", "/keys").json()["data"]) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"role": "boss"}, "role"),
        ({"role": "billing", "daily": "much"}, "daily"),
        ({"role": "billing", "label": "x" * 200}, "label"),
        ({"role": "billing", "expires_at": "soon"}, "expires_at"),
        ({"role": "billing", "daily": "1.00usd", "monthly": "1.00eur"}, "policy"),
    ],
)
def test_a_form_that_cannot_be_meant_says_which_field(
    operators_app: OperatorsApp, fields: dict[str, str], param: str
) -> None:
    operators_app.log_in()
    answer = operators_app.submit("/keys", "/keys", fields)
    assert (answer.status_code, f"({param})" in answer.text) == (400, True)
    assert operators_app.api("GET", "/keys").json()["data"] == []


def test_an_approval_given_on_the_overview_lets_the_next_call_charge(
    operators_app: OperatorsApp,
) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    (approval,) = operators_app.api("GET", "/approvals").json()["data"]
    operators_app.log_in()
    overview = operators_app.browser.get("/").text
    assert f"/approvals/{approval['id']}/approve" in overview
    assert operators_app.submit("/", f"/approvals/{approval['id']}/approve").status_code == 303
    assert operators_app.in_process.charge(key, period="2026-11").status_code == 200
    assert len(operators_app.in_process.charges()) == 1
    late = operators_app.submit("/keys", f"/approvals/{approval['id']}/deny")
    assert (late.status_code, "not pending any more" in late.text) == (409, True)


def test_the_overview_shows_spend_refusals_and_what_needs_a_person(
    operators_app: OperatorsApp,
) -> None:
    key = operators_app.in_process.issue(daily={"usd": 10_000})
    operators_app.in_process.charge(key, period="2026-11")
    operators_app.in_process.fault("drop_after")
    operators_app.in_process.charge(key, customer="cus_Lost", period="2026-11")
    operators_app.in_process.charge(key, customer="cus_Big", amount=99_000, period="2026-11")
    operators_app.log_in()
    text = operators_app.browser.get("/").text
    assert '<rect class="settled" width="290"' in text
    assert '<rect class="reserved" x="290" width="290"' in text
    assert "58.00 USD of 100.00 USD" in text
    needs = text.index('id="needs"')
    unknown = text[needs : text.index('id="spend"')]
    assert "cus_Lost" in unknown
    assert "spend_cap_exceeded" in text[text.index('id="tail"') :]
    assert "990.00 USD" in text[:needs]


def test_operations_are_searched_and_shown_with_attempts_and_trail(
    operators_app: OperatorsApp,
) -> None:
    key = operators_app.in_process.issue()
    made = operators_app.in_process.charge(key, period="2026-11").json()["id"]
    operators_app.in_process.charge(key, customer="cus_B2", period="2026-10")
    operators_app.log_in()
    period = f"period={lately('2026-11')}"
    for query in ("customer=cus_A1&period=&charge=&state=", period, f"charge={made}"):
        listed = operators_app.browser.get(f"/operations?{query}").text
        assert ("cus_A1</td>" in listed, "cus_B2</td>" in listed) == (True, False)
    operation = operators_app.in_process.operations(customer_id="cus_A1")[0]
    text = operators_app.browser.get(f"/operations/{operation.id}").text
    assert made in text
    assert operation.upstream_name in text
    for row in operators_app.in_process.audit(operation=operation.id):
        assert row["id"] in text
    assert operators_app.browser.get("/operations/op_none").status_code == 404


@pytest.mark.parametrize(
    "query", ["?limit=x", "?colour=red", "?customer=a&customer=b", "?customer=%00%ff%3Cscript%3E"]
)
def test_hostile_searches_do_no_harm(operators_app: OperatorsApp, query: str) -> None:
    operators_app.log_in()
    for page in ("/operations", "/audit"):
        answer = operators_app.browser.get(page + query)
        assert answer.status_code in {200, 400}
        assert "<script>" not in answer.text


def everything(operators_app: OperatorsApp, key: Issued) -> list[httpx.Response]:
    operations = [
        f"/operations/{operation.id}" for operation in operators_app.in_process.operations()
    ]
    pages = [*PAGES, f"/keys/{key.id}", *operations, "/nothing", f"/operations?customer={CANARY}"]
    return [
        operators_app.browser.get("/login"),
        *(operators_app.browser.get(page) for page in pages),
    ]


def test_text_of_clients_and_operators_is_never_markup(operators_app: OperatorsApp) -> None:
    body = {
        "role": "billing", "uncapped": True, "label": CANARY[:128], "agent": CANARY[:128],
    }  # fmt: skip
    issued = operators_app.api("POST", "/keys", json=body).json()
    key = Issued(issued["id"], issued["token"])
    operators_app.in_process.charge(key, period="2026-11", description=CANARY)
    operators_app.in_process.charge(key, customer=CANARY, key_header=CANARY)
    operators_app.in_process.charge(key, path="/v1/" + CANARY.replace("/", ""))
    operators_app.api("POST", f"/keys/{key.id}/revoke", json={"reason": CANARY})
    operators_app.log_in()
    pages = everything(operators_app, key)
    assert any("&lt;script&gt;" in page.text for page in pages)
    for page in pages:
        tags = Tags(page.text)
        assert tags.scripts == ["/static/dashboard.js"]
        assert not tags.tags & {"img", "iframe", "object", "style", "base"}
        assert not any(name.startswith("on") or name == "style" for name in tags.attributes)


def test_every_form_that_acts_carries_a_token(operators_app: OperatorsApp) -> None:
    key = asking_above(operators_app.in_process, 1000)
    operators_app.in_process.charge(key, period="2026-11")
    operators_app.log_in()
    for page in everything(operators_app, key):
        tags = Tags(page.text)
        assert tags.forms == tags.tokens, page.url


@pytest.mark.parametrize("page", ["/login", "/", "/nothing", "/metrics", "/admin/v1/keys"])
def test_every_answer_forbids_frames_scripts_and_storing(
    operators_app: OperatorsApp, page: str
) -> None:
    operators_app.log_in()
    headers = operators_app.browser.get(page).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    # With no-referrer a browser sends `Origin: null`, and the host check refuses our own forms.
    assert headers["referrer-policy"] == "same-origin"


def test_the_style_sheet_is_ours_and_knows_the_dark(operators_app: OperatorsApp) -> None:
    answer = operators_app.browser.get("/static/dashboard.css")
    assert answer.headers["content-type"].startswith("text/css")
    assert "prefers-color-scheme: dark" in answer.text
    assert "http" not in answer.text


def test_without_operators_the_dashboard_says_how_to_make_one(operators_app: OperatorsApp) -> None:
    operators_app.token, operators_app.named = None, {}
    answer = operators_app.browser.get("/login")
    assert (answer.status_code, "KEYBRAKE_ADMIN_TOKEN" in answer.text) == (503, True)


def test_a_closed_store_is_a_page_not_a_trace(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    operators_app.log_in()
    csrf = csrf_of(operators_app.browser.get("/keys"))
    operators_app.in_process.run(operators_app.in_process.proxy.store.ledger.close())
    answer = operators_app.browser.post(f"/keys/{key.id}/revoke", data={"csrf": csrf})
    assert (answer.status_code, "cannot be reached" in answer.text) == (503, True)
    assert "Traceback" not in answer.text
