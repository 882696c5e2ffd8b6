"""What a request is told that comes again: later, through another door, of another caller."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import OperationId
from kb_mcp.proxy.rules.command import Decision, Join, Proceed, Refuse
from kb_mcp.proxy.rules.decide import decide
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from tests.proxy.rules.one_key import BILLING, HOUR, KEY, LOST, MINUTE, OneKey, declined, made, told

FIRST = OperationId("op_1")


def test_a_key_ends_at_the_very_millisecond_it_says() -> None:
    for left, expected in ((0, "vault_key_expired"), (1, "proceed as K")):
        one_key = OneKey()
        ends = one_key.snapshot.now + left
        one_key.snapshot.keys[KEY] = replace(one_key.snapshot.keys[KEY], expires_at=ends)
        assert told(one_key.ask("june")) == expected


def test_a_keys_use_is_noted_at_most_once_a_minute() -> None:
    one_key = OneKey()
    began = one_key.snapshot.now
    one_key.ask("june")
    assert one_key.snapshot.keys[KEY].last_used_at == began
    one_key.pass_time(MINUTE - 1)
    assert one_key.ask("july").changes.keys == ()
    assert one_key.snapshot.keys[KEY].last_used_at == began
    one_key.pass_time(1)
    one_key.ask("june")
    assert one_key.snapshot.keys[KEY].last_used_at == began + MINUTE


def through(one_key: OneKey, endpoint: str, header: str | None = None, **fields: Any) -> Decision:
    """Decide a bill that comes in through another endpoint."""
    command = one_key.intend(header, **fields)
    reading = replace(command.reading, route=ENDPOINTS[endpoint])
    return decide(one_key.snapshot, replace(command, reading=reading))


def test_a_bill_is_told_to_nobody_who_asks_through_another_endpoint() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), made("ch_1"))
    asked = through(one_key, "POST /v1/payment_intents", period="2026-11")
    assert isinstance(asked, Refuse)
    assert asked.operation is not None
    assert told(asked) == "vault_key_not_authorized"
    assert "another endpoint" in asked.refusal.message
    assert told(through(one_key, "POST /v1/charges", period="2026-11")) == "replay"


def test_a_callers_own_key_tells_nothing_about_another_customer() -> None:
    one_key = OneKey(BILLING.model_copy(update={"idempotency": "caller"}))
    one_key.end(one_key.ask("june"), made("ch_1"))
    assert told(one_key.ask("june")) == "replay"
    assert told(one_key.ask("june", customer="cus_B2")) == "vault_key_not_authorized"


def marked(one_key: OneKey, **changes: Any) -> None:
    operation = one_key.snapshot.operations[FIRST]
    one_key.snapshot.operations[FIRST] = replace(operation, **changes)


def test_a_body_that_an_operator_waived_means_another_bill() -> None:
    one_key = OneKey()
    first = one_key.ask()
    one_key.end(first, made("ch_1"))
    marked(one_key, waived=True)
    second = one_key.ask()
    assert isinstance(first, Proceed)
    assert isinstance(second, Proceed)
    assert second.operation.generation == 1
    assert second.attempt.upstream_key != first.attempt.upstream_key


def test_a_reopened_bill_begins_anew_only_where_it_was_paid() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), made("ch_1"))
    marked(one_key, reopened=True, refunded_at=1, refund_read_at=one_key.snapshot.now + HOUR)
    assert told(one_key.ask(period="2026-11")) == "proceed as K-r1"
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), LOST)
    marked(one_key, reopened=True, refunded_at=1, refund_read_at=one_key.snapshot.now + HOUR)
    assert told(one_key.ask(period="2026-11")) == "proceed as K"


def test_a_body_whose_outcome_may_still_appear_begins_nothing_anew() -> None:
    one_key = OneKey()
    first = one_key.ask()
    one_key.end(first, LOST)
    one_key.void(FIRST)
    one_key.pass_time(20 * HOUR)
    again = one_key.ask()
    assert isinstance(first, Proceed)
    assert isinstance(again, Proceed)
    assert again.attempt.upstream_key == first.attempt.upstream_key
    assert again.operation.id == FIRST


def test_a_body_paid_late_in_its_window_is_not_charged_again_at_its_end() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(), declined())
    one_key.pass_time(20 * HOUR - MINUTE)
    one_key.end(one_key.ask(), made("ch_1"))
    one_key.pass_time(15 * MINUTE - 1)
    assert told(one_key.ask()) == "replay"
    one_key.pass_time(1)
    assert isinstance(one_key.ask(), Proceed)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, "outcome_unknown"), (402, "outcome_unknown"), (200, "replay"), (None, "replay")],
)
def test_a_no_is_no_answer_for_what_came_to_life_since(status: int | None, expected: str) -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), made("ch_1"))
    marked(one_key, final=False, answer_status=status)
    asked = one_key.ask("june")
    assert told(asked) == expected
    if isinstance(asked, Refuse):
        assert dict(asked.refusal.facts) == {"operation": FIRST, "charge_id": "ch_1"}
        leased = {"lease_owner": "me", "lease_until": one_key.snapshot.now + 1}
        marked(one_key, **leased)
        joined = one_key.ask("june")
        assert isinstance(joined, Join)
        assert joined.operation.id == FIRST


def test_a_request_that_waits_is_told_in_the_audit_once() -> None:
    one_key = OneKey()
    one_key.ask("june")
    (row,) = one_key.ask("june").changes.audit
    assert (row.kind, row.decision, row.operation_id) == ("decision", "join", FIRST)
    looking_again = replace(one_key.intend("june"), joined=True)
    decision = decide(one_key.snapshot, looking_again)
    assert isinstance(decision, Join)
    assert decision.changes.audit == ()
