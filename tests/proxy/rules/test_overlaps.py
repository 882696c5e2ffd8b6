"""Unequal periods that share a day: one bill twice, unless the sender's policy says otherwise."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import pytest

from kb_mcp.proxy.rules.command import Proceed, Refuse
from tests.proxy.rules.one_key import BILLING, LOST, REJECTED, OneKey, declined, fold, made, told

ALLOWS = BILLING.model_copy(update={"overlaps": "allow"})
REFERS = BILLING.model_copy(update={"allow_reference": True})
DRIFTS: tuple[dict[str, Any], ...] = ({}, {"amount": 2901}, {"currency": "eur"}, {"amount": 1})
# Each bills some of the days of November 2026 that the others bill, too.
SAME_DAYS = ("2026-11", "2026-Q4", "2026-W46", "2026-11-10/2026-11-20", "2026", "2026-11-11")


@pytest.mark.parametrize(("first", "second"), tuple(permutations(SAME_DAYS, 2)))
def test_whatever_spells_the_same_days_is_the_same_bill(first: str, second: str) -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period=first), made("ch_1"))
    for number, drift in enumerate(DRIFTS):
        refused = one_key.ask(f"key-{number}", period=second, **drift)
        assert isinstance(refused, Refuse)
        assert told(refused) == "period_already_charged"
        assert refused.operation is not None
        facts = dict(refused.refusal.facts)
        assert (facts["charge_id"], facts["billing_period"]) == ("ch_1", first)
        assert first in refused.refusal.message


@pytest.mark.parametrize("first", SAME_DAYS)
def test_a_description_that_tells_the_period_is_a_period(first: str) -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(description=f"Subscription {first}"), made("ch_1"))
    second = "2026-11" if first != "2026-11" else "2026-Q4"
    again = one_key.ask(description=f"Subscription {second}", amount=5000)
    assert told(again) == "period_already_charged"


@pytest.mark.parametrize(
    ("proof", "stands"),
    [(made("ch_1"), True), (made("ch_1", "pending", "pending"), True), (LOST, True),
     (declined(), False), (REJECTED, False)],
)  # fmt: skip
def test_only_a_live_bill_holds_its_days(proof: Any, stands: bool) -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-Q4"), proof)
    expected = "period_already_charged" if stands else "proceed as K"
    assert told(one_key.ask(period="2026-11", amount=100)) == expected


def test_a_batch_of_overlapping_periods_charges_once() -> None:
    one_key = OneKey()
    decisions = fold(one_key.snapshot, [one_key.intend(period=each) for each in SAME_DAYS])
    assert [isinstance(each, Proceed) for each in decisions].count(True) == 1


@pytest.mark.parametrize(
    "chain",
    [
        ("2026-09-15/2026-10-15", "2026-10-15/2026-11-15", "2026-11-15/2026-12-15"),
        ("2026-11-04/2026-11-11", "2026-11-11/2026-11-18", "2026-11-18/2026-11-25"),
        ("2026-10-30/2026-11-05", "2026-11-05/2026-11-11"),
    ],
)
def test_ranges_of_a_week_or_more_may_share_their_boundary_day(chain: tuple[str, ...]) -> None:
    for order in (chain, chain[::-1]):
        one_key = OneKey()
        for number, period in enumerate(order):
            one_key.end(one_key.ask(period=period), made(f"ch_{number}"))


def test_two_day_ranges_in_a_chain_bill_every_day_twice() -> None:
    one_key = OneKey()
    days = [f"2026-11-{day:02}" for day in range(10, 20)]
    chain = [f"{one}/{other}" for one, other in pairwise(days)]
    paid = [told(one_key.ask(period=period)) for period in chain]
    assert paid == ["proceed as K", "period_already_charged"] * (len(chain) // 2) + ["proceed as K"]


def test_the_policy_of_the_sender_decides() -> None:
    one_key = OneKey(policy=ALLOWS)
    one_key.end(one_key.ask(period="2026"), made("ch_1"))
    one_key.end(one_key.ask(period="2026-11"), made("ch_2"))
    one_key.end(one_key.ask(period="2026-Q4", amount=500), made("ch_3"))
    # It lifts unequal periods, never the same one.
    assert told(one_key.ask(period="2026-11", amount=500)) == "period_already_charged"
    assert told(one_key.ask(period="2026-11")) == "replay"
    # What an earlier bill's key was allowed does not excuse a later one.
    one_key.policy = BILLING
    assert told(one_key.ask(period="2026-W46", amount=5)) == "period_already_charged"
    assert told(one_key.ask(period="2025-12", amount=5)) == "proceed as K"


def test_a_reference_is_another_thing() -> None:
    one_key = OneKey(policy=REFERS)
    one_key.end(one_key.ask(period="2026"), made("ch_1"))
    addon: dict[str, Any] = {"metadata[reference]": "seat-2"}
    one_key.end(one_key.ask(period="2026-11", **addon), made("ch_2"))
    assert told(one_key.ask(period="2026-Q4", amount=7, **addon)) == "period_already_charged"
    assert told(one_key.ask(period="2026-Q4", amount=7)) == "period_already_charged"


def test_bills_named_by_their_callers_hold_their_days_too() -> None:
    one_key = OneKey(policy=BILLING.model_copy(update={"idempotency": "caller"}))
    one_key.end(one_key.ask("one", period="2026-11"), made("ch_1"))
    assert told(one_key.ask("two", period="2026-Q4", amount=7)) == "period_already_charged"


def test_a_declined_bill_is_not_tried_again_where_its_days_were_billed_meanwhile() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), declined())
    one_key.pass_time(one_key.policy.decline_retry_after_ms)
    one_key.end(one_key.ask(period="2026-Q4", amount=8700), made("ch_1"))
    assert told(one_key.ask(period="2026-11")) == "period_already_charged"
