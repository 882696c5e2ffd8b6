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
