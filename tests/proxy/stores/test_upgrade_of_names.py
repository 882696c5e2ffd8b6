"""What a store of version 0.1.0 knows of keys, days and reopened bills holds after the upgrade."""

from __future__ import annotations

import hashlib
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

from kb_mcp.idempotency import caller_name_of_endpoint
from kb_mcp.operators.reports.invariants import count_overlaps
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.stores.rows import load_migrations
from tests.in_process_proxy import InProcessProxy, error_of
from tests.postgres import Database, Postgres
from tests.proxy.stores.test_search import as_of

KEY, OTHER = (str(uuid.UUID(int=number, version=4)) for number in (1, 2))
OLD_KEY = hashlib.sha256(KEY.encode()).hexdigest()[:16]
BOTH = Policy(role="both", allow=("POST /v1/charges", "POST /v1/payment_intents"))
CALLER = BOTH.model_copy(update={"idempotency": "caller"})
ALLOWS = BOTH.model_copy(update={"overlaps": "allow"})
INTENTS = "/v1/payment_intents"
HOUR = 3600


def as_version_0_1_0(store: Path, *statements: str) -> None:
    """Make the file one of schema 3, and write into it what that version wrote otherwise."""
    as_of(3, store)
    with closing(sqlite3.connect(store)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def test_a_key_that_an_sdk_made_up_before_the_upgrade_is_the_same_request_after_it(
    tmp_path: Path,
) -> None:
    with InProcessProxy(tmp_path) as proxy:
        first = proxy.charge(proxy.issue(), key_header=KEY).json()["id"]
    kept = f"UPDATE operations SET caller_key = '{OLD_KEY}'"
    as_version_0_1_0(tmp_path / "ledger.db", kept)
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        proxy.turn_clock(21 * HOUR)
        again = proxy.charge(key, key_header=KEY)
        assert (again.json()["id"], again.headers["idempotent-replayed"]) == (first, "true")
        assert error_of(proxy.charge(key, key_header=KEY, amount=3000)) == "idempotency_key_reused"
        assert proxy.charge(key, key_header=KEY, customer="cus_B2").status_code == 200
        assert proxy.charge(key, key_header=OTHER).json()["id"] != first
        assert proxy.charge(key, key_header=KEY).json()["id"] == first
        assert len(proxy.charges()) == 3


def test_a_callers_key_of_before_the_upgrade_names_its_act_at_every_endpoint(
    tmp_path: Path,
) -> None:
    with InProcessProxy(tmp_path) as proxy:
        first = proxy.charge(proxy.issue(CALLER), key_header="june").json()["id"]
    name = caller_name_of_endpoint("POST /v1/charges", "june")
    renamed = f"UPDATE operations SET name = '{name}', upstream_name = '{name}'"
    as_version_0_1_0(tmp_path / "ledger.db", renamed)
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue(CALLER)
        assert proxy.charge(key, key_header="june").json()["id"] == first
        assert error_of(proxy.charge(key, INTENTS, key_header="june")) == "idempotency_key_reused"
        assert error_of(proxy.charge(key, key_header="june", amount=1)) == "idempotency_key_reused"
        assert len(proxy.charges()) == 1


def test_bills_that_overlap_already_stand_and_are_counted(tmp_path: Path) -> None:
    bills = ("2026-11", "2026-11-10/2026-11-20", "2026-11-12")
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue(ALLOWS)
        made = [proxy.charge(key, period=bill).json()["id"] for bill in bills]
    as_version_0_1_0(
        tmp_path / "ledger.db", "UPDATE keys SET policy = json_remove(policy, '$.overlaps')"
    )
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue(BOTH)
        for bill, charge in zip(bills, made, strict=True):
            # Each is paid, and is told so.
            assert proxy.charge(key, period=bill).json()["id"] == charge
        refused = proxy.charge(key, period="2026-11-20", amount=5)
        assert error_of(refused) == "period_already_charged"
        days = proxy.run(proxy.proxy.store.records.billed_days())
        assert count_overlaps(days, ()) == 3
        assert len(proxy.charges()) == 3


def test_a_bill_that_was_reopened_before_the_upgrade_is_bound_after_it(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        first = proxy.charge(proxy.issue(), period="2026-11").json()["id"]
        headers = {"Authorization": "Bearer rk_test_sandbox"}
        proxy.stripe.post("/v1/refunds", data={"charge": first}, headers=headers)
    as_version_0_1_0(tmp_path / "ledger.db", "UPDATE operations SET reopened = 1")
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        drifted = proxy.charge(key, period="2026-11", amount=999_900)
        assert error_of(drifted) == "period_already_charged"
        second = proxy.charge(key, period="2026-11").json()["id"]
        assert second != first
        assert proxy.charge(key, period="2026-11").json()["id"] == second
        assert len(proxy.charges()) == 2


def insert(number: int, **values: Any) -> str:
    """Return the statement that writes an operation as version 0.1.0 did."""
    row: dict[str, Any] = {
        "id": f"op_{number}", "name": "n", "generation": number, "named_by": "body",
        "route": "POST /v1/charges", "customer": "cus_1", "amount": 2900, "currency": "usd",
        "fingerprint": "f", "upstream_name": f"k{number}", "caller_key": OLD_KEY,
        "state": "succeeded", "final": True, "held": 2900, "reserved_at": 1,
        "first_arrival_at": 1, "attempt": 1, "lease_token": 1, "lease_until": 1, "key_id": "k",
        "lineage_id": "l", "reopened": False, "waived": False, "overshoot": False,
        "empty_listings": 0, "created_at": number, "updated_at": number,
    }  # fmt: skip
    row |= values
    shown = ", ".join(f"'{each}'" for each in row.values())
    return f"INSERT INTO operations ({', '.join(row)}) VALUES ({shown})"


def test_a_database_keeps_of_each_old_key_what_it_answered_last(server: Postgres) -> None:
    old = Database(server, "names_of_0_1_0")
    server.make_store(old.name)
    scripts = [script for _, script in load_migrations("postgres")]
    for script in scripts[:3]:
        old.query(script)
    for number in (0, 1):
        # The same key was charged twice, 21 hours apart: that is what could happen.
        old.query(insert(number, reopened=number == 0))
    old.query(insert(2, name="m", customer="cus_2"))
    old.query(insert(3, name="c", named_by="content", caller_key="x"))
    for script in scripts[3:]:
        old.query(script)
    assert sorted(old.query("SELECT key, operation_id FROM caller_keys")) == [
        (f"{OLD_KEY}|POST /v1/charges|cus_1", "op_1"),
        (f"{OLD_KEY}|POST /v1/charges|cus_2", "op_2"),
    ]
    taken = old.query("SELECT id, successor, refunded_at FROM operations WHERE successor <> ''")
    assert taken == [("op_0", "op_1", 0)]
