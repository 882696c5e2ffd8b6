"""The form that issues a key from a policy file, filled in with good and with hostile values."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kb_mcp.operators.requests import BODY_MAX_BYTES
from tests.in_process_proxy import InProcessProxy, Issued, error_of
from tests.operators.operators_app import OTHER_TOKEN, OperatorsApp

TOML = """\
version = 1
role = "night-shift"
allow = ["POST /v1/charges"]
max_attempts = 2

[caps]
daily = { usd = 3000 }
"""
JSON = json.dumps(
    {
        "version": 1,
        "role": "night-shift",
        "allow": ["POST /v1/charges"],
        "caps": {"daily": {"usd": 3000}},
    }
)
CANARY = "</textarea><script>alert('canary')</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture
def operators_app(tmp_path: Path) -> Iterator[OperatorsApp]:
    with InProcessProxy(tmp_path) as in_process:
        operators_app = OperatorsApp(in_process)
        operators_app.log_in(OTHER_TOKEN)
        yield operators_app


@pytest.mark.parametrize("text", [TOML, JSON, f"\n  {JSON}\r\n"])
def test_a_policy_of_either_syntax_issues_a_key_whose_token_is_shown_once(
    operators_app: OperatorsApp, text: str
) -> None:
    fields = {"policy": text, "label": "nightly", "agent": "owl", "expires_at": "30d"}
    answer = operators_app.submit("/keys", "/keys", fields)
    place = answer.headers["location"]
    found = re.search(r"vk_test_[a-z2-7]+_[a-z2-7]+", operators_app.browser.get(place).text)
    assert found is not None
    assert found[0] not in operators_app.browser.get(place).text
    (shown,) = operators_app.api("GET", "/keys").json()["data"]
    assert (shown["role"], shown["label"], shown["agent"]) == ("night-shift", "nightly", "owl")
    assert operators_app.admin_rows()[-1] == ("issue", "mira")
    key = Issued(place.removeprefix("/keys/"), found[0])
    assert operators_app.in_process.charge(key).status_code == 200
    over = operators_app.in_process.charge(key, customer="cus_B2")
    assert error_of(over) == "spend_cap_exceeded"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "Paste a policy"),
        ("   \r\n", "Paste a policy"),
        ("version = ", "not TOML: "),
        ('{"version": 1', "not JSON: "),
        ('{"role": "a", "role": "b"}', "stands twice"),
        ('{"version": NaN}', "NaN is no JSON"),
        ("[]", "not TOML: "),
        ("null", "not TOML: "),
        (TOML + "\n[colour]\nred = 1\n", "colour: there is no such field (line 9)"),
        (TOML.replace("3000", "3000.5"), "caps.daily.usd"),
        (TOML.replace("3000", "-1"), "caps.daily"),
        (TOML.replace("3000", "inf"), "caps.daily.usd"),
        (TOML.replace("3000", "0x" + "f" * 9000), "a number is too long"),
        (TOML.replace("3000", "9" * 5000), "not TOML: "),
        (JSON.replace("3000", "1e3"), "caps.daily.usd"),
        (JSON.replace("3000", "9" * 5000), "not JSON: "),
        (JSON.replace("night-shift", "\\ud800"), "policy: "),
        (TOML.replace("POST /v1/charges", "POST /v1/nothing"), "allow.0"),
        (TOML.replace("max_attempts = 2", "expires_at = 2020-01-01T00:00:00Z"), "already past"),
        ('{"a":' * 4000 + "1" + "}" * 4000, "nested too deeply"),
        ("a = " + "[" * 9000 + "]" * 9000, "nested too deeply"),
        ("".join(f"f{n} = 1\n" for n in range(3000)), "the first 20 are"),
        (f'role = "{CANARY[:20]}', "not TOML: "),
        ("\x00\x1b[31m", "not TOML: "),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_at_the_form_and_kept_in_it(
    operators_app: OperatorsApp, text: str, told: str
) -> None:
    before = operators_app.admin_rows()
    answer = operators_app.submit("/keys", "/keys", {"policy": text, "label": "kept"})
    page = html.unescape(answer.text)
    assert (answer.status_code, told in page) == (400, True), page[page.find('id="wrong"') :][:400]
    assert 'role="alert"' in page
    assert 'value="kept"' in page
    assert text.strip().strip("\x00\x1b") in page
    assert operators_app.api("GET", "/keys").json()["data"] == []
    assert operators_app.admin_rows() == before


@pytest.mark.parametrize("field", ["policy", "label", "agent", "expires_at", "role", "daily"])
def test_what_is_shown_again_is_text_and_never_markup(
    operators_app: OperatorsApp, field: str
) -> None:
    form = {"policy": "x", field: CANARY} if field in {"policy", "label", "agent"} else {}
    answer = operators_app.submit("/keys", "/keys", form or {"role": "billing", field: CANARY})
    assert answer.status_code == 400
    assert "<script>alert" not in answer.text
    assert "<img" not in answer.text
    assert answer.text.count("</textarea>") == 1


def test_the_form_for_a_key_takes_every_cap_on_refunds(operators_app: OperatorsApp) -> None:
    caps = {"per_refund": "10.00usd", "daily": "50.00usd", "monthly": "500.00usd"}
    fields = {f"refund_{name}": text for name, text in caps.items()}
    fields |= {"role": "refunds", "daily_refunds": "7", "refund_approval_above": "5.00usd"}
    assert operators_app.submit("/keys", "/keys", {"role": "refunds"}).status_code == 400
    assert operators_app.submit("/keys", "/keys", fields).status_code == 303
    (key,) = operators_app.api("GET", "/keys").json()["data"]
    policy = key["policy"]
    wanted = {"per_refund": {"usd": 1000}, "daily": {"usd": 5000}, "monthly": {"usd": 50_000}}
    assert {name: caps for name, caps in policy["refund_caps"].items() if caps} == wanted
    assert (policy["daily_refunds"], policy["refund_approval_above"]) == (7, {"usd": 500})
    page = operators_app.browser.get(f"/keys/{key['id']}").text
    assert "0.00 USD of 50.00 USD" in page


def test_a_secret_in_a_policy_goes_no_further_than_the_form(operators_app: OperatorsApp) -> None:
    secret = "rk_live_" + "a1B2c3D4" * 4
    answer = operators_app.submit("/keys", "/keys", {"policy": f"{TOML}{secret} = 1\n"})
    assert answer.status_code == 400
    alert = answer.text[answer.text.index('id="wrong"') : answer.text.index("Built-in role")]
    assert secret not in alert
    assert secret not in str(operators_app.in_process.audit())


def test_a_policy_larger_than_a_body_may_be_is_refused(operators_app: OperatorsApp) -> None:
    answer = operators_app.submit("/keys", "/keys", {"policy": "#" * BODY_MAX_BYTES})
    assert answer.status_code == 413
    assert operators_app.api("GET", "/keys").json()["data"] == []


def test_the_forms_for_a_key_need_this_sessions_token(operators_app: OperatorsApp) -> None:
    answer = operators_app.browser.post("/keys", data={"policy": TOML, "csrf": "0" * 64})
    assert answer.status_code == 403
    assert operators_app.api("GET", "/keys").json()["data"] == []
