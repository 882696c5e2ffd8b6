"""Real processes killed at named points and at random under load: one charge a bill, none unknown.

`KILLS` sets how many at random; `make prove` asks for 300.
"""

from __future__ import annotations

import json
import os
import random  # noqa: TID251 the seed is printed by the test's own parameters
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import stripe

from tests.faults.fork_server import Child, ForkServer, fork_server
from tests.faults.gate import Gate, gate
from tests.proxy_processes import ProxyProcesses, charge, cluster

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "20"))  # noqa: TID251 how long to prove, not a setting
BILLS = 40
CALLERS = 6
VICTIMS = (("east",), ("west",), ("sandbox",), ("east", "sandbox"), ("east", "west"))
UP = ("up", "--admin-port", "0", "--port")
PAST_GRACE_S = 700
Act = Callable[["Place", Child, str], None]


@dataclass(frozen=True)
class Place:
    """Processes whose proxies are forked and reach the sandbox through a gate, and its one key."""

    here: ProxyProcesses
    entry: Gate
    forks: ForkServer
    token: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    with gate() as entry, cluster(folder, KEYBRAKE_STRIPE_API_BASE=entry.url) as here:
        entry.target = here.sandbox.url
        here.begin_day()  # grace passes several times below, and the day's windows are compared
        with fork_server(folder, here.environ()) as forks:
            yield Place(here, entry, forks, here.issue())


@contextmanager
def locked(here: ProxyProcesses) -> Iterator[None]:
    """Hold the store's write lock, so that no transaction of a proxy can begin."""
    store = sqlite3.connect(here.folder / "ledger.db", isolation_level=None)
    store.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        store.execute("ROLLBACK")
        store.close()


def lost_call(place: Place, proxy: Child, customer: str) -> threading.Thread:
    """Ask beside the test for the bill whose answer will be lost."""

    def ask() -> None:
        with suppress(httpx.HTTPError):
            charge(proxy.url, place.token, customer=customer, period="2026-11")

    caller = threading.Thread(target=ask)
    caller.start()
    return caller


def at_gate(point: str, then: Callable[[Gate], None]) -> Act:
    """Kill the proxy while its charge stands at `point`; then let the request go on, or lose it."""

    def act(place: Place, proxy: Child, customer: str) -> None:
        place.entry.hold(point)
        caller = lost_call(place, proxy, customer)
        place.entry.wait()
        proxy.kill()
        then(place.entry)
        caller.join()

    return act


def while_reserving(place: Place, proxy: Child, customer: str) -> None:
    """Kill the proxy before its reservation could be committed: nothing was sent."""
    served = place.entry.served
    with locked(place.here):
        caller = lost_call(place, proxy, customer)
        proxy.kill()
        caller.join()
    assert place.entry.served == served


def while_concluding(place: Place, proxy: Child, customer: str) -> None:
    """Kill the proxy when it has the answer, and cannot commit it."""
    place.entry.hold("executed")
    caller = lost_call(place, proxy, customer)
    place.entry.wait()
    with locked(place.here):
        place.entry.go_on()
        place.entry.answered.wait(60)
        proxy.kill()
    caller.join()


def of(rows: list[dict[str, Any]], customer: str) -> list[dict[str, Any]]:
    return [row for row in rows if customer in (row.get("customer"), row.get("customer_id"))]


# Where the kill is, what it does, and how many charges there are right after it.
POINTS: dict[str, tuple[Act, int]] = {
    "reserving": (while_reserving, 0),
    "sent, and lost on the way": (at_gate("arrived", Gate.drop), 0),
    "sent, and executed after the kill": (at_gate("arrived", Gate.go_on), 1),
    "executed, the answer lost": (at_gate("executed", Gate.drop), 1),
    "in the middle of the answer": (at_gate("half answered", Gate.drop), 1),
    "concluding": (while_concluding, 1),
}


@pytest.mark.parametrize("asked_first", [True, False], ids=["asked", "recovered"])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_named_point_leaves_at_most_one_charge(
    place: Place, point: str, asked_first: bool
) -> None:
    act, charges = POINTS[point]
    here, customer = place.here, f"cus_{'A' if asked_first else 'R'}{list(POINTS).index(point)}"
    act(place, place.forks.start(*UP, "0"), customer)
    while len(of(here.charges(), customer)) < charges:
        pass  # what was on its way arrives
    proxy = place.forks.start(*UP, "0")
    if not asked_first:
        # Let recovery alone find out what happened, and call it nothing only after grace.
        here.turn_clock(PAST_GRACE_S)
        here.command("recover")
        states = [each["state"] for each in of(operations(here), customer)]
        settled = ["succeeded" if charges else "voided"]
        assert states == ([] if point == "reserving" else settled)
    answer = charge(proxy.url, place.token, customer=customer, period="2026-11")
    assert answer.status_code == 200, answer.text
    assert [each["id"] for each in of(here.charges(), customer)] == [answer.json()["id"]]
    proxy.kill()


