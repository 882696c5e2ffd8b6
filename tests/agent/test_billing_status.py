"""Looking a charge up by all three arguments, which agree or not."""

from __future__ import annotations

import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ChargeArguments, ChargeStatusArguments
from kb_mcp.agent.client.line import CallContext
from tests.agent.conftest import Says, StubProxy, charge

NOBODY = CallContext()


@pytest.mark.parametrize(
    ("customer", "period", "found"),
    [
        ("cus_Abc123", "2026-06", True),
        ("cus_Abc123", "June 2026", True),
        ("cus_Other", "2026-06", False),
        ("cus_Abc123", "2026-07", False),
    ],
)
def test_a_charge_id_with_customer_and_period_is_found_where_all_three_agree(
    proxy: StubProxy, billing: Billing, customer: str, period: str, found: bool
) -> None:
    proxy.on("GET /stripe/v1/charges/ch_1", Says(200, charge()))
    asked = ChargeStatusArguments(charge_id="ch_1", customer_id=customer, billing_period=period)

    result = billing.charge_status(asked, NOBODY)

    assert result.found is found
    if not found:
        assert "another customer or period" in result.message
        assert "Do not charge" in result.next_step


@pytest.mark.parametrize("taken", ["amount_captured", "amount_received"])
def test_what_was_captured_in_part_is_told_as_what_was_taken(
    proxy: StubProxy, billing: Billing, taken: str
) -> None:
    captured = charge(**{taken: 1000})
    replayed = {"Idempotent-Replayed": "true"}
    proxy.on("GET /stripe/v1/charges/ch_1", Says(200, captured))
    proxy.on("POST /stripe/v1/charges", Says(200, captured, replayed))

    shown = billing.charge_status(ChargeStatusArguments(charge_id="ch_1"), NOBODY)
    again = billing.charge(
        ChargeArguments(customer_id="cus_Abc123", amount_cents=2900, billing_period="2026-06"),
        NOBODY,
    )

    assert [each.amount_cents for each in (shown, again)] == [1000, 1000]
    assert all("10.00 USD" in each.message for each in (shown, again))


@pytest.mark.parametrize("metadata", [{}, {"billing_period": "the sixth"}])
def test_a_charge_that_does_not_say_its_period_contradicts_none(
    proxy: StubProxy, billing: Billing, metadata: dict[str, str]
) -> None:
    proxy.on("GET /stripe/v1/charges/ch_1", Says(200, charge(metadata=metadata)))
    asked = ChargeStatusArguments(
        charge_id="ch_1", customer_id="cus_Abc123", billing_period="2026-06"
    )

    assert billing.charge_status(asked, NOBODY).found


@pytest.mark.parametrize(
    ("approval", "said", "step"),
    [
        ("pending", "waits for an operator's approval", "Do not charge again"),
        ("approved", "was approved by an operator", "Make the same call of charge once more"),
        ("denied", "was denied by an operator", "Do not charge."),
        ("expired", "approval that expired", "Charge only if the user asks for it"),
    ],
)
def test_what_an_operator_said_of_a_charge_that_waits_is_told(
    proxy: StubProxy, billing: Billing, approval: str, said: str, step: str
) -> None:
    entry = {
        "state": "awaiting_approval", "approval": approval, "amount": 2900, "currency": "usd",
    }  # fmt: skip
    proxy.on("GET /keybrake/v1/operations", Says(200, {"data": [entry]}))

    found = billing.charge_status(
        ChargeStatusArguments(customer_id="cus_Abc123", billing_period="2026-06"), NOBODY
    )

    assert found.status == "awaiting_approval"
    assert said in found.message
    assert step in found.next_step
