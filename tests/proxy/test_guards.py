"""Guards: what may already be this bill, whatever it is called."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.guards import find_conflict, permits
from kb_mcp.proxy.ledger import Operation, OperationId
from kb_mcp.proxy.proofs import Proof
from tests.proxy.room import BILLING, HOUR, LOST, REJECTED, Room, declined, made, told

FIRST = OperationId("op_1")
CALLER = BILLING.model_copy(update={"idempotency": "caller"})


def conflict(room: Room, header: str | None = None, **fields: Any) -> str | None:
    found = find_conflict(room.standing, room.intend(header, **fields))
    return None if found is None else found[0].code.value


def change(room: Room, **fields: Any) -> Operation:
    changed = replace(room.standing.operations[FIRST], **fields)
    room.standing.operations[FIRST] = changed
    return changed


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"period": "2026-11"}, None),  # the same name: the decider's, not the guards'
        ({"period": "2026-11", "amount": 3000}, "period_already_charged"),
        ({"period": "2026-11", "currency": "eur"}, "period_already_charged"),
        ({"period": "2026-11", "customer": "cus_B2"}, None),
        ({"period": "2026-12"}, None),
        ({"period": "2026-12", "amount": 3000}, None),
        ({"period": "2026-Q4"}, "duplicate_suspected"),  # it holds November
        ({"period": "2026-Q4", "amount": 3000}, None),
        ({}, "duplicate_suspected"),
        ({"amount": 3000}, None),
        ({"currency": "eur"}, None),
    ],
)
def test_what_conflicts_with_a_charge_of_november(fields: dict[str, Any], code: str | None) -> None:
    room = Room()
    room.end(room.ask(period="2026-11"), made("ch_1"))
    assert conflict(room, **fields) == code


@pytest.mark.parametrize(
    ("proof", "live"),
    [(made("ch_1"), True), (LOST, True), (declined(), False), (REJECTED, False)],
)
def test_only_what_lives_stands_in_the_way(proof: Proof, live: bool) -> None:
    room = Room()
    room.end(room.ask(period="2026-11"), proof)
    assert (conflict(room, period="2026-11", amount=3000) is not None) is live


def test_a_voided_bill_stands_in_the_way_until_it_is_free() -> None:
    room = Room()
    room.end(room.ask(period="2026-11"), LOST)
    room.void(FIRST)
    assert conflict(room, period="2026-11", amount=3000) == "period_already_charged"
    assert conflict(room) == "duplicate_suspected"
    room.free(FIRST)
    assert conflict(room, period="2026-11", amount=3000) is None
    assert conflict(room) is None


def test_a_bill_without_a_period_is_suspected_within_the_window_or_while_unresolved() -> None:
    room = Room()
    room.end(room.ask("june"), made("ch_1"))
    window_ms = room.policy.duplicate_window_ms
    room.pass_time(window_ms - 1)
    assert conflict(room, "july") == "duplicate_suspected"
    room.pass_time(1)
    assert conflict(room, "july") is None
    room = Room()
    room.end(room.ask("june"), LOST)
    room.pass_time(window_ms + HOUR)
    assert conflict(room, "july") == "duplicate_suspected"


def test_a_caller_who_names_its_bills_is_not_suspected_without_a_period() -> None:
    room = Room(policy=CALLER)
    room.end(room.ask("one"), made("ch_1"))
    assert conflict(room, "two") is None
    room.end(room.ask("three", period="2026-11", amount=50), made("ch_2"))
    assert conflict(room, "four", period="2026-11", amount=60) == "period_already_charged"


def test_a_reference_makes_another_bill_of_one_period() -> None:
    room = Room()
    room.end(room.ask(period="2026-11"), made("ch_1"))
    extra: dict[str, Any] = {"period": "2026-11", "amount": 3000, "metadata[reference]": "seat-2"}
    assert conflict(room, **extra) is None
    room.end(room.ask(**extra), made("ch_2"))
    assert conflict(room, **{**extra, "amount": 3100}) == "period_already_charged"


def test_a_reopened_bill_and_a_waived_suspicion_let_one_pass() -> None:
    room = Room()
    room.end(room.ask(period="2026-11"), made("ch_1"))
    reopened = change(room, reopened=True)
    intent = room.intend(period="2026-11", amount=3000)
    assert find_conflict(room.standing, intent) is None
    assert permits(room.standing, intent) == [reopened]
    waived = change(room, reopened=False, waived=True)
    # Waived is a suspicion only: its own period is charged.
    assert conflict(room, period="2026-11", amount=3000) == "period_already_charged"
    assert permits(room.standing, room.intend("july")) == [waived]
    assert told(room.ask("july")) == "proceed as K"
    assert room.standing.operations[FIRST].waived is False
    assert conflict(room, "august") == "duplicate_suspected"


def test_an_older_generation_guards_no_more() -> None:
    room = Room()
    room.end(room.ask(period="2026-11"), made("ch_1"))
    change(room, reopened=True)
    assert told(room.ask(period="2026-11")) == "proceed as K-r1"
    assert conflict(room, period="2026-11", amount=3000) == "period_already_charged"


def test_a_refusal_names_the_charge_or_the_operation() -> None:
    room = Room()
    room.end(room.ask(period="2026-11"), made("ch_1"))
    found = find_conflict(room.standing, room.intend(period="2026-11", amount=3000))
    assert found is not None
    facts = found[0].facts
    assert (facts["operation"], facts["charge_id"], facts["amount"], facts["currency"]) == (
        FIRST, "ch_1", 2900, "usd",
    )  # fmt: skip
    assert (facts["billing_period"], facts["state"]) == ("2026-11", "succeeded")
    assert "ch_1, 29.00 USD" in found[0].message
    room = Room()
    room.end(room.ask(period="2026-11"), LOST)
    found = find_conflict(room.standing, room.intend(period="2026-11", amount=3000))
    assert found is not None
    assert "operation op_1, whose outcome is unknown, 29.00 USD" in found[0].message
