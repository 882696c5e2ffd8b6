"""Invoices whose answers cannot be read, or that say something else than they should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.operators.actions.operations import By, NotDone, Reopening, forget_answers
from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.proxy.ledger.records import Operation
from kb_mcp.proxy.stripe.reader import StripeReads
from kb_mcp.serving.machine import boottime_ms
from tests.in_process_proxy import error_of
from tests.misbehaving import MisledProxy, say, with_fields
from tests.proxy.invoices import (
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
from tests.scenarios.acts import PAST_GRACE_S, broken_invariants

DEEP = b'{"a":' * 50_000
DAY_S = 86_400


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[MisledProxy]:
    with MisledProxy(tmp_path) as proxy:
        proxy.begin_day()
        yield proxy
        assert broken_invariants(proxy) == []


def acts(proxy: MisledProxy) -> StripeActs:
    store = proxy.proxy.store
    reads = StripeReads(proxy.proxy.upstream, store.clock, boottime_ms)
    return StripeActs(store.ledger, reads, proxy.proxy.recovery)


def read(invoice: str) -> str:
    return f"GET /v1/invoices/{invoice}"


@pytest.mark.parametrize(
    "fields",
    [
        {"status": None},
        {"status": "pa id"},
        {"amount_remaining": None},
        {"amount_remaining": -1},
        {"amount_remaining": 29.0},
        {"amount_remaining": True},
        {"amount_remaining": "2900"},
        {"amount_remaining": 10**30},
        {"amount_paid": "0"},
        {"currency": None},
        {"currency": "dollars"},
        {"customer": 7},
        {"customer": "cus_A1/../cus_B2"},
        {"customer": {"id": None}},
        {"id": "in_another"},
        {"object": "charge"},
        {"livemode": True},
        {"livemode": "false"},
    ],
)
def test_an_invoice_that_cannot_be_read_is_not_paid(
    proxy: MisledProxy, fields: dict[str, Any]
) -> None:
    invoice, key = opened(proxy), payer(proxy)
    proxy.rogue.hear(read(invoice), with_fields(**fields))
    refused = act(proxy, key, invoice)
    assert refused.status_code in {400, 403, 502}, refused.text
    assert (sends(proxy, invoice), proxy.operations()) == (0, [])


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (404, b"{}", 400, "parameter_invalid"),
        (401, b"{}", 502, "upstream_rejected_key"),
        (403, b"{}", 502, "upstream_rejected_key"),
        (429, b"{}", 502, "upstream_unreachable"),
        (500, b"{}", 502, "upstream_unreachable"),
        (200, b"[]", 502, "upstream_unreachable"),
        (200, DEEP, 502, "upstream_unreachable"),
        (200, b"\xff", 502, "upstream_unreachable"),
    ],
)
@pytest.mark.parametrize("nth", [1, 2])
def test_a_reading_that_fails_before_the_send_sends_nothing(
    proxy: MisledProxy, nth: int, status: int, body: bytes, expected: int, code: str
) -> None:
    invoice, key = opened(proxy), payer(proxy)
    if nth == 2:
        proxy.rogue.hear(read(invoice), lambda heard: heard, times=1)
    proxy.rogue.hear(read(invoice), say(status, body))
    refused = act(proxy, key, invoice)
    seen = (refused.status_code, error_of(refused))
    assert seen == (
        (expected, code) if nth == 1 or expected == 502 else (502, "upstream_unreachable")
    )
    assert (sends(proxy, invoice), held(proxy, key)) == (0, (0, 0))
    proxy.rogue.behave()
    assert act(proxy, key, invoice).json()["status"] == "paid"


@pytest.mark.parametrize("path", [
    "/v1/invoices/in_1%2Fpay", "/v1/invoices/in_1/pay/", "/v1/invoices/in_1//pay",
    "/v1/invoices/pay", "/v1/invoices/ch_1/pay",
    "/v1/invoices/in_1/pay;x=1", "/v1/invoices/in_1/pay?paid_out_of_band=true",
    "/v1/invoices/in_1/pay/finalize",
])  # fmt: skip
def test_paths_that_are_not_plain_are_refused(proxy: MisledProxy, path: str) -> None:
    headers = {"Authorization": f"Bearer {payer(proxy).token}"}
    refused = proxy.client.post(path, headers=headers)
    assert refused.status_code in {400, 403, 404}
    assert (proxy.rogue.asked, proxy.operations()) == ([], [])


def test_the_same_parameter_in_query_and_body_is_refused(proxy: MisledProxy) -> None:
    invoice, key = opened(proxy), payer(proxy)
    headers = {"Authorization": f"Bearer {key.token}"}
    path = f"/v1/invoices/{invoice}/pay?off_session=true"
    refused = proxy.client.post(path, data={"off_session": "false"}, headers=headers)
    assert (refused.status_code, error_of(refused)) == (400, "body_invalid")
    assert sends(proxy, invoice) == 0


@pytest.mark.parametrize(
    ("fields", "held_after", "frozen"),
    [
        ({"customer": "cus_B2"}, 2900, True),
        ({"currency": "eur"}, 2900, True),
        ({"livemode": True}, 2900, True),
        ({"amount_paid": 9900}, 9900, True),
        ({"amount_paid": 0}, 2900, False),
        ({"amount_paid": None}, 2900, False),
        ({"amount_paid": 2000}, 2000, False),
        ({"amount_remaining": 2900}, 2900, False),
    ],
)
def test_a_paid_answer_that_differs_is_recorded_and_freezes_where_it_took_more_or_elses(
    proxy: MisledProxy, fields: dict[str, Any], held_after: int, *, frozen: bool
) -> None:
    invoice, key = opened(proxy), payer(proxy)
    proxy.rogue.hear(f"POST /v1/invoices/{invoice}/pay", with_fields(**fields))
    act(proxy, key, invoice)
    operation = only(proxy)
    assert (operation.state, operation.held, operation.overshoot) == (
        "succeeded",
        held_after,
        frozen,
    )
    proxy.rogue.behave()
    other = act(proxy, key, opened(proxy, 500, customer="cus_B2"))
    assert (other.status_code == 403) is frozen


@pytest.mark.parametrize(
    "fields",
    [{"id": "in_another"}, {"status": "done"}, {"status": None}, {"object": "charge"},
     {"amount_paid": "2900"}, {"currency": 7}],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_leaves_it_unknown_and_reading_settles_it(
    proxy: MisledProxy, fields: dict[str, Any]
) -> None:
    invoice, key = opened(proxy), payer(proxy)
    proxy.rogue.hear(f"POST /v1/invoices/{invoice}/pay", with_fields(**fields))
    assert act(proxy, key, invoice).status_code == 504
    assert (only(proxy).state, held(proxy, key)) == ("unknown", (0, 2900))
    proxy.rogue.behave()
    proxy.recover()
    assert (only(proxy).state, held(proxy, key)) == ("succeeded", (2900, 0))
    assert (act(proxy, key, invoice).json()["status"], taken(proxy)) == ("paid", 2900)


@pytest.mark.parametrize(
    "change",
    [say(404), say(500), with_fields(id="in_another"), with_fields(status="odd")],
    ids=["missing", "broken", "another", "odd"],
)
def test_recovery_concludes_nothing_from_an_invoice_that_it_cannot_read(
    proxy: MisledProxy, change: Any
) -> None:
    invoice, key = opened(proxy), payer(proxy)
    proxy.fault("drop_before", f"POST /v1/invoices/{invoice}/pay")
    act(proxy, key, invoice)
    proxy.rogue.hear(read(invoice), change)
    proxy.turn_clock(PAST_GRACE_S)
    proxy.recover()
    assert (only(proxy).state, held(proxy, key)) == ("unknown", (0, 2900))


def test_what_others_paid_long_after_a_lost_send_is_not_taken_for_it(proxy: MisledProxy) -> None:
    invoice, key = opened(proxy), payer(proxy)
    proxy.fault("drop_before", f"POST /v1/invoices/{invoice}/pay")
    act(proxy, key, invoice)
    proxy.turn_clock(PAST_GRACE_S)
    proxy.recover()
    assert only(proxy).state == "voided"
    by_hand(proxy, f"/v1/invoices/{invoice}/pay")
    proxy.turn_clock(3_700)
    proxy.recover()
    assert (only(proxy).state, only(proxy).overshoot, held(proxy, key)[0]) == ("voided", False, 0)
    assert act(proxy, key, invoice).json()["status"] == "paid"
    assert sends(proxy, invoice) == 1


def test_a_send_that_arrives_after_the_void_is_the_truth_and_freezes_the_key(
    proxy: MisledProxy,
) -> None:
    invoice, key = opened(proxy), payer(proxy)
    proxy.fault("drop_after", f"POST /v1/invoices/{invoice}/pay")
    act(proxy, key, invoice)
    hear(proxy, invoice, status="open", amount_paid=0, amount_remaining=2900,
         status_transitions=None)  # fmt: skip
    proxy.rogue.hear(
        "GET /v1/charges?", say(200, {"object": "list", "data": [], "has_more": False})
    )
    proxy.turn_clock(PAST_GRACE_S)
    proxy.recover()
    assert (only(proxy).state, held(proxy, key)) == ("voided", (0, 0))
    proxy.rogue.behave()
    proxy.turn_clock(3_700)
    proxy.recover()
    assert (only(proxy).state, only(proxy).overshoot) == ("succeeded", True)
    refused = act(proxy, key, opened(proxy, 500, customer="cus_B2"))
    assert error_of(refused) == "vault_key_frozen"


def test_invoices_that_cost_nothing_are_paid_and_not_taken_for_each_other(
    proxy: MisledProxy,
) -> None:
    key = payer(proxy)
    for _ in range(2):
        invoice = drafted(proxy, 0)
        assert act(proxy, key, invoice, "finalize").json()["status"] == "paid"
        assert act(proxy, key, invoice).json()["status"] == "paid"
    assert (taken(proxy), held(proxy, key)) == (0, (0, 0))


def test_an_invoice_without_a_customer_is_paid_only_where_no_rule_asks_for_one(
    proxy: MisledProxy,
) -> None:
    invoice = opened(proxy)
    proxy.rogue.hear(read(invoice), with_fields(customer=None))
    proxy.rogue.hear(f"POST /v1/invoices/{invoice}/pay", with_fields(customer=None))
    for fields in (
        {"customers": {"ids": ["cus_A1"]}},
        {"caps": {"per_customer_daily": {"usd": 5000}}},
    ):
        refused = act(proxy, payer(proxy, **fields), invoice)
        assert (refused.status_code, error_of(refused)) == (403, "vault_key_not_authorized")
    assert act(proxy, payer(proxy), invoice).json()["status"] == "paid"


def test_the_payment_of_an_older_version_of_stripe_is_in_the_invoice(proxy: MisledProxy) -> None:
    invoice, key = opened(proxy), payer(proxy)
    older = with_fields(charge="ch_Older1", payment_intent="pi_Older1")
    proxy.rogue.hear(f"POST /v1/invoices/{invoice}/pay", older)
    act(proxy, key, invoice)
    [(_, [attempt])] = proxy.run(proxy.proxy.store.records.operations())
    assert attempt.object_id == "ch_Older1"
    proxy.recover()
    assert "GET /v1/invoice_payments" not in "".join(proxy.rogue.asked)


def test_a_payment_that_waits_is_held_and_released_once_it_failed(proxy: MisledProxy) -> None:
    invoice, key = opened(proxy), payer(proxy)
    waiting = with_fields(
        status="open", amount_paid=0, amount_remaining=2900, payment_intent="pi_Debit1"
    )
    proxy.rogue.hear(f"POST /v1/invoices/{invoice}/pay", waiting)
    proxy.rogue.hear(read(invoice), waiting)
    assert act(proxy, key, invoice).json()["status"] == "open"
    intent = {"id": "pi_Debit1", "object": "payment_intent", "status": "processing"}
    proxy.rogue.hear("GET /v1/payment_intents/pi_Debit1", say(200, intent))
    proxy.turn_clock(70)
    proxy.recover()
    assert (only(proxy).final, held(proxy, key)) == (False, (0, 2900))
    assert act(proxy, key, invoice).json()["status"] == "open"
    assert sends(proxy, invoice) == 1
    proxy.rogue.rules.pop()
    failed = intent | {"status": "requires_payment_method", "last_payment_error": {"code": "x"}}
    proxy.rogue.hear("GET /v1/payment_intents/pi_Debit1", say(200, failed))
    proxy.turn_clock(3_700)
    proxy.recover()
    assert (only(proxy).state, held(proxy, key)) == ("failed", (0, 0))


def test_an_answer_that_was_forgotten_is_replayed_by_reading_the_invoice(
    proxy: MisledProxy,
) -> None:
    invoice, key = opened(proxy), payer(proxy)
    act(proxy, key, invoice)
    proxy.run(forget_answers(proxy.proxy.store.ledger, proxy.operations(), By("test")))
    again = act(proxy, key, invoice)
    assert (again.json()["id"], again.json()["status"]) == (invoice, "paid")
    proxy.rogue.hear(read(invoice), say(500))
    assert sends(proxy, invoice) == 1


def test_what_was_paid_here_and_is_open_again_is_not_paid_once_more(proxy: MisledProxy) -> None:
    invoice, key = opened(proxy), payer(proxy)
    act(proxy, key, invoice)
    hear(proxy, invoice, status="open", amount_paid=0, amount_remaining=2900)
    again = act(proxy, key, invoice)
    assert (again.status_code, error_of(again)) == (400, "amount_changed")
    assert sends(proxy, invoice) == 1


def test_an_operator_settles_a_lost_payment_by_its_invoice_alone(proxy: MisledProxy) -> None:
    invoice, key = opened(proxy), payer(proxy)
    proxy.fault("drop_after", f"POST /v1/invoices/{invoice}/pay")
    act(proxy, key, invoice)
    [charge] = proxy.charges()
    other = opened(proxy, 100, customer="cus_B2")
    for named in (charge["id"], other):
        done = proxy.run(acts(proxy).resolve(only(proxy), named, By("ann", "seen at Stripe")))
        assert isinstance(done, NotDone)
    done = proxy.run(acts(proxy).resolve(only(proxy), invoice, By("ann", "seen")))
    assert not isinstance(done, NotDone), done
    assert (only(proxy).state, held(proxy, key)) == ("succeeded", (2900, 0))


def test_an_operator_waives_the_suspicion_against_another_invoice(proxy: MisledProxy) -> None:
    first, second, key = opened(proxy), opened(proxy), payer(proxy)
    act(proxy, key, first)
    assert error_of(act(proxy, key, second)) == "duplicate_suspected"
    paid: Operation = only(proxy)
    done = proxy.run(acts(proxy).reopen(paid, By("ann", "two of them"), Reopening()))
    assert not isinstance(done, NotDone), done
    assert act(proxy, key, second).json()["status"] == "paid"
    assert taken(proxy) == 5800
