from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.operators.actions.adopt import NOBODY, operation_of, period_of
from kb_mcp.operators.actions.adoption import adopt
from kb_mcp.operators.actions.operations import NotDone
from kb_mcp.proxy.ledger.records import Changes, KeyId, NamedBy, OperationId, Refs
from tests.in_process_proxy import InProcessProxy

CHARGE: dict[str, Any] = {
    "id": "ch_1",
    "amount": 2900,
    "currency": "usd",
    "customer": "cus_Abc123",
    "created": 1_780_000_000,
    "status": "succeeded",
    "captured": True,
    "description": "Subscription 2026-06",
    "metadata": {"month": "June 2026", "odd": "June"},
}
MARKS = {
    "keybrake_operation": "op_0123456789abcdef01234567",
    "keybrake_attempt": "38de2d05855909930dc2287649e68ba3-2",
    "keybrake_key": "lineage1",
    "billing_period": "2026-05",
}


@pytest.mark.parametrize(
    ("metadata", "period_from", "label"),
    [
        ({}, "description", "2026-06"),
        ({"month": "June 2026"}, "metadata:month", "2026-06"),
        ({"month": "June"}, "metadata:month", "unreadable"),
        ({}, "metadata:month", "unreadable"),
        ({}, "created", "2026-05"),
        ({}, "none", None),
        (MARKS, "none", "2026-05"),
        ({"billing_period": "2026-05"}, "none", None),
    ],
)
def test_a_charge_says_its_period_where_it_was_told_to(
    metadata: dict[str, str], period_from: str, label: str | None
) -> None:
    period = period_of(CHARGE | {"metadata": metadata}, period_from)
    if isinstance(period, NotDone):
        assert label == "unreadable"
    else:
        assert (None if period is None else period.label) == label


def test_a_charge_of_ours_gets_its_operation_its_name_and_its_key_back() -> None:
    charge = CHARGE | {"metadata": MARKS | {"billing_period": "2026-06"}}
    period = period_of(charge, "none")
    assert not isinstance(period, NotDone)
    found, attempt = operation_of(
        charge, period, {"lineage1": KeyId("key1")}, 7, OperationId("op_x")
    )
    # The name is the known value of the contract.
    assert (found.id, found.name) == (MARKS["keybrake_operation"], MARKS["keybrake_attempt"][:32])
    assert (found.lineage_id, found.key_id) == ("lineage1", "key1")
    assert (found.upstream_name, attempt.upstream_key) == (found.name, MARKS["keybrake_attempt"])


def test_a_foreign_charge_counts_as_nobodys_and_is_named_by_itself() -> None:
    found, _ = operation_of(CHARGE, None, {}, 7, OperationId("op_x"))
    assert (found.id, found.lineage_id, found.named_by) == ("op_x", NOBODY, NamedBy.EXPLICIT)
    assert (found.held, found.overshoot, found.final) == (2900, True, True)
    assert found.reserved_at == 1_780_000_000_000


def test_the_charge_of_an_intent_is_known_by_its_intent() -> None:
    charge = CHARGE | {"payment_intent": "pi_1", "captured": False}
    found, _ = operation_of(charge, None, {}, 7, OperationId("op_x"))
    assert (found.route, found.object_id) == ("POST /v1/payment_intents", "pi_1")
    assert (found.final, found.next_read_at, found.answer) == (False, 7, None)


def test_an_operation_that_is_being_sent_or_looked_up_is_left(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        in_process.fault("drop_before")
        in_process.charge(in_process.issue())
        (operation,) = in_process.operations()
        ledger = in_process.proxy.store.ledger
        until = operation.updated_at + 10 * 60_000
        leased = replace(operation, lease_owner="elsewhere", lease_until=until)
        refs = Refs(operations=frozenset({operation.id}))
        in_process.run(
            ledger.transact(lambda _: refs, lambda _: (None, Changes(operations=(leased,))))
        )
        found, attempt = operation_of(CHARGE, None, {}, operation.updated_at, operation.id)
        left = in_process.run(adopt(ledger, found, attempt, "ann"))
        assert left == NotDone("it is being sent or looked up: run this again later")
        assert in_process.operations() == [leased]


def test_an_object_that_another_operation_has_is_left(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        made = in_process.charge(key).json()["id"]
        in_process.fault("drop_before")
        in_process.charge(key, customer="cus_B2")
        unknown, owner = in_process.operations()
        found, attempt = operation_of(CHARGE | {"id": made}, None, {}, 7, unknown.id)
        ledger = in_process.proxy.store.ledger
        left = in_process.run(adopt(ledger, found, attempt, "ann"))
        assert left == NotDone(f"operation {owner.id} has it")
        assert in_process.operations() == [unknown, owner]
