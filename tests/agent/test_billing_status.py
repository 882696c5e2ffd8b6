"""Looking a charge up by all three arguments, which agree or not."""

from __future__ import annotations

import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import ChargeStatusArguments
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


@pytest.mark.parametrize("metadata", [{}, {"billing_period": "the sixth"}])
def test_a_charge_that_does_not_say_its_period_contradicts_none(
    proxy: StubProxy, billing: Billing, metadata: dict[str, str]
) -> None:
    proxy.on("GET /stripe/v1/charges/ch_1", Says(200, charge(metadata=metadata)))
    asked = ChargeStatusArguments(
        charge_id="ch_1", customer_id="cus_Abc123", billing_period="2026-06"
    )

    assert billing.charge_status(asked, NOBODY).found
