"""Invoices through the whole of wing B, with each of the real stores and the real sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.in_process_proxy import error_of
from tests.misbehaving import MisledProxy
from tests.postgres import database, server
from tests.proxy.invoices import (
    CAPS,
    PAY,
    act,
    add,
    approve,
    by_hand,
    drafted,
    facts_of,
    hear,
    held,
    only,
    opened,
    payer,
    sends,
    taken,
)

__all__ = ["database", "server"]


@pytest.fixture(params=["sqlite", "postgres"])
def in_process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MisledProxy]:
    stored: dict[str, str] = {}
    if request.param == "postgres":
        stored = request.getfixturevalue("database").environ
    with MisledProxy(tmp_path, **stored) as built:
        built.begin_day()
        yield built


@pytest.mark.parametrize("caps", [CAPS, {}])
def test_an_invoice_is_paid_once_counted_once_and_replayed(
    in_process: MisledProxy, caps: dict[str, Any]
) -> None:
    invoice, key = opened(in_process), payer(in_process, caps=caps)
    answers = [act(in_process, key, invoice, key_header=f"call-{n}") for n in range(3)]
    assert [each.status_code for each in answers] == [200] * 3, answers[0].text
    assert {each.json()["status"] for each in answers} == {"paid"}
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert (taken(in_process), sends(in_process, invoice)) == (2900, 1)
    operation = only(in_process)
    assert (operation.amount, operation.currency, operation.customer) == (2900, "usd", "cus_A1")
    assert (operation.state, operation.held, operation.object_id) == ("succeeded", 2900, invoice)
    assert held(in_process, key) == (2900, 0)


def test_two_callers_at_once_pay_once(in_process: MisledProxy) -> None:
    invoice, keys = opened(in_process), [payer(in_process) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda key: act(in_process, key, invoice), keys))
    assert [each.status_code for each in answers] == [200] * 4, answers[0].text
    assert (taken(in_process), sends(in_process, invoice)) == (2900, 1)
    assert only(in_process).held == 2900


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "500_after"])
def test_a_lost_answer_is_unknown_and_the_next_call_pays_nothing_twice(
    in_process: MisledProxy, kind: str
) -> None:
    invoice, key = opened(in_process), payer(in_process)
    in_process.fault(kind, f"POST /v1/invoices/{invoice}/pay")
    lost = act(in_process, key, invoice)
    assert (lost.status_code, error_of(lost)) == (504, "outcome_unknown")
    assert (only(in_process).state, held(in_process, key)) == ("unknown", (0, 2900))
    again = act(in_process, key, invoice)
    assert (again.status_code, again.json()["status"]) == (200, "paid"), again.text
    assert (taken(in_process), held(in_process, key)) == (2900, (2900, 0))
    # What has happened is read; what has not is sent once more, under the same key.
    assert sends(in_process, invoice) == (2 if kind == "drop_before" else 1)


@pytest.mark.parametrize(
    ("kind", "state"), [("drop_after", "succeeded"), ("drop_before", "voided")]
)
def test_after_a_crash_recovery_reads_the_invoice_and_sends_nothing(
    in_process: MisledProxy, kind: str, state: str
) -> None:
    invoice, key = opened(in_process), payer(in_process)
    in_process.fault(kind, f"POST /v1/invoices/{invoice}/pay")
    act(in_process, key, invoice)
    in_process.restart()
    in_process.recover()
    assert only(in_process).state == ("succeeded" if state == "succeeded" else "unknown")
    in_process.turn_clock(700)
    in_process.recover()
    assert only(in_process).state == state
    settled = 2900 if state == "succeeded" else 0
    assert (held(in_process, key), sends(in_process, invoice)) == ((settled, 0), 1)
    assert act(in_process, key, invoice).json()["status"] == "paid"
    assert (taken(in_process), held(in_process, key)) == (2900, (2900, 0))


def test_while_a_charge_that_may_be_its_own_stands_nothing_is_voided(
    in_process: MisledProxy,
) -> None:
    invoice, key = opened(in_process), payer(in_process)
    in_process.fault("drop_before", f"POST /v1/invoices/{invoice}/pay")
    act(in_process, key, invoice)
    by_hand(in_process, "/v1/charges", customer="cus_A1", amount=2900, currency="usd")
    in_process.turn_clock(700)
    in_process.recover()
    assert (only(in_process).state, only(in_process).code) == ("unknown", "unmarked_charge")


def test_an_invoice_that_grew_between_reading_and_sending_pays_nothing(
    in_process: MisledProxy,
) -> None:
    invoice, key = opened(in_process), payer(in_process)
    hear(in_process, invoice, 2, amount_remaining=5900)
    grown = act(in_process, key, invoice)
    assert (grown.status_code, error_of(grown)) == (400, "amount_changed")
    facts = facts_of(grown)
    assert (facts["amount"], facts["amount_now"], facts["currency"]) == (2900, 5900, "usd")
    assert (facts["invoice_id"], facts["status"]) == (invoice, "open")
    assert (taken(in_process), sends(in_process, invoice)) == (0, 0)
    assert (only(in_process).state, held(in_process, key)) == ("failed", (0, 0))
    in_process.rogue.behave()
    assert act(in_process, key, invoice).json()["status"] == "paid"
    assert held(in_process, key) == (2900, 0)


def test_an_invoice_that_grew_while_an_answer_is_lost_is_not_sent_again(
    in_process: MisledProxy,
) -> None:
    invoice, key = drafted(in_process), payer(in_process)
    in_process.fault("drop_before", f"POST /v1/invoices/{invoice}/pay")
    act(in_process, key, invoice)
    add(in_process, invoice, 3000)
    grown = act(in_process, key, invoice)
    assert (grown.status_code, error_of(grown)) == (400, "amount_changed")
    assert facts_of(grown)["amount_now"] == 5900
    assert (taken(in_process), held(in_process, key)) == (0, (0, 2900))


def test_more_paid_than_was_reserved_is_flagged_and_freezes_the_key(
    in_process: MisledProxy,
) -> None:
    invoice, key = drafted(in_process), payer(in_process)
    add(in_process, invoice, 3000)
    # The proxy reads what was there before the second item.
    hear(in_process, invoice, amount_remaining=2900, amount_due=2900)
    paid = act(in_process, key, invoice)
    assert (paid.status_code, paid.json()["amount_paid"]) == (200, 5900)
    operation = only(in_process)
    assert (operation.state, operation.overshoot, operation.held) == ("succeeded", True, 5900)
    assert held(in_process, key) == (5900, 0)
    other = opened(in_process, 1000, customer="cus_B2")
    refused = act(in_process, key, other)
    assert (refused.status_code, error_of(refused)) == (403, "vault_key_frozen")


def test_what_others_paid_before_is_no_overshoot(in_process: MisledProxy) -> None:
    invoice, key = opened(in_process), payer(in_process)
    part = {"amount_due": 2900, "amount_paid": 900, "amount_remaining": 2000}
    hear(in_process, invoice, **part)
    in_process.fault("drop_after", f"POST /v1/invoices/{invoice}/pay")
    act(in_process, key, invoice)
    in_process.rogue.behave()
    in_process.recover()
    operation = only(in_process)
    assert (operation.amount, operation.held, operation.overshoot) == (2000, 2000, False)


def test_an_invoice_paid_elsewhere_is_shown_and_nothing_is_sent(in_process: MisledProxy) -> None:
    invoice, key = opened(in_process), payer(in_process)
    by_hand(in_process, f"/v1/invoices/{invoice}/pay")
    shown = act(in_process, key, invoice)
    assert (shown.status_code, shown.json()["status"]) == (200, "paid")
    assert (sends(in_process, invoice), in_process.operations()) == (0, [])
    assert held(in_process, key) == (0, 0)
    rows = [(row["kind"], row["decision"], row["customer_id"]) for row in in_process.audit()
            if row["object_id"] == invoice]  # fmt: skip
    assert rows == [("read", "forward", "cus_A1")]


def test_one_that_was_paid_elsewhere_after_a_decline_is_shown_too(in_process: MisledProxy) -> None:
    invoice, key = opened(in_process, customer="cus_Declined1"), payer(in_process)
    declined = act(in_process, key, invoice)
    assert (declined.status_code, error_of(declined)) == (402, "card_declined")
    assert (only(in_process).state, held(in_process, key)) == ("failed", (0, 0))
    assert act(in_process, key, invoice).headers["idempotent-replayed"] == "true"
    assert sends(in_process, invoice) == 1
    by_hand(in_process, f"/v1/invoices/{invoice}/pay", paid_out_of_band="true")
    assert act(in_process, key, invoice).json()["status"] == "paid"
    assert sends(in_process, invoice) == 1


def test_a_declined_invoice_is_tried_again_under_a_new_key_and_has_one_payment(
    in_process: MisledProxy,
) -> None:
    invoice, key = opened(in_process), payer(in_process, decline_retry_after="1s")
    in_process.fault("402", f"POST /v1/invoices/{invoice}/pay")
    assert act(in_process, key, invoice).status_code == 402
    in_process.turn_clock(5)
    assert act(in_process, key, invoice).json()["status"] == "paid"
    in_process.recover()
    [(operation, attempts)] = in_process.run(in_process.proxy.store.records.operations())
    assert [each.outcome for each in attempts] == ["declined", "succeeded"]
    [charge] = in_process.charges()
    assert [each.object_id for each in attempts] == [None, charge["payment_intent"]]
    assert operation.object_id == invoice


def test_the_customers_amount_is_guarded_between_charges_and_invoices(
    in_process: MisledProxy,
) -> None:
    key = payer(in_process)
    charged = in_process.charge(key, period="2026-11")
    assert charged.status_code == 200
    first = act(in_process, key, opened(in_process))
    assert (first.status_code, error_of(first)) == (400, "duplicate_suspected")
    assert charged.json()["id"] in first.json()["error"]["message"]
    other = opened(in_process, 4000)
    assert act(in_process, key, other).status_code == 200
    after = in_process.charge(key, amount=4000, period=None)
    assert (after.status_code, error_of(after)) == (400, "duplicate_suspected")
    assert taken(in_process) == 6900


def test_a_policy_may_allow_what_marks_an_invoice_as_paid(in_process: MisledProxy) -> None:
    rules = {PAY: {"allowed": ["paid_out_of_band"]}}
    invoice, key = opened(in_process), payer(in_process, parameters=rules)
    paid = act(in_process, key, invoice, paid_out_of_band="true")
    assert (paid.json()["status"], taken(in_process)) == ("paid", 0)
    assert only(in_process).held == 2900


def test_the_safe_parameters_reach_stripe_and_another_card_is_another_request(
    in_process: MisledProxy,
) -> None:
    invoice, key = opened(in_process), payer(in_process)
    in_process.fault("drop_before", f"POST /v1/invoices/{invoice}/pay")
    act(in_process, key, invoice, off_session="true", payment_method="pm_card_visa")
    other = act(in_process, key, invoice, payment_method="pm_card_mastercard")
    assert (other.status_code, taken(in_process)) == (400, 0)
    paid = act(in_process, key, invoice, payment_method="pm_card_visa")
    assert (paid.status_code, taken(in_process)) == (200, 2900), paid.text


def test_finalizing_holds_the_amount_until_it_is_paid_and_paying_goes_on_with_it(
    in_process: MisledProxy,
) -> None:
    invoice, key = drafted(in_process), payer(in_process)
    finalized = act(in_process, key, invoice, "finalize", auto_advance="true")
    assert (finalized.status_code, finalized.json()["status"]) == (200, "open"), finalized.text
    operation = only(in_process)
    assert (operation.state, operation.final, operation.held) == ("succeeded", False, 2900)
    assert held(in_process, key) == (0, 2900)
    again = act(in_process, key, invoice, "finalize", auto_advance="true")
    assert (again.json()["status"], sends(in_process, invoice, "finalize")) == ("open", 1)
    paid = act(in_process, key, invoice)
    assert (paid.status_code, paid.json()["status"]) == (200, "paid"), paid.text
    assert (only(in_process).final, held(in_process, key)) == (True, (2900, 0))
    for each in ("pay", "finalize"):
        assert act(in_process, key, invoice, each).json()["status"] == "paid"
    assert (taken(in_process), sends(in_process, invoice)) == (2900, 1)


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
def test_a_lost_answer_to_finalize_is_found_by_reading(in_process: MisledProxy, kind: str) -> None:
    invoice, key = drafted(in_process), payer(in_process)
    in_process.fault(kind, f"POST /v1/invoices/{invoice}/finalize")
    assert act(in_process, key, invoice, "finalize").status_code == 504
    again = act(in_process, key, invoice, "finalize")
    assert (again.status_code, again.json()["status"]) == (200, "open"), again.text
    assert held(in_process, key) == (0, 2900)
    assert act(in_process, key, invoice).json()["status"] == "paid"
    assert (taken(in_process), held(in_process, key)) == (2900, (2900, 0))


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "402"])
def test_a_payment_after_finalize_that_goes_wrong_keeps_what_is_held(
    in_process: MisledProxy, kind: str
) -> None:
    invoice, key = drafted(in_process), payer(in_process)
    act(in_process, key, invoice, "finalize", auto_advance="true")
    in_process.fault(kind, f"POST /v1/invoices/{invoice}/pay")
    wrong = act(in_process, key, invoice)
    assert wrong.status_code == (402 if kind == "402" else 504)
    assert held(in_process, key) == (0, 2900)
    in_process.turn_clock(70)
    in_process.recover()
    assert act(in_process, key, invoice).json()["status"] == "paid"
    assert (taken(in_process), held(in_process, key)) == (2900, (2900, 0))


def test_an_approval_is_bound_to_what_was_read(in_process: MisledProxy) -> None:
    invoice, key = drafted(in_process), payer(in_process, approval_above={"usd": 1000})
    asked = act(in_process, key, invoice)
    assert error_of(asked) == "approval_required"
    approve(in_process, facts_of(asked)["approval"])
    add(in_process, invoice, 100)
    other = act(in_process, key, invoice)
    assert error_of(other) == "approval_required"
    assert facts_of(other)["approval"] != facts_of(asked)["approval"]
    approve(in_process, facts_of(other)["approval"])
    assert act(in_process, key, invoice).json()["amount_paid"] == 3000
    assert taken(in_process) == 3000


def test_a_frozen_or_revoked_key_pays_nothing_and_may_look_at_what_is_paid(
    in_process: MisledProxy,
) -> None:
    key = payer(in_process, daily_declines=1)
    paid, invoice = opened(in_process, 1000), opened(in_process, customer="cus_Declined1")
    assert act(in_process, key, paid).status_code == 200
    assert act(in_process, key, invoice).status_code == 402
    other = opened(in_process, 500)
    for each in ("pay", "finalize"):
        refused = act(in_process, key, drafted(in_process, 700) if each == "finalize" else other,
                      each)  # fmt: skip
        assert error_of(refused) == "vault_key_frozen"
    assert act(in_process, key, paid).json()["status"] == "paid"
    assert taken(in_process) == 1000


def test_the_charge_of_a_paid_invoice_is_tied_to_it_and_may_be_refunded(
    in_process: MisledProxy,
) -> None:
    invoice = opened(in_process)
    key = payer(in_process, refund_caps={"daily": {"usd": 10_000}})
    act(in_process, key, invoice)
    in_process.recover()
    [charge] = in_process.charges()
    for name in (charge["payment_intent"],):
        [operation] = in_process.operations(charge_id=name)
        assert operation.object_id == invoice
    refunded = in_process.refund(key, charge["id"])
    assert (refunded.status_code, refunded.json()["amount"]) == (200, 2900), refunded.text
    assert act(in_process, key, invoice).json()["status"] == "paid"
