"""A refunded bill that an operator reopens: that very bill, once; and days that are freed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.operators.actions.operations import By, NotDone, Reopening
from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.ledger.records import Operation
from kb_mcp.proxy.stripe.reader import StripeReads
from kb_mcp.serving.machine import boottime_ms
from tests.in_process_proxy import InProcessProxy, error_of
from tests.months import lately
from tests.postgres import database, either_store, server

__all__ = ["database", "either_store", "server"]

pytestmark = pytest.mark.usefixtures("either_store")
BOTH = Policy(role="both", allow=("POST /v1/charges", "POST /v1/payment_intents"))
INTENTS = "/v1/payment_intents"
HOUR = 3600
JUNE: dict[str, Any] = {"period": "2026-11"}
# What an operator did not mean who reopened the bill of 29.00 for that month.
OTHERS: tuple[dict[str, Any], ...] = (
    {"amount": 999_900}, {"amount": 2899}, {"currency": "eur"},
    {"period": "2026-10-15/2026-11-14"},
)  # fmt: skip


def refund(proxy: InProcessProxy, charge: str, **form: Any) -> str:
    """Refund at Stripe by hand; return the refund."""
    name = "payment_intent" if charge.startswith("pi_") else "charge"
    headers = {"Authorization": "Bearer rk_test_sandbox"}
    answer = proxy.stripe.post("/v1/refunds", data={name: charge, **form}, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def becomes(proxy: InProcessProxy, refund_id: str, status: str) -> None:
    """Let a refund have another status, as a bank decides it; a failed one gives nothing back."""
    with proxy.sandbox._store.transaction() as records:  # noqa: SLF001 - the bank acts on its own
        found = records.find("refund", refund_id)
        assert found is not None
        records.save(found | {"status": status})
        charge = records.find("charge", found["charge"])
        assert charge is not None
        left = charge["amount"] if status != "failed" else 0
        records.save(charge | {"amount_refunded": left, "refunded": status != "failed"})


def acts(proxy: InProcessProxy) -> StripeActs:
    store = proxy.proxy.store
    reads = StripeReads(proxy.proxy.upstream, store.clock, boottime_ms)
    return StripeActs(store.ledger, reads, proxy.proxy.recovery)


def reopen(proxy: InProcessProxy, charge: str, **said: Any) -> Operation | NotDone:
    proxy.run(proxy.proxy.app.pipeline.follow())
    (operation,) = proxy.operations(charge_id=charge)
    outcome: Operation | NotDone = proxy.run(
        acts(proxy).reopen(operation, By("me", "wrong card"), Reopening(**said))
    )
    return outcome


def refunded_and_reopened(proxy: InProcessProxy, key: Any, /, **bill: Any) -> str:
    """Charge, refund and reopen a bill; return the first charge."""
    path = bill.pop("path", "/v1/charges")
    first = proxy.charge(key, path, **bill).json()["id"]
    refund(proxy, first)
    assert isinstance(reopen(proxy, first), Operation)
    return str(first)


def test_only_that_bill_takes_the_permit(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = refunded_and_reopened(proxy, key, **JUNE)
        for other in OTHERS:
            refused = proxy.charge(key, **(JUNE | other))
            assert (refused.status_code, error_of(refused)) == (400, "period_already_charged")
            assert refused.json()["error"]["keybrake"]["charge_id"] == first
            assert refused.json()["error"]["keybrake"]["refunded"] is True
        second = proxy.charge(key, **JUNE).json()["id"]
        assert second != first
        assert proxy.charge(key, **JUNE).json()["id"] == second
        drifted = proxy.charge(key, **JUNE, amount=999_900)
        assert drifted.json()["error"]["keybrake"]["charge_id"] == second
        assert len(proxy.charges()) == 2


def test_a_permit_may_be_for_another_amount_and_a_refunded_charge_is_never_told_as_paid(
    tmp_path: Path,
) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = proxy.charge(key, **JUNE).json()["id"]
        refund(proxy, first)
        assert isinstance(reopen(proxy, first, amount=4900), Operation)
        old = proxy.charge(key, **JUNE)
        assert (old.status_code, error_of(old)) == (400, "period_already_charged")
        assert old.json()["error"]["keybrake"]["refunded"] is True
        second = proxy.charge(key, **JUNE, amount=4900).json()["id"]
        for amount in (2900, 5000):
            refused = proxy.charge(key, **JUNE, amount=amount)
            assert error_of(refused) == "period_already_charged"
            assert refused.json()["error"]["keybrake"]["charge_id"] == second
        assert proxy.charge(key, **JUNE, amount=4900).json()["id"] == second
        # And back: the first amount again, after the second was given back, too.
        refund(proxy, second)
        assert isinstance(reopen(proxy, second, amount=2900), Operation)
        third = proxy.charge(key, **JUNE)
        assert third.status_code == 200
        assert third.json()["id"] not in {first, second}
        assert proxy.charge(key, **JUNE).json()["id"] == third.json()["id"]
        assert error_of(proxy.charge(key, **JUNE, amount=4900)) == "period_already_charged"
        assert len(proxy.charges()) == 3


def test_a_permit_is_used_once(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = refunded_and_reopened(proxy, key, **JUNE)
        assert "open already" in told(reopen(proxy, first))
        second = proxy.charge(key, **JUNE).json()["id"]
        assert second in told(reopen(proxy, first)) or "newest" in told(reopen(proxy, first))
        assert "no full refund" in told(reopen(proxy, second, amount=100))


def told(outcome: Operation | NotDone) -> str:
    assert isinstance(outcome, NotDone), outcome
    return f"{outcome.why} {outcome.hint}"


def test_a_decline_leaves_the_permit_to_that_bill_alone(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = refunded_and_reopened(proxy, key, **JUNE)
        proxy.fault("402")
        assert proxy.charge(key, **JUNE).status_code == 402
        proxy.turn_clock(HOUR)
        drifted = proxy.charge(key, **JUNE, amount=999_900)
        assert error_of(drifted) == "period_already_charged"
        assert drifted.json()["error"]["keybrake"]["charge_id"] == first
        assert proxy.charge(key, **JUNE).status_code == 200
        assert len(proxy.charges()) == 2


@pytest.mark.parametrize("status", ["pending", "requires_action", "failed", "canceled"])
def test_only_a_refund_that_succeeded_opens_a_bill(tmp_path: Path, status: str) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = proxy.charge(key, **JUNE).json()["id"]
        made = refund(proxy, first)
        becomes(proxy, made, status)
        for said in ({"release": True}, {"amount": 100}):
            assert isinstance(reopen(proxy, first, **said), NotDone)
        outcome = reopen(proxy, first)
        if status in {"pending", "requires_action"}:
            assert made in told(outcome)
            assert status in told(outcome)
        assert proxy.charge(key, **JUNE).json()["id"] == first
        becomes(proxy, made, "succeeded")
        assert isinstance(reopen(proxy, first), Operation)
        assert proxy.charge(key, **JUNE).json()["id"] != first


def test_refunds_in_parts_open_a_bill_once_they_are_the_whole(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = proxy.charge(key, **JUNE).json()["id"]
        refund(proxy, first, amount="900")
        assert "no full refund" in told(reopen(proxy, first, release=True))
        refund(proxy, first, amount="2000")
        assert isinstance(reopen(proxy, first), Operation)


def test_a_refund_that_fails_afterwards_freezes_the_bill_that_is_not_sent_yet(
    tmp_path: Path,
) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = proxy.charge(key, **JUNE).json()["id"]
        made = refund(proxy, first)
        assert isinstance(reopen(proxy, first), Operation)
        becomes(proxy, made, "failed")
        # It is read again directly before the new bill is sent, whatever the timer does.
        proxy.turn_clock(5 * 60)
        again = proxy.charge(key, **JUNE)
        assert (again.status_code, again.json()["id"]) == (200, first)
        assert error_of(proxy.charge(key, **JUNE, amount=100)) == "period_already_charged"
        assert len(proxy.charges()) == 1
        (row,) = proxy.audit(code="refund_failed")
        assert (row["operation_id"], row["amount"]) == (proxy.operations()[0].id, 2900)
        assert "not sent" in row["note"]


def test_a_refund_that_fails_after_the_new_bill_was_sent_is_told(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = proxy.charge(key, **JUNE).json()["id"]
        made = refund(proxy, first)
        assert isinstance(reopen(proxy, first), Operation)
        second = proxy.charge(key, **JUNE).json()["id"]
        becomes(proxy, made, "failed")
        proxy.turn_clock(2 * HOUR)
        proxy.watch_refunds()
        (row,) = proxy.audit(code="refund_failed")
        assert second in row["note"]
        # Both are paid now, and the newest is what a call is told.
        assert proxy.charge(key, **JUNE).json()["id"] == second
        proxy.turn_clock(2 * HOUR)
        proxy.watch_refunds()
        assert len(proxy.audit(code="refund_failed")) == 1


def test_a_declined_new_bill_is_frozen_once_the_refund_has_failed(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        for bill in (JUNE, {"key_header": "june", "customer": "cus_B2"}):
            first = proxy.charge(key, **bill).json()["id"]
            made = refund(proxy, first)
            proxy.turn_clock(30 * HOUR)
            assert isinstance(reopen(proxy, first), Operation)
            proxy.fault("402")
            assert proxy.charge(key, **bill).status_code == 402
            becomes(proxy, made, "failed")
            proxy.turn_clock(2 * HOUR)
            proxy.watch_refunds()
            refused = proxy.charge(key, **bill)
            assert refused.status_code == 400
            assert refused.json()["error"]["keybrake"]["charge_id"] == first
        assert len(proxy.charges()) == 2


def test_a_refund_that_cannot_be_read_sends_nothing(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        refunded_and_reopened(proxy, key, **JUNE)
        proxy.turn_clock(5 * 60)
        proxy.fault("500_before", "GET /v1/refunds", times=2)
        refused = proxy.charge(key, **JUNE)
        assert (refused.status_code, error_of(refused)) == (502, "upstream_unreachable")
        proxy.charge(key, **JUNE)
        assert proxy.charge(key, **JUNE).status_code == 200
        assert len(proxy.charges()) == 2


def test_a_watch_ends_after_thirty_days(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = refunded_and_reopened(proxy, key, **JUNE)
        assert proxy.charge(key, **JUNE).json()["id"] != first
        proxy.turn_clock(2 * HOUR)
        proxy.watch_refunds()
        assert proxy.operations(charge_id=first)[0].refund_read_at is not None
        proxy.turn_clock(31 * 24 * HOUR)
        proxy.watch_refunds()
        assert proxy.operations(charge_id=first)[0].refund_read_at is None
        assert proxy.audit(code="refund_failed") == []


def test_released_days_may_be_billed_by_other_periods(tmp_path: Path) -> None:
    weeks = ("2026-11-02/2026-11-12", "2026-11-13/2026-11-23")
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = proxy.charge(key, **JUNE).json()["id"]
        assert "no full refund" in told(reopen(proxy, first, release=True))
        refund(proxy, first)
        assert error_of(proxy.charge(key, period=weeks[0], amount=100)) == "period_already_charged"
        assert isinstance(reopen(proxy, first, release=True), Operation)
        assert "released already" in told(reopen(proxy, first, release=True))
        for week in weeks:
            assert proxy.charge(key, period=week, amount=100).status_code == 200
        # Its own period still counts as charged, and what was given back is not told as paid.
        for amount in (2900, 500):
            refused = proxy.charge(key, **JUNE, amount=amount)
            assert error_of(refused) == "period_already_charged"
        assert isinstance(reopen(proxy, first), Operation)
        refused = proxy.charge(key, **JUNE)
        assert refused.json()["error"]["keybrake"]["billing_period"] in map(lately, weeks)
        assert len(proxy.charges()) == 3


def test_a_refund_that_fails_takes_released_days_back(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = proxy.charge(key, **JUNE).json()["id"]
        made = refund(proxy, first)
        assert isinstance(reopen(proxy, first, release=True), Operation)
        becomes(proxy, made, "failed")
        proxy.turn_clock(2 * HOUR)
        proxy.watch_refunds()
        week = proxy.charge(key, period="2026-11-02/2026-11-12", amount=100)
        assert error_of(week) == "period_already_charged"
        assert proxy.charge(key, **JUNE).json()["id"] == first


@pytest.mark.parametrize("header", ["june", None], ids=["explicit", "body"])
def test_a_bill_without_a_period_is_bound_likewise(tmp_path: Path, header: str | None) -> None:
    bill = {} if header is None else {"key_header": header}
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = proxy.charge(key, **bill).json()["id"]
        refund(proxy, first)
        assert isinstance(reopen(proxy, first), Operation)
        if header is not None:
            drifted = proxy.charge(key, **bill, amount=999_900)
            assert error_of(drifted) == "idempotency_key_reused"
        second = proxy.charge(key, **bill).json()["id"]
        assert second != first
        again = proxy.charge(key, **bill)
        assert (again.json()["id"], again.headers["idempotent-replayed"]) == (second, "true")
        assert error_of(proxy.charge(key, key_header="other")) == "duplicate_suspected"
        assert len(proxy.charges()) == 2


def test_an_intent_is_reopened_by_the_refund_of_its_charge(tmp_path: Path) -> None:
    card = {"confirm": "true", "payment_method": "pm_card_visa", "off_session": "true"}
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue(BOTH)
        first = proxy.charge(key, INTENTS, **JUNE, **card)
        assert first.json()["status"] == "succeeded"
        made = refund(proxy, first.json()["id"])
        assert isinstance(reopen(proxy, first.json()["id"]), Operation)
        assert error_of(proxy.charge(key, INTENTS, **JUNE, **card, amount=9900)) == (
            "period_already_charged"
        )
        second = proxy.charge(key, INTENTS, **JUNE, **card)
        assert second.json()["id"] != first.json()["id"]
        becomes(proxy, made, "failed")
        proxy.turn_clock(2 * HOUR)
        proxy.watch_refunds()
        assert len(proxy.audit(code="refund_failed")) == 1


def test_the_audit_says_what_was_reopened_and_for_how_much(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as proxy:
        key = proxy.issue()
        first = proxy.charge(key, **JUNE).json()["id"]
        refund(proxy, first)
        assert isinstance(reopen(proxy, first, amount=4900), Operation)
        assert isinstance(reopen(proxy, first, release=True), Operation)
        rows = [row for row in proxy.audit() if row["kind"] == "admin"][-2:]
        assert [(row["decision"], row["amount"]) for row in rows] == [
            ("reopen", 4900), ("release", 2900),
        ]  # fmt: skip
        assert "wrong card" in json.dumps(rows)
