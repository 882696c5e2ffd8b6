"""Disks that fill up, stores that are read-only, restored or cut: nothing sent, nothing lost."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.gate import Gate, gate
from tests.in_process_proxy import InProcessProxy, error_of
from tests.proxy_processes import HTTP, ProxyProcesses, Running, charge, cluster
from tests.scenarios.acts import Aside, broken_invariants

pytestmark = pytest.mark.slow

SMALL_KB = 1_024
PAST_GRACE_S = 700
DAY_S = 86_400
LEASE_S = 60  # longer than a send and its conclusion may take


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small file system on `folder`, where this user may."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip("this user may not mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file until there is no room left, and return it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 4096)
        except OSError:
            return ballast


def test_a_full_disk_refuses_before_anything_is_sent(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", f"size={SMALL_KB}k") as small:
        url = f"sqlite:///{small}/ledger.db"
        with InProcessProxy(tmp_path, KEYBRAKE_DATABASE_URL=url) as in_process:
            key = in_process.issue()
            assert in_process.charge(key, period="2026-11").status_code == 200
            ballast = fill(small)
            for number in range(3):
                refused = in_process.charge(key, customer=f"cus_F{number}", period="2026-11")
                assert (refused.status_code, error_of(refused)) == (503, "ledger_unavailable")
                assert refused.headers["stripe-should-retry"] == "true"
            assert len(in_process.charges()) == 1
            ballast.unlink()
            for number in range(3):
                assert in_process.charge(
                    key, customer=f"cus_F{number}", period="2026-11"
                ).is_success
            assert len(in_process.charges()) == 4
            assert broken_invariants(in_process) == []
        with InProcessProxy(tmp_path, KEYBRAKE_DATABASE_URL=url) as again:
            assert len(again.operations()) == 4


def test_a_disk_that_fills_while_it_is_being_charged_leaves_the_outcome_to_recovery(
    tmp_path: Path,
) -> None:
    with mounted(tmp_path / "small", f"size={SMALL_KB}k") as small:
        url = f"sqlite:///{small}/ledger.db"
        with InProcessProxy(tmp_path, KEYBRAKE_DATABASE_URL=url) as in_process:
            key = in_process.issue()
            fault = {"match": "POST /v1/charges", "kind": "delay", "seconds": 600}
            in_process.stripe.post("/_sandbox/faults", json=[fault])
            asked = Aside(lambda: in_process.charge(key, period="2026-11"))
            while not in_process.charges():
                pass  # the sandbox shows the charge as soon as it is made
            ballast = fill(small)
            in_process.sandbox.release()
            # Stripe has answered and the ledger cannot: never "nothing was sent".
            assert error_of(asked.result()) == "outcome_unknown"
            assert asked.result().status_code == 504
            ballast.unlink()
            in_process.turn_clock(LEASE_S)
            in_process.recover()
            made = in_process.charges()[0]["id"]
            assert in_process.charge(key, period="2026-11").json()["id"] == made
            assert len(in_process.charges()) == 1
            assert broken_invariants(in_process) == []


def limit_files(proxy: Running, size: int) -> None:
    """Let `proxy` write no file beyond `size` bytes, as on a full disk."""
    _, hard = resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE, (size, hard))


@contextmanager
def gated_town(folder: Path, **environ: str) -> Iterator[tuple[ProxyProcesses, Gate]]:
    """Start processes whose proxies reach the sandbox through a gate."""
    with gate() as entry, cluster(folder, KEYBRAKE_STRIPE_API_BASE=entry.url, **environ) as here:
        entry.target = here.sandbox.url
        yield here, entry


def test_a_serving_process_outlives_a_full_disk(tmp_path: Path) -> None:
    with gated_town(tmp_path) as (here, entry):
        token, proxy = here.issue(), here.start_proxy()
        entry.hold("executed")
        lost = Aside(lambda: charge(proxy.url, token, period="2026-11"))
        entry.wait()
        limit_files(proxy, 0)
        entry.go_on()
        assert lost.result().json()["error"]["code"] == "outcome_unknown"
        refused = charge(proxy.url, token, customer="cus_B2", period="2026-11")
        assert (refused.status_code, error_of(refused)) == (503, "ledger_unavailable")
        assert len(here.charges()) == 1
        limit_files(proxy, resource.RLIM_INFINITY)
        here.turn_clock(LEASE_S)
        here.command("recover")
        assert charge(proxy.url, token, period="2026-11").json()["id"] == here.charges()[0]["id"]
        assert charge(proxy.url, token, customer="cus_B2", period="2026-11").is_success
        assert len(here.charges()) == 2
        assert proxy.stop() == 0
        here.command("audit", "verify")
        here.command("reconcile", "--since", "2026-01-01")


def test_a_read_only_store_is_refused_in_one_line(tmp_path: Path) -> None:
    store = tmp_path / "store"
    environ = {"KEYBRAKE_DATABASE_URL": f"sqlite:///{store}/ledger.db"}
    with mounted(store, "size=4m"):
        with InProcessProxy(tmp_path, **environ) as in_process:
            in_process.issue()
        subprocess.run(["mount", "-o", "remount,ro", str(store)], check=True)
        for command in (
            ["up", "--port", "0", "--admin-port", "0", "--sandbox-port", "0"],
            ["keys", "list"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "kb_mcp", *command],
                env=os.environ | environ,  # noqa: TID251 - a child needs PATH and the like
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stdout) == (2, "")
            assert re.match(r"Error: cannot use [^\n]*\nHint: [^\n]*\n$", done.stderr), done.stderr


def copied(here: ProxyProcesses, to: Path) -> None:
    """Copy the store away as it lies there, WAL and all, as a snapshot does."""
    to.mkdir()
    for file in here.folder.glob("ledger.db*"):
        if file.is_file() and file.suffix != ".master-key":
            shutil.copy2(file, to / file.name)


def put_back(here: ProxyProcesses, kept: Path) -> None:
    """Put the older store back in place of the newer."""
    for suffix in ("", "-wal", "-shm"):
        (here.folder / f"ledger.db{suffix}").unlink(missing_ok=True)
    for file in kept.iterdir():
        shutil.copy2(file, here.folder / file.name)


def ready(proxy: Running) -> int:
    return HTTP.get(f"{proxy.url}/readyz").status_code


def doctor(here: ProxyProcesses) -> dict[str, bool]:
    checks = json.loads(here.command("doctor", "--json", check=False).stdout)["checks"]
    return {check["name"]: check["ok"] for check in checks}


def test_a_restored_store_sends_nothing_until_it_has_adopted_what_it_lost(tmp_path: Path) -> None:
    with cluster(tmp_path) as here:
        token, proxy = (
            here.issue("--role", "billing", "--daily-cap", "60.00usd"),
            here.start_proxy(),
        )
        first = charge(proxy.url, token, period="2026-11").json()["id"]
        proxy.kill()
        copied(here, tmp_path / "kept")
        # Charged on by another process: the older store knows nothing of it, not even its name.
        proxy = here.start_proxy()
        second = charge(proxy.url, token, customer="cus_B2", period="2026-11").json()["id"]
        proxy.kill()
        put_back(here, tmp_path / "kept")

        proxy = here.start_proxy()
        assert any("behind" in line for line in proxy.said)
        for customer in ("cus_A1", "cus_B2", "cus_C3"):
            refused = charge(proxy.url, token, customer=customer, period="2026-11")
            assert (refused.status_code, error_of(refused)) == (503, "ledger_behind")
        assert (ready(proxy), doctor(here)["heads"]) == (503, False)
        assert len(here.charges()) == 2
        early = here.command("adopt", "--since", "30d", "--apply", check=False)
        assert (early.returncode, "still not in the ledger" in early.stderr) == (1, True)
        here.turn_clock(3 * DAY_S)
        short = here.command("adopt", "--since", "1d", "--apply", check=False)
        assert (short.returncode, "far enough" in short.stderr) == (1, True)
        here.command("adopt", "--since", "30d", "--apply")
        assert error_of(charge(proxy.url, token, period="2026-11")) == "ledger_behind"
        proxy.kill()

        proxy = here.start_proxy()
        assert ready(proxy) == 200
        for customer, known in (("cus_A1", first), ("cus_B2", second)):
            assert (
                charge(proxy.url, token, customer=customer, period="2026-11").json()["id"] == known
            )
        assert charge(proxy.url, token, customer="cus_C3", period="2026-11").is_success
        assert len(here.charges()) == 3
        assert doctor(here)["heads"] is True
        here.command("reconcile", "--since", "30d")


def until_exported(here: ProxyProcesses) -> None:
    """Wait until every row of the audit is in an exported head: an idle process does so in 1 s."""
    with sqlite3.connect(here.folder / "ledger.db") as store:
        ends = dict(store.execute("SELECT node, max(seq) FROM audit GROUP BY node").fetchall())
    store.close()
    heads = here.folder / "ledger.db.heads"
    while not all(_exported(heads / f"{node}.json", seq) for node, seq in ends.items()):
        pass  # it is the file that says so


def _exported(file: Path, seq: int) -> bool:
    # Heads of processes that are gone were folded into one file; those are no news.
    return not file.exists() or json.loads(file.read_text())["seq"] >= seq


def test_a_truncated_wal_is_noticed_by_the_exported_head(tmp_path: Path) -> None:
    with cluster(tmp_path) as here:
        token, proxy = here.issue(), here.start_proxy()
        charge(proxy.url, token, period="2026-11")
        wal = here.folder / "ledger.db-wal"
        whole = wal.stat().st_size
        charge(proxy.url, token, customer="cus_B2", period="2026-11")
        until_exported(here)
        proxy.kill()
        assert wal.stat().st_size > whole
        os.truncate(wal, whole)
        (here.folder / "ledger.db-shm").unlink()
        proxy = here.start_proxy()
        refused = charge(proxy.url, token, customer="cus_B2", period="2026-11")
        assert (refused.status_code, error_of(refused)) == (503, "ledger_behind")
        assert len(here.charges()) == 2


@pytest.mark.parametrize("fate", ["go_on", "drop"])
def test_a_charge_in_flight_when_its_store_was_lost_is_not_made_twice(
    tmp_path: Path, fate: str
) -> None:
    with gated_town(tmp_path) as (here, entry):
        token = here.issue()
        copied(here, tmp_path / "kept")
        proxy = here.start_proxy()
        entry.hold("arrived")
        asking = threading.Thread(target=_ask, args=(proxy, token))
        asking.start()
        entry.wait()
        proxy.kill()
        asking.join()
        put_back(here, tmp_path / "kept")
        early = here.command("adopt", "--since", "30d", "--apply", check=False)
        assert early.returncode == 1
        assert "grace" in early.stderr
        getattr(entry, fate)()
        made = 1 if fate == "go_on" else 0
        while len(here.charges()) < made:
            pass  # what was in flight arrives
        here.turn_clock(PAST_GRACE_S)
        here.command("adopt", "--since", "30d", "--apply")
        proxy = here.start_proxy()
        answer = charge(proxy.url, token, period="2026-11")
        assert answer.json()["id"] == here.charges()[0]["id"]
        assert len(here.charges()) == 1


def _ask(proxy: Running, token: str, **form: Any) -> None:
    try:
        charge(proxy.url, token, **{"period": "2026-11", **form})
    except httpx.HTTPError:
        return  # the proxy was killed meanwhile
