"""Invoices that are not paid, or not yet: what policies, parameters and Stripe itself refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.in_process_proxy import error_of
from tests.misbehaving import MisledProxy
from tests.proxy.invoices import (
    FINALIZE,
    act,
    by_hand,
    drafted,
    hear,
    held,
    only,
    opened,
    payer,
    sends,
    taken,
)


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[MisledProxy]:
    with MisledProxy(tmp_path) as built:
        built.begin_day()
        yield built


@pytest.mark.parametrize(
    "fields",
    [
        {"currency": "eur"},
        {"customer": "cus_B2"},
        {"customer": None},
        {"status": "draft"},
        {"amount_paid": 100},
        {"amount_remaining": 2800},
        {"amount_remaining": 0},
        {"status": "void"},
    ],
)
def test_whatever_changed_between_reading_and_sending_pays_nothing(
    in_process: MisledProxy, fields: dict[str, object]
) -> None:
    invoice, key = opened(in_process), payer(in_process)
    hear(in_process, invoice, 2, **fields)
    changed = act(in_process, key, invoice)
    assert (changed.status_code, error_of(changed)) == (400, "amount_changed")
    assert (sends(in_process, invoice), held(in_process, key)) == (0, (0, 0))


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"customers": {"ids": ["cus_B2"]}}, "vault_key_not_authorized"),
        ({"customers": {"prefix": "cus_B"}}, "vault_key_not_authorized"),
        ({"customers": {"metadata": {"tenant": "b"}}}, "vault_key_not_authorized"),
        ({"caps": {"daily": {"eur": 10_000}}}, "currency_not_allowed"),
        ({"caps": {"per_charge": {"usd": 2899}}}, "spend_cap_exceeded"),
        ({"caps": {"daily": {"usd": 2899}}}, "spend_cap_exceeded"),
        ({"caps": {"monthly": {"usd": 2899}}}, "spend_cap_exceeded"),
        ({"caps": {"per_customer_daily": {"usd": 2899}}}, "spend_cap_exceeded"),
        ({"approval_above": {"usd": 2899}}, "approval_required"),
        ({"approval_above": {"eur": 1}}, "currency_not_allowed"),
        ({"allow": [FINALIZE]}, "vault_key_not_authorized"),
    ],
)
def test_what_a_policy_does_not_grant_pays_nothing(
    in_process: MisledProxy, fields: dict[str, Any], code: str
) -> None:
    invoice, key = opened(in_process), payer(in_process, **fields)
    refused = act(in_process, key, invoice)
    assert (refused.status_code, error_of(refused)) == (403, code), refused.text
    assert (taken(in_process), sends(in_process, invoice)) == (0, 0)


def test_invoices_in_another_currency_hold_in_that_currency(in_process: MisledProxy) -> None:
    invoice = opened(in_process, 5000, currency="jpy")
    key = payer(in_process, caps={"daily": {"jpy": 5000}})
    assert act(in_process, key, invoice).json()["status"] == "paid"
    operation = only(in_process)
    assert (operation.amount, operation.currency, operation.held) == (5000, "jpy", 5000)


@pytest.mark.parametrize(
    "form",
    [
        {"paid_out_of_band": "true"},
        {"forgive": "true"},
        {"source": "card_1"},
        {"mandate": "mandate_1"},
        {"expand[]": "charge"},
        {"metadata[order]": "1"},
        {"metadata[reference]": "second"},
        {"metadata[keybrake_operation]": "op_1"},
        {"amount": "1"},
        {"customer": "cus_A1"},
    ],
)
def test_parameters_that_are_not_safe_are_refused(
    in_process: MisledProxy, form: dict[str, str]
) -> None:
    invoice, key = opened(in_process), payer(in_process)
    refused = act(in_process, key, invoice, **form)
    assert (refused.status_code, error_of(refused)) == (403, "parameter_not_allowed")
    assert (sends(in_process, invoice), in_process.operations()) == (0, [])


@pytest.mark.parametrize("act_of_stripe", ["pay", "void", "mark_uncollectible"])
def test_a_finalized_invoice_is_read_until_stripe_is_done_with_it(
    in_process: MisledProxy, act_of_stripe: str
) -> None:
    invoice, key = drafted(in_process), payer(in_process)
    act(in_process, key, invoice, "finalize", auto_advance="true")
    in_process.turn_clock(3_700)
    in_process.recover()
    assert held(in_process, key) == (0, 2900)
    by_hand(in_process, f"/v1/invoices/{invoice}/{act_of_stripe}")
    in_process.turn_clock(3_700)
    in_process.recover()
    paid = act_of_stripe == "pay"
    assert only(in_process).state == ("succeeded" if paid else "failed")
    assert held(in_process, key) == ((2900, 0) if paid else (0, 0))


@pytest.mark.parametrize("status", ["void", "uncollectible"])
def test_a_voided_invoice_is_refused_and_a_written_off_one_may_be_paid(
    in_process: MisledProxy, status: str
) -> None:
    invoice, key = opened(in_process), payer(in_process)
    by_hand(in_process, f"/v1/invoices/{invoice}/"
                        f"{'void' if status == 'void' else 'mark_uncollectible'}")  # fmt: skip
    answer = act(in_process, key, invoice)
    if status == "void":
        assert (answer.status_code, error_of(answer)) == (400, "parameter_invalid")
        assert (sends(in_process, invoice), in_process.operations()) == (0, [])
    else:
        assert (answer.json()["status"], held(in_process, key)) == ("paid", (2900, 0))
