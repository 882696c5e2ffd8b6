"""Every answer of Stripe's, whole or lost, and what the next calls and recovery make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kb_mcp.proxy.ledger import Attempt, KeyId, Operation
from kb_mcp.proxy.ops.keys import unfreeze_key
from kb_mcp.proxy.ops.operations_ops import By, Done, reopen, settle_by_object, void_by_operator
from kb_mcp.proxy.proofs import prove_object
from kb_mcp.proxy.routes import ENDPOINTS
from tests.house import House, Issued, error_of
from tests.scenarios.acts import (
    PAST_GRACE_S,
    Aside,
    broken_invariants,
    day_windows,
    deliver_late,
    post_at_stripe,
)

HOUR_S = 3_600


def newest(house: House) -> tuple[Operation, list[Attempt]]:
    found = house.run(house.proxy.store.records.operations(limit=1))
    return found[0]


def bill(house: House, key: Issued, **form: Any) -> tuple[int, str | None]:
    answer = house.charge(key, period="2026-11", **form)
    return answer.status_code, None if answer.status_code == 200 else error_of(answer)


@pytest.mark.parametrize("kind", ["429", "400", "403", "401"])
def test_a_no_before_it_began_releases_and_the_next_call_charges_once(
    tmp_path: Path, kind: str
) -> None:
    told = {"429": (429, "rate_limit"), "400": (400, "parameter_invalid")}
    rejected = (502, "upstream_rejected_key")
    with House(tmp_path) as house:
        key = house.issue(daily={"usd": 2900})
        house.fault(kind)
        status, code = bill(house, key)
        assert (status, code) == told.get(kind, rejected)
        operation, attempts = newest(house)
        assert (operation.state.value, operation.held) == ("failed", 0)
        assert bill(house, key) == (200, None)
        operation, attempts = newest(house)
        # Stripe never looked at the key of a 429: it is kept. After a rejection a new one is made.
        assert len(attempts) == (1 if kind == "429" else 2)
        assert attempts[-1].upstream_key == operation.upstream_name + (
            "" if kind == "429" else "-2"
        )
        assert len(house.charges()) == 1
        assert broken_invariants(house) == []


def test_a_500_that_stripe_stored_after_charging_is_found_by_reading(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        house.fault("500_after")
        assert bill(house, key) == (504, "outcome_unknown")
        # The resend gets the stored 500: that proves nothing either.
        assert bill(house, key) == (504, "outcome_unknown")
        house.recover()
        assert bill(house, key) == (200, None)
        assert newest(house)[0].object_id == house.charges()[0]["id"]
        assert len(house.charges()) == 1


def test_a_stored_500_poisons_its_key_until_two_days_of_empty_lists(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        house.fault("500_before")
        assert bill(house, key) == (504, "outcome_unknown")
        house.turn_clock(PAST_GRACE_S)
        house.recover()
        assert newest(house)[0].state.value == "voided"
        # Voided, but its key may only be sent again, not replaced.
        assert bill(house, key) == (504, "outcome_unknown")
        house.turn_clock(PAST_GRACE_S)
        house.recover()
        for hours in (1, 24):
            house.turn_clock(hours * HOUR_S + 60)
            house.recover()
        assert newest(house)[0].live is False
        assert bill(house, key) == (200, None)
        operation, attempts = newest(house)
        assert [each.upstream_key for each in attempts] == [
            operation.upstream_name,
            f"{operation.upstream_name}-2",
        ]
        assert len(house.charges()) == 1
        assert broken_invariants(house) == []


def test_nothing_is_resent_under_a_key_that_stripe_may_have_forgotten(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        house.fault("drop_after")
        assert bill(house, key) == (504, "outcome_unknown")
        house.turn_clock(23 * HOUR_S)
        assert bill(house, key) == (504, "outcome_unknown")
        assert len(newest(house)[1]) == newest(house)[1][0].sends == 1
        house.recover()
        assert bill(house, key) == (200, None)
        assert len(house.charges()) == 1


@pytest.mark.parametrize("busy", [True, False])
def test_a_charge_under_our_key_from_outside_is_left_to_an_operator(
    tmp_path: Path, busy: bool
) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        upstream_key = _derived(house, key)
        form = {"customer": "cus_A1", "amount": 2900, "currency": "usd"}
        if busy:
            # With our very bytes, still being worked on: 409.
            house.fault("409")
        else:
            post_at_stripe(house, "/v1/charges", upstream_key, **form)
        assert bill(house, key) == (504, "outcome_unknown")
        for _ in range(3):
            house.turn_clock(26 * HOUR_S)
            house.recover()
        operation, _ = newest(house)
        assert (operation.state.value, operation.code) == ("unknown", "key_used_outside_ledger")
        assert bill(house, key) == (504, "outcome_unknown")
        ledger = house.proxy.store.ledger
        by = By("me", "looked at the dashboard")
        if busy:
            done = house.run(void_by_operator(ledger, operation, by))
        else:
            made = prove_object(house.charges()[0], ENDPOINTS[operation.route])
            assert made is not None
            done = house.run(settle_by_object(ledger, operation, made, by, 20))
        assert isinstance(done, Done)
        assert bill(house, key) == (200, None)
        assert len(house.charges()) == 1
        assert broken_invariants(house) == []


def _derived(house: House, key: Issued) -> str:
    """Learn the bill's upstream key from a send that Stripe turned away."""
    house.fault("429")
    bill(house, key)
    return newest(house)[1][0].upstream_key


