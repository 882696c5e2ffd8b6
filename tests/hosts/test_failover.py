"""The primary dies with its disk, the replica is promoted: what holds, what is lost, what is seen.

`FAILOVERS` says how often `make prove` fails over under load.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hosts.load import compare, finish, load
from tests.postgres import (
    PASSWORD,
    PROXY,
    Postgres,
    data_folder,
    initialise,
    make_database,
    skip_without_postgres,
)
from tests.proxy_processes import ProxyProcesses, charge, cluster

FAILOVERS = int(os.environ.get("FAILOVERS", "10"))  # noqa: TID251 how long to prove, no setting


def environ(tmp_path: Path, url: str) -> dict[str, str]:
    return {
        "KEYBRAKE_DATABASE_URL": url,
        "KEYBRAKE_MASTER_KEY": "only-for-tests-0123456789-0123456789",
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "KEYBRAKE_UPSTREAM_TIMEOUT": "1",
        "KEYBRAKE_RECOVERY_INTERVAL": "1",
    }


class Pair:
    """A primary and its replica on two ports that stay; each failover swaps them."""

    def __init__(self, folder: Path, *, synchronous: bool) -> None:
        self.folder, self.synchronous, self.made = folder, synchronous, 0
        self.primary = Postgres(folder / "first")
        initialise(self.primary.data)
        self.primary.start()
        make_database(self.primary, "kept")
        self.replica = self._replica(None)
        ports = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.replica.port}"
        self.url = f"postgresql://{PROXY}:{PASSWORD}@{ports}/kept"

    def fail_over(self) -> None:
        """Kill the primary, delete its data, promote the replica."""
        self.primary.kill()
        shutil.rmtree(self.primary.data)
        self.replica.promote()
        self.primary, dead = self.replica, self.primary
        self.replica = dead

    def add_replica(self) -> None:
        """Give the new primary a replica, on the port of the dead one."""
        self.replica = self._replica(self.replica.port)

    def cut_off_replica(self) -> None:
        """Let the replica hear nothing more of the primary."""
        self.replica.query("ALTER SYSTEM SET primary_conninfo = ''")
        self.replica.query("SELECT pg_reload_conf()")
        while self.replica.query("SELECT 1 FROM pg_stat_wal_receiver"):
            pass  # it ends within moments

    def close(self) -> None:
        for each in (self.primary, self.replica):
            if each.process is not None and each.process.poll() is None:
                each.kill()

    def _replica(self, port: int | None) -> Postgres:
        self.made += 1
        replica = self.primary.replica(self.folder, f"replica{self.made}", port)
        if self.synchronous:
            self.primary.query("ALTER SYSTEM SET synchronous_standby_names = '*'")
            self.primary.query("SELECT pg_reload_conf()")
        return replica


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_a_synchronous_replica_takes_over_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    skip_without_postgres()
    with data_folder() as folder:
        pair = Pair(folder, synchronous=True)
        try:
            with cluster(tmp_path, **environ(tmp_path, pair.url)) as here:
                token = here.issue("--role", "billing", "--rate", "100000/min")
                hosts = [here.start_proxy() for _ in range(2)]
                for _ in range(FAILOVERS):
                    with load(hosts, token, 4):
                        threading.Event().wait(1)
                        pair.fail_over()
                        pair.add_replica()
                    finish(hosts[0], token)
                finish(hosts[1], token)
                compare(here)
        finally:
            pair.close()


@pytest.mark.slow
def test_an_asynchronous_replica_that_lost_a_charge_sends_nothing_until_it_is_adopted(
    tmp_path: Path,
) -> None:
    skip_without_postgres()
    with data_folder() as folder:
        pair = Pair(folder, synchronous=False)
        try:
            with cluster(tmp_path, **environ(tmp_path, pair.url)) as here:
                _lose_a_charge(here, pair)
        finally:
            pair.close()


def _lose_a_charge(here: ProxyProcesses, pair: Pair) -> None:
    token = here.issue()
    host = here.start_proxy()
    assert charge(host.url, token, period="2026-10").status_code == 200
    pair.cut_off_replica()
    lost = charge(host.url, token, period="2026-11")
    assert lost.status_code == 200
    pair.fail_over()
    # The host knows what it had been told; one that is started anew knows it from its heads.
    answer = charge(host.url, token, period="2026-11")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_unavailable")
    host.stop()
    again = here.start_proxy()
    answer = charge(again.url, token, period="2026-11")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_behind")
    found = here.command("reconcile", "--since", "2026-01-01", "--json", check=False)
    missing = json.loads(found.stdout)["missing_operations"]
    assert [each["charge_id"] for each in missing] == [lost.json()["id"]]
    assert len(here.charges()) == 2
    # A host without heads of its own finds it at Stripe.
    here.extra["XDG_DATA_HOME"] += "-another"
    another = here.start_proxy()
    assert charge(another.url, token, period="2026-11").json()["error"]["code"] == "ledger_behind"
    here.extra["XDG_DATA_HOME"] = here.extra["XDG_DATA_HOME"].removesuffix("-another")
    here.turn_clock(700)
    page = (Path(__file__).parents[2] / "docs" / "runbooks.md").read_text(encoding="utf-8")
    section = page.split("## A replica was promoted")[1].split("```sh")[1].split("```")[0]
    for line in filter(None, section.splitlines()):
        here.command(*line.split()[1:])
    again.stop()
    again = here.start_proxy()
    here.turn_clock(26 * 3600)
    for host in (again, another):
        for month in ("2026-10", "2026-11", "2026-11"):
            assert charge(host.url, token, period=month).status_code == 200
    assert len(here.charges()) == 2
    here.command("doctor")


def test_a_commit_whose_wait_for_the_replica_was_cancelled_is_not_believed(tmp_path: Path) -> None:
    skip_without_postgres()
    waits = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    with data_folder() as folder:
        pair = Pair(folder, synchronous=True)
        try:
            with cluster(tmp_path, **environ(tmp_path, pair.url)) as here:
                token = here.issue()
                host = here.start_proxy()
                assert charge(host.url, token, period="2026-10").status_code == 200
                pair.replica.kill()
                with ThreadPoolExecutor(1) as pool:
                    asked = pool.submit(charge, host.url, token, period="2026-11")
                    while not pair.primary.query(f"SELECT pg_cancel_backend(pid) {waits}"):
                        assert not asked.done(), asked.result().text
                    refused = asked.result()
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "ledger_unavailable"
                assert len(here.charges()) == 1
                pair.replica.start()
                while (answer := charge(host.url, token, period="2026-11")).is_error:
                    assert answer.status_code in {409, 503, 504}
                assert len(here.charges()) == 2
                here.command("doctor")
        finally:
            pair.close()
