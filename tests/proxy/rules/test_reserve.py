"""What a reservation leaves behind, and what every other decision says about the operation."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.access.policy import CapRules
from kb_mcp.proxy.ledger.records import AttemptOutcome, Lineage, OperationId
from kb_mcp.proxy.ledger.windows import windows_of
from kb_mcp.proxy.rules.command import Join, Proceed, Refuse, Replay
from kb_mcp.proxy.rules.decide import RUNTIME_RETRY_MS
from kb_mcp.proxy.rules.reserve import RESEND_WITHIN_MS
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
    made,
    told,
)

FIRST = OperationId("op_1")


def test_a_reservation_is_whole_before_anything_is_sent() -> None:
    one_key = OneKey()
    go = one_key.ask(period="2026-11", **{"metadata[reference]": "seat-2"})
    assert isinstance(go, Proceed)
    operation, attempt, now = go.operation, go.attempt, one_key.snapshot.now
    assert (operation.state.value, operation.held, operation.reserved_at) == ("reserved", 2900, now)
    assert (operation.customer, operation.amount, operation.currency) == ("cus_A1", 2900, "usd")
    assert (operation.period, operation.reference) == ("2026-11", "seat-2")
    assert (operation.period_start, operation.period_end) == ("2026-11-01", "2026-11-30")
    assert (operation.lease_owner, operation.lease_token) == ("me", 1)
    assert operation.lease_until == now + 35_000
    assert (operation.key_id, operation.lineage_id) == (KEY, LINEAGE)
    assert operation.first_arrival_at == operation.created_at == operation.updated_at == now
    assert (operation.route, operation.attempt, operation.generation) == ("POST /v1/charges", 1, 0)
    assert (attempt.upstream_key, attempt.path) == (operation.upstream_name, "/v1/charges")
    assert (attempt.sends, attempt.open_sends, attempt.outcome) == (1, 1, AttemptOutcome.OPEN)
    assert attempt.first_sent_at == attempt.last_sent_at == now
    windows = [one_key.snapshot.window(key) for key in windows_of(operation).all()]
    assert [(each.reserved, each.settled, each.sends) for each in windows] == [
        (2900, 0, 0), (2900, 0, 0), (2900, 0, 0), (0, 0, 1), (2900, 0, 0),
    ]  # fmt: skip


def test_a_resend_changes_the_send_and_nothing_else() -> None:
    one_key = OneKey()
    first = one_key.ask("june")
    assert isinstance(first, Proceed)
    one_key.end(first, LOST)
    one_key.pass_time(MINUTE)
    again = one_key.ask("june")
    assert isinstance(again, Proceed)
    assert again.attempt == replace(
        first.attempt, sends=2, open_sends=2, last_sent_at=one_key.snapshot.now
    )
    windows = [one_key.snapshot.window(key) for key in windows_of(again.operation).money()]
    assert {each.reserved for each in windows} == {2900}
    assert (again.operation.lease_token, again.operation.lease_until) == (
        first.operation.lease_token + 1, one_key.snapshot.now + 35_000,
    )  # fmt: skip


def test_an_attempt_that_was_never_sent_is_open_again_when_it_is() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), NEVER_SENT)
    again = one_key.ask("june")
    assert isinstance(again, Proceed)
    assert (again.attempt.outcome, again.attempt.number) == (AttemptOutcome.OPEN, 1)
    # What is sent when Stripe may have forgotten the key has a new one.
    one_key.end(again, NEVER_SENT)
    one_key.pass_time(RESEND_WITHIN_MS)
    assert told(one_key.ask("june")) == "proceed as K-2"


def test_a_new_attempt_takes_new_values_and_a_new_day() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), REJECTED)
    one_key.pass_time(24 * HOUR)
    again = one_key.ask("june", amount=3100)
    assert isinstance(again, Proceed)
    assert (again.operation.id, again.operation.amount, again.operation.held) == (FIRST, 3100, 3100)
    assert again.operation.reserved_at == one_key.snapshot.now
    assert (again.operation.code, again.operation.period) == (None, None)
    assert again.attempt.upstream_key.endswith("-2")


Before = Callable[[OneKey], object]


def reserved(one_key: OneKey) -> None:
    one_key.ask("june")


def charged(one_key: OneKey) -> None:
    one_key.end(one_key.ask("june"), made("ch_1"))


def refused_by_the_bank(one_key: OneKey) -> None:
    one_key.end(one_key.ask("june"), declined())


def lost_for_a_day(one_key: OneKey) -> None:
    one_key.end(one_key.ask("june"), LOST)
    one_key.pass_time(23 * HOUR)


def voided(one_key: OneKey) -> None:
    one_key.end(one_key.ask("june"), LOST)
    one_key.void(FIRST)


def voided_for_a_day(one_key: OneKey) -> None:
    voided(one_key)
    one_key.pass_time(23 * HOUR)


FACTS: list[tuple[str, Before, dict[str, object]]] = [
    ("join", reserved, {}),
    ("replay", charged, {}),
    ("replay", refused_by_the_bank, {}),
    ("idempotency_key_reused", reserved, {"amount": 1}),
    ("idempotency_key_reused", charged, {"amount": 1}),
    ("outcome_unknown", lost_for_a_day, {}),
    ("idempotency_key_reused", voided, {"amount": 1}),
    ("outcome_unknown", voided_for_a_day, {}),
]


def test_a_reservation_after_a_void_forgets_what_was_listed() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), LOST)
    one_key.void(FIRST)
    go = one_key.ask("june")
    assert isinstance(go, Proceed)
    again = go.operation
    assert (again.voided_at, again.empty_listings, again.next_read_at) == (None, 0, None)
    assert (again.code, again.held, again.live) == (None, 2900, True)


@pytest.mark.parametrize(("word", "before", "changed"), FACTS)
def test_every_decision_names_the_operation_it_is_about(
    word: str, before: Before, changed: dict[str, object]
) -> None:
    one_key = OneKey()
    before(one_key)
    decision = one_key.ask("june", **changed)
    assert told(decision) == word
    operation = one_key.snapshot.operations[FIRST]
    assert isinstance(decision, Join | Replay | Refuse)
    assert decision.operation == operation
    if isinstance(decision, Refuse):
        assert decision.refusal.facts["operation"] == FIRST
        assert decision.refusal.facts["charge_id"] == operation.object_id
    row = one_key.snapshot.dirty.audit[-1]
    assert (row.kind, row.decision) == ("decision", type(decision).__name__.lower())
    assert (row.operation_id, row.attempt, row.object_id) == (FIRST, 1, operation.object_id)
    assert (row.amount, row.currency, row.customer_id) == (
        changed.get("amount", 2900), "usd", "cus_A1",
    )  # fmt: skip
    assert row.code == (word if isinstance(decision, Refuse) else None)


def test_another_way_to_pay_for_a_charged_period_names_the_charge() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), made("ch_1"))
    refused = one_key.ask(period="2026-11", payment_method="pm_2")
    assert isinstance(refused, Refuse)
    assert (told(refused), refused.operation) == (
        "period_already_charged", one_key.snapshot.operations[FIRST],
    )  # fmt: skip
    assert refused.refusal.facts["charge_id"] == "ch_1"


def test_a_decline_is_replayed_even_to_a_key_that_froze_since() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), declined())
    one_key.snapshot.lineages[LINEAGE] = Lineage(LINEAGE, frozen_at=1)
    assert told(one_key.ask("june")) == "replay"
    assert told(one_key.ask("june", amount=3100)) == "vault_key_frozen"


def test_a_late_body_is_told_apart_only_where_an_sdk_made_both_keys() -> None:
    first, second = (str(uuid.UUID(int=number, version=4)) for number in (1, 2))
    for header, again, late in (
        (first, second, "duplicate_suspected"), (first, first, "replay"), (first, None, "replay"),
        (None, None, "replay"), (None, first, "duplicate_suspected"),
    ):  # fmt: skip
        for passed, expected in ((RUNTIME_RETRY_MS, "replay"), (RUNTIME_RETRY_MS + 1, late)):
            one_key = OneKey()
            one_key.end(one_key.ask(header), made("ch_1"))
            one_key.pass_time(passed)
            decision = one_key.ask(again)
            assert told(decision) == expected
            if isinstance(decision, Refuse):
                assert decision.operation == one_key.snapshot.operations[FIRST]
            # What was answered once is answered so again.
            one_key.pass_time(1)
            assert told(one_key.ask(again)) == expected
    # A name that says what is billed is replayed for ever.
    one_key = OneKey()
    one_key.end(one_key.ask(first, period="2026-11"), made("ch_1"))
    one_key.pass_time(HOUR)
    assert told(one_key.ask(second, period="2026-11")) == "replay"


def test_nothing_is_reserved_where_a_check_says_no() -> None:
    caps = BILLING.model_copy(update={"caps": CapRules(daily={"usd": 1})})
    for policy, change in (
        (caps, {}), (BILLING, {"turning": True}),
        (BILLING, {"lineages": {LINEAGE: Lineage(LINEAGE, frozen_at=1)}}),
        (BILLING, {"unresolved": {LINEAGE: BILLING.max_unresolved}}),
    ):  # fmt: skip
        one_key = OneKey(policy=policy)
        for name, value in change.items():
            setattr(one_key.snapshot, name, value)
        refused = one_key.ask("june")
        assert isinstance(refused, Refuse)
        assert refused.operation is None
        assert (one_key.snapshot.operations, one_key.snapshot.attempts) == ({}, {})
        assert not any(each.reserved or each.sends for each in one_key.snapshot.windows.values())


def test_a_key_may_have_one_less_than_its_unresolved_at_most() -> None:
    one_key = OneKey()
    one_key.snapshot.unresolved[LINEAGE] = BILLING.max_unresolved - 1
    assert told(one_key.ask("june")) == "proceed as K"


def test_attempts_are_exhausted_after_so_many_declines_and_say_how_many() -> None:
    one_key = OneKey(policy=BILLING.model_copy(update={"max_attempts": 2}))
    for suffix in ("", "-2"):
        go = one_key.ask("june")
        assert told(go) == f"proceed as K{suffix}"
        one_key.end(go, declined())
        one_key.pass_time(one_key.policy.decline_retry_after_ms - 1)
        assert told(one_key.ask("june")) == "replay"
        one_key.pass_time(1)
    refused = one_key.ask("june")
    assert isinstance(refused, Refuse)
    assert told(refused) == "attempts_exhausted"
    assert (refused.refusal.facts["declines"], refused.refusal.facts["operation"]) == (2, FIRST)
    assert refused.operation == one_key.snapshot.operations[FIRST]
