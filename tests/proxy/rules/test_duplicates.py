"""Guards: what may already be this bill, whatever it is called."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import Operation, OperationId
from kb_mcp.proxy.rules.command import Command, Refuse
from kb_mcp.proxy.rules.duplicates import find_conflict, permits
from kb_mcp.proxy.rules.reserve import new_operation
from kb_mcp.proxy.stripe.evidence import Proof
from tests.proxy.rules.one_key import BILLING, HOUR, LOST, REJECTED, OneKey, declined, made, told

FIRST = OperationId("op_1")
CALLER = BILLING.model_copy(update={"idempotency": "caller"})


def found(one_key: OneKey, header: str | None = None, **fields: Any) -> Refuse | None:
    """Look for what stands in the way of what would be asked for next."""
    command = one_key.intend(header, **fields)
    asked = operation_of(one_key, command)
    return find_conflict(one_key.snapshot, command, asked)


def operation_of(one_key: OneKey, command: Command) -> Operation:
    """Return the operation that `command` is about: the newest of its name, or a new one."""
    newest = one_key.snapshot.newest(command.name)
    return newest or new_operation(one_key.snapshot, command, None)


def conflict(one_key: OneKey, header: str | None = None, **fields: Any) -> str | None:
    conflicting = found(one_key, header, **fields)
    return None if conflicting is None else conflicting.refusal.code.value


def change(one_key: OneKey, **fields: Any) -> Operation:
    changed = replace(one_key.snapshot.operations[FIRST], **fields)
    one_key.snapshot.operations[FIRST] = changed
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
        ({"period": "2026-Q4"}, "period_already_charged"),  # it holds November
        ({"period": "2026-Q4", "amount": 3000}, "period_already_charged"),
        ({"period": "2026-Q4", "currency": "eur"}, "period_already_charged"),
        ({"period": "2026-Q4", "customer": "cus_B2"}, None),
        ({"period": "2026-Q4", "metadata[reference]": "seat-2"}, None),
        ({"period": "2026-Q3", "amount": 3000}, None),
        ({"period": "2026-11-30/2026-12-30", "amount": 3000}, "period_already_charged"),
        ({"description": "Subscription 2026-W45", "amount": 1}, "period_already_charged"),
        ({}, "duplicate_suspected"),
        ({"amount": 3000}, None),
        ({"currency": "eur"}, None),
    ],
)
def test_what_conflicts_with_a_charge_of_november(fields: dict[str, Any], code: str | None) -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), made("ch_1"))
    assert conflict(one_key, **fields) == code


@pytest.mark.parametrize(
    ("proof", "live"),
    [(made("ch_1"), True), (LOST, True), (declined(), False), (REJECTED, False)],
)
def test_only_what_lives_stands_in_the_way(proof: Proof, live: bool) -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), proof)
    assert (conflict(one_key, period="2026-11", amount=3000) is not None) is live


def test_a_voided_bill_stands_in_the_way_until_it_is_free() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), LOST)
    one_key.void(FIRST)
    assert conflict(one_key, period="2026-11", amount=3000) == "period_already_charged"
    assert conflict(one_key) == "duplicate_suspected"
    one_key.free(FIRST)
    assert conflict(one_key, period="2026-11", amount=3000) is None
    assert conflict(one_key) is None


def test_a_bill_without_a_period_is_suspected_within_the_window_or_while_unresolved() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), made("ch_1"))
    window_ms = one_key.policy.duplicate_window_ms
    one_key.pass_time(window_ms - 1)
    assert conflict(one_key, "july") == "duplicate_suspected"
    one_key.pass_time(1)
    assert conflict(one_key, "july") is None
    one_key = OneKey()
    one_key.end(one_key.ask("june"), LOST)
    one_key.pass_time(window_ms + HOUR)
    assert conflict(one_key, "july") == "duplicate_suspected"


def test_a_caller_who_names_its_bills_is_not_suspected_without_a_period() -> None:
    one_key = OneKey(policy=CALLER)
    one_key.end(one_key.ask("one"), made("ch_1"))
    assert conflict(one_key, "two") is None
    one_key.end(one_key.ask("three", period="2026-11", amount=50), made("ch_2"))
    assert conflict(one_key, "four", period="2026-11", amount=60) == "period_already_charged"


def test_a_reference_makes_another_bill_of_one_period() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), made("ch_1"))
    extra: dict[str, Any] = {"period": "2026-11", "amount": 3000, "metadata[reference]": "seat-2"}
    assert conflict(one_key, **extra) is None
    one_key.end(one_key.ask(**extra), made("ch_2"))
    assert conflict(one_key, **{**extra, "amount": 3100}) == "period_already_charged"


def reopened(one_key: OneKey, **fields: Any) -> Operation:
    now = one_key.snapshot.now
    read = {"refunded_at": now, "refund_read_at": now + HOUR}
    return change(one_key, reopened=True, **read, **fields)


def test_a_reopened_bill_and_a_waived_suspicion_let_one_pass() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), made("ch_1"))
    bill = reopened(one_key, permit_amount=3000)
    command = one_key.intend(period="2026-11", amount=3000)
    asked = operation_of(one_key, command)
    assert find_conflict(one_key.snapshot, command, asked) is None
    assert permits(one_key.snapshot, command, asked) == [bill]
    for other in ({"amount": 2900}, {"amount": 2999}, {"currency": "eur", "amount": 3000}):
        assert told(one_key.ask(period="2026-11", **other)) == "period_already_charged"
    waived = change(one_key, reopened=False, refunded_at=None, waived=True)
    # Waived is a suspicion only: its own period is charged.
    assert conflict(one_key, period="2026-11", amount=3000) == "period_already_charged"
    command = one_key.intend("july")
    asked = operation_of(one_key, command)
    assert permits(one_key.snapshot, command, asked) == [waived]
    assert told(one_key.ask("july")) == "proceed as K"
    assert one_key.snapshot.operations[FIRST].successor is not None
    assert conflict(one_key, "august") == "duplicate_suspected"


def test_whoever_took_a_permit_may_be_tried_again_and_nobody_else() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask("june"), made("ch_1"))
    change(one_key, waived=True)
    one_key.end(one_key.ask("july"), declined())
    one_key.pass_time(one_key.policy.decline_retry_after_ms)
    assert told(one_key.ask("august")) == "duplicate_suspected"
    assert told(one_key.ask("july")) == "proceed as K-2"


def test_the_newest_generation_speaks_for_the_bill() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), made("ch_1"))
    reopened(one_key)
    again = one_key.ask(period="2026-11")
    assert told(again) == "proceed as K-r1"
    refused = found(one_key, period="2026-11", amount=3000)
    assert refused is not None
    assert refused.operation == again.operation
    one_key.end(again, declined())
    # What was given back counts as charged, whatever came of the bill in its place.
    refused = found(one_key, period="2026-11", amount=3000)
    assert refused is not None
    assert (refused.refusal.code, refused.refusal.facts["operation"]) == (
        "period_already_charged",
        FIRST,
    )


def test_a_refusal_names_the_charge_or_the_operation() -> None:
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), made("ch_1"))
    refused = found(one_key, period="2026-11", amount=3000)
    assert refused is not None
    facts = refused.refusal.facts
    assert (facts["operation"], facts["charge_id"], facts["amount"], facts["currency"]) == (
        FIRST, "ch_1", 2900, "usd",
    )  # fmt: skip
    assert (facts["billing_period"], facts["state"]) == ("2026-11", "succeeded")
    assert "ch_1, 29.00 USD for 2026-11" in refused.refusal.message
    one_key = OneKey()
    one_key.end(one_key.ask(period="2026-11"), LOST)
    refused = found(one_key, period="2026-11", amount=3000)
    assert refused is not None
    assert "operation op_1, whose outcome is unknown, 29.00 USD" in refused.refusal.message
