"""Crowds: many callers at once against a cap of five, on one process, on four, and embedded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.months import lately
from tests.proxy_processes import ProxyProcesses, charge, cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

CALLERS = 60
CAP = ("--role", "billing", "--daily-cap", "5.00usd")
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "crowd", "version": "1"},
}


def bill(customer: str) -> dict[str, Any]:
    return {"customer_id": customer, "amount_cents": 100, "billing_period": lately("2026-11")}


class Embedded:
    """`kb-mcp mcp` without a proxy's address: the proxy in an agent's own process."""

    def __init__(self, here: ProxyProcesses, token: str, variable: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kb_mcp", "mcp"],
            env=here.environ() | {variable: token},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def charge_all(self, customers: list[str]) -> list[dict[str, Any]]:
        """Ask for a charge of every customer at once, and return the results as they come."""
        answers = self.ask(
            *(
                {"method": "tools/call", "params": {"name": "charge", "arguments": bill(customer)}}
                for customer in customers
            )
        )
        return [answer["result"]["structuredContent"] for answer in answers]

    def ask(self, *requests: dict[str, Any]) -> list[dict[str, Any]]:
        """Send all of them at once, and return the answers as they come."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        for number, request in enumerate(requests):
            params = {**request["params"], "_meta": META}
            line = {"jsonrpc": "2.0", "id": number, **request, "params": params}
            self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        return [json.loads(self.process.stdout.readline()) for _ in requests]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self.process.stdout.close()


@contextmanager
def embedded(
    here: ProxyProcesses, token: str, variable: str = "KEYBRAKE_VAULT_KEY_BILLING"
) -> Iterator[Embedded]:
    server = Embedded(here, token, variable)
    try:
        yield server
        server.close()
    finally:
        server.process.kill()
        server.process.wait(30)


def compare(here: ProxyProcesses, charges: int) -> None:
    """The sandbox's own list, the windows and the audit say the same."""
    assert len(here.charges()) == charges
    spend = json.loads(here.command("spend", "--json").stdout)
    days = [row for row in spend if (row["window"], row["scope"]) == ("day", "key")]
    assert sum(row["settled"] for row in days) == charges * 100
    assert sum(row["reserved"] for row in days) == 0
    here.command("audit", "verify")
    here.command("reconcile", "--since", "2026-01-01")


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.prove), 4])
def test_sixty_callers_against_a_cap_of_five_make_exactly_five_charges(
    tmp_path: Path, processes: int
) -> None:
    with cluster(tmp_path) as here, ThreadPoolExecutor(CALLERS) as pool:
        token = here.issue(*CAP)
        proxies = list(pool.map(lambda _: here.start_proxy(), range(processes)))

        def ask(number: int) -> str:
            url = proxies[number % processes].url
            answer = charge(url, token, customer=f"cus_C{number}", amount=100, period="2026-11")
            return "ok" if answer.status_code == 200 else str(answer.json()["error"]["code"])

        told = Counter(pool.map(ask, range(CALLERS)))
        assert told == {"ok": 5, "spend_cap_exceeded": 55}
        assert [proxy.stop() for proxy in proxies] == [0] * processes
        compare(here, 5)


def test_sixty_callers_of_one_bill_on_four_processes_get_one_charge(tmp_path: Path) -> None:
    with cluster(tmp_path) as here, ThreadPoolExecutor(CALLERS) as pool:
        token = here.issue(*CAP)
        proxies = list(pool.map(lambda _: here.start_proxy(), range(4)))

        def ask(number: int) -> tuple[int, str]:
            answer = charge(proxies[number % 4].url, token, amount=100, period="2026-11")
            return answer.status_code, answer.json().get("id")

        told = set(pool.map(ask, range(CALLERS)))
        assert told == {(200, here.charges()[0]["id"])}
        compare(here, 1)


def test_embedded_servers_and_a_proxy_on_one_file_share_one_cap(tmp_path: Path) -> None:
    with cluster(tmp_path) as here, ThreadPoolExecutor(CALLERS) as pool:
        token = here.issue(*CAP)
        proxy = here.start_proxy()
        with embedded(here, token) as one, embedded(here, token) as two:

            def ask(number: int) -> str:
                bill = {"customer": f"cus_P{number}", "amount": 100, "period": "2026-11"}
                answer = charge(proxy.url, token, **bill)
                return "ok" if answer.status_code == 200 else str(answer.json()["error"]["code"])

            others = [
                pool.submit(server.charge_all, [f"cus_{name}{number}" for number in range(20)])
                for name, server in (("E", one), ("F", two))
            ]
            told = Counter(pool.map(ask, range(20)))
            for other in others:
                told.update(
                    "ok" if result["status"] == "succeeded" else result["code"]
                    for result in other.result()
                )
        assert told == {"ok": 5, "spend_cap_exceeded": 55}
        compare(here, 5)


def test_an_embedded_server_with_one_key_asks_its_own_proxy_what_that_grants(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path) as here:
        with embedded(here, here.issue(*CAP), "KEYBRAKE_VAULT_KEY") as server:
            (listed,) = server.ask({"method": "tools/list", "params": {}})
            (charged,) = server.charge_all(["cus_E1"])
        assert [tool["name"] for tool in listed["result"]["tools"]] == ["charge"]
        assert charged["status"] == "succeeded"
        compare(here, 1)
