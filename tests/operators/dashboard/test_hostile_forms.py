"""Every form and every search of the dashboard, filled in with what nobody means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.in_process_proxy import InProcessProxy
from tests.operators.operators_app import OperatorsApp, asking_above, csrf_of

VALUES = {
    "nothing": "",
    "blanks": " \t\r\n ",
    "null": "a\x00b",
    "terminal": "\x1b[2J\x1b]0;owned\x07",
    "markup": "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>",
    "template": "{{ 7 * 7 }}{% raw %}${7*7}",
    "sql": "' OR '1'='1'; DROP TABLE audit; --",
    "path": "../../etc/passwd%00.toml",
    "lines": "a\r\nSet-Cookie: keybrake_session=x",
    "bidi": "\u202egpj.\u2066exe\u2069",
    "surrogate": "\U0001f4a9\ufffe\u0301" * 20,
    "long": "9" * 5_000,
    "number": "-1",
    "exponent": "1e309",
    "infinity": "NaN",
    "digits": "\u0661\u0662\u0663",
    "json": '{"$ne": null}',
}
FORMS = {
    "/keys": (
        *("role", "label", "agent", "daily", "monthly", "per_charge", "per_customer_daily"),
        *("refund_daily", "refund_per_refund", "daily_refunds", "refund_approval_above"),
        *("daily_charges", "rate", "approval_above", "expires_at", "policy", "unheard-of"),
    ),
    "/grants": ("issuer", "match", "key_id", "label"),
    "/keys/{key}/revoke": ("reason",),
    "/keys/{key}/unfreeze": ("reason",),
    "/keys/{key}/rotate": ("overlap",),
    "/operations/{operation}/resolve": ("succeeded", "reason"),
    "/operations/{operation}/reopen": ("reason",),
    "/operations/{operation}/reset": ("unheard-of",),
    "/audit/verify": ("unheard-of",),
}
SEARCHES = {
    "/refunds": ("customer", "charge", "state", "limit"),
    "/operations": ("customer", "period", "charge", "agent", "session", "state", "limit"),
    "/audit": ("key", "customer", "code", "operation", "agent", "session", "limit"),
}
ANSWERED = {200, 303, 400, 404, 409}


@pytest.fixture(scope="module")
def operators_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorsApp]:
    with InProcessProxy(Path(tmp_path_factory.mktemp("hostile"))) as in_process:
        operators_app = OperatorsApp(in_process)
        operators_app.log_in()
        yield operators_app


def check(operators_app: OperatorsApp, status: int, text: str, value: str) -> None:
    assert status in ANSWERED, (status, value)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "Traceback" not in text
    assert operators_app.in_process.audit(limit=1)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("page", SEARCHES)
def test_a_search_for_anything_is_a_page_or_says_what_is_wrong(
    operators_app: OperatorsApp, page: str, kind: str
) -> None:
    for name in SEARCHES[page]:
        answer = operators_app.browser.get(page, params={name: VALUES[kind]})
        check(operators_app, answer.status_code, answer.text, VALUES[kind])


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("form", FORMS)
def test_a_form_with_anything_in_it_acts_as_said_or_not_at_all(
    operators_app: OperatorsApp, form: str, kind: str
) -> None:
    key = asking_above(operators_app.in_process, 1_000_000)
    operators_app.in_process.charge(
        key, customer=f"cus_{kind}", amount=2900 + len(operators_app.in_process.operations())
    )
    operation = operators_app.in_process.operations(limit=1)[0]
    charged = len(operators_app.in_process.charges())
    path = form.format(key=key.id, operation=operation.id)
    csrf = csrf_of(operators_app.browser.get("/keys"))
    for name in FORMS[form]:
        filled = {"csrf": csrf, "role": "billing", "daily": "5.00usd", name: VALUES[kind]}
        answer = operators_app.browser.post(path, data=filled)
        check(operators_app, answer.status_code, answer.text, VALUES[kind])
        if answer.status_code == 303:
            shown = operators_app.browser.get(answer.headers["location"])
            check(operators_app, shown.status_code, shown.text, VALUES[kind])
            assert "set-cookie" not in answer.headers
    assert len(operators_app.in_process.charges()) == charged
    rows = [row for row in operators_app.in_process.audit() if row["kind"] == "admin"]
    assert all((row["note"] or "").isprintable() for row in rows)


@pytest.mark.parametrize("kind", VALUES)
def test_an_id_in_a_path_that_nobody_made_is_not_found(
    operators_app: OperatorsApp, kind: str
) -> None:
    from urllib.parse import quote

    name = quote(VALUES[kind], safe="")
    csrf = csrf_of(operators_app.browser.get("/keys"))
    before = operators_app.admin_rows()
    for page in ("/keys/", "/operations/"):
        answer = operators_app.browser.get(f"{page}{name}")
        assert answer.status_code in {303, 404} if name else {404}
        check(operators_app, answer.status_code, answer.text, VALUES[kind])
    for path in (
        f"/keys/{name}/revoke",
        f"/approvals/{name}/approve",
        f"/operations/{name}/reopen",
    ):
        answer = operators_app.browser.post(path, data={"csrf": csrf, "reason": "x"})
        assert answer.status_code in {404, 400}, path
    assert operators_app.admin_rows() == before
