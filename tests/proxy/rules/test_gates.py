"""Gates: every send passes those of who sends it, whoever reserved; nothing counts twice."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.access.policy import CapRules, Hours, Policy
from kb_mcp.proxy.ledger.records import KeyId, Lineage, LineageId
from kb_mcp.proxy.rules.command import Decision, Refuse
from kb_mcp.proxy.rules.decide import decide
from tests.proxy.rules.one_intent import POLICY, OneIntent
from tests.proxy.rules.one_key import (
    ALICE,
    BILLING,
    HOUR,
    LINEAGE,
    LOST,
    MINUTE,
    OneKey,
    declined,
    made,
    told,
)

OTHER = LineageId("two")
OTHER_KEY = replace(ALICE, id=KeyId("two"), lineage_id=OTHER)
# What another key may, which would not have been allowed to begin a bill of 29.00.
NARROW: dict[str, dict[str, Any]] = {
    "per charge": {"caps": CapRules(per_charge={"usd": 1000})},
    "daily": {"caps": CapRules(daily={"usd": 1000})},
    "monthly": {"caps": CapRules(monthly={"usd": 1000})},
    "customer": {"caps": CapRules(per_customer_daily={"usd": 1000})},
    "another currency": {"caps": CapRules(per_charge={"eur": 100_000})},
    "approval": {"approval_above": {"usd": 500}},
    "approval in another currency": {"approval_above": {"eur": 100_000}},
    "hours": {"hours": Hours(start="12:00", end="13:00")},
}


def policy(**changes: Any) -> Policy:
    return BILLING.model_copy(update=changes)


def freeze(one_key: OneKey, lineage: LineageId = LINEAGE) -> None:
    one_key.snapshot.lineages[lineage] = Lineage(lineage, one_key.snapshot.now, "too many declines")


def asks(one_key: OneKey, its: Policy, header: str | None = None, **fields: object) -> Decision:
    """Let the other key ask, whose policy is `its`."""
    one_key.snapshot.keys[OTHER_KEY.id] = OTHER_KEY
    command = replace(
        one_key.intend(header, **fields), key_id=OTHER_KEY.id, lineage_id=OTHER, policy=its
    )
    decision = decide(one_key.snapshot, command)
    one_key.snapshot.apply(decision.changes)
    return decision


def approve(one_key: OneKey, verdict: str = "approved") -> None:
    """Decide everything that waits."""
    for name, approval in one_key.snapshot.approvals.items():
        if approval.state == "pending":
            one_key.snapshot.approvals[name] = replace(approval, state=verdict)


def test_a_frozen_key_replays_what_is_paid_and_sends_nothing_again() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-10"), made("ch_1"))
    one_key.end(one_key.ask(period="2026-11"), LOST)
    freeze(one_key)
    assert told(one_key.ask(period="2026-10")) == "replay"
    lost = one_key.ask(period="2026-11")
    assert told(lost) == "outcome_unknown"
    assert isinstance(lost, Refuse)
    assert lost.refusal.facts["not_sent_again"] == "vault_key_frozen"


def test_hours_that_ended_meanwhile_stop_a_send_again_too() -> None:
    one_key = OneKey(policy=policy(hours=Hours(start="00:00", end="02:00")))
    one_key.end(one_key.ask(period="2026-11"), LOST)
    one_key.pass_time(2 * HOUR)
    assert told(one_key.ask(period="2026-11")) == "outcome_unknown"
    assert told(one_key.ask(period="2026-10")) == "vault_key_not_authorized"


@pytest.mark.parametrize("kind", NARROW)
def test_a_key_that_might_not_have_begun_a_bill_does_not_send_it_again(kind: str) -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), LOST)
    assert told(asks(one_key, policy(**NARROW[kind]), period="2026-11")) == "outcome_unknown"
    assert one_key.snapshot.approvals == {}


def test_a_key_that_may_sends_another_keys_bill_again_and_counts_nothing_twice() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), LOST)
    before = dict(one_key.snapshot.windows)
    its = policy(caps=CapRules(daily={"usd": 2900}, per_customer_daily={"usd": 2900}))
    assert told(asks(one_key, its, period="2026-11")) == "proceed as K"
    assert one_key.snapshot.windows == before


def test_its_own_lineage_sends_again_what_filled_its_caps() -> None:
    one_key = OneKey(policy=policy(caps=CapRules(daily={"usd": 2900}), daily_charges=1))
    one_key.end(one_key.ask(period="2026-11"), LOST)
    assert told(one_key.ask(period="2026-11")) == "proceed as K"


def test_what_was_approved_is_sent_again_under_that_approval_by_that_lineage_alone() -> None:
    one_key = OneKey(policy=policy(approval_above={"usd": 1000}))
    assert told(one_key.ask(period="2026-11")) == "approval_required"
    approve(one_key)
    one_key.end(one_key.ask(period="2026-11"), LOST)
    assert told(asks(one_key, one_key.policy, period="2026-11")) == "outcome_unknown"
    one_key.end(one_key.ask(period="2026-11"), LOST)
    assert [each.state for each in one_key.snapshot.approvals.values()] == ["used"]


@pytest.mark.parametrize("kind", NARROW)
def test_a_voided_bill_is_sent_again_only_past_the_gates_of_who_asks(kind: str) -> None:
    one_key = OneKey()
    go = one_key.ask(period="2026-11")
    one_key.end(go, LOST)
    one_key.void(one_key.snapshot.operations[next(iter(one_key.snapshot.operations))].id)
    assert isinstance(asks(one_key, policy(**NARROW[kind]), period="2026-11"), Refuse)


@pytest.mark.parametrize(("currency", "amount"), [("eur", 50), ("jpy", 50), ("kwd", 50)])
def test_an_approval_limit_in_one_currency_refuses_every_other(currency: str, amount: int) -> None:
    one_key = OneKey(policy=policy(approval_above={"usd": 5000}))
    bill: dict[str, Any] = {"currency": currency, "amount": amount * 10}
    assert told(one_key.ask(period="2026-11", **bill)) == "currency_not_allowed"
    assert told(one_key.ask("june", **bill)) == "currency_not_allowed"


@pytest.mark.parametrize(
    "later", [{"amount": 9_999_900}, {"currency": "eur"}, {"currency": "kwd", "amount": 99_999_990}]
)
def test_an_approval_under_a_key_of_the_callers_covers_one_request(later: dict[str, Any]) -> None:
    limits = {"usd": 25_000, "eur": 0, "kwd": 0}
    one_key = OneKey(policy=policy(approval_above=limits))
    shown: dict[str, Any] = {"amount": 30_000}
    assert told(one_key.ask("june", **shown)) == "approval_required"
    assert told(one_key.ask("june", **(shown | later))) == "approval_required"
    first, second = one_key.snapshot.approvals.values()
    assert (first.amount, first.currency) == (30_000, "usd")
    wanted = {"amount": 30_000, "currency": "usd", **later}
    assert (second.amount, second.currency) == (wanted["amount"], wanted["currency"])
    one_key.snapshot.approvals[first.id] = replace(first, state="approved")
    assert told(one_key.ask("june", **(shown | later))) == "approval_required"
    assert told(one_key.ask("june", **shown)) == "proceed as K"
    assert one_key.snapshot.approvals[second.id].state == "pending"


def test_a_decline_before_leaves_an_approval_of_what_is_asked_and_not_of_what_failed() -> None:
    one_key = OneKey(policy=policy(approval_above={"usd": 2500}))
    one_key.end(one_key.ask("june", amount=1000), declined())
    one_key.pass_time(16 * MINUTE)
    assert told(one_key.ask("june", amount=30_000)) == "approval_required"
    (asked,) = one_key.snapshot.approvals.values()
    assert (asked.amount, asked.operation_id) == (30_000, "op_1")
    assert one_key.snapshot.operations[asked.operation_id].amount == 30_000
    approve(one_key)
    assert told(one_key.ask("june", amount=30_100)) == "approval_required"
    assert told(one_key.ask("june", amount=30_000)) == "proceed as K-2"


def test_asking_for_an_approval_does_not_end_the_wait_after_a_decline() -> None:
    one_key = OneKey(policy=policy(approval_above={"usd": 2500}))
    one_key.end(one_key.ask("june", amount=1000), declined())
    assert told(one_key.ask("june", amount=3000)) == "approval_required"
    approve(one_key)
    assert told(one_key.ask("june", amount=3000)) == "replay"
    one_key.pass_time(16 * MINUTE)
    assert told(one_key.ask("june", amount=3000)) == "proceed as K-2"


def test_a_declined_bill_of_an_approval_needs_another_for_more() -> None:
    one_key = OneKey(policy=policy(approval_above={"usd": 2500}))
    one_key.ask("june", amount=3000)
    approve(one_key)
    one_key.end(one_key.ask("june", amount=3000), declined())
    one_key.pass_time(16 * MINUTE)
    assert told(one_key.ask("june", amount=4000)) == "approval_required"
    assert told(one_key.ask("june", amount=3000)) == "approval_required"
    assert len(one_key.snapshot.approvals) == 3


def test_two_lineages_wait_for_the_same_bill_side_by_side() -> None:
    one_key = OneKey(policy=policy(approval_above={"usd": 1000}))
    assert told(one_key.ask(period="2026-11")) == "approval_required"
    assert told(asks(one_key, one_key.policy, period="2026-11")) == "approval_required"
    first, second = one_key.snapshot.approvals.values()
    assert (first.lineage_id, second.lineage_id) == (LINEAGE, OTHER)
    one_key.snapshot.approvals[first.id] = replace(first, state="approved")
    assert told(asks(one_key, one_key.policy, period="2026-11")) == "approval_required"
    go = one_key.ask(period="2026-11")
    assert told(go) == "proceed as K"
    assert (len(one_key.snapshot.approvals), one_key.snapshot.approvals[second.id].state) == (
        2,
        "pending",
    )


def test_a_denied_request_does_not_deny_another_nor_is_it_asked_again_at_once() -> None:
    one_key = OneKey(policy=policy(approval_above={"usd": 1000}))
    one_key.ask("june", amount=3000)
    approve(one_key, "denied")
    refused = one_key.ask("june", amount=3000)
    assert isinstance(refused, Refuse)
    assert refused.refusal.facts["state"] == "denied"
    assert told(one_key.ask("june", amount=2000)) == "approval_required"
    assert [each.state for each in one_key.snapshot.approvals.values()] == ["denied", "pending"]


def test_a_body_that_waits_for_an_approval_is_the_same_bill_a_day_later() -> None:
    one_key = OneKey(policy=policy(approval_above={"usd": 1000}))
    assert told(one_key.ask()) == "approval_required"
    one_key.pass_time(21 * HOUR)
    approve(one_key)
    assert told(one_key.ask()) == "proceed as K"


def intent_of_another(status: str = "requires_confirmation") -> OneIntent:
    one_intent = OneIntent(status)
    one_intent.snapshot.keys[OTHER_KEY.id] = OTHER_KEY
    return one_intent


def step(one_intent: OneIntent, verb: str, its: Policy | None = None, **form: Any) -> str:
    """Let the other key take a step on the intent; without a policy, its own key."""
    meant = one_intent.meant(verb, **form)
    if its is not None:
        meant = replace(meant, key_id=OTHER_KEY.id, lineage_id=OTHER, policy=its)
    decision = decide(one_intent.snapshot, meant)
    one_intent.snapshot.apply(decision.changes)
    return told(decision)


@pytest.mark.parametrize("verb", ["confirm", "capture", ""])
def test_a_frozen_key_takes_no_step_but_to_cancel(verb: str) -> None:
    one_intent = intent_of_another()
    freeze(one_intent)
    assert step(one_intent, verb) == "vault_key_frozen"
    assert step(one_intent, "cancel") == "proceed as K-s2"


@pytest.mark.parametrize("verb", ["confirm", "capture", ""])
@pytest.mark.parametrize("kind", NARROW)
def test_a_key_takes_no_step_on_what_it_might_not_have_begun(kind: str, verb: str) -> None:
    one_intent = intent_of_another()
    its = POLICY.model_copy(update={"caps": CapRules(), **NARROW[kind]})
    assert "proceed" not in step(one_intent, verb, its)
    # A part of it is no way around, either.
    assert "proceed" not in step(one_intent, "capture", its, amount_to_capture=100)


def test_a_key_steps_on_another_keys_intent_within_its_policy() -> None:
    one_intent = intent_of_another()
    before = dict(one_intent.snapshot.windows)
    its = POLICY.model_copy(update={"caps": CapRules(daily={"usd": 2900})})
    assert step(one_intent, "confirm", its) == "proceed as K-s2"
    assert one_intent.snapshot.windows == before


def test_a_step_on_another_keys_intent_needs_an_approval_of_its_own() -> None:
    one_intent = intent_of_another()
    its = POLICY.model_copy(update={"caps": CapRules(), "approval_above": {"usd": 500}})
    assert step(one_intent, "confirm", its) == "approval_required"
    (asked,) = one_intent.snapshot.approvals.values()
    assert (asked.lineage_id, asked.amount) == (OTHER, 2900)
    assert asked.endpoint == "POST /v1/payment_intents/*/confirm"
    assert one_intent.held() == 2900
    approve(one_intent)
    assert step(one_intent, "capture", its) == "approval_required"
    assert step(one_intent, "confirm", its) == "proceed as K-s2"


def test_what_grew_at_stripe_beyond_what_was_approved_is_not_captured() -> None:
    one_intent = OneIntent()
    one_intent.policy = one_intent.policy.model_copy(update={"approval_above": {"usd": 3000}})
    grown = replace(one_intent.operation, amount=4000, held=4000)
    one_intent.snapshot.operations[grown.id] = grown
    assert step(one_intent, "capture") == "approval_required"


def test_a_lost_step_is_not_sent_again_by_a_key_that_froze_since() -> None:
    one_intent = intent_of_another()
    lost = one_intent.step("confirm")
    one_intent.end(lost, LOST)
    assert step(one_intent, "confirm") == "look"
    attempt = one_intent.snapshot.attempt(one_intent.operation)
    assert attempt is not None
    read = replace(attempt, open_sends=0)
    one_intent.snapshot.attempts[read.operation_id, read.number] = read
    freeze(one_intent)
    assert step(one_intent, "confirm") == "outcome_unknown"


@pytest.mark.parametrize("method", ["pm_other", "pm_third"])
def test_a_confirmation_with_another_card_than_the_approved_one_is_asked_anew(method: str) -> None:
    one_intent = intent_of_another("requires_payment_method")
    one_intent.policy = one_intent.policy.model_copy(update={"approval_above": {"usd": 1000}})
    assert step(one_intent, "confirm", payment_method="pm_first") == "approval_required"
    approve(one_intent)
    assert step(one_intent, "confirm", payment_method=method) == "approval_required"
    assert step(one_intent, "confirm", payment_method="pm_first") == "proceed as K-s2"


def test_a_ceiling_refuses_steps_in_the_currencies_that_it_does_not_name() -> None:
    one_intent = intent_of_another()
    one_intent.snapshot.settings = replace(one_intent.snapshot.settings, ceilings={"eur": 10_000})
    assert step(one_intent, "confirm") == "currency_not_allowed"


def approved(amount: int = 2900, **form: Any) -> OneIntent:
    """Return an intent that waits for its confirmation, made under an approval of `amount`."""
    one_intent = intent_of_another("requires_payment_method")
    one_intent.policy = one_intent.policy.model_copy(update={"approval_above": {"usd": 1000}})
    told_first = step(one_intent, "confirm", **form)
    assert told_first == "approval_required"
    (name,) = one_intent.snapshot.approvals
    asked = one_intent.snapshot.approvals[name]
    one_intent.snapshot.approvals[name] = replace(asked, state="used", amount=amount)
    return one_intent


def test_what_an_approval_was_used_for_covers_no_more_than_that() -> None:
    assert step(approved(2900), "capture") == "proceed as K-s2"
    assert step(approved(2899), "capture") == "approval_required"


@pytest.mark.parametrize("method", ["pm_other", None])
def test_what_an_approval_was_used_for_covers_its_own_card_or_the_one_that_is_set(
    method: str | None,
) -> None:
    one_intent = approved(payment_method="pm_first")
    form: dict[str, Any] = {} if method is None else {"payment_method": method}
    told_now = step(one_intent, "confirm", **form)
    assert told_now == ("proceed as K-s2" if method is None else "approval_required")


def test_another_destination_of_the_same_sum_is_another_approval() -> None:
    one_key = OneKey(policy=policy(approval_above={"usd": 1000}))
    assert told(one_key.ask("june", destination="acct_1")) == "approval_required"
    assert told(one_key.ask("june", destination="acct_2")) == "approval_required"
    first, second = one_key.snapshot.approvals.values()
    assert (first.destination, second.destination) == ("acct_1", "acct_2")
    one_key.snapshot.approvals[first.id] = replace(first, state="approved")
    assert told(one_key.ask("june", destination="acct_2")) == "approval_required"
    assert told(one_key.ask("june", destination="acct_1")) == "proceed as K"


def test_what_expired_waits_for_nobody() -> None:
    one_key = OneKey(policy=policy(approval_above={"usd": 1000}))
    one_key.ask("june")
    assert one_key.snapshot.outstanding_approvals == {LINEAGE: 1}
    (asked,) = one_key.snapshot.approvals.values()
    assert asked.state_at(asked.expires_at - 1) == "pending"
    assert asked.state_at(asked.expires_at) == "expired"
    assert replace(asked, state="denied").state_at(asked.expires_at) == "denied"


@pytest.mark.parametrize(("currency", "limit", "unit"), [("jpy", 500, 1), ("kwd", 500_000, 10)])
def test_a_threshold_is_in_the_minor_units_of_its_currency(
    currency: str, limit: int, unit: int
) -> None:
    one_key = OneKey(policy=policy(approval_above={currency: limit}))
    assert told(one_key.ask("june", currency=currency, amount=limit)) == "proceed as K"
    more = {"currency": currency, "amount": limit + unit}
    assert told(one_key.ask("july", customer="cus_B2", **more)) == "approval_required"
    (asked,) = one_key.snapshot.approvals.values()
    assert (asked.amount, asked.currency) == (limit + unit, currency)
