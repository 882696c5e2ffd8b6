from __future__ import annotations

import json
from typing import Any

import pytest

from kb_mcp.proxy.edge import records
from tests.cli.machine import CUSTOMER, Machine
from tests.months import lately, spelled

SUBSCRIPTION = f"Subscription {lately('2026-11')}"
SINCE = ("--since", "30d")


def legacy(machine: Machine, **form: str) -> str:
    """Charge as a handler would that never heard of kb-mcp."""
    bill = {"amount": "2900", "currency": "usd", "customer": CUSTOMER} | form
    return str(machine.stripe("POST", "/v1/charges", bill)["id"])


def test_ledger_and_stripe_agree_after_a_charge(machine: Machine) -> None:
    machine.charge(machine.token(), "2026-11")
    agreed: dict[str, list[Any]] = {
        "missing_operations": [],
        "missing_charges": [],
        "differing": [],
    }
    assert machine.json("reconcile", *SINCE) == agreed


def test_a_charge_made_elsewhere_lacks_an_operation(machine: Machine) -> None:
    charge_id = legacy(machine, description=SUBSCRIPTION)
    found = machine.json("reconcile", *SINCE, code=1)
    assert [each["charge_id"] for each in found["missing_operations"]] == [charge_id]
    assert charge_id in machine.run("reconcile", *SINCE, code=1).stdout


def test_a_charge_that_stripe_lost_and_one_that_differs_are_told(machine: Machine) -> None:
    token = machine.token()
    first = machine.charge(token, "2026-11").json()["id"]
    machine.charge(token, "2026-10")
    machine.tamper(
        f"UPDATE operations SET amount = 2800 WHERE object_id = '{first}'",
        f"UPDATE operations SET object_id = 'ch_gone' WHERE period = '{lately('2026-10')}'",
    )
    found = machine.json("reconcile", *SINCE, code=1)
    assert [each["charge_id"] for each in found["missing_charges"]] == ["ch_gone"]
    amounts = [each for each in found["differing"] if each["field"] == "amount"]
    assert [(each["ledger"], each["stripe"]) for each in amounts] == [(2800, 2900)]


def test_a_dry_run_changes_nothing(machine: Machine) -> None:
    charge_id = legacy(machine, description=SUBSCRIPTION)
    (record,) = machine.json("adopt", *SINCE)
    assert (record["charge_id"], record["adopted"]) == (charge_id, False)
    assert record["billing_period"] == lately("2026-11")
    assert machine.json("operations", "list") == []


@pytest.mark.parametrize(
    ("form", "period_from"),
    [
        ({"description": SUBSCRIPTION}, "description"),
        ({"metadata[month]": spelled("2026-11")}, "metadata:month"),
    ],
)
def test_an_adopted_bill_is_not_billed_again(
    machine: Machine, form: dict[str, str], period_from: str
) -> None:
    charge_id = legacy(machine, **form)
    (record,) = machine.json("adopt", *SINCE, "--period-from", period_from, "--apply")
    assert record["adopted"] is True
    token = machine.token()
    replayed = machine.charge(token, "2026-11")
    assert (replayed.json()["id"], replayed.headers["idempotent-replayed"]) == (charge_id, "true")
    drifted = machine.charge(token, "2026-11", amount=3000)
    assert drifted.json()["error"]["code"] == "period_already_charged"
    assert len(machine.charges()) == 1
    machine.run("reconcile", *SINCE)
    assert machine.json("doctor")["ok"] is True
    assert machine.json("adopt", *SINCE, "--apply") == []


def test_two_old_charges_of_one_bill_are_both_adopted(machine: Machine) -> None:
    legacy(machine, description=SUBSCRIPTION)
    second = legacy(machine, description=SUBSCRIPTION)
    assert len(machine.json("adopt", *SINCE, "--apply")) == 2
    (twice,) = machine.json("reconcile", *SINCE, code=1)["differing"]
    assert twice["field"] == "charged_twice"
    assert machine.charge(machine.token(), "2026-11").json()["id"] == second
    assert machine.json("doctor")["ok"] is True


