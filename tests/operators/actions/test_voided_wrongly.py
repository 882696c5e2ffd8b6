"""What an operator voided while Stripe's list lagged, and which had been made all the same."""

from __future__ import annotations

from tests.misbehaving import MisledProxy, listing
from tests.operators.actions.test_resolve import HOUR_S, LIST, proxy, unknown, void
from tests.proxy.stores.conftest import database, server

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
