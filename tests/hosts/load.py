"""Load on several hosts, and the reckoning afterwards: the sandbox's list against the ledger."""

from __future__ import annotations

import json
import random  # noqa: TID251 seeded by the tests
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.proxy_processes import ProxyProcesses, Running, charge

BILLS = 40


@contextmanager
def load(hosts: list[Running], token: str, callers: int, seed: int = 1) -> Iterator[None]:
    """Ask for random bills at random hosts inside the block, whatever comes back."""
    stop = threading.Event()

    def ask_on(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        while not stop.is_set():
            try:
                ask(chance.choice(hosts), token, chance.randrange(BILLS))
            except httpx.HTTPError:
                continue

    threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def ask(host: Running, token: str, bill: int) -> httpx.Response:
    """Ask `host` for one of the bills."""
    return charge(host.url, token, customer=f"cus_K{bill}", period="2026-11", amount=1000 + bill)


def finish(host: Running, token: str) -> None:
    """Ask for every bill until it is charged: what could not be told at first is found out."""
    for bill in range(BILLS):
        while (answer := ask(host, token, bill)).status_code in {503, 504, 409}:
            assert answer.json()["error"]["code"] in {
                "ledger_unavailable", "outcome_unknown", "idempotency_key_in_use",
            }  # fmt: skip
        assert answer.status_code == 200, answer.text


def compare(here: ProxyProcesses) -> None:
    """Compare the sandbox's own list with the ledger, the windows and the audit."""
    charged = here.charges()
    assert len(charged) == len({each["customer"] for each in charged}) == BILLS
    listed = json.loads(here.command("operations", "list", "--json").stdout)
    assert {each["state"] for each in listed} == {"succeeded"}
    assert {each["charge_id"] for each in listed} == {each["id"] for each in charged}
    spend = json.loads(here.command("spend", "--json").stdout)
    day = [row for row in spend if row["window"] == "day" and row["scope"] == "key"]
    assert sum(row["settled"] for row in day) == sum(each["amount"] for each in charged)
    assert sum(row["reserved"] for row in day) == 0
    here.command("audit", "verify")
    here.command("doctor")
    here.command("reconcile", "--since", "2026-01-01")
