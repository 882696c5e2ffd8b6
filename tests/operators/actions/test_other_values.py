"""A bill that came to nothing and took other values, when Stripe makes the first ones after all."""

from __future__ import annotations

from typing import Any

import pytest

from kb_mcp.proxy.access.policy import Policy
from tests.in_process_proxy import error_of
from tests.misbehaving import MisledProxy
from tests.months import lately
from tests.operators.actions.test_resolve import HOUR_S, newest, proxy, void
from tests.proxy.stores.conftest import database, server
from tests.scenarios.acts import (
    PAST_GRACE_S,
    broken_invariants,
    day_windows,
    deliver_late,
    post_at_stripe,
)

__all__ = ["database", "proxy", "server"]

CALLER = Policy(
    role="caller", allow=("POST /v1/charges", "POST /v1/payment_intents"), idempotency="caller"
)


@pytest.mark.parametrize(
    ("other", "windows"),
    [
        ({"amount": 3000}, {("usd", 2900, 0)}),
        ({"amount": 2000}, {("usd", 2900, 0)}),
        ({"amount": 3000, "currency": "eur"}, {("usd", 2900, 0), ("eur", 0, 0)}),
        ({"period": "2026-10"}, {("usd", 2900, 0)}),
    ],
)
def test_a_late_charge_is_booked_as_what_it_was_sent_for(
    proxy: MisledProxy, other: dict[str, Any], windows: set[tuple[str, int, int]]
) -> None:
    key, bill = proxy.issue(CALLER), {"key_header": "invoice-7", "period": "2026-11"}
    proxy.fault("drop_before")
    proxy.charge(key, **bill)
    proxy.turn_clock(PAST_GRACE_S)
    void(proxy)
    proxy.turn_clock(61)
    assert void(proxy) == "voided"
    proxy.fault("drop_before")
    assert proxy.charge(key, **{**bill, **other}).status_code == 504
    made = deliver_late(proxy, newest(proxy)[1][0]).json()["id"]
    proxy.turn_clock(PAST_GRACE_S)
    proxy.recover()
    operation, _ = newest(proxy)
    assert (operation.state, operation.object_id, operation.held) == ("succeeded", made, 2900)
    assert (operation.amount, operation.currency, operation.period) == (
        2900,
        "usd",
        lately("2026-11"),
    )
    spend = proxy.get(key, "/keybrake/v1/key").json()["spend"]
    days = [each for each in spend if each["window"] == "day"]
    assert {(each["currency"], each["settled"], each["reserved"]) for each in days} == windows
    assert (operation.overshoot, broken_invariants(proxy)) == (True, [])
    proxy.turn_clock(HOUR_S)
    assert error_of(proxy.charge(key, **{**bill, **other})) == "idempotency_key_reused"
    assert proxy.charge(key, **bill).json()["id"] == made
    assert len(proxy.charges()) == 1


def test_an_earlier_intent_that_is_paid_elsewhere_is_booked_as_what_it_took(
    proxy: MisledProxy,
) -> None:
    key = proxy.issue(CALLER)
    form = {"key_header": "june", "period": None, "confirm": "true", "off_session": "true"}
    intents = "/v1/payment_intents"
    declined = {**form, "payment_method": "pm_card_chargeDeclined"}
    assert proxy.charge(key, intents, **declined).status_code == 402
    made = proxy.operations()[0].object_id
    proxy.turn_clock(16 * 60)
    post_at_stripe(proxy, f"{intents}/{made}/confirm", payment_method="pm_card_visa")
    proxy.charge(key, intents, **{**form, "amount": 5000, "payment_method": "pm_card_visa"})
    operation, _ = newest(proxy)
    assert (operation.object_id, operation.amount, operation.held) == (made, 2900, 2900)
    assert (list(day_windows(proxy).values()), operation.overshoot) == ([(0, 2900)], True)
    assert broken_invariants(proxy) == []
