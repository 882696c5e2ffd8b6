"""Every answer of Stripe's, whole or lost, and what the next calls and recovery make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kb_mcp.operators.actions.keys import unfreeze_key
from kb_mcp.operators.actions.operations import By, Reopening, reopen
from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.proxy.ledger.records import Attempt, KeyId, Operation
from kb_mcp.proxy.stripe.reader import StripeReads
from kb_mcp.serving.machine import boottime_ms
from tests.in_process_proxy import InProcessProxy, Issued, error_of
from tests.scenarios.acts import (
    PAST_GRACE_S,
    Aside,
    broken_invariants,
    day_windows,
    deliver_late,
    post_at_stripe,
)

HOUR_S = 3_600


def newest(in_process: InProcessProxy) -> tuple[Operation, list[Attempt]]:
    found = in_process.run(in_process.proxy.store.records.operations(limit=1))
    return found[0]


def bill(in_process: InProcessProxy, key: Issued, **form: Any) -> tuple[int, str | None]:
    answer = in_process.charge(key, period="2026-11", **form)
    return answer.status_code, None if answer.status_code == 200 else error_of(answer)


@pytest.mark.parametrize("kind", ["429", "400", "403", "401"])
def test_a_no_before_it_began_releases_and_the_next_call_charges_once(
    tmp_path: Path, kind: str
) -> None:
    told = {"429": (429, "rate_limit"), "400": (400, "parameter_invalid")}
    rejected = (502, "upstream_rejected_key")
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(daily={"usd": 2900})
        in_process.fault(kind)
        status, code = bill(in_process, key)
        assert (status, code) == told.get(kind, rejected)
        operation, attempts = newest(in_process)
        assert (operation.state.value, operation.held) == ("failed", 0)
        assert bill(in_process, key) == (200, None)
        operation, attempts = newest(in_process)
        # Stripe never looked at the key of a 429: it is kept. After a rejection a new one is made.
        assert len(attempts) == (1 if kind == "429" else 2)
        assert attempts[-1].upstream_key == operation.upstream_name + (
            "" if kind == "429" else "-2"
        )
        assert len(in_process.charges()) == 1
        assert broken_invariants(in_process) == []


def test_a_500_that_stripe_stored_after_charging_is_found_by_reading(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault("500_after")
        assert bill(in_process, key) == (504, "outcome_unknown")
        # The resend gets the stored 500: that proves nothing either.
        assert bill(in_process, key) == (504, "outcome_unknown")
        in_process.recover()
        assert bill(in_process, key) == (200, None)
        assert newest(in_process)[0].object_id == in_process.charges()[0]["id"]
        assert len(in_process.charges()) == 1


def test_a_stored_500_poisons_its_key_until_two_days_of_empty_lists(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault("500_before")
        assert bill(in_process, key) == (504, "outcome_unknown")
        in_process.turn_clock(PAST_GRACE_S)
        in_process.recover()
        assert newest(in_process)[0].state.value == "voided"
        # Voided, but its key may only be sent again, not replaced.
        assert bill(in_process, key) == (504, "outcome_unknown")
        in_process.turn_clock(PAST_GRACE_S)
        in_process.recover()
        for hours in (1, 24):
            in_process.turn_clock(hours * HOUR_S + 60)
            in_process.recover()
        assert newest(in_process)[0].live is False
        assert bill(in_process, key) == (200, None)
        operation, attempts = newest(in_process)
        assert [each.upstream_key for each in attempts] == [
            operation.upstream_name,
            f"{operation.upstream_name}-2",
        ]
        assert len(in_process.charges()) == 1
        assert broken_invariants(in_process) == []


def test_nothing_is_resent_under_a_key_that_stripe_may_have_forgotten(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault("drop_after")
        assert bill(in_process, key) == (504, "outcome_unknown")
        in_process.turn_clock(23 * HOUR_S)
        assert bill(in_process, key) == (504, "outcome_unknown")
        assert len(newest(in_process)[1]) == newest(in_process)[1][0].sends == 1
        in_process.recover()
        assert bill(in_process, key) == (200, None)
        assert len(in_process.charges()) == 1


@pytest.mark.parametrize("busy", [True, False])
def test_a_charge_under_our_key_from_outside_is_left_to_an_operator(
    tmp_path: Path, busy: bool
) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        upstream_key = _derived(in_process, key)
        form = {"customer": "cus_A1", "amount": 2900, "currency": "usd"}
        if busy:
            # With our very bytes, still being worked on: 409.
            in_process.fault("409")
        else:
            post_at_stripe(in_process, "/v1/charges", upstream_key, **form)
        assert bill(in_process, key) == (504, "outcome_unknown")
        for _ in range(3):
            in_process.turn_clock(26 * HOUR_S)
            in_process.recover()
        operation, _ = newest(in_process)
        assert (operation.state.value, operation.code) == ("unknown", "key_used_outside_ledger")
        assert bill(in_process, key) == (504, "outcome_unknown")
        made = None if busy else in_process.charges()[0]["id"]
        by = By("me", "looked at the dashboard")
        done = in_process.run(acts(in_process).resolve(operation, made, by))
        if busy:
            # An operator's void takes a second look, a minute later.
            in_process.turn_clock(61)
            in_process.run(in_process.proxy.app.pipeline.follow())
            done = in_process.run(acts(in_process).resolve(operation, made, by))
        assert isinstance(done, Operation)
        assert bill(in_process, key) == (200, None)
        assert len(in_process.charges()) == 1
        assert broken_invariants(in_process) == []


def acts(in_process: InProcessProxy) -> StripeActs:
    proxy = in_process.proxy
    reads = StripeReads(proxy.upstream, proxy.store.clock, boottime_ms)
    return StripeActs(proxy.store.ledger, reads, proxy.recovery)


def _derived(in_process: InProcessProxy, key: Issued) -> str:
    """Learn the bill's upstream key from a send that Stripe turned away."""
    in_process.fault("429")
    bill(in_process, key)
    return newest(in_process)[1][0].upstream_key