def test_a_charge_that_turns_up_after_its_void_is_recorded_and_freezes_the_key(
    tmp_path: Path,
) -> None:
    with House(tmp_path) as house:
        house.begin_day()
        key = house.issue(daily={"usd": 2900})
        house.fault("drop_before")
        assert bill(house, key) == (504, "outcome_unknown")
        house.turn_clock(PAST_GRACE_S)
        house.recover()
        assert newest(house)[0].state.value == "voided"
        # The cap is free again, and used; then the first request arrives at Stripe after all.
        assert bill(house, key, customer="cus_B2") == (200, None)
        assert deliver_of(house, "cus_A1").status_code == 200
        house.turn_clock(HOUR_S)
        house.recover()
        (late,) = house.operations(customer_id="cus_A1")
        assert (late.state.value, late.overshoot, late.held) == ("succeeded", True, 2900)
        assert list(day_windows(house).values()) == [(0, 5800)]
        assert bill(house, key, customer="cus_C3") == (403, "vault_key_frozen")
        # The bill itself is told as what it is: charged.
        assert bill(house, key) == (200, None)
        house.run(unfreeze_key(house.proxy.store.ledger, KeyId(key.id), "seen", "me"))
        assert bill(house, key, customer="cus_C3") == (403, "spend_cap_exceeded")
        assert len(house.charges()) == 2
        assert broken_invariants(house) == []


def deliver_of(house: House, customer: str) -> Any:
    ((_, attempts),) = house.run(house.proxy.store.records.operations(customer_id=customer))
    return deliver_late(house, attempts[-1])


def test_a_voided_bill_that_is_sent_again_and_turns_up_twice_is_one_charge(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        house.fault("drop_before")
        bill(house, key)
        house.turn_clock(PAST_GRACE_S)
        house.recover()
        assert bill(house, key) == (200, None)
        assert deliver_of(house, "cus_A1").headers["idempotent-replayed"] == "true"
        assert len(house.charges()) == 1


def test_a_refunded_bill_is_billed_once_more_under_a_key_of_its_own(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        first = house.charge(key, period="2026-11").json()["id"]
        post_at_stripe(house, "/v1/refunds", charge=first)
        # A refund alone changes nothing: the period is charged.
        assert house.charge(key, period="2026-11").json()["id"] == first
        operation, _ = newest(house)
        ledger, by = house.proxy.store.ledger, By("me", "wrong card")
        assert isinstance(house.run(reopen(ledger, operation, by, refunded=True)), Done)
        second = house.charge(key, period="2026-11").json()["id"]
        assert second != first
        assert house.charge(key, period="2026-11").json()["id"] == second
        assert error_of(house.charge(key, amount=3000, period="2026-11")) == (
            "period_already_charged"
        )
        assert newest(house)[1][0].upstream_key == f"{operation.upstream_name}-r1"
        assert not isinstance(house.run(reopen(ledger, operation, by, refunded=True)), Done)
        assert len(house.charges()) == 2
        assert broken_invariants(house) == []


def test_recovery_walks_ten_thousand_charges_of_one_customer(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        house.fault("drop_after")
        assert bill(house, key) == (504, "outcome_unknown")
        made = house.charges()[0]["id"]
        with house.sandbox._store.transaction() as records:  # noqa: SLF001 - posting 10,000 takes minutes
            records.connection.execute(
                """WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
                INSERT INTO objects (kind, id, body)
                SELECT 'charge', 'ch_other' || i, json_remove(json_set(body,
                    '$.id', 'ch_other' || i), '$.metadata.keybrake_attempt')
                FROM n, objects WHERE id = ?""",
                (made,),
            )
        house.recover()
        # Ours is the oldest: the last of a hundred and one pages.
        operation, _ = newest(house)
        assert (operation.state.value, operation.object_id) == ("succeeded", made)


def test_an_incomplete_walk_concludes_nothing(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        house.fault("drop_before")
        bill(house, key)
        house.turn_clock(PAST_GRACE_S)
        for kind in ("500_before", "drop_before", "429", "drop_after"):
            house.fault(kind, match="GET /v1/charges")
            house.recover()
            assert newest(house)[0].state.value == "unknown"
        house.recover()
        assert newest(house)[0].state.value == "voided"


def test_no_charge_is_lost_when_the_answer_comes_while_recovery_reads(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        key = house.issue()
        house.stripe.post(
            "/_sandbox/faults",
            json=[{"match": "POST /v1/charges", "kind": "delay", "seconds": 60}],
        )
        asked = Aside(lambda: bill(house, key))
        while not house.charges():
            pass  # the sandbox shows the charge as soon as it is made
        house.recover()
        assert newest(house)[0].state.value == "reserved"  # leased: recovery keeps off
        house.sandbox.release()
        assert asked.result() == (200, None)
        assert newest(house)[0].state.value == "succeeded"
