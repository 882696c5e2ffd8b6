from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from msgspec import Struct
from msgspec.structs import replace

from kb_mcp.operators.reports.invariants import Examination
from kb_mcp.proxy.access.policy import CapRules, Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.ledger.records import (
    Attempt,
    AttemptOutcome,
    KeyId,
    LineageId,
    NamedBy,
    Operation,
    OperationId,
    State,
    Window,
    WindowKey,
)

LINEAGE = LineageId("k1")
OPERATION = Operation(
    id=OperationId("op_1"),
    name="n",
    named_by=NamedBy.CONTENT,
    route="POST /v1/charges",
    customer=None,
    amount=2900,
    currency="usd",
    period=None,
    reference=None,
    fingerprint="f",
    upstream_name="n",
    state=State.SUCCEEDED,
    held=2900,
    first_arrival_at=0,
    key_id=KeyId("k1"),
    lineage_id=LINEAGE,
    object_id="ch_1",
    created_at=0,
    updated_at=0,
)
ATTEMPT = Attempt(
    operation_id=OPERATION.id,
    number=1,
    upstream_key="n",
    path="/v1/charges",
    stripe_version=None,
    body=b"",
    first_sent_at=0,
    last_sent_at=0,
    outcome=AttemptOutcome.SUCCEEDED,
    key_id=KeyId("k1"),
)
WINDOWS = tuple(
    Window(WindowKey(scope, owner, window, "1970-01-01", "usd"), settled=2900)
    for scope, owner, window in (
        ("account", "", "day"),
        ("key", "k1", "day"),
        ("key", "k1", "month"),
    )
)
POLICY = built_in("billing").model_copy(update={"caps": CapRules(daily={"usd": 3000})})


class Facts(Struct, frozen=True, kw_only=True):
    """A small ledger."""

    operations: Sequence[tuple[Operation, list[Attempt]]]
    windows: Sequence[Window]
    policies: Mapping[LineageId, Sequence[Policy]]
    ceilings: Mapping[str, int]
    audited: bool


def violations(facts: Facts) -> list[str]:
    examination = Examination()
    for operation, attempts in facts.operations:
        examination.look(operation, attempts, audited=facts.audited)
    return examination.end(facts.windows, facts.policies, facts.ceilings)


SOUND = Facts(
    operations=[(OPERATION, [ATTEMPT])],
    windows=WINDOWS,
    policies={LINEAGE: [POLICY]},
    ceilings={"usd": 2900},
    audited=True,
)


def test_a_sound_ledger_violates_nothing() -> None:
    assert violations(SOUND) == []


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (replace(SOUND, ceilings={"usd": 2899}), "account day"),
        (replace(SOUND, audited=False), "no decision in the audit"),
        (replace(SOUND, windows=WINDOWS[1:]), "says settled 0"),
        (
            replace(SOUND, windows=[replace(each, reserved=1) for each in WINDOWS]),
            "says reserved 1",
        ),
        (
            replace(SOUND, operations=[(OPERATION, [ATTEMPT, replace(ATTEMPT, number=2)])]),
            "2 succeeded attempts",
        ),
        (
            replace(SOUND, operations=[(replace(OPERATION, object_id=None), [ATTEMPT])]),
            "without an object",
        ),
        (
            replace(SOUND, operations=[(replace(OPERATION, state=State.VOIDED), [ATTEMPT])]),
            "is voided and holds 2900",
        ),
    ],
)
def test_each_violation_is_told(broken: Facts, told: str) -> None:
    assert any(told in sentence for sentence in violations(broken))


def test_a_late_charge_may_go_over_its_cap() -> None:
    late = replace(OPERATION, overshoot=True)
    over = replace(SOUND, operations=[(late, [ATTEMPT])], ceilings={"usd": 1})
    assert violations(over) == []


def test_what_was_never_sent_needs_no_decision_in_the_audit() -> None:
    unsent = replace(OPERATION, state=State.VOIDED, held=0)
    windows = [replace(each, settled=0) for each in WINDOWS]
    assert (
        violations(replace(SOUND, operations=[(unsent, [])], windows=windows, audited=False)) == []
    )
