"""Hosts and PostgreSQL itself killed at random under load: one charge a bill, nothing unknown.

`HOST_KILLS` and `SERVER_KILLS` say how many; `make prove` asks for 300 and 20.
"""

from __future__ import annotations

import os
import random  # noqa: TID251 seeded, so that a failure can be repeated
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.load import compare, finish, load
from tests.postgres import Database, Postgres, make_database, postgres
from tests.proxy_processes import ProxyProcesses, Running, cluster

HOST_KILLS = int(os.environ.get("HOST_KILLS", "3"))  # noqa: TID251 how long to prove, no setting
SERVER_KILLS = int(os.environ.get("SERVER_KILLS", "1"))  # noqa: TID251 as above
CALLERS = 6


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """Run a server that this test may kill."""
    with postgres() as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_of_hosts_and_server_under_load_never_double_or_lose_a_charge(
    tmp_path: Path, own_server: Postgres
) -> None:
    chance = random.Random(7)
    database = make_database(own_server, "killed")
    with cluster(tmp_path, **_environ(tmp_path, database)) as here:
        token = here.issue("--role", "billing", "--rate", "100000/min")
        hosts = [here.start_proxy() for _ in range(3)]
        plan = ["host"] * HOST_KILLS + ["server"] * SERVER_KILLS
        chance.shuffle(plan)
        with load(hosts, token, CALLERS):
            for victim in plan:
                threading.Event().wait(chance.uniform(0.05, 0.4))
                if victim == "server":
                    own_server.kill()
                    own_server.start()
                else:
                    _kill_host(here, hosts, chance)
        finish(hosts[0], token)
        compare(here)


def _kill_host(here: ProxyProcesses, hosts: list[Running], chance: random.Random) -> None:
    at = chance.randrange(len(hosts))
    hosts[at].kill()
    hosts[at] = here.start_proxy()


def _environ(tmp_path: Path, database: Database) -> dict[str, str]:
    return database.environ | {
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "KEYBRAKE_UPSTREAM_TIMEOUT": "5",
        "KEYBRAKE_RECOVERY_INTERVAL": "1",
    }
