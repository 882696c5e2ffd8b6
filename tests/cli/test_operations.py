from __future__ import annotations

from typing import Any

import pytest

from tests.cli.machine import CUSTOMER, Machine
from tests.months import lately, spelled

GRACE_S = 700


def only(machine: Machine) -> dict[str, Any]:
    (operation,) = machine.json("operations", "list")
    return dict(operation)


def unknown(machine: Machine, token: str, kind: str = "drop_before") -> str:
    machine.fault(kind)
    assert machine.charge(token, "2026-11").status_code == 504
    return str(only(machine)["id"])


def test_operations_are_listed_by_what_they_are_about(machine: Machine) -> None:
    token = machine.token()
    machine.charge(token, "2026-11")
    machine.charge(token, "2026-10", customer="cus_Other1")
    assert len(machine.json("operations", "list")) == 2
    assert len(machine.json("operations", "list", "--limit", "1")) == 1
    (found,) = machine.json("operations", "list", "--customer", CUSTOMER, "--state", "succeeded")
    assert (found["billing_period"], found["amount"], found["currency"]) == (
        lately("2026-11"),
        2900,
        "usd",
    )
    (by_period,) = machine.json("operations", "list", "--period", spelled("2026-10"))
    assert by_period["customer_id"] == "cus_Other1"
    assert machine.json("operations", "show", found["id"])["charge_id"] == found["charge_id"]
    machine.run("operations", "list", "--period", "October", code=2)


def test_only_an_unknown_operation_is_resolved(machine: Machine) -> None:
    token = machine.token()
    machine.charge(token, "2026-11")
    done = only(machine)
    void = ("operations", "resolve", done["id"], "--void", "--reason", "I think so")
    assert "only unknown ones are resolved" in machine.run(*void, code=1).stderr
    named = ("operations", "resolve", done["id"], "--succeeded", done["charge_id"])
    machine.run(*named, code=1)
    machine.run("operations", "resolve", done["id"], code=2)
    machine.run("operations", "resolve", done["id"], "--void", code=2)


def test_an_operator_names_the_charge_of_an_unknown_operation(machine: Machine) -> None:
    operation_id = unknown(machine, machine.token("--daily-cap", "100.00usd"), "drop_after")
    (charge,) = machine.charges()
    resolved = machine.json("operations", "resolve", operation_id, "--succeeded", charge["id"])
    assert (resolved["state"], resolved["charge_id"]) == ("succeeded", charge["id"])
    (spent,) = [
        row for row in machine.json("spend") if row["window"] == "day" and row["scope"] == "key"
    ]
    assert (spent["settled"], spent["reserved"], spent["left"]) == (2900, 0, 7100)
    decisions = [row["decision"] for row in machine.json("audit", "list", "--limit", "2")]
    assert decisions == ["succeeded", "resolve_succeeded"]


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ({"amount": "2901"}, "its amount is 2901"),
        ({"currency": "eur"}, "its currency is eur"),
        ({"customer": "cus_Other1"}, "its customer is cus_Other1"),
        ({"metadata[keybrake_operation]": "op_else"}, "it belongs to operation op_else"),
    ],
)
def test_another_charge_than_the_operations_is_refused(
    machine: Machine, form: dict[str, str], why: str
) -> None:
    operation_id = unknown(machine, machine.token())
    bill = {"amount": "2900", "currency": "usd", "customer": CUSTOMER} | form
    other = machine.stripe("POST", "/v1/charges", bill)["id"]
    told = machine.run("operations", "resolve", operation_id, "--succeeded", other, code=1).stderr
    assert why in told
    assert only(machine)["state"] == "unknown"


def test_a_void_waits_for_the_grace_and_then_frees_the_bill(machine: Machine) -> None:
    token = machine.token()
    operation_id = unknown(machine, token)
    void = ("operations", "resolve", operation_id, "--void", "--reason", "Stripe's log is empty")
    assert "so lately" in machine.run(*void, code=1).stderr
    machine.advance(GRACE_S)
    again = "Hint: Look a second time: ask for the same in 60 seconds"
    assert again in machine.run(*void, code=1).stderr
    machine.advance(61)
    assert machine.json(*void)["state"] == "voided"
    assert machine.charge(token, "2026-11").status_code == 200
    assert len(machine.charges()) == 1


def test_what_stripe_shows_beats_an_operators_void(machine: Machine) -> None:
    operation_id = unknown(machine, machine.token(), "drop_after")
    machine.advance(GRACE_S)
    void = ("operations", "resolve", operation_id, "--void", "--reason", "surely not")
    assert "has succeeded" in machine.run(*void, code=1).stderr
    assert only(machine)["state"] == "succeeded"


def test_a_refunded_bill_is_reopened_and_billed_once_more(machine: Machine) -> None:
    token = machine.token()
    first = machine.charge(token, "2026-11").json()["id"]
    reopen = ("operations", "reopen", only(machine)["id"], "--reason", "wrong card")
    machine.stripe("POST", "/v1/refunds", {"charge": first})
    assert machine.charge(token, "2026-11").json()["id"] == first
    assert machine.run(*reopen).stderr == "The next call for this bill charges once more.\n"
    machine.run(*reopen, code=1)
    second = machine.charge(token, "2026-11").json()["id"]
    assert second != first
    assert machine.charge(token, "2026-11").json()["id"] == second
    assert "is the newest of this bill" in machine.run(*reopen, code=1).stderr
    assert len(machine.charges()) == 2


