"""One key request by three ways: command, admin API and form give one key and one refusal."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kb_mcp.cli import main
from tests.in_process_proxy import InProcessProxy
from tests.operators.operators_app import OperatorsApp

OPTIONS = {
    "role": "--role", "label": "--label", "agent": "--agent", "expires_at": "--expires",
    "per_charge": "--per-charge-cap", "daily": "--daily-cap", "monthly": "--monthly-cap",
    "per_customer_daily": "--per-customer-daily-cap", "daily_charges": "--daily-charges",
    "rate": "--rate", "approval_above": "--approval-above", "refund_daily": "--refund-daily-cap",
    "refund_approval_above": "--refund-approval-above", "overlaps": "--overlaps",
    "period_kinds": "--period-kinds",
}  # fmt: skip
CAPS = ("per_charge", "daily", "monthly", "per_customer_daily")


class Ways:
    """The three ways to issue a key in one store; each returns the key's record or a refusal."""

    def __init__(self, in_process: InProcessProxy) -> None:
        self.app = OperatorsApp(in_process)
        self.app.log_in()
        self.env = {"KEYBRAKE_DATABASE_URL": in_process.settings.database_url}

    def command(self, fields: dict[str, str]) -> dict[str, Any] | str:
        args = [part for name, text in fields.items() for part in (OPTIONS[name], text)]
        found = CliRunner().invoke(main, ["keys", "issue", *args, "--json"], env=self.env)
        if found.exit_code:
            assert found.exit_code == 2, found.output
            return found.stderr.splitlines()[0].removeprefix("Error: ")
        return self.record(json.loads(found.stdout)["id"])

    def api(self, fields: dict[str, str]) -> dict[str, Any] | str:
        body: dict[str, Any] = {
            name: text for name, text in fields.items() if name not in (*CAPS, "refund_daily")
        }
        body["caps"] = {name: fields[name] for name in CAPS if name in fields}
        if "refund_daily" in fields:
            body["refund_caps"] = {"daily": fields["refund_daily"]}
        answer = self.app.api("POST", "/keys", json=body)
        if answer.status_code == 400:
            return str(answer.json()["error"]["message"])
        return self.record(answer.json()["id"])

    def form(self, fields: dict[str, str]) -> dict[str, Any] | str:
        answer = self.app.submit("/keys", "/keys", fields)
        if answer.status_code == 400:
            found = re.search(r"<ul><li>(.*?)(?: \([a-z_]+\))?</li>", answer.text)
            assert found is not None
            return html.unescape(found[1])
        return self.record(answer.headers["location"].removeprefix("/keys/"))

    def all(self, fields: dict[str, str]) -> list[dict[str, Any] | str]:
        return [self.command(fields), self.api(fields), self.form(fields)]

    def record(self, key_id: str) -> dict[str, Any]:
        record: dict[str, Any] = self.app.api("GET", f"/keys/{key_id}").json()
        return record


@pytest.fixture
def ways(tmp_path: Path) -> Iterator[Ways]:
    with InProcessProxy(tmp_path) as in_process:
        yield Ways(in_process)


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "billing", "daily": "30.00usd, 5000jpy", "label": "nightly", "agent": "owl"},
        {"role": "billing", "daily": "30 usd", "expires_at": "90d", "rate": "60"},
        {"role": "billing", "daily": "30.00usd", "expires_at": "2w", "rate": "60/min"},
        {"role": "billing", "monthly": "9.00eur", "expires_at": "2999-01-01", "overlaps": "allow"},
        {"role": "billing", "per_customer_daily": "1.00usd", "expires_at": "2999-01-01T08:00"},
        {"role": "billing", "daily": "1.00usd", "expires_at": "2999-01-01 08:00:00+02:00"},
        {"role": "billing", "daily": "1.00usd", "expires_at": "end-of-month"},
        {"role": "billing", "daily": "9.00usd", "per_charge": "1.00usd", "daily_charges": "7"},
        {"role": "billing", "daily": "9.00usd", "approval_above": "1.00usd,2.00eur"},
        {"role": "billing", "daily": "9.00usd", "period_kinds": "month, quarter,month"},
        {"role": "refunds", "refund_daily": "9.00usd", "refund_approval_above": "1.00usd"},
    ],
)
def test_one_request_gives_one_key_whichever_way_it_comes(
    ways: Ways, fields: dict[str, str]
) -> None:
    keys = ways.all(fields)
    for key in keys:
        assert isinstance(key, dict), key
        for name in ("id", "lineage", "created_at"):
            del key[name]
        # A duration counts from the moment of each request: days are what is compared.
        key["expires_at"] = (key["expires_at"] or "")[:10]
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"role": "nobody"}, "role: no built-in role 'nobody'"),
        ({"label": "x" * 129}, "label: String should have at most 128 characters"),
        ({"expires_at": "soon"}, "expires_at: give a day"),
        ({"expires_at": "2001-01-01"}, "expires_at: this is already past"),
        ({"expires_at": "36600d"}, "expires_at: a duration is at most 36525 days"),
        ({"expires_at": "2026-13-01"}, "expires_at: give a day"),
        ({"daily": "much"}, "caps.daily: A cap is an amount and a currency"),
        ({"daily": "1.00usd,2.00usd"}, "caps.daily: A currency is named twice"),
        ({"daily": "1.00usd", "monthly": "2.00eur"}, "caps: every cap that is given must name"),
        ({"daily_charges": "many"}, "daily_charges: give a whole number"),
        ({"daily_charges": "0"}, "daily_charges: Input should be greater than or equal to 1"),
        ({"rate": "fast"}, "rate: a rate is a number a minute"),
        ({"approval_above": "1.5"}, "approval_above: A cap is an amount and a currency"),
        ({"refund_daily": "1.00abc"}, "refund_caps.daily: The currency must be"),
        ({"overlaps": "perhaps"}, "overlaps: Input should be 'refuse' or 'allow'"),
        ({"period_kinds": "months"}, "period_kinds.0: Input should be 'year'"),
    ],
)
def test_one_wrong_field_is_refused_in_the_same_words(
    ways: Ways, more: dict[str, str], told: str
) -> None:
    refusals = ways.all({"role": "billing", "daily": "9.00usd"} | more)
    assert str(refusals[0]).startswith(told), refusals
    assert refusals[0] == refusals[1] == refusals[2]
    assert ways.app.api("GET", "/keys").json()["data"] == []


def test_a_key_without_a_cap_over_time_is_refused_in_the_same_words(ways: Ways) -> None:
    told = "a key of role billing moves money, and no cap per day, month or customer holds it"
    assert all(str(each).startswith(told) for each in ways.all({"role": "billing"}))


@pytest.mark.parametrize("text", ["36h", "30d", "2026-01-01", "2026-01-01T08:00:00Z"])
def test_the_admin_api_takes_a_time_in_every_form_that_a_command_takes(
    ways: Ways, text: str
) -> None:
    assert ways.app.api("GET", f"/audit?since={text}").status_code == 200
    assert ways.app.api("GET", f"/spend?day={text}").status_code == 200