def test_an_adopted_charge_without_a_period_is_suspected(machine: Machine) -> None:
    legacy(machine, description="Consulting")
    machine.json("adopt", *SINCE, "--period-from", "none", "--apply")
    refused = machine.charge(machine.token(), None)
    assert refused.json()["error"]["code"] == "duplicate_suspected"


def test_a_restored_store_sends_again_once_the_gap_is_adopted(machine: Machine) -> None:
    machine.begin_day()
    token = machine.token("--daily-cap", "100.00usd")
    saved = machine.saved()
    charge_id = machine.charge(token, "2026-11").json()["id"]
    machine.restore(saved)
    refused = machine.charge(token, "2026-11")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ledger_behind")
    checks = machine.json("doctor", code=1)["checks"]
    assert "heads" in {check["name"] for check in checks if not check["ok"]}
    machine.advance(700)
    (adopted,) = machine.json("adopt", *SINCE, "--apply")
    assert (adopted["charge_id"], adopted["billing_period"]) == (charge_id, lately("2026-11"))
    assert machine.charge(token, "2026-11").json()["id"] == charge_id
    (spent,) = [
        row for row in machine.json("spend") if row["window"] == "day" and row["scope"] == "key"
    ]
    assert (spent["settled"], spent["left"]) == (2900, 7100)


def test_a_charge_of_ours_within_the_grace_is_left_for_later(machine: Machine) -> None:
    token = machine.token()
    saved = machine.saved()
    machine.charge(token, "2026-11")
    machine.restore(saved)
    told = machine.run("adopt", *SINCE, "--apply", code=1).stderr
    assert "still not in the ledger" in told
    assert machine.charge(token, "2026-11").json()["error"]["code"] == "ledger_behind"


def test_what_is_found_does_not_depend_on_the_size_of_a_page(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = machine.token()
    for month in ("2026-08", "2026-09", "2026-10", "2026-11"):
        assert machine.charge(token, month).status_code == 200
    legacy(machine, amount="700")
    machine.tamper(
        f"UPDATE operations SET amount = 2800 WHERE period = '{lately('2026-08')}'",
        f"UPDATE operations SET object_id = 'ch_gone' WHERE period = '{lately('2026-09')}'",
    )
    whole = machine.json("reconcile", *SINCE, code=1)
    monkeypatch.setattr(records, "PAGE", 1)
    assert machine.json("reconcile", *SINCE, code=1) == whole
    assert len(whole["missing_operations"]) == len(whole["missing_charges"]) == 1
    assert {each["field"] for each in whole["differing"]} == {"amount", "charge_id"}


def test_the_charge_of_an_invoice_has_its_operation(machine: Machine) -> None:
    file = machine.folder / "invoices.json"
    allowed = ["POST /v1/invoices/*/pay"]
    file.write_text(json.dumps({"version": 1, "role": "payer", "allow": allowed}))
    token = machine.json("keys", "issue", "--policy", str(file), "--uncapped")["token"]
    invoice = machine.stripe("POST", "/v1/invoices", {"customer": CUSTOMER})["id"]
    item = {"customer": CUSTOMER, "invoice": invoice, "amount": "2900"}
    machine.stripe("POST", "/v1/invoiceitems", item)
    assert machine.post(f"/v1/invoices/{invoice}/pay", {}, token).json()["status"] == "paid"
    assert not any(machine.json("reconcile", *SINCE).values())
    assert machine.json("adopt", *SINCE, "--period-from", "none") == []
    [operation] = machine.json("operations", "list")
    [charge] = machine.charges()
    assert (operation["kind"], operation["invoice_id"]) == ("invoice", invoice)
    assert (operation["charge_id"], operation["amount"]) == (charge["payment_intent"], 2900)
    assert machine.json("doctor", code=0)["ok"] is True
