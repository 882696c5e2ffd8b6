"""What a request is told that comes again: later, through another door, of another caller."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.decide import decide
from kb_mcp.proxy.decisions import Decision, Join, Proceed, Refuse
from kb_mcp.proxy.ledger import OperationId
from kb_mcp.proxy.routes import ENDPOINTS
from tests.proxy.room import BILLING, HOUR, KEY, LOST, MINUTE, Room, declined, made, told

FIRST = OperationId("op_1")


def test_a_key_ends_at_the_very_millisecond_it_says() -> None:
    for left, expected in ((0, "vault_key_expired"), (1, "proceed as K")):
        room = Room()
        ends = room.standing.now + left
        room.standing.keys[KEY] = replace(room.standing.keys[KEY], expires_at=ends)
        assert told(room.ask("june")) == expected


def test_a_keys_use_is_noted_at_most_once_a_minute() -> None:
    room = Room()
    began = room.standing.now
    room.ask("june")
    assert room.standing.keys[KEY].last_used_at == began
    room.pass_time(MINUTE - 1)
    assert room.ask("july").changes.keys == ()
    assert room.standing.keys[KEY].last_used_at == began
    room.pass_time(1)
    room.ask("june")
    assert room.standing.keys[KEY].last_used_at == began + MINUTE


def through(room: Room, endpoint: str, header: str | None = None, **fields: Any) -> Decision:
    """Decide a bill that comes in through another endpoint."""
    intent = room.intend(header, **fields)
    reading = replace(intent.reading, route=ENDPOINTS[endpoint])
    return decide(room.standing, replace(intent, reading=reading))


def test_a_bill_is_told_to_nobody_who_asks_through_another_endpoint() -> None:
    room = Room()
    room.end(room.ask(period="2026-11"), made("ch_1"))
    asked = through(room, "POST /v1/payment_intents", period="2026-11")
    assert isinstance(asked, Refuse)
    assert asked.operation is not None
    assert told(asked) == "vault_key_not_authorized"
    assert "another endpoint" in asked.refusal.message
    assert told(through(room, "POST /v1/charges", period="2026-11")) == "replay"


def test_a_callers_own_key_tells_nothing_about_another_customer() -> None:
    room = Room(BILLING.model_copy(update={"idempotency": "caller"}))
    room.end(room.ask("june"), made("ch_1"))
    assert told(room.ask("june")) == "replay"
    assert told(room.ask("june", customer="cus_B2")) == "vault_key_not_authorized"


def marked(room: Room, **changes: Any) -> None:
    operation = room.standing.operations[FIRST]
    room.standing.operations[FIRST] = replace(operation, **changes)


def test_a_body_that_an_operator_waived_means_another_bill() -> None:
    room = Room()
    first = room.ask()
    room.end(first, made("ch_1"))
    marked(room, waived=True)
    second = room.ask()
    assert isinstance(first, Proceed)
    assert isinstance(second, Proceed)
    assert second.operation.generation == 1
    assert second.attempt.upstream_key != first.attempt.upstream_key


def test_a_reopened_bill_begins_anew_only_where_it_was_paid() -> None:
    room = Room()
    room.end(room.ask(period="2026-11"), made("ch_1"))
    marked(room, reopened=True)
    assert told(room.ask(period="2026-11")) == "proceed as K-r1"
    room = Room()
    room.end(room.ask(period="2026-11"), LOST)
    marked(room, reopened=True)
    assert told(room.ask(period="2026-11")) == "proceed as K"


def test_a_body_whose_outcome_may_still_appear_begins_nothing_anew() -> None:
    room = Room()
    first = room.ask()
    room.end(first, LOST)
    room.void(FIRST)
    room.pass_time(20 * HOUR)
    again = room.ask()
    assert isinstance(first, Proceed)
    assert isinstance(again, Proceed)
    assert again.attempt.upstream_key == first.attempt.upstream_key
    assert again.operation.id == FIRST


def test_a_body_paid_late_in_its_window_is_not_charged_again_at_its_end() -> None:
    room = Room()
    room.end(room.ask(), declined())
    room.pass_time(20 * HOUR - MINUTE)
    room.end(room.ask(), made("ch_1"))
    room.pass_time(15 * MINUTE - 1)
    assert told(room.ask()) == "replay"
    room.pass_time(1)
    assert isinstance(room.ask(), Proceed)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, "outcome_unknown"), (402, "outcome_unknown"), (200, "replay"), (None, "replay")],
)
def test_a_no_is_no_answer_for_what_came_to_life_since(status: int | None, expected: str) -> None:
    room = Room()
    room.end(room.ask("june"), made("ch_1"))
    marked(room, final=False, answer_status=status)
    asked = room.ask("june")
    assert told(asked) == expected
    if isinstance(asked, Refuse):
        assert dict(asked.refusal.facts) == {"operation": FIRST, "charge_id": "ch_1"}
        leased = {"lease_owner": "me", "lease_until": room.standing.now + 1}
        marked(room, **leased)
        joined = room.ask("june")
        assert isinstance(joined, Join)
        assert joined.operation.id == FIRST


def test_a_request_that_waits_is_told_in_the_audit_once() -> None:
    room = Room()
    room.ask("june")
    (row,) = room.ask("june").changes.audit
    assert (row.kind, row.decision, row.operation_id) == ("decision", "join", FIRST)
    looking_again = replace(room.intend("june"), joined=True)
    decision = decide(room.standing, looking_again)
    assert isinstance(decision, Join)
    assert decision.changes.audit == ()
