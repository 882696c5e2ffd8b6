"""What an operator voided, rightly or while Stripe's list lagged: the last look at that list."""

from __future__ import annotations

from tests.misbehaving import MisledProxy, listing
from tests.operators.actions.test_resolve import HOUR_S, LIST, newest, proxy, unknown, void
from tests.proxy.stores.conftest import database, server
from tests.scenarios.acts import PAST_GRACE_S, post_at_stripe

__all__ = ["database", "proxy", "server"]


def test_it_is_looked_for_once_more_before_a_new_key_is_made(proxy: MisledProxy) -> None:
    key = unknown(proxy, "drop_after")
    proxy.rogue.hear(LIST, listing(lambda _: []))
    void(proxy)
    proxy.turn_clock(61)
    assert void(proxy) == "voided"
    proxy.rogue.behave()
    proxy.turn_clock(26 * HOUR_S)
    replayed = proxy.charge(key, period="2026-11")
    assert (replayed.status_code, replayed.json()["id"]) == (200, proxy.charges()[0]["id"])
    assert len(proxy.charges()) == 1


def test_beside_an_unmarked_charge_that_the_operator_knew_it_ends_too(proxy: MisledProxy) -> None:
    key = proxy.issue()
    proxy.fault("drop_before")
    proxy.charge(key, period="2026-11")
    bill = {"customer": "cus_A1", "amount": "2900", "currency": "usd"}
    by_hand = post_at_stripe(proxy, "/v1/charges", **bill).json()["id"]
    proxy.turn_clock(PAST_GRACE_S)
    assert f"resolve with --succeeded {by_hand}" in void(proxy)
    proxy.turn_clock(61)
    assert void(proxy) == "voided"
    proxy.turn_clock(26 * HOUR_S)
    assert proxy.charge(key, period="2026-11").status_code == 200
    assert newest(proxy)[1][-1].upstream_key.endswith("-2")
    assert len(proxy.charges()) == 2
