"""PaymentIntents whose answers cannot be read, whose marks are gone, or that say something else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kb_mcp.operators.actions.operations import By, NotDone, forget_answers
from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.stripe.reader import StripeReads
from kb_mcp.serving.machine import boottime_ms
from tests.in_process_proxy import Issued
from tests.misbehaving import Change, MisledProxy, listing, say, unmarked, with_fields
from tests.scenarios.acts import PAST_GRACE_S, broken_invariants

POST, LIST, ONE = "POST /v1/payment_intents", "GET /v1/payment_intents?", "GET /v1/payment_intents/"
DEEP = b'{"a":' * 50_000


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[MisledProxy]:
    with MisledProxy(tmp_path) as proxy:
        proxy.begin_day()
        yield proxy


def collector(proxy: MisledProxy) -> Issued:
    policy = built_in("billing-payment-intents")
    allow = (*policy.allow, "POST /v1/payment_intents/*/confirm")
    return proxy.issue(policy.model_copy(update={"allow": allow}), daily={"usd": 50_000})


def pay(proxy: MisledProxy, key: Issued, **form: Any) -> httpx.Response:
    bill = {"path": "/v1/payment_intents", "payment_method": "pm_card_visa", "period": "2026-11"}
    return proxy.charge(key, **(bill | {"confirm": "true"} | form))


def intents(proxy: MisledProxy) -> list[dict[str, Any]]:
    headers = {"Authorization": "Bearer rk_test_sandbox"}
    found: list[dict[str, Any]] = proxy.stripe.get("/v1/payment_intents", headers=headers).json()[
        "data"
    ]
    return found


UNREADABLE = {"deep": say(200, DEEP), "no JSON": say(200, b"x"), "amount": with_fields(amount="1")}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_create_that_cannot_be_read_is_found_in_the_list(proxy: MisledProxy, what: str) -> None:
    key = collector(proxy)
    proxy.rogue.hear(POST, UNREADABLE[what], times=1)
    assert pay(proxy, key).status_code == 504
    assert proxy.operations()[0].lease_owner is None
    proxy.recover()
    assert pay(proxy, key).json()["id"] == intents(proxy)[0]["id"]
    assert len(intents(proxy)) == 1


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_confirm_that_cannot_be_read_is_read_from_the_intent(
    proxy: MisledProxy, what: str
) -> None:
    key = collector(proxy)
    made = pay(proxy, key, confirm=None).json()["id"]
    proxy.rogue.hear(f"{POST}/", UNREADABLE[what], times=1)
    headers = {"Authorization": f"Bearer {key.token}"}
    confirm = f"/v1/payment_intents/{made}/confirm"
    assert proxy.client.post(confirm, headers=headers).status_code == 504
    (operation,) = proxy.operations()
    assert (operation.lease_owner, operation.held) == (None, 2900)
    assert pay(proxy, key, confirm=None).json()["status"] == "succeeded"
    assert proxy.operations()[0].final
    assert broken_invariants(proxy) == []


def test_an_intent_whose_marks_are_gone_stays_unknown_until_an_operator_names_it(
    proxy: MisledProxy,
) -> None:
    key = collector(proxy)
    proxy.fault("drop_after", match=POST)
    assert pay(proxy, key).status_code == 504
    proxy.rogue.hear(LIST, listing(unmarked))
    proxy.rogue.hear(ONE, with_fields(metadata={}))
    for _ in range(3):
        proxy.turn_clock(PAST_GRACE_S + 25 * 3_600)
        proxy.recover()
        assert proxy.operations()[0].code == "unmarked_charge"
    (made,) = intents(proxy)
    reads = StripeReads(proxy.proxy.upstream, proxy.proxy.store.clock, boottime_ms)
    acts = StripeActs(proxy.proxy.store.ledger, reads, proxy.proxy.recovery)
    done = proxy.run(acts.resolve(proxy.operations()[0], made["id"], By("mira")))
    assert not isinstance(done, NotDone), done
    assert pay(proxy, key).json()["id"] == made["id"]
    assert len(intents(proxy)) == 1
    assert broken_invariants(proxy) == []


@pytest.mark.parametrize(
    "fields",
    [{"amount": 9900, "amount_received": 9900}, {"currency": "eur"}, {"customer": "cus_Z"}],
)
def test_an_intent_that_says_something_else_freezes_its_key(
    proxy: MisledProxy, fields: dict[str, Any]
) -> None:
    key = collector(proxy)
    proxy.rogue.hear(POST, with_fields(**fields), times=1)
    assert pay(proxy, key).status_code == 200
    (operation,) = proxy.operations()
    assert (operation.code, operation.overshoot) == ("answer_differs", True)
    assert pay(proxy, key, period="2026-10").status_code == 403
    assert broken_invariants(proxy) == []


def test_an_intent_that_was_changed_while_it_waited_freezes_its_key(proxy: MisledProxy) -> None:
    key = collector(proxy)
    pay(proxy, key, confirm=None)
    changed: Change = with_fields(amount=9900, amount_received=9900, status="succeeded")
    proxy.rogue.hear(ONE, changed)
    proxy.turn_clock(61)
    proxy.recover()
    (operation,) = proxy.operations()
    assert (operation.code, operation.final, operation.held) == ("answer_differs", True, 9900)
    assert pay(proxy, key, period="2026-10").status_code == 403
    assert broken_invariants(proxy) == []


def test_a_forgotten_intent_that_cannot_be_read_is_told_as_paid(proxy: MisledProxy) -> None:
    key = collector(proxy)
    made = pay(proxy, key).json()
    proxy.run(forget_answers(proxy.proxy.store.ledger, proxy.operations(), By("mira")))
    proxy.rogue.hear(ONE, say(404))
    told = pay(proxy, key).json()
    for name in ("id", "object", "status", "amount", "amount_received", "currency", "customer"):
        assert told[name] == made[name], name
