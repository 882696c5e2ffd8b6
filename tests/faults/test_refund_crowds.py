"""Crowds that refund, on four processes and both stores: the cap holds, and so does the charge."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import database, server
from tests.proxy_processes import HTTP, ProxyProcesses, Running, charge, cluster

__all__ = ["database", "server"]

pytestmark = pytest.mark.slow

CALLERS = 60
STRIPE = {"Authorization": "Bearer rk_test_sandbox"}


@pytest.fixture(params=["sqlite", "postgres"])
def stored(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "sqlite":
        return {}
    return dict(request.getfixturevalue("database").environ)


def refund(proxy: Running, token: str, of: str, **form: Any) -> str:
    """Refund through a proxy; return ok and the refund's id, or the code of the error."""
    answer = HTTP.post(
        f"{proxy.url}/v1/refunds",
        data={"charge": of} | {name: str(value) for name, value in form.items()},
        headers={"Authorization": f"Bearer {token}"},
    )
    return "ok" if answer.status_code == 200 else str(answer.json()["error"].get("code"))


def charged(here: ProxyProcesses, proxy: Running, customer: str) -> str:
    token = here.issue()
    return str(charge(proxy.url, token, customer=customer, period="2026-11").json()["id"])


def given_back(here: ProxyProcesses, of: str | None = None) -> list[int]:
    query = "limit=100" + (f"&charge={of}" if of else "")
    return [each["amount"] for each in here.stripe(f"/v1/refunds?{query}")["data"]]


def compare(here: ProxyProcesses, amount: int) -> None:
    """The sandbox's own list, the windows, the audit and the doctor say the same."""
    assert sum(given_back(here)) == amount
    spend = json.loads(here.command("spend", "--json").stdout)
    days = [row for row in spend if (row["window"], row["scope"]) == ("day", "account_refunds")]
    assert [(row["settled"], row["reserved"]) for row in days] == [(amount, 0)]
    here.command("audit", "verify")
    here.command("reconcile", "--since", "2026-01-01")


def test_sixty_callers_against_a_refund_cap_of_five_on_four_processes_make_five(
    tmp_path: Path, stored: dict[str, str]
) -> None:
    with cluster(tmp_path, **stored) as here, ThreadPoolExecutor(CALLERS) as pool:
        proxies = list(pool.map(lambda _: here.start_proxy(), range(4)))
        bills = here.issue()

        def bill(number: int) -> str:
            answer = charge(
                proxies[number % 4].url, bills, customer=f"cus_C{number}", period="2026-11"
            )
            return str(answer.json()["id"])

        charges = list(pool.map(bill, range(CALLERS)))
        token = here.issue("--role", "refunds", "--refund-daily-cap", "5.00usd")

        def ask(number: int) -> str:
            return refund(proxies[number % 4], token, charges[number], amount=100)

        told = Counter(pool.map(ask, range(CALLERS)))
        assert told == {"ok": 5, "refund_cap_exceeded": 55}
        compare(here, 500)


@pytest.mark.prove
def test_sixty_callers_of_one_refund_on_four_processes_make_one(
    tmp_path: Path, stored: dict[str, str]
) -> None:
    with cluster(tmp_path, **stored) as here, ThreadPoolExecutor(CALLERS) as pool:
        proxies = list(pool.map(lambda _: here.start_proxy(), range(4)))
        of = charged(here, proxies[0], "cus_A1")
        token = here.issue("--role", "refunds", "--refund-daily-cap", "100.00usd")

        def ask(number: int) -> str:
            return refund(proxies[number % 4], token, of, amount=900)

        assert Counter(pool.map(ask, range(CALLERS))) == {"ok": CALLERS}
        compare(here, 900)


def test_many_refunds_of_one_charge_with_some_made_by_hand_never_exceed_it(
    tmp_path: Path, stored: dict[str, str]
) -> None:
    policy = tmp_path / "parts.json"
    parts = {"role": "parts", "allow": ["POST /v1/refunds"], "max_refunds_per_charge": 100}
    policy.write_text(json.dumps(parts | {"refund_caps": {"daily": {"usd": 100_000}}}))
    with cluster(tmp_path, **stored) as here, ThreadPoolExecutor(20) as pool:
        proxies = list(pool.map(lambda _: here.start_proxy(), range(4)))
        of = charged(here, proxies[0], "cus_A1")
        tokens = [here.issue("--policy", str(policy)) for _ in range(2)]

        def ask(number: int) -> str:
            if number % 7 == 3:
                made = HTTP.post(
                    f"{here.sandbox.url}/v1/refunds",
                    data={"charge": of, "amount": "300"},
                    headers=STRIPE,
                )
                return f"by hand {made.status_code}"
            reference = {"metadata[reference]": f"part-{number}"}
            return refund(proxies[number % 4], tokens[number % 2], of, amount=300, **reference)

        told = Counter(pool.map(ask, range(28)))
        assert sum(given_back(here, of)) <= 2900
        # What Stripe itself refused, since a hand was faster, was a no of Stripe's own.
        assert set(told) <= {
            "ok",
            "by hand 200",
            "by hand 400",
            "refund_exceeds_charge",
            "already_refunded",
            "charge_already_refunded",
            "idempotency_key_in_use",
            "None",
        }, told
        assert told["ok"] + told["by hand 200"] == len(given_back(here, of)) <= 9
