"""Invariants: what must hold between operations, attempts, windows and audit at any moment.

Floor: wing B, above the records. Pure. They are those of design.md, "One charge"; that each
succeeded operation has its object at Stripe is reconcile's to ask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from kb_mcp.proxy.ledger import (
    HOLDING,
    Attempt,
    AttemptOutcome,
    LineageId,
    Operation,
    Window,
    WindowKey,
)
from kb_mcp.proxy.ledger import State as S
from kb_mcp.proxy.policy import Policy
from kb_mcp.proxy.windows import windows_of


class Facts(Struct, frozen=True, kw_only=True):
    """What is checked. `policies` are those of each lineage's keys; `ceilings` the account's.

    `audited` holds the operations that have a decision in the audit, None where old segments
    were archived and nothing can be said.
    """

    operations: Sequence[tuple[Operation, list[Attempt]]]
    windows: Sequence[Window]
    policies: Mapping[LineageId, Sequence[Policy]]
    ceilings: Mapping[str, int]
    audited: frozenset[str] | None


def violations(facts: Facts) -> list[str]:
    """Return every violated invariant, one sentence each."""
    return [
        *_of_operations(facts),
        *_of_sums(facts),
        *_of_caps(facts),
        *_of_audit(facts),
    ]


def _of_operations(facts: Facts) -> Iterator[str]:
    for operation, attempts in facts.operations:
        succeeded = [
            each
            for each in attempts
            if each.outcome is AttemptOutcome.SUCCEEDED and not operation.continued_by(each)
        ]
        if len(succeeded) > 1:
            yield f"operation {operation.id} has {len(succeeded)} succeeded attempts"
        if operation.state is S.SUCCEEDED and operation.object_id is None:
            yield f"operation {operation.id} succeeded without an object at Stripe"
        if not _holds_what_it_should(operation):
            yield f"operation {operation.id} is {operation.state} and holds {operation.held}"


def _holds_what_it_should(operation: Operation) -> bool:
    if operation.state in HOLDING:
        return operation.held == operation.amount
    if operation.state is not S.SUCCEEDED:
        return operation.held == 0
    # A raise under way holds more than there is yet; of an authorisation a part may be captured.
    if not operation.final:
        return operation.held >= operation.amount
    return 0 <= operation.held <= operation.amount or operation.overshoot


def _of_sums(facts: Facts) -> Iterator[str]:
    reserved: Counter[WindowKey] = Counter()
    settled: Counter[WindowKey] = Counter()
    for operation, _ in facts.operations:
        into = reserved if operation.state in HOLDING or not operation.final else settled
        for key in windows_of(operation).money():
            into[key] += operation.held
    known = {window.key: window for window in facts.windows if window.key.currency}
    for key in sorted({*known, *reserved, *settled}, key=_named):
        window = known.get(key) or Window(key)
        if window.reserved != reserved[key]:
            yield f"{_named(key)} says reserved {window.reserved}, its operations {reserved[key]}"
        if window.settled != settled[key]:
            yield f"{_named(key)} says settled {window.settled}, its operations {settled[key]}"


def _of_caps(facts: Facts) -> Iterator[str]:
    # A charge that turned up late, or was adopted, may go over: it is flagged, and left out here.
    late: Counter[WindowKey] = Counter()
    for operation, _ in facts.operations:
        if operation.overshoot:
            late.update(dict.fromkeys(windows_of(operation).money(), operation.held))
    for window in facts.windows:
        cap = _cap_of(facts, window.key)
        held = window.reserved + window.settled - late[window.key]
        if cap is not None and held > cap:
            yield f"{_named(window.key)} holds {held}, its cap is {cap}"


def _cap_of(facts: Facts, key: WindowKey) -> int | None:
    """Return the widest cap that any key may have been held to, or None."""
    if key.scope == "account":
        return facts.ceilings.get(key.currency) if key.window == "day" else None
    if key.scope != "key" or not key.currency:
        return None
    policies = facts.policies.get(LineageId(key.scope_id), ())
    tables = [
        policy.caps.daily if key.window == "day" else policy.caps.monthly for policy in policies
    ]
    caps = [table.get(key.currency) for table in tables]
    known = [cap for cap in caps if cap is not None]
    return max(known) if caps and len(known) == len(caps) else None


def _of_audit(facts: Facts) -> Iterator[str]:
    if facts.audited is None:
        return
    for operation in _sent(facts.operations):
        if operation.id not in facts.audited:
            yield f"operation {operation.id} has no decision in the audit"


def _sent(operations: Iterable[tuple[Operation, list[Attempt]]]) -> Iterator[Operation]:
    return (operation for operation, attempts in operations if attempts)


def _named(key: WindowKey) -> str:
    owner = f"{key.scope} {key.scope_id}".strip()
    return f"window {owner} {key.window} {key.start} {key.currency}"