def test_a_wrong_suspicion_is_waived_once_and_the_bill_stays_charged(machine: Machine) -> None:
    token = machine.token()
    first = machine.charge(token, "2026-11").json()["id"]
    operation_id = only(machine)["id"]
    machine.stripe("POST", "/v1/refunds", {"charge": first, "amount": "100"})
    assert machine.charge(token, None).json()["error"]["code"] == "duplicate_suspected"
    waived = machine.run("operations", "reopen", operation_id, "--reason", "a second seat")
    assert f"{first} is not refunded in full, so this bill stays charged." in waived.stderr
    assert machine.charge(token, "2026-11").json()["id"] == first
    assert machine.charge(token, None).status_code == 200
    assert machine.charge(token, None, description="x").status_code == 400
    assert len(machine.charges()) == 2


def test_a_reason_of_spaces_is_none(machine: Machine) -> None:
    machine.charge(machine.token(), "2026-11")
    named = (only(machine)["id"], "--reason", "  ")
    assert "say why" in machine.run("operations", "reopen", *named, code=2).stderr
    assert (
        "--void needs --reason"
        in machine.run("operations", "resolve", "--void", *named, code=2).stderr
    )


def test_an_unknown_bill_is_not_reopened(machine: Machine) -> None:
    operation_id = unknown(machine, machine.token())
    machine.run("operations", "reopen", operation_id, "--reason", "why not", code=1)


def test_reset_lets_a_declined_bill_be_tried_again(machine: Machine) -> None:
    token = machine.token()
    declined = machine.charge(token, "2026-11", customer="cus_Declined1")
    assert declined.status_code == 402
    again = machine.charge(token, "2026-11", customer="cus_Declined1")
    assert again.headers["idempotent-replayed"] == "true"
    machine.run("operations", "reset", only(machine)["id"])
    anew = machine.charge(token, "2026-11", customer="cus_Declined1")
    assert (anew.status_code, anew.headers["keybrake-attempt"]) == (402, "2")


def test_a_charge_is_no_intent_and_is_not_cancelled(machine: Machine) -> None:
    machine.charge(machine.token(), "2026-11")
    told = machine.run("operations", "cancel", only(machine)["id"], code=1).stderr
    assert "is no PaymentIntent" in told


def test_an_abandoned_intent_is_cancelled_and_releases_what_it_held(machine: Machine) -> None:
    issued = machine.json(
        *("keys", "issue", "--role", "billing-payment-intents", "--daily-cap", "50.00usd")
    )
    bill = {"amount": "2900", "currency": "usd", "customer": CUSTOMER}
    bill["payment_method"] = "pm_card_visa"
    created = machine.post("/v1/payment_intents", bill, issued["token"])
    assert (created.status_code, only(machine)["final"]) == (200, False)
    cancelled = machine.json("operations", "cancel", only(machine)["id"])
    assert (cancelled["state"], cancelled["final"]) == ("failed", True)
    (intent,) = machine.stripe("GET", "/v1/payment_intents")["data"]
    assert intent["status"] == "canceled"
    (day,) = [row for row in machine.json("spend") if row["window"] == "day" and row["key_id"]]
    assert day["left"] == 5000
    machine.run("operations", "cancel", cancelled["id"], code=1)
    assert machine.json("doctor")["ok"] is True


def test_forgotten_answers_are_replayed_by_reading(machine: Machine) -> None:
    token = machine.token()
    first = machine.charge(token, "2026-11").json()["id"]
    assert machine.json("operations", "forget", "--customer", CUSTOMER)["erased"] == 1
    assert machine.json("operations", "forget", "--customer", CUSTOMER)["erased"] == 0
    replayed = machine.charge(token, "2026-11")
    assert (replayed.json()["id"], replayed.headers["idempotent-replayed"]) == (first, "true")


def test_a_forgotten_decline_is_still_a_decline(machine: Machine) -> None:
    token = machine.token()
    machine.charge(token, "2026-11", customer="cus_Declined1")
    assert machine.json("operations", "forget", "--customer", "cus_Declined1")["erased"] == 1
    replayed = machine.charge(token, "2026-11", customer="cus_Declined1")
    assert replayed.status_code == 402
    assert replayed.json()["error"]["message"] == (
        "The payment was declined. Its details were erased."
    )


def test_what_an_unresolved_operation_needs_is_not_forgotten(machine: Machine) -> None:
    unknown(machine, machine.token(), "500_after")
    assert machine.json("operations", "forget", "--customer", CUSTOMER)["erased"] == 0


def test_recover_finds_out_what_became_of_a_charge(machine: Machine) -> None:
    operation_id = unknown(machine, machine.token(), "drop_after")
    (found,) = machine.json("recover")
    assert found == {"operation_id": operation_id, "state": "succeeded"}
    assert machine.json("recover") == []


def test_an_operation_that_is_not_there_is_a_failure(machine: Machine) -> None:
    told = machine.run("operations", "show", "op_nothing", code=1).stderr
    assert told.startswith("Error: there is no operation op_nothing\nHint: ")
