"""The table in the docstring of the decider, row by row and column by column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.access.policy import CapRules, Policy
from kb_mcp.proxy.ledger.records import AttemptOutcome, Lineage, OperationId, State
from kb_mcp.proxy.rules.command import Proceed
from tests.proxy.rules.one_key import (
    BILLING,
    HOUR,
    KEY,
    LINEAGE,
    LOST,
    MINUTE,
    NEVER_SENT,
    REJECTED,
    OneKey,
    declined,
    fold,
    made,
    told,
)

FIRST = OperationId("op_1")
Before = Callable[[OneKey], object]


def ended(proof: object, later_ms: int = 0) -> Before:
    def before(one_key: OneKey) -> None:
        one_key.end(one_key.ask("june"), proof)  # type: ignore[arg-type] # one of the proofs below
        one_key.pass_time(later_ms)

    return before


def reserved_long_ago(one_key: OneKey) -> None:
    one_key.ask("june")
    one_key.pass_time(36_000)


def voided(one_key: OneKey) -> None:
    ended(LOST)(one_key)
    one_key.void(FIRST)


def voided_and_resendable_no_more(one_key: OneKey) -> None:
    voided(one_key)
    one_key.pass_time(23 * HOUR)


def voided_and_free(one_key: OneKey) -> None:
    voided(one_key)
    one_key.free(FIRST)


TABLE: list[tuple[str, Before, str, str]] = [
    # state, how it came about, the same bill again, other values under the same name
    ("none", lambda _: None, "proceed as K", "proceed as K"),
    ("reserved, leased", lambda r: r.ask("june"), "join", "idempotency_key_reused"),
    (
        "reserved, free",
        reserved_long_ago,
        "proceed as K",
        "idempotency_key_reused",
    ),
    ("unknown, free", ended(LOST), "proceed as K", "idempotency_key_reused"),
    ("unknown, 23 h later", ended(LOST, 23 * HOUR), "outcome_unknown", "idempotency_key_reused"),
    ("succeeded", ended(made("ch_1")), "replay", "idempotency_key_reused"),
    ("pending", ended(made("ch_1", "pending", "pending")), "replay", "idempotency_key_reused"),
    ("failed, declined", ended(declined()), "replay", "replay"),
    ("declined long ago", ended(declined(), 15 * MINUTE), "proceed as K-2", "proceed as K-2"),
    ("failed, not sent", ended(NEVER_SENT), "proceed as K", "proceed as K-2"),
    ("failed, rejected", ended(REJECTED), "proceed as K-2", "proceed as K-2"),
    ("voided", voided, "proceed as K", "idempotency_key_reused"),
    (
        "voided, 23 h later",
        voided_and_resendable_no_more,
        "outcome_unknown",
        "idempotency_key_reused",
    ),
    ("voided and free", voided_and_free, "proceed as K-2", "proceed as K-2"),
]


@pytest.mark.parametrize(("state", "before", "same", "other"), TABLE, ids=[r[0] for r in TABLE])
def test_the_state_of_the_operation_decides(
    state: str, before: Before, same: str, other: str
) -> None:
    answers = []
    for amount in (2900, 3000):
        one_key = OneKey()
        before(one_key)
        answers.append(told(one_key.ask("june", amount=amount)))
    assert answers == [same, other]


def test_a_settled_period_names_its_charge_to_another_card() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), made("ch_1"))
    assert told(one_key.ask(period="2026-11", payment_method="pm_1")) == "period_already_charged"
    assert told(one_key.ask(period="2026-11", description="as before")) == "replay"


@pytest.mark.parametrize(
    "drift", [{"amount": 3000}, {"currency": "eur"}, {"amount": 1, "currency": "eur"}]
)
@pytest.mark.parametrize("proof", [made("ch_1"), LOST, None], ids=["paid", "unknown", "reserved"])
def test_a_drifted_bill_of_a_live_period_is_refused(drift: dict[str, Any], proof: Any) -> None:
    one_key = OneKey()
    go = one_key.ask(period="2026-11")
    if proof is not None:
        one_key.end(go, proof)
    assert told(one_key.ask(period="2026-11", **drift)) == "period_already_charged"
    assert told(one_key.ask(period="2026-12", **drift)) == "proceed as K"


def test_drift_does_not_reset_a_decline() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), declined())
    assert told(one_key.ask(period="2026-11", amount=3000)) == "replay"
    for _ in range(3):
        one_key.pass_time(15 * MINUTE)
        one_key.end(one_key.ask(period="2026-11", amount=3000), declined())
    one_key.pass_time(15 * MINUTE)
    assert told(one_key.ask(period="2026-11", amount=100)) == "attempts_exhausted"


@pytest.mark.parametrize("first", [{"period": "2026-11"}, {"header": "june"}, {}])
@pytest.mark.parametrize("second", [{"period": "2026-11"}, {"header": "july"}, {}])
def test_a_bill_without_a_period_is_suspected_both_ways(
    first: dict[str, str], second: dict[str, str]
) -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(**first), made("ch_1"))
    expected = "replay" if first == second else "duplicate_suspected"
    assert told(one_key.ask(**second)) == expected


def test_overlapping_unequal_periods_are_one_bill_whatever_the_amount() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), made("ch_1"))
    assert told(one_key.ask(period="2026-10-15/2026-11-14")) == "period_already_charged"
    assert (
        told(one_key.ask(period="2026-10-15/2026-11-14", amount=3000)) == "period_already_charged"
    )
    assert told(one_key.ask(period="2026-12", amount=3000)) == "proceed as K"


def test_the_window_of_a_body_makes_the_next_occurrence() -> None:
    one_key = OneKey()
    first = one_key.ask()
    one_key.end(first, made("ch_1"))
    one_key.pass_time(20 * HOUR - 1)
    assert told(one_key.ask()) == "replay"
    one_key.pass_time(1)
    second = one_key.ask()
    assert isinstance(first, Proceed)
    assert isinstance(second, Proceed)
    assert second.operation.generation == 1
    assert second.attempt.upstream_key != first.attempt.upstream_key


def test_another_sdk_key_is_a_retry_for_a_quarter_of_an_hour() -> None:
    keys = [f"00000000-0000-4000-8000-00000000000{digit}" for digit in range(3)]
    one_key = OneKey()
    one_key.end(one_key.ask(keys[0]), made("ch_1"))
    assert told(one_key.ask(keys[1])) == "replay"
    one_key.pass_time(15 * MINUTE + 1)
    assert told(one_key.ask(keys[0])) == "replay"
    assert told(one_key.ask(keys[2])) == "duplicate_suspected"


def test_a_resend_carries_the_stored_bytes_and_a_new_token() -> None:
    one_key = OneKey()
    first = one_key.ask("june", description="a")
    one_key.end(first, LOST)
    second = one_key.ask("june", description="b")
    assert isinstance(first, Proceed)
    assert isinstance(second, Proceed)
    assert second.attempt.body == first.attempt.body
    assert (second.attempt.sends, second.attempt.open_sends) == (2, 2)
    assert second.operation.lease_token == first.operation.lease_token + 1


def test_an_operation_that_awaits_approval_is_reserved_once_it_is_approved() -> None:
    policy = Policy.model_validate({**BILLING.model_dump(), "approval_above": {"usd": 1000}})
    one_key = OneKey(policy)
    assert told(one_key.ask("june")) == "approval_required"
    assert not one_key.snapshot.windows
    approval = one_key.snapshot.approvals["apr_1"]
    one_key.snapshot.approvals["apr_1"] = replace(approval, state="approved")
    assert told(one_key.ask("june", amount=3000)) == "approval_required"
    one_key = OneKey(policy)
    one_key.ask("june")
    one_key.snapshot.approvals["apr_1"] = replace(approval, state="approved")
    assert told(one_key.ask("june")) == "proceed as K"
    assert one_key.snapshot.approvals["apr_1"].state == "used"


def test_the_checks_come_in_the_order_of_the_contract() -> None:
    """Guards, frozen, unresolved, approval, attempts, caps: each is lifted in turn."""
    policy = Policy.model_validate(
        {**BILLING.model_dump(), "approval_above": {"usd": 3_500}, "max_attempts": 1}
    ).model_copy(update={"caps": CapRules(daily={"usd": 1}), "max_unresolved": 1})
    one_key = OneKey(BILLING)
    other = one_key.ask(period="2026-11")
    one_key.end(one_key.ask(period="2026-10"), declined())
    one_key.pass_time(15 * MINUTE)
    one_key.policy = policy
    one_key.snapshot.lineages[LINEAGE] = Lineage(LINEAGE, frozen_at=1)
    one_key.snapshot.unresolved[LINEAGE] = 1
    bill: dict[str, Any] = {"period": "2026-11", "amount": 4000}
    assert told(one_key.ask(**bill)) == "period_already_charged"
    one_key.end(other, REJECTED)
    assert told(one_key.ask(**bill)) == "vault_key_frozen"
    one_key.snapshot.lineages[LINEAGE] = Lineage(LINEAGE)
    assert told(one_key.ask(**bill)) == "too_many_unresolved"
    one_key.snapshot.unresolved[LINEAGE] = 0
    assert told(one_key.ask(**bill)) == "approval_required"
    assert told(one_key.ask(period="2026-10", amount=3000)) == "attempts_exhausted"
    assert told(one_key.ask(period="2026-09", amount=3000)) == "spend_cap_exceeded"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"revoked_at": 1}, "vault_key_revoked"),
        ({"expires_at": 1}, "vault_key_expired"),
    ],
)
def test_a_dead_key_is_refused_before_anything_else(change: dict[str, int], code: str) -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), made("ch_1"))
    one_key.snapshot.keys[KEY] = replace(one_key.snapshot.keys[KEY], **change)
    assert told(one_key.ask("june")) == code
    one_key.snapshot.keys.clear()
    assert told(one_key.ask("june")) == "vault_key_unknown"


def test_in_a_batch_each_intent_sees_the_ones_before_it() -> None:
    one_key = OneKey(BILLING.model_copy(update={"caps": CapRules(daily={"usd": 5_000})}))
    commands = [
        one_key.intend(period="2026-11"),
        one_key.intend(period="2026-11"),
        one_key.intend(period="2026-11", amount=3000),
        one_key.intend(period="2026-10", amount=3000),
        one_key.intend(period="2026-10", amount=2000),
    ]
    assert [told(each) for each in fold(one_key.snapshot, commands)] == [
        "proceed as K",
        "join",
        "period_already_charged",
        "spend_cap_exceeded",
        "proceed as K",
    ]


def test_a_skewed_clock_resends_nothing() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), LOST)
    one_key.snapshot.skewed = True
    assert told(one_key.ask("june")) == "outcome_unknown"


def test_what_an_operator_voided_gets_no_new_key_while_the_clocks_disagree() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), LOST)
    lost = one_key.snapshot.operations[FIRST]
    freed = replace(
        lost, state=State.VOIDED, held=0, empty_listings=3, lease_owner=None, next_read_at=None
    )
    one_key.snapshot.operations[FIRST] = freed
    one_key.snapshot.skewed = True
    assert told(one_key.ask("june")) == "ledger_unavailable"
    one_key.snapshot.skewed = False
    assert told(one_key.ask("june")) == "proceed as K"


def test_a_later_no_proves_nothing_while_an_earlier_send_is_open() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), LOST)
    for proof in (REJECTED, NEVER_SENT):
        assert one_key.end(one_key.ask("june"), proof).state.value == "unknown"
    after = one_key.end(one_key.ask("june"), declined())
    assert (after.state.value, after.held) == ("failed", 0)
    assert one_key.snapshot.attempts[FIRST, 1].outcome is AttemptOutcome.DECLINED
