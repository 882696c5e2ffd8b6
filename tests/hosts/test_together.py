"""Several hosts on one store: caps, exactly-once, revocation and leases hold over all of them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import httpx

from tests.hosts.conftest import StartHost
from tests.postgres import Database
from tests.proxy_processes import ProxyProcesses, charge

CALLERS = 60
HOSTS = ("a", "b", "c", "d")
AHEAD = """
import time
_real = time.time_ns
time.time_ns = lambda: _real() + 86_400_000_000_000
time.time = lambda: time.time_ns() / 1e9
"""
ISSUE = ("keys", "issue", "--role", "billing", "--uncapped", "--json")


def test_sixty_callers_at_four_hosts_against_a_cap_of_five_make_five(
    here: ProxyProcesses, start_host: StartHost
) -> None:
    token = here.issue("--role", "billing", "--daily-cap", "50.00usd")
    hosts = [start_host(name) for name in HOSTS]

    def ask(number: int) -> str:
        host = hosts[number % len(hosts)]
        answer = charge(host.url, token, customer=f"cus_{number}", period="2026-11", amount=1000)
        return "ok" if answer.status_code == 200 else answer.json()["error"]["code"]

    with ThreadPoolExecutor(CALLERS) as pool:
        outcomes = Counter(pool.map(ask, range(CALLERS)))
    assert outcomes == {"ok": 5, "spend_cap_exceeded": CALLERS - 5}
    assert len(here.charges()) == 5
    here.command("doctor")


def test_one_operation_at_four_hosts_at_once_is_one_charge_and_four_equal_answers(
    here: ProxyProcesses, start_host: StartHost
) -> None:
    token = here.issue()
    hosts = [start_host(name) for name in HOSTS]
    here.fault("delay", seconds=1)
    with ThreadPoolExecutor(len(hosts)) as pool:
        answers = list(pool.map(lambda host: charge(host.url, token, period="2026-11"), hosts))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.content for answer in answers}) == 1
    assert len(here.charges()) == 1
    replayed = [answer.headers.get("idempotent-replayed") for answer in answers]
    assert sorted(map(str, replayed)) == ["None", "true", "true", "true"]


def test_a_host_that_dies_while_sending_is_resolved_by_another(
    here: ProxyProcesses, start_host: StartHost
) -> None:
    token = here.issue()
    first, second = start_host("a"), start_host("b")
    here.fault("delay", seconds=30)

    def ask() -> None:
        try:
            charge(first.url, token, period="2026-11")
        except httpx.HTTPError:
            return

    caller = threading.Thread(target=ask)
    caller.start()
    while not here.charges():
        pass  # the sandbox shows the charge as soon as it is made, long before it answers
    first.kill()
    caller.join()
    # Until the other host has read what became of it, it says that it does not know.
    while (answer := charge(second.url, token, period="2026-11")).status_code == 504:
        assert answer.json()["error"]["code"] == "outcome_unknown"
    assert answer.status_code == 200
    assert [each["id"] for each in here.charges()] == [answer.json()["id"]]


def test_a_revoked_key_is_refused_by_every_host(
    here: ProxyProcesses, start_host: StartHost
) -> None:
    issued = json.loads(here.command(*ISSUE).stdout)
    hosts = [start_host(name) for name in HOSTS[:2]]
    assert charge(hosts[0].url, issued["token"], period="2026-10").status_code == 200
    here.command("keys", "revoke", issued["id"])
    answers = [charge(host.url, issued["token"], period="2026-11") for host in hosts]
    codes = {answer.json()["error"]["code"] for answer in answers}
    assert ([a.status_code for a in answers], codes) == ([401, 401], {"vault_key_revoked"})
    assert len(here.charges()) == 1


def test_a_key_is_revoked_though_the_servers_clock_was_set_back_a_day(
    here: ProxyProcesses, database: Database, start_host: StartHost
) -> None:
    issued = json.loads(here.command(*ISSUE).stdout)
    host = start_host(HOSTS[0])
    # So it reads to everybody who comes now: the store has seen a day that is still to come.
    database.query(
        "UPDATE facts SET value = (value::bigint + 86400000)::text WHERE name = 'high_water_ms'"
    )
    here.command("keys", "revoke", issued["id"])
    refused = charge(host.url, issued["token"], period="2026-11")
    assert refused.json()["error"]["code"] == "vault_key_revoked"


def test_a_host_whose_clock_is_a_day_ahead_gains_nothing(
    here: ProxyProcesses, start_host: StartHost, tmp_path: Path
) -> None:
    (tmp_path / "ahead").mkdir()
    (tmp_path / "ahead" / "sitecustomize.py").write_text(AHEAD)
    token = here.issue("--role", "billing", "--daily-cap", "10.00usd")
    right = start_host("a")
    wrong = start_host("b", PYTHONPATH=str(tmp_path / "ahead"))
    assert charge(wrong.url, token, period="2026-11", amount=1000).status_code == 200
    for host in (right, wrong):
        over = charge(host.url, token, customer="cus_B", period="2026-11", amount=1000)
        assert over.json()["error"]["code"] == "spend_cap_exceeded"
    rows = json.loads(here.command("operations", "list", "--json").stdout)
    today = json.loads(here.command("audit", "list", "--json").stdout)[0]["time"][:10]
    assert [row["created_at"][:10] for row in rows] == [today] * len(rows)
    days = {row["time"][:10] for row in json.loads(here.command("audit", "list", "--json").stdout)}
    assert days == {today}


def test_the_first_host_issues_the_first_keys_and_the_others_none(
    here: ProxyProcesses, start_host: StartHost
) -> None:
    start_host("a")
    start_host("b")
    billing, audit = json.loads(here.command("keys", "list", "--json").stdout)
    assert (billing["role"], audit["role"]) == ("billing", "audit")
    caps = billing["policy"]["caps"]
    assert (caps["per_charge"], caps["daily"]) == ({"usd": 10_000}, {"usd": 100_000})
    for key in (billing, audit):
        made, ends = (datetime.fromisoformat(key[at]) for at in ("created_at", "expires_at"))
        assert 29 <= (ends - made).days <= 30
