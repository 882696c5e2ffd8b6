"""A stand-in for Stripe may lack a list: what it does not have holds nobody up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.losses.host import BEHIND, SINCE, Host
from tests.raw_stripe import KEY, Asked, Raw, RawStripe, error, raw_stripe


@pytest.fixture
def small() -> Iterator[RawStripe]:
    """Charges, their list and the account: nothing else is there."""
    with raw_stripe() as stripe:
        yield stripe


@pytest.fixture
def served(host: Host, small: RawStripe) -> Host:
    extra = {"KEYBRAKE_STRIPE_KEY": KEY, "KEYBRAKE_STRIPE_API_BASE": small.url}
    return replace(host, extra=extra)


def test_a_stripe_of_charges_alone_is_charged_and_compared(served: Host, small: RawStripe) -> None:
    token = served.token()
    first = served.charge(token, "2026-11")
    assert first.status_code == 200, first.text
    assert served.charge(token, "2026-11").json()["id"] == first.json()["id"]
    assert len(small.made()) == 1
    assert served.json("doctor")["ok"] is True
    served.run("reconcile", *SINCE)
    assert served.json("adopt", *SINCE) == []


def test_a_store_that_lost_a_charge_sends_nothing_where_another_list_is_not_there(
    served: Host, small: RawStripe
) -> None:
    token = served.token()
    served.charge(token, "2026-10")
    served.save()
    served.charge(token, "2026-11")
    served.put_back()
    assert served.error(served.charge(token, "2026-12")) == BEHIND
    assert len(small.made()) == 2


@pytest.mark.parametrize("status", [400, 500, 501])
def test_a_stripe_that_cannot_filter_by_time_is_read_without_the_filter(
    served: Host, small: RawStripe, status: int
) -> None:
    small.script = lambda asked: (
        Raw(status, b"What is created[gte]?") if "created" in asked.query else None
    )
    token = served.token()
    assert served.charge(token, "2026-10").status_code == 200
    served.save()
    served.charge(token, "2026-11")
    served.put_back()
    assert served.error(served.charge(token, "2026-12")) == BEHIND
    assert len(small.made()) == 2


def test_what_was_made_while_a_list_was_missing_is_looked_for_when_it_is_back(
    served: Host, small: RawStripe
) -> None:
    lists = {"/v1/payment_intents", "/v1/refunds"}
    empty = Raw(200, b'{"object": "list", "data": [], "has_more": false}')

    def without_charges(asked: Asked) -> Raw | None:
        if asked.method == "GET" and asked.path == "/v1/charges":
            return error(404, "resource_missing")
        return empty if asked.path in lists else None

    token = served.token()
    served.charge(token, "2026-10")
    served.save()
    served.charge(token, "2026-11")
    served.put_back()
    small.script = without_charges
    assert served.charge(token, "2026-10").status_code == 200
    small.script = lambda asked: empty if asked.path in lists else None
    assert served.error(served.charge(token, "2026-12")) == BEHIND


def test_an_address_without_any_of_the_lists_is_not_sent_anything(
    served: Host, small: RawStripe
) -> None:
    token = served.token()
    small.script = lambda asked: (
        error(404, "resource_missing")
        if asked.method == "GET" and asked.path != "/v1/account"
        else None
    )
    assert served.error(served.charge(token, "2026-12")) == BEHIND
    assert small.made() == []
