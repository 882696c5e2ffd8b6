"""A store that is out of reach: 503 and nothing sent, then full service without a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.hosts.relay import Relay
from tests.postgres import PROXY, Database, Postgres, make_database, postgres
from tests.proxy_processes import ProxyProcesses, Running, charge, cluster


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """Run a server that this test may kill."""
    with postgres() as running:
        yield running


def charged_in_the_end(proxy: Running, token: str, customer: str) -> httpx.Response:
    """Charge until the store is back."""
    while (answer := charge(proxy.url, token, customer=customer, period="2026-11")).is_error:
        assert answer.json()["error"]["code"] == "ledger_unavailable"
    return answer


def test_a_stalled_network_answers_503_sends_nothing_and_recovers(
    tmp_path: Path, database: Database
) -> None:
    relay = Relay(database.server.port)
    url = database.server.role_url(PROXY, database.name, relay.port)
    with cluster(tmp_path, **(database.environ | {"KEYBRAKE_DATABASE_URL": url})) as here:
        token = here.issue()
        proxy = here.start_proxy()
        assert charge(proxy.url, token, period="2026-11").status_code == 200
        relay.stall()
        refused = charge(proxy.url, token, customer="cus_B", period="2026-11")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ledger_unavailable")
        assert refused.headers["stripe-should-retry"] == "true"
        assert len(here.charges()) == 1
        relay.resume()
        assert charged_in_the_end(proxy, token, "cus_B").status_code == 200
        assert len(here.charges()) == 2
        here.command("doctor")
    relay.close()


def test_a_server_that_is_killed_answers_503_and_is_found_again(
    tmp_path: Path, own_server: Postgres
) -> None:
    database = make_database(own_server, "restarted")
    with cluster(tmp_path, XDG_DATA_HOME=str(tmp_path / "data"), **database.environ) as here:
        token = here.issue()
        proxy = here.start_proxy()
        assert charge(proxy.url, token, period="2026-11").status_code == 200
        own_server.kill()
        refused = charge(proxy.url, token, customer="cus_B", period="2026-11")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ledger_unavailable")
        own_server.start()
        assert charged_in_the_end(proxy, token, "cus_B").status_code == 200
        assert len(here.charges()) == 2
        here.command("doctor")


def test_a_store_whose_connections_are_all_taken_answers_503(
    here: ProxyProcesses, database: Database
) -> None:
    token = here.issue()
    proxy = here.start_proxy()
    database.query(f"ALTER ROLE {PROXY} CONNECTION LIMIT 0")
    terminate = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{PROXY}'"
    try:
        database.query(terminate)
        refused = charge(proxy.url, token, period="2026-11")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ledger_unavailable")
        assert here.charges() == []
    finally:
        database.query(f"ALTER ROLE {PROXY} CONNECTION LIMIT -1")
    assert charged_in_the_end(proxy, token, "cus_A1").status_code == 200