def test_a_sandbox_killed_after_it_executed_leaves_one_charge(place: Place) -> None:
    here, proxy = place.here, place.forks.start(*UP, "0")
    place.entry.hold("executed")
    caller = lost_call(place, proxy, "cus_S1")
    place.entry.wait()
    here.sandbox.kill()
    proxy.kill()
    place.entry.drop()
    caller.join()
    here.sandbox = here.start_sandbox(int(here.sandbox.url.rpartition(":")[2]))
    again = place.forks.start(*UP, "0")
    answer = charge(again.url, place.token, customer="cus_S1", period="2026-11")
    assert [each["id"] for each in of(here.charges(), "cus_S1")] == [answer.json()["id"]]
    # All that was killed here, together.
    compare(here, len(here.charges()))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.prove)])
def test_kills_under_load_never_double_or_lose_a_charge(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with cluster(tmp_path, KEYBRAKE_UPSTREAM_TIMEOUT="5", KEYBRAKE_RECOVERY_INTERVAL="1") as here:
        token = here.issue("--role", "billing", "--rate", "100000/min")
        with fork_server(tmp_path, here.environ()) as forks:
            here.sandbox.kill()
            state = ("--state", str(tmp_path / "sandbox.db"), "--port")
            sandbox_port = here.sandbox.url.rpartition(":")[2]
            running = {
                "sandbox": forks.start("sandbox", *state, sandbox_port),
                "east": forks.start(*UP, "0"),
                "west": forks.start(*UP, "0"),
            }
            again = {
                "sandbox": ("sandbox", *state, sandbox_port),
                "east": (*UP, str(running["east"].port)),
                "west": (*UP, str(running["west"].port)),
            }
            urls = [running["east"].url, running["west"].url]
            with crowd(urls, token, seed) as stop:
                for _ in range(KILLS // 2):
                    stop.wait(chance.uniform(0.05, 0.4))
                    victims = chance.choice(VICTIMS)
                    for victim in victims:
                        running[victim].kill()
                    for victim in victims:
                        running[victim] = forks.start(*again[victim])
            finish(urls[0], token)
            compare(here, BILLS)


@contextmanager
def crowd(urls: list[str], token: str, seed: int) -> Iterator[threading.Event]:
    """Let callers ask on until the block ends: half with Stripe's own SDK, half without."""
    stop = threading.Event()
    ask = (ask_by_sdk, ask_plainly)
    callers = [
        threading.Thread(target=_ask_on, args=(ask[number % 2], urls, token, stop, seed, number))
        for number in range(CALLERS)
    ]
    for caller in callers:
        caller.start()
    try:
        yield stop
    finally:
        stop.set()
        for caller in callers:
            caller.join()


def _ask_on(
    ask: Callable[[str, str, int], None],
    urls: list[str],
    token: str,
    stop: threading.Event,
    seed: int,
    number: int,
) -> None:
    """Ask for random bills, again and again, whatever comes back."""
    chance = random.Random(seed * 100 + number)
    while not stop.is_set():
        with suppress(httpx.HTTPError, stripe.StripeError):
            ask(chance.choice(urls), token, chance.randrange(BILLS))


def ask_plainly(url: str, token: str, number: int) -> None:
    charge(url, token, **bill(number))


def ask_by_sdk(url: str, token: str, number: int) -> None:
    # Its own retries, each call with a key that it made up.
    client = sdk_of(url, token)
    fields = bill(number)
    metadata = {"billing_period": fields.pop("period")}
    client.v1.charges.create({**fields, "currency": "usd", "metadata": metadata})  # type: ignore[arg-type]  # the SDK's TypedDict


@cache
def sdk_of(url: str, token: str) -> stripe.StripeClient:
    return stripe.StripeClient(token, base_addresses={"api": url}, max_network_retries=1)


def bill(number: int) -> dict[str, Any]:
    return {"customer": f"cus_K{number}", "period": "2026-11", "amount": 1000 + number}


def finish(url: str, token: str) -> None:
    """Ask once more for every bill: each must now be charged, or be there already."""
    for number in range(BILLS):
        answer = charge(url, token, **bill(number))
        assert answer.status_code == 200, answer.text


def operations(here: ProxyProcesses) -> list[dict[str, Any]]:
    return list(json.loads(here.command("operations", "list", "--json").stdout))


def compare(here: ProxyProcesses, bills: int) -> None:
    """Compare the sandbox's own list with the ledger, the windows and the audit."""
    charged = here.charges()
    assert len(charged) == len({each["customer"] for each in charged}) == bills
    listed = operations(here)
    assert {each["state"] for each in listed} == {"succeeded"}
    assert {each["charge_id"] for each in listed} == {each["id"] for each in charged}
    spend = json.loads(here.command("spend", "--json").stdout)
    day = [row for row in spend if row["window"] == "day" and row["scope"] == "key"]
    assert sum(row["settled"] for row in day) == sum(each["amount"] for each in charged)
    assert sum(row["reserved"] for row in day) == 0
    here.command("audit", "verify")
    here.command("reconcile", "--since", "2026-01-01")
