"""A comparison of ledger and charges needs only the operations that it says it wants."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.operators.reports.reconcile import needed, reconcile
from kb_mcp.proxy.ledger.records import Operation, OperationId, State
from tests.operators.reports.test_invariants import OPERATION

SINCE = 1_000


def operation(name: str, **changed: Any) -> Operation:
    made = replace(OPERATION, id=OperationId(name), object_id=f"ch_{name}", reserved_at=SINCE)
    return replace(made, **changed)


def charge(name: str, **changed: Any) -> dict[str, Any]:
    plain = {"id": name, "status": "succeeded", "amount": 2900, "currency": "usd"}
    return plain | {"customer": None} | changed


LEDGER = (
    operation("same"),
    operation("unlisted"),
    operation("old", reserved_at=SINCE - 1),
    operation("old_but_listed", reserved_at=SINCE - 1, amount=1),
    operation("by_intent", object_id="pi_1"),
    operation("marked", state=State.FAILED, object_id=None),
    operation("failed", state=State.FAILED),
    operation("other_route", route="POST /v1/refunds"),
    operation("open", object_id=None, state=State.UNKNOWN),
)
CHARGES = (
    charge("ch_same"),
    charge("ch_old_but_listed"),
    charge("ch_new"),
    charge("ch_x", payment_intent="pi_1", amount=5),
    charge("ch_marked", metadata={"keybrake_operation": "marked"}),
    charge("ch_bad", status="failed"),
)


@pytest.mark.parametrize("listed", [CHARGES, CHARGES[:1], CHARGES[3:], ()])
def test_a_comparison_of_what_is_wanted_says_what_one_of_everything_says(
    listed: tuple[dict[str, Any], ...],
) -> None:
    wanted = needed(listed, SINCE)
    kept = [each for each in LEDGER if wanted(each)]
    assert reconcile(kept, listed, SINCE) == reconcile(LEDGER, listed, SINCE)
    assert {"old", "failed", "other_route", "open"}.isdisjoint(each.id for each in kept)


def test_an_authorisation_that_was_let_go_of_agrees_with_a_bill_that_failed() -> None:
    released = charge("ch_x", payment_intent="pi_1", captured=False, refunded=True)
    failed = operation("by_intent", object_id="pi_1", state=State.FAILED)
    assert reconcile([failed], [released], SINCE).differing == ()
    held = charge("ch_x", payment_intent="pi_1", captured=False, refunded=False)
    assert reconcile([failed], [held], SINCE).differing
