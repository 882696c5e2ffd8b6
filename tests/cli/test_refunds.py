"""What operators see of refunds, and do to them."""

from __future__ import annotations

import json
import shlex
from typing import Any

import httpx
import pytest

from tests.cli.machine import CUSTOMER, Machine

SINCE = ("--since", "30d")


def refunder(machine: Machine, *args: str) -> str:
    more = args or ("--uncapped",)
    return str(machine.json("keys", "issue", "--role", "refunds", *more)["token"])


def charged(machine: Machine) -> str:
    return str(machine.charge(machine.token(), "2026-11").json()["id"])


def refund(machine: Machine, token: str, charge: str, amount: int | None = None) -> httpx.Response:
    form = {"charge": charge} | ({} if amount is None else {"amount": str(amount)})
    return machine.post("/v1/refunds", form, token)


def by_hand(machine: Machine, charge: str, amount: int) -> str:
    form = {"charge": charge, "amount": str(amount)}
    return str(machine.stripe("POST", "/v1/refunds", form)["id"])


def refund_operation(machine: Machine) -> dict[str, Any]:
    found = [each for each in machine.json("operations", "list") if each["kind"] == "refund"]
    return dict(found[0])


@pytest.mark.parametrize(
    ("role", "line"),
    [
        ("refunds", "--refund-daily-cap 1000.00usd"),
        ("billing-with-refunds", "--daily-cap 1000.00usd --refund-daily-cap 1000.00usd"),
    ],
)
def test_a_key_that_refunds_without_a_cap_is_issued_only_on_demand(
    machine: Machine, role: str, line: str
) -> None:
    refused = machine.run("keys", "issue", "--role", role, code=2)
    assert line in refused.stderr
    machine.run("keys", "issue", "--role", role, *line.split())


def test_the_line_to_type_keeps_the_caps_that_were_given(machine: Machine) -> None:
    given = ("--role", "billing-with-refunds", "--monthly-cap", "200.00usd")
    told = machine.run("keys", "issue", *given, code=2).stderr
    line = " ".join((*given, "--refund-daily-cap", "1000.00usd"))
    assert f"kb-mcp keys issue {line} (or" in told
    machine.run("keys", "issue", *line.split())


def test_the_line_to_type_caps_refunds_in_the_currency_of_their_approvals(machine: Machine) -> None:
    given = ("--role", "refunds", "--refund-approval-above", "9.00eur", "--label", "demo")
    told = machine.run("keys", "issue", *given, code=2).stderr
    line = told.partition("Hint: kb-mcp ")[2].partition(" (or")[0]
    assert line.endswith("--refund-daily-cap 1000.00eur")
    machine.run(*shlex.split(line))


def test_caps_and_approvals_of_refunds_are_given_at_issue(machine: Machine) -> None:
    options = ("--refund-daily-cap", "20.00usd", "--refund-approval-above", "9.00usd")
    issued = machine.json("keys", "issue", "--role", "refunds", *options)
    assert issued["policy"]["refund_caps"]["daily"] == {"usd": 2000}
    assert issued["policy"]["refund_approval_above"] == {"usd": 900}
    charge = charged(machine)
    assert refund(machine, issued["token"], charge, 901).status_code == 403
    (waiting,) = machine.json("approvals", "list")
    assert (waiting["endpoint"], waiting["charge_id"]) == ("POST /v1/refunds", charge)
    assert (waiting["amount"], waiting["customer_id"]) == (901, CUSTOMER)
    machine.run("approvals", "approve", waiting["id"])
    assert refund(machine, issued["token"], charge, 901).status_code == 200


def test_a_refund_is_listed_as_one_with_its_charge(machine: Machine) -> None:
    charge = charged(machine)
    made = refund(machine, refunder(machine), charge, 900).json()["id"]
    shown = refund_operation(machine)
    assert (shown["charge_id"], shown["refund_id"], shown["amount"]) == (charge, made, 900)
    assert (shown["customer_id"], shown["state"]) == (CUSTOMER, "succeeded")


def test_what_was_given_back_stands_beside_its_caps(machine: Machine) -> None:
    machine.run("settings", "set", "account_daily_refund_cap", "50.00usd")
    token = refunder(machine, "--refund-daily-cap", "20.00usd")
    refund(machine, token, charged(machine), 900)
    rows = {(each["scope"], each["window"]): each for each in machine.json("spend")}
    of_key, of_account = rows["key_refunds", "day"], rows["account_refunds", "day"]
    assert (of_key["settled"], of_key["cap"], of_key["left"]) == (900, 2000, 1100)
    assert (of_account["settled"], of_account["left"]) == (900, 4100)
    assert rows["account", "day"]["settled"] == 2900