def test_a_charge_that_turns_up_after_its_void_is_recorded_and_freezes_the_key(
    tmp_path: Path,
) -> None:
    with InProcessProxy(tmp_path) as in_process:
        in_process.begin_day()
        key = in_process.issue(daily={"usd": 2900})
        in_process.fault("drop_before")
        assert bill(in_process, key) == (504, "outcome_unknown")
        in_process.turn_clock(PAST_GRACE_S)
        in_process.recover()
        assert newest(in_process)[0].state.value == "voided"
        # The cap is free again, and used; then the first request arrives at Stripe after all.
        assert bill(in_process, key, customer="cus_B2") == (200, None)
        assert deliver_of(in_process, "cus_A1").status_code == 200
        in_process.turn_clock(HOUR_S)
        in_process.recover()
        (late,) = in_process.operations(customer_id="cus_A1")
        assert (late.state.value, late.overshoot, late.held) == ("succeeded", True, 2900)
        assert list(day_windows(in_process).values()) == [(0, 5800)]
        assert bill(in_process, key, customer="cus_C3") == (403, "vault_key_frozen")
        # The bill itself is told as what it is: charged.
        assert bill(in_process, key) == (200, None)
        in_process.run(unfreeze_key(in_process.proxy.store.ledger, KeyId(key.id), "seen", "me"))
        assert bill(in_process, key, customer="cus_C3") == (403, "spend_cap_exceeded")
        assert len(in_process.charges()) == 2
        assert broken_invariants(in_process) == []


def deliver_of(in_process: InProcessProxy, customer: str) -> Any:
    ((_, attempts),) = in_process.run(
        in_process.proxy.store.records.operations(customer_id=customer)
    )
    return deliver_late(in_process, attempts[-1])


def test_a_voided_bill_that_is_sent_again_and_turns_up_twice_is_one_charge(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault("drop_before")
        bill(in_process, key)
        in_process.turn_clock(PAST_GRACE_S)
        in_process.recover()
        assert bill(in_process, key) == (200, None)
        assert deliver_of(in_process, "cus_A1").headers["idempotent-replayed"] == "true"
        assert len(in_process.charges()) == 1


def test_a_refunded_bill_is_billed_once_more_under_a_key_of_its_own(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        first = in_process.charge(key, period="2026-11").json()["id"]
        post_at_stripe(in_process, "/v1/refunds", charge=first)
        # A refund alone changes nothing: the period is charged.
        assert in_process.charge(key, period="2026-11").json()["id"] == first
        operation, _ = newest(in_process)
        ledger, by = in_process.proxy.store.ledger, By("me", "wrong card")
        assert isinstance(
            in_process.run(reopen(ledger, operation, by, Reopening(), refunded=True)), Operation
        )
        second = in_process.charge(key, period="2026-11").json()["id"]
        assert second != first
        assert in_process.charge(key, period="2026-11").json()["id"] == second
        assert error_of(in_process.charge(key, amount=3000, period="2026-11")) == (
            "period_already_charged"
        )
        assert newest(in_process)[1][0].upstream_key == f"{operation.upstream_name}-r1"
        assert not isinstance(
            in_process.run(reopen(ledger, operation, by, Reopening(), refunded=True)), Operation
        )
        assert len(in_process.charges()) == 2
        assert broken_invariants(in_process) == []


def test_recovery_walks_ten_thousand_charges_of_one_customer(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault("drop_after")
        assert bill(in_process, key) == (504, "outcome_unknown")
        made = in_process.charges()[0]["id"]
        with in_process.sandbox._store.transaction() as records:  # noqa: SLF001 - posting 10,000 takes minutes
            records.connection.execute(
                """WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
                INSERT INTO objects (kind, id, body)
                SELECT 'charge', 'ch_other' || i, json_remove(json_set(body,
                    '$.id', 'ch_other' || i), '$.metadata.keybrake_attempt')
                FROM n, objects WHERE id = ?""",
                (made,),
            )
        in_process.recover()
        # Ours is the oldest: the last of a hundred and one pages.
        operation, _ = newest(in_process)
        assert (operation.state.value, operation.object_id) == ("succeeded", made)


def test_an_incomplete_walk_concludes_nothing(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault("drop_before")
        bill(in_process, key)
        in_process.turn_clock(PAST_GRACE_S)
        for kind in ("500_before", "drop_before", "429", "drop_after"):
            in_process.fault(kind, match="GET /v1/charges")
            in_process.recover()
            assert newest(in_process)[0].state.value == "unknown"
        in_process.recover()
        assert newest(in_process)[0].state.value == "voided"


def test_no_charge_is_lost_when_the_answer_comes_while_recovery_reads(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.stripe.post(
            "/_sandbox/faults",
            json=[{"match": "POST /v1/charges", "kind": "delay", "seconds": 60}],
        )
        asked = Aside(lambda: bill(in_process, key))
        while not in_process.charges():
            pass  # the sandbox shows the charge as soon as it is made
        in_process.recover()
        assert newest(in_process)[0].state.value == "reserved"  # leased: recovery keeps off
        in_process.sandbox.release()
        assert asked.result() == (200, None)
        assert newest(in_process)[0].state.value == "succeeded"
