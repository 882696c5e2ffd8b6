"""What callers are told when Stripe cannot be read, or has gone on since: what the ledger knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.operators.actions.keys import unfreeze_key
from kb_mcp.operators.actions.operations import By, forget_answers
from kb_mcp.proxy.access.policy import CustomerRules
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.edge.key_api import ASK_EVERY_MS, Readiness
from kb_mcp.proxy.ledger.records import KeyId
from tests.in_process_proxy import error_of
from tests.misbehaving import Change, Heard, MisledProxy, say, with_fields
from tests.months import lately
from tests.scenarios.acts import post_at_stripe

ONE = "GET /v1/charges/ch"
INTENT = "GET /v1/payment_intents/pi"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[MisledProxy]:
    with MisledProxy(tmp_path) as proxy:
        proxy.begin_day()
        yield proxy


def lost(_: Heard) -> Heard:
    raise ConnectionError


def forget(proxy: MisledProxy) -> None:
    done = proxy.run(forget_answers(proxy.proxy.store.ledger, proxy.operations(), By("mira")))
    assert done == 1


UNREADABLE: dict[str, Change] = {
    str(each): say(each) for each in (400, 401, 403, 404, 429, 500)
} | {
    "no JSON": say(200, b"<html>"),
    "deep": say(200, b"[" * 50_000),
    "another object": with_fields(id="ch_another"),
    "a status of its own": with_fields(status="of its own"),
    "lost": lost,
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_paid_bill_whose_object_cannot_be_read_is_told_as_paid(
    proxy: MisledProxy, what: str
) -> None:
    key = proxy.issue()
    first = proxy.charge(key, period="2026-11").json()
    forget(proxy)
    proxy.rogue.hear(ONE, UNREADABLE[what])
    replayed = proxy.charge(key, period="2026-11")
    assert (replayed.status_code, replayed.headers["idempotent-replayed"]) == (200, "true")
    told = replayed.json()
    for (
        name
    ) in "id object amount amount_captured currency customer status captured livemode".split():
        assert told[name] == first[name], name
    assert told["metadata"] == {"billing_period": lately("2026-11")}
    assert len(proxy.charges()) == 1


def test_a_forgotten_bill_that_can_be_read_is_told_as_stripe_shows_it(proxy: MisledProxy) -> None:
    key = proxy.issue()
    proxy.charge(key, period="2026-11", description="seat")
    forget(proxy)
    assert proxy.charge(key, period="2026-11", description="seat").json()["description"] == "seat"


def collector(proxy: MisledProxy) -> Any:
    policy = built_in("billing-payment-intents").model_copy(update={"parameters": {}})
    return proxy.issue(policy, daily={"usd": 50_000})


def test_an_intent_that_the_customer_has_paid_since_is_told_as_paid(proxy: MisledProxy) -> None:
    key = collector(proxy)
    bill = {"path": "/v1/payment_intents", "period": "2026-11", "payment_method": "pm_card_visa"}
    made = proxy.charge(key, **bill).json()
    assert made["status"] == "requires_confirmation"
    assert proxy.charge(key, **bill).json()["status"] == "requires_confirmation"
    post_at_stripe(proxy, f"/v1/payment_intents/{made['id']}/confirm")
    # Nobody has looked since: whoever asks now is told what is so now.
    told = proxy.charge(key, **bill).json()
    assert (told["id"], told["status"]) == (made["id"], "succeeded")
    assert proxy.operations()[0].final


def test_an_intent_that_cannot_be_read_is_told_as_it_was(proxy: MisledProxy) -> None:
    key = collector(proxy)
    bill = {"path": "/v1/payment_intents", "period": "2026-11", "payment_method": "pm_card_visa"}
    made = proxy.charge(key, **bill).json()
    for change in (say(500), say(404), say(401), lost):
        proxy.rogue.behave()
        proxy.rogue.hear(INTENT, change)
        told = proxy.charge(key, **bill)
        assert (told.status_code, told.json()["id"]) == (200, made["id"])
        assert told.json()["status"] == "requires_confirmation"
    assert proxy.operations()[0].held == 2900


def test_a_key_with_customer_rules_finds_its_own_bills_and_no_others(proxy: MisledProxy) -> None:
    both = built_in("billing-with-status")
    rules = CustomerRules(metadata={"plan": "pro"})
    anyone = proxy.issue(both)
    key = proxy.issue(both.model_copy(update={"customers": rules}))
    reader = proxy.issue(built_in("audit").model_copy(update={"customers": rules}))

    def metadata(heard: Heard) -> Heard:
        pro = proxy.rogue.asked[-1].endswith("cus_A1")
        fields = {"object": "customer", "metadata": {"plan": "pro" if pro else "basic"}}
        customer = proxy.rogue.asked[-1].rpartition("/")[2]
        return 200, json.dumps({"id": customer, **fields}).encode()

    proxy.rogue.hear("GET /v1/customers/", metadata)
    made = proxy.charge(key, period="2026-11").json()["id"]
    other = proxy.charge(anyone, customer="cus_B2", period="2026-11").json()["id"]
    for seer in (key, reader):
        mine = f"customer_id=cus_A1&billing_period={lately('2026-11')}"
        (found,) = proxy.get(seer, f"/keybrake/v1/operations?{mine}").json()["data"]
        assert found["charge_id"] == made
        assert proxy.get(seer, f"/v1/charges/{made}").json()["id"] == made
        theirs = f"customer_id=cus_B2&billing_period={lately('2026-11')}"
        assert proxy.get(seer, f"/keybrake/v1/operations?{theirs}").json()["data"] == []
        assert proxy.get(seer, f"/keybrake/v1/operations?charge_id={other}").json()["data"] == []
        hidden = proxy.get(seer, f"/v1/charges/{other}")
        assert (hidden.status_code, error_of(hidden)) == (403, "vault_key_not_authorized")
    # While customers cannot be read, a key still sees what it has made itself.
    proxy.rogue.behave()
    proxy.rogue.hear("GET /v1/customers/", say(500))
    path = f"/keybrake/v1/operations?charge_id={made}"
    assert len(proxy.get(key, path).json()["data"]) == 1
    assert proxy.get(reader, path).json()["data"] == []


@pytest.mark.parametrize(("status", "is_ready"), [(401, False), (403, True), (500, True)])
def test_a_proxy_whose_key_stripe_refuses_is_not_ready(
    proxy: MisledProxy, status: int, is_ready: bool
) -> None:
    clock = [0]
    app = proxy.proxy.app
    stripe = replace(proxy.proxy.recovery.stripe, boottime_ms=lambda: clock[0])
    app.own = replace(app.own, readiness=Readiness(stripe))

    def ready() -> tuple[int, bool]:
        clock[0] += ASK_EVERY_MS
        answer = proxy.client.get("/readyz")
        return answer.status_code, answer.json()["upstream"]

    assert ready() == (200, True)
    proxy.rogue.hear("GET /v1/charges", say(status))
    assert ready() == ((200, True) if is_ready else (503, False))
    proxy.rogue.behave()
    assert ready() == (200, True)


def test_unfreezing_begins_the_count_of_the_days_declines_anew(proxy: MisledProxy) -> None:
    key = proxy.issue(built_in("billing").model_copy(update={"daily_declines": 3}))

    def decline(numbers: range) -> list[int]:
        proxy.fault("402", times=len(numbers))
        bills = [proxy.charge(key, customer=f"cus_N{each}", period="2026-11") for each in numbers]
        return [answer.status_code for answer in bills]

    assert decline(range(3)) == [402, 402, 402]
    assert error_of(proxy.charge(key, period="2026-11")) == "vault_key_frozen"
    proxy.stripe.post("/_sandbox/faults", json=[])
    for again in (10, 20):
        proxy.run(unfreeze_key(proxy.proxy.store.ledger, KeyId(key.id), "seen", "mira"))
        assert decline(range(again, again + 2)) == [402, 402]
        assert proxy.charge(key, period="2026-11").status_code == 200
        # The third of the new count freezes it, as the first three did.
        assert decline(range(again + 5, again + 6)) == [402]
        assert (
            error_of(proxy.charge(key, customer="cus_Z9", period="2026-10")) == "vault_key_frozen"
        )
