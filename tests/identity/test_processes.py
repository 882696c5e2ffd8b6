"""Tokens and keys at several processes on one store, by the count of the upstream."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path
from typing import Any

import pytest

from tests.identity.conftest import RESOURCE, Provider
from tests.proxy_processes import ProxyProcesses, charge, cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CALLERS = 4


class Place:
    """Two proxies of one store."""

    def __init__(self, processes: ProxyProcesses, provider: Provider) -> None:
        self.processes, self.provider = processes, provider
        self.urls = [processes.start_proxy().url for _ in range(2)]
        # Within one day of the upstream's clock, which decides the day of a cap.
        processes.begin_day()

    def json(self, *command: str) -> Any:
        return json.loads(self.processes.command(*command, "--json").stdout)

    def granted(self, subject: str, cap: str) -> tuple[str, str, str]:
        """Return a vault key, a token whose identity stands for it, and the id of the grant."""
        issued = self.json("keys", "issue", "--role", "billing", "--daily-cap", cap)
        given = ("--issuer", self.provider.url, "--match", f"sub={subject}", "--key", issued["id"])
        grant = self.json("grants", "add", *given)
        end = self.provider.claims()["exp"] + 3600
        return issued["token"], self.provider.sign(sub=subject, exp=end), grant["id"]

    def operations(self, *options: str) -> int:
        return len(self.json("operations", "list", *options))


@pytest.fixture(params=["sqlite", "postgres"])
def place(
    request: pytest.FixtureRequest, one_provider: Provider, tmp_path: Path
) -> Iterator[Place]:
    one_provider.do("lie")
    settings = {"KEYBRAKE_OAUTH_ISSUERS": one_provider.url, "KEYBRAKE_OAUTH_AUDIENCE": RESOURCE}
    if request.param == "postgres":
        settings |= request.getfixturevalue("database").environ
    with cluster(tmp_path, **settings) as processes:
        yield Place(processes, one_provider)


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """Let callers do `work`, each with its number, all at once."""
    begun = threading.Barrier(CALLERS, timeout=60)

    def one(number: int) -> Any:
        begun.wait()
        return work(number)

    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(one, range(CALLERS)))


def test_token_and_key_share_bills_and_caps_and_a_removed_grant_ends_everywhere(
    place: Place,
) -> None:
    key, token, _ = place.granted("agent-7", "50.00usd")

    def send(number: int, customer: str) -> int:
        form = {"customer": customer, "amount": 500, "period": "2026-11"}
        return charge(place.urls[number // 2], (key, token)[number % 2], **form).status_code

    same = at_once(lambda number: [send(number, f"cus_Same{turn}") for turn in range(4)])
    # 20.00 of 50.00 are spent: six of sixteen bills fit, whoever asks for them and where.
    own = at_once(lambda number: [send(number, f"cus_Own{number}x{turn}") for turn in range(4)])
    made = place.processes.charges()
    assert same == [[200] * 4] * CALLERS
    assert Counter(chain(*own)) == {200: 6, 403: 10}
    assert sum(each["amount"] for each in made) == 5_000
    assert len({each["customer"] for each in made}) == len(made) == 10

    check_that_a_removed_grant_ends_everywhere(place)


def check_that_a_removed_grant_ends_everywhere(place: Place) -> None:
    key, token, grant = place.granted("agent-8", "1000.00usd")
    answered, stop = threading.Event(), threading.Event()
    codes: set[int] = set()

    def go_on(number: int) -> None:
        turns = count()
        while not stop.is_set():
            form = {"customer": f"cus_{number}x{next(turns)}", "amount": 50, "period": "2026-11"}
            codes.add(charge(place.urls[number % 2], token, **form).status_code)
            answered.set()

    with ThreadPoolExecutor(CALLERS) as pool:
        going = [pool.submit(go_on, number) for number in range(CALLERS)]
        try:
            assert answered.wait(60)
            removed = place.json("grants", "remove", grant)
            after = place.operations()
        finally:
            stop.set()
    for each in going:
        each.result()

    last = [charge(url, token, customer="cus_Last", period="2026-11") for url in place.urls]
    assert removed["removed_at"] is not None
    assert 200 in codes
    assert [each.status_code for each in last] == [403, 403]
    assert place.operations() == after
    # What was reserved before the removal may have been stopped before its send.
    assert place.operations("--state", "succeeded") == len(place.processes.charges())
    assert charge(place.urls[1], key, amount=50, period="2026-11").status_code == 200