def test_ledger_and_stripe_agree_on_refunds_and_what_differs_is_told(machine: Machine) -> None:
    charge = charged(machine)
    refund(machine, refunder(machine), charge, 900)
    assert not any(machine.json("reconcile", *SINCE).values())
    elsewhere = by_hand(machine, charge, 100)
    (unknown,) = machine.json("reconcile", *SINCE, code=1)["missing_operations"]
    assert (unknown["kind"], unknown["refund_id"]) == ("refund", elsewhere)
    machine.tamper("UPDATE operations SET amount = 800 WHERE gives_back IS NOT NULL")
    (differs,) = machine.json("reconcile", *SINCE, code=1)["differing"]
    assert (differs["field"], differs["ledger"], differs["stripe"]) == ("amount", 800, 900)


def test_a_refund_that_stripe_lost_is_told(machine: Machine) -> None:
    refund(machine, refunder(machine), charged(machine), 900)
    machine.tamper("UPDATE operations SET object_id = 're_gone' WHERE gives_back IS NOT NULL")
    (missing,) = machine.json("reconcile", *SINCE, code=1)["missing_charges"]
    assert missing["refund_id"] == "re_gone"


def test_refunds_made_elsewhere_are_adopted_and_count(machine: Machine) -> None:
    charge = charged(machine)
    elsewhere = by_hand(machine, charge, 400)
    machine.advance(601)
    (dry,) = machine.json("adopt", *SINCE)
    assert (dry["refund_id"], dry["adopted"]) == (elsewhere, False)
    (adopted,) = machine.json("adopt", *SINCE, "--apply")
    assert (adopted["adopted"], adopted["customer_id"]) == (True, CUSTOMER)
    assert machine.json("reconcile", *SINCE)["missing_operations"] == []
    shown = refund_operation(machine)
    assert (shown["refund_id"], shown["charge_id"]) == (elsewhere, charge)
    refused = refund(machine, refunder(machine), charge, 100).json()["error"]
    assert (refused["code"], refused["keybrake"]["refund_id"]) == ("already_refunded", elsewhere)


def test_a_reopened_refund_is_made_once_more_and_never_more_than_the_charge(
    machine: Machine,
) -> None:
    charge, token = charged(machine), refunder(machine)
    first = refund(machine, token, charge, 900).json()["id"]
    operation = refund_operation(machine)["id"]
    for more in (("--release",), ("--amount", "100")):
        reopen = ("operations", "reopen", operation, "--reason", "the second half", *more)
        assert "is a refund: it has no days to free" in machine.run(*reopen, code=1).stderr
    again = machine.run("operations", "reopen", operation, "--reason", "the second half", "--json")
    assert json.loads(again.stdout)["id"] == operation
    assert again.stderr == (
        f"The next refund of {charge} is made: of the amount that it names, or of all that is "
        "left.\n"
    )
    over = refund(machine, token, charge, 2001).json()["error"]
    assert (over["code"], over["keybrake"]["left"]) == ("refund_exceeds_charge", 2000)
    second = refund(machine, token, charge, 900)
    assert (second.status_code, second.json()["id"] != first) == (200, True)
    assert refund(machine, token, charge, 900).json()["id"] == second.json()["id"]
    given = machine.stripe("GET", f"/v1/refunds?charge={charge}")["data"]
    assert sum(each["amount"] for each in given) == 1800
    machine.run("operations", "reopen", operation, "--reason", "again", code=1)


def test_an_unknown_refund_is_resolved_by_the_object_that_was_found(machine: Machine) -> None:
    charge, token = charged(machine), refunder(machine)
    machine.steer("faults", [{"match": "POST /v1/refunds", "kind": "drop_after"}])
    assert refund(machine, token, charge, 900).status_code == 504
    (made,) = machine.stripe("GET", f"/v1/refunds?charge={charge}")["data"]
    operation = refund_operation(machine)["id"]
    machine.run("operations", "resolve", operation, "--succeeded", made["id"])
    assert refund_operation(machine)["state"] == "succeeded"
    assert refund(machine, token, charge, 900).json()["id"] == made["id"]
