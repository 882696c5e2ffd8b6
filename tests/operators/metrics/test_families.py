"""Metrics as a scraper reads them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kb_mcp.operators import metrics
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.meters import Measured, Meters
from tests.in_process_proxy import InProcessProxy
from tests.operators.operators_app import TOKEN, OperatorsApp

LINE = re.compile(r'(keybrake_[a-z_]+)\{((?:[a-z]+="[^"\n]*",?)*)\} ([0-9]+)')


@pytest.fixture
def operators_app(tmp_path: Path) -> Iterator[OperatorsApp]:
    with InProcessProxy(tmp_path) as in_process:
        yield OperatorsApp(in_process)


def scraped(operators_app: OperatorsApp) -> dict[str, int]:
    answer = operators_app.visitor().get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = [line for line in answer.text.splitlines() if not line.startswith("# ")]
    matches = [LINE.fullmatch(line) for line in lines]
    assert None not in matches, answer.text
    return {f"{m[1]}{{{m[2]}}}": int(m[3]) for m in matches if m}


def test_a_scrape_counts_what_happened_since_the_one_before(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue(daily={"usd": 10_000})
    labels = f'scope="key",key="{key.id}",window="day",currency="usd"'
    before = scraped(operators_app)
    assert before[f"keybrake_cap_left_minor_units{{{labels}}}"] == 10_000
    operators_app.in_process.charge(key, period="2026-11")
    operators_app.in_process.fault("drop_after")
    operators_app.in_process.charge(key, customer="cus_B2", period="2026-11")
    after = scraped(operators_app)
    assert after['keybrake_operations{state="unknown"}'] == 1
    assert after[f'keybrake_spend_minor_units{{{labels},part="settled"}}'] == 2900
    assert after[f'keybrake_spend_minor_units{{{labels},part="reserved"}}'] == 2900
    assert after[f"keybrake_cap_minor_units{{{labels}}}"] == 10_000
    assert after[f"keybrake_cap_left_minor_units{{{labels}}}"] == 4200
    counted = {name: count for name, count in after.items() if "audit_rows_total" in name}
    assert sum(counted.values()) == len(operators_app.in_process.audit())
    assert scraped(operators_app) == after


def test_what_is_given_back_stands_beside_what_is_charged(operators_app: OperatorsApp) -> None:
    in_process = operators_app.in_process
    charge = in_process.charge(in_process.issue(), period="2026-11").json()["id"]
    fields = built_in("refunds").model_dump(mode="json", by_alias=True)
    capped = Policy.model_validate(fields | {"refund_caps": {"daily": {"usd": 5000}}}, strict=False)
    key = in_process.issue(capped)
    assert in_process.refund(key, charge, amount=1200).status_code == 200
    after = scraped(operators_app)
    labels = f'scope="key_refunds",key="{key.id}",window="day",currency="usd"'
    whole = 'scope="account_refunds",key="",window="day",currency="usd"'
    assert after[f'keybrake_spend_minor_units{{{labels},part="settled"}}'] == 1200
    assert after[f"keybrake_cap_left_minor_units{{{labels}}}"] == 3800
    assert after[f'keybrake_spend_minor_units{{{whole},part="settled"}}'] == 1200
    rows = operators_app.api("GET", f"/spend?key={key.id}").json()["data"]
    assert [(row["scope"], row["window"], row["left"]) for row in rows] == [
        ("key_refunds", "day", 3800), ("key_refunds", "month", None),
    ]  # fmt: skip
    told = in_process.get(key, "/keybrake/v1/key").json()["spend"]
    assert [(row["scope"], row["settled"]) for row in told] == [("key_refunds", 1200)] * 2


def test_rows_older_than_this_process_are_not_counted(operators_app: OperatorsApp) -> None:
    operators_app.in_process.issue()
    assert not any("audit_rows" in name for name in scraped(OperatorsApp(operators_app.in_process)))


@pytest.mark.parametrize(
    ("peer", "headers", "base"),
    [
        ("203.0.113.9", {}, "http://127.0.0.1:8786"),
        ("127.0.0.1", {"X-Forwarded-For": "203.0.113.9"}, "http://127.0.0.1:8786"),
        ("127.0.0.1", {}, "http://ops.example.com"),
        ("not an address", {}, "http://127.0.0.1:8786"),
    ],
)
def test_from_elsewhere_a_scrape_needs_an_operators_token(
    operators_app: OperatorsApp, peer: str, headers: dict[str, str], base: str
) -> None:
    operators_app.peer = peer
    client = operators_app.visitor(base)
    assert client.get("/metrics", headers=headers).status_code == 401
    with_token = {**headers, "Authorization": f"Bearer {TOKEN}"}
    assert client.get("/metrics", headers=with_token).status_code == 200


def test_metrics_hold_no_token_and_no_text_of_clients(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    operators_app.in_process.charge(key, period="2026-11", description="canary-text")
    text = operators_app.visitor().get("/metrics").text
    assert key.token not in text
    assert "canary-text" not in text
    assert "cus_A1" not in text


def test_what_the_ledger_and_stripe_took_is_counted_in_whole_milliseconds(
    operators_app: OperatorsApp,
) -> None:
    key = operators_app.in_process.issue()
    before = scraped(operators_app)
    operators_app.in_process.charge(key, period="2026-11")
    operators_app.in_process.fault("drop_after")
    operators_app.in_process.charge(key, customer="cus_B2", period="2026-11")
    after = scraped(operators_app)

    def grown(name: str) -> int:
        return after[name] - before[name]

    assert grown('keybrake_send_duration_ms_count{worker="0",ending="answered"}') == 1
    assert grown('keybrake_send_duration_ms_bucket{worker="0",ending="lost",le="+Inf"}') == 1
    assert grown('keybrake_ledger_duration_ms_count{worker="0"}') == 4
    bounds = [value for name, value in after.items() if "ledger_duration_ms_bucket" in name]
    assert bounds == sorted(bounds)
    assert after['keybrake_requests_in_flight{worker="0"}'] == 0


def test_how_full_the_batches_of_the_writer_were_is_counted(operators_app: OperatorsApp) -> None:
    key = operators_app.in_process.issue()
    before = scraped(operators_app)
    for number in range(3):
        operators_app.in_process.charge(key, customer=f"cus_N{number}")
    after = scraped(operators_app)

    def grown(part: str) -> int:
        name = f"keybrake_ledger_batch_size_{part}"
        return after[name] - before[name]

    # One client waits for one answer: its transactions come alone, a decision and a conclusion.
    assert grown('sum{worker="0"}') == grown('count{worker="0"}') >= 6
    assert grown('bucket{worker="0",le="1"}') == grown('bucket{worker="0",le="+Inf"}')
    assert after['keybrake_ledger_queue{worker="0"}'] == 0
    assert after["keybrake_processes{}"] == 1


def test_a_reading_arrives_as_it_was_sent() -> None:
    meters = Meters(waiting=3, queued=lambda: 2, in_flight=lambda: 7, batches=lambda: (0, 4, 0, 1))
    meters.ledger.observe(17)
    meters.sends["lost"].observe(60_000)
    reading = Measured.load(meters.read().dump())
    assert reading.dump() == meters.read().dump()
    assert (reading.batches.count, reading.batches.total) == (5, 7)
    assert reading.batches.cumulative()[:3] == [("1", 4), ("2", 4), ("4", 5)]
    assert reading.sends["lost"].cumulative()[-2:] == [("25000", 0), ("+Inf", 1)]


def keys_with_caps(found: dict[str, int]) -> set[str]:
    named = (re.search(r'cap_minor_units\{scope="key",key="([^"]+)"', name) for name in found)
    return {match[1] for match in named if match}


def test_of_too_many_keys_the_fullest_have_series_and_are_chosen_now_and_then(
    operators_app: OperatorsApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "KEYS_MAX", 2)
    operators_app.in_process.begin_day()
    idle, half, full = (
        operators_app.in_process.issue(daily={"usd": cap}) for cap in (9_000, 8_000, 5_000)
    )
    operators_app.in_process.charge(half, customer="cus_H1")
    operators_app.in_process.charge(full, customer="cus_F1")
    before = scraped(operators_app)
    assert keys_with_caps(before) == {half.id, full.id}
    assert before["keybrake_vault_keys_left_out{}"] == 1
    for number in range(3):
        assert operators_app.in_process.charge(idle, customer=f"cus_I{number}").status_code == 200
    operators_app.in_process.charge(full, customer="cus_F2", amount=100)
    after = scraped(operators_app)
    # The keys stay for a while; what they hold is of this scrape.
    assert keys_with_caps(after) == {half.id, full.id}
    day = 'window="day",currency="usd",part="settled"'
    assert after[f'keybrake_spend_minor_units{{scope="key",key="{full.id}",{day}}}'] == 3_000
    operators_app.later_ms = metrics.CHOSEN_FOR_MS
    assert keys_with_caps(scraped(operators_app)) == {idle.id, full.id}


def test_a_key_that_ended_keeps_its_series_only_while_it_holds_something(
    operators_app: OperatorsApp,
) -> None:
    spent, unused = (operators_app.in_process.issue(daily={"usd": 10_000}) for _ in range(2))
    operators_app.in_process.charge(spent)
    for key in (spent, unused):
        revoked = operators_app.api("POST", f"/keys/{key.id}/revoke")
        assert revoked.status_code == 200
    assert keys_with_caps(scraped(operators_app)) == {spent.id}


def test_rows_are_counted_from_the_last_written_though_an_earlier_one_has_a_later_time(
    operators_app: OperatorsApp,
) -> None:
    key = operators_app.in_process.issue()
    operators_app.in_process.charge(key)
    with closing(sqlite3.connect(operators_app.in_process.folder / "ledger.db")) as store:
        store.execute("DROP TRIGGER audit_refuses_update")
        store.execute("UPDATE audit SET time = '2999-01-01T00:00:00.000Z' WHERE rowid = 1")
        store.commit()
    again = OperatorsApp(operators_app.in_process)
    assert not any("audit_rows" in name for name in scraped(again))
