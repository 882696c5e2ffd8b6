"""An embedded ledger moves to PostgreSQL whole: replays, caps, keys and chains go on there."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import MASTER_KEY, Database
from tests.proxy_processes import ProxyProcesses, charge, cluster


@pytest.fixture
def embedded(tmp_path: Path, database: Database) -> Iterator[ProxyProcesses]:
    with cluster(tmp_path, KEYBRAKE_MASTER_KEY=MASTER_KEY) as here:
        yield here


def copy(here: ProxyProcesses, tmp_path: Path, database: Database) -> str:
    here.extra |= {"KEYBRAKE_DATABASE_URL": database.owner_url}
    done = here.command("migrate", "--from", f"sqlite:///{tmp_path}/ledger.db", check=False)
    return done.stdout + done.stderr


def test_a_copied_ledger_replays_what_was_charged_and_goes_on_counting(
    embedded: ProxyProcesses, tmp_path: Path, database: Database
) -> None:
    token = embedded.issue("--role", "billing", "--daily-cap", "100.00usd")
    proxy = embedded.start_proxy()
    first = charge(proxy.url, token, period="2026-11", amount=6000)
    proxy.stop()
    listed = embedded.command("operations", "list", "--json").stdout
    assert "all read back equal" in copy(embedded, tmp_path, database)
    embedded.extra |= {"KEYBRAKE_DATABASE_URL": database.url}
    assert embedded.command("operations", "list", "--json").stdout == listed
    again = embedded.start_proxy()
    replayed = charge(again.url, token, period="2026-11", amount=6000)
    assert (replayed.status_code, replayed.content) == (200, first.content)
    assert replayed.headers["idempotent-replayed"] == "true"
    over = charge(again.url, token, customer="cus_B", period="2026-11", amount=6000)
    assert over.json()["error"]["code"] == "spend_cap_exceeded"
    embedded.command("audit", "verify")
    embedded.command("doctor")
    # The old store serves no more, and the next day's call is still of the same bill.
    embedded.turn_clock(26 * 3600)
    assert charge(again.url, token, period="2026-11", amount=6000).content == first.content
    del embedded.extra["KEYBRAKE_DATABASE_URL"]
    told = embedded.command("recover", check=False)
    assert "was moved to postgresql" in told.stdout + told.stderr
    assert len(embedded.charges()) == 1


def test_a_ledger_is_copied_into_an_empty_store_only(
    embedded: ProxyProcesses, tmp_path: Path, database: Database
) -> None:
    embedded.issue()
    assert "all read back equal" in copy(embedded, tmp_path, database)
    before = database.query("SELECT count(*) FROM audit")
    assert "the new store is not empty" in copy(embedded, tmp_path, database)
    assert database.query("SELECT count(*) FROM audit") == before


def test_a_ledger_whose_audit_was_edited_is_not_copied(
    embedded: ProxyProcesses, tmp_path: Path, database: Database
) -> None:
    embedded.issue()
    with sqlite3.connect(tmp_path / "ledger.db") as ledger:
        ledger.execute("DROP TRIGGER audit_refuses_update")
        ledger.execute("UPDATE audit SET note = 'edited'")
    ledger.close()
    assert "breaks at row 1: edited" in copy(embedded, tmp_path, database)
    assert database.query("SELECT count(*) FROM keys") == [(0,)]


def test_a_ledger_of_another_account_is_not_copied(
    embedded: ProxyProcesses, tmp_path: Path, database: Database
) -> None:
    embedded.issue()
    embedded.start_proxy().stop()  # which binds it to its account
    embedded.extra |= {"KEYBRAKE_ACCOUNT": "another"}
    assert "the store belongs to account 'sandbox'" in copy(embedded, tmp_path, database)


def test_a_file_that_is_not_there_is_not_made(
    embedded: ProxyProcesses, tmp_path: Path, database: Database
) -> None:
    embedded.extra |= {"KEYBRAKE_DATABASE_URL": database.owner_url}
    done = embedded.command("migrate", "--from", f"sqlite:///{tmp_path}/none.db", check=False)
    assert (done.returncode, (tmp_path / "none.db").exists()) == (2, False)
    assert "there is no ledger at" in done.stderr


def test_every_key_comes_along(
    embedded: ProxyProcesses, tmp_path: Path, database: Database
) -> None:
    embedded.issue()
    keys = json.loads(embedded.command("keys", "list", "--json").stdout)
    copy(embedded, tmp_path, database)
    embedded.extra |= {"KEYBRAKE_DATABASE_URL": database.url}
    assert json.loads(embedded.command("keys", "list", "--json").stdout) == keys


def test_a_ledger_that_is_served_stops_sending_before_it_is_copied(
    embedded: ProxyProcesses, tmp_path: Path, database: Database
) -> None:
    token = embedded.issue("--role", "billing", "--daily-cap", "100.00usd")
    proxy = embedded.start_proxy()
    first = charge(proxy.url, token, period="2026-11", amount=6000)
    assert first.status_code == 200
    assert "all read back equal" in copy(embedded, tmp_path, database)
    for customer, amount in (("cus_A1", 6000), ("cus_B", 6000), ("cus_C", 100)):
        refused = charge(proxy.url, token, customer=customer, period="2026-11", amount=amount)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ledger_behind")
    proxy.stop()
    old = f"sqlite:///{tmp_path}/ledger.db"
    embedded.extra |= {"KEYBRAKE_DATABASE_URL": old}
    for command in (
        ("up", "--port", "0", "--admin-port", "0", "--sandbox-port", "0"),
        ("keys", "list"),
        ("operations", "list"),
    ):
        done = embedded.command(*command, check=False)
        assert (done.returncode, "was moved to postgresql://127.0.0.1" in done.stderr) == (2, True)
    embedded.extra |= {"KEYBRAKE_DATABASE_URL": database.url}
    again = embedded.start_proxy()
    over = charge(again.url, token, customer="cus_B", period="2026-11", amount=6000)
    assert over.json()["error"]["code"] == "spend_cap_exceeded"
    assert charge(again.url, token, period="2026-11", amount=6000).content == first.content
    later = charge(again.url, token, customer="cus_C", period="2026-11", amount=100)
    assert later.json()["metadata"]["keybrake_store"] == first.json()["metadata"]["keybrake_store"]
    embedded.turn_clock(26 * 3600)
    assert charge(again.url, token, period="2026-11", amount=6000).content == first.content
    assert sum(each["amount"] for each in embedded.charges()) == 6100
    embedded.command("doctor")


def test_a_ledger_that_was_not_copied_goes_on_serving(
    embedded: ProxyProcesses, tmp_path: Path, database: Database
) -> None:
    token = embedded.issue()
    proxy = embedded.start_proxy()
    database.query("INSERT INTO lineages (id) VALUES ('taken')")
    taken = "INSERT INTO keys (id, lineage_id, token_hash, mode, role, policy, created_at) VALUES"
    database.query(f"{taken} ('k', 'taken', 'h', 'test', 'billing', '{{}}', 1)")
    assert "the new store is not empty" in copy(embedded, tmp_path, database)
    assert charge(proxy.url, token, period="2026-11").status_code == 200


def test_a_copy_that_was_broken_off_is_made_again(
    embedded: ProxyProcesses, tmp_path: Path, database: Database
) -> None:
    token = embedded.issue()
    proxy = embedded.start_proxy()
    with sqlite3.connect(tmp_path / "ledger.db") as ledger:
        # As a process leaves it that was killed once the old ledger had stopped.
        ledger.execute("INSERT INTO facts VALUES ('moved_to', 'postgresql://127.0.0.1/x')")
    ledger.close()
    assert charge(proxy.url, token, period="2026-11").status_code == 503
    proxy.stop()
    assert "all read back equal" in copy(embedded, tmp_path, database)
    assert "the new store is not empty" in copy(embedded, tmp_path, database)
    embedded.extra |= {"KEYBRAKE_DATABASE_URL": database.url}
    again = embedded.start_proxy()
    assert charge(again.url, token, period="2026-11").status_code == 200
    assert len(embedded.charges()) == 1
