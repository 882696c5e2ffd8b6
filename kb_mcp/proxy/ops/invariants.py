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

    operations: Iterable[tuple[Operation, list[Attempt]]]
    windows: Sequence[Window]
    policies: Mapping[LineageId, Sequence[Policy]]
    ceilings: Mapping[str, int]
    audited: frozenset[str] | None


def violations(facts: Facts) -> list[str]:
    """Return every violated invariant, one sentence each."""
    sums = Sums()
    told: list[str] = []
    for operation, attempts in facts.operations:
        sums.add(operation)
        told += of_operation(operation, attempts)
        if facts.audited is not None and attempts and operation.id not in facts.audited:
            told.append(unaudited(operation))
    told += of_sums(sums, facts.windows)
    told += of_caps(sums, facts.windows, facts.policies, facts.ceilings)
    return told


class Sums:
    """What operations come to in each window; they are added one by one, and need not be kept."""

    def __init__(self) -> None:
        """Begin with none."""
        self.reserved: Counter[WindowKey] = Counter()
        self.settled: Counter[WindowKey] = Counter()
        # A charge that turned up late, or was adopted, may go over its caps: it is flagged.
        self.late: Counter[WindowKey] = Counter()

    def add(self, operation: Operation) -> None:
        """Add one operation."""
        reserved = operation.state in HOLDING or not operation.final
        for key in windows_of(operation).money():
            (self.reserved if reserved else self.settled)[key] += operation.held
            if operation.overshoot:
                self.late[key] += operation.held


def of_operation(operation: Operation, attempts: Iterable[Attempt]) -> Iterator[str]:
    """Yield what does not hold in one operation and its attempts."""
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


def unaudited(operation: Operation) -> str:
    """Return the sentence about an operation that was sent and that the audit does not know."""
    return f"operation {operation.id} has no decision in the audit"


def _holds_what_it_should(operation: Operation) -> bool:
    if operation.state in HOLDING:
        return operation.held == operation.amount
    if operation.state is not S.SUCCEEDED:
        return operation.held == 0
    # A raise under way holds more than there is yet; of an authorisation a part may be captured.
    if not operation.final:
        return operation.held >= operation.amount
    return 0 <= operation.held <= operation.amount or operation.overshoot


def of_sums(sums: Sums, windows: Iterable[Window]) -> Iterator[str]:
    """Yield the windows that say something else than their operations."""
    known = {window.key: window for window in windows if window.key.currency}
    for key in sorted({*known, *sums.reserved, *sums.settled}, key=_named):
        window = known.get(key) or Window(key)
        reserved, settled = sums.reserved[key], sums.settled[key]
        if window.reserved != reserved:
            yield f"{_named(key)} says reserved {window.reserved}, its operations {reserved}"
        if window.settled != settled:
            yield f"{_named(key)} says settled {window.settled}, its operations {settled}"


def of_caps(
    sums: Sums,
    windows: Iterable[Window],
    policies: Mapping[LineageId, Sequence[Policy]],
    ceilings: Mapping[str, int],
) -> Iterator[str]:
    """Yield the windows that hold more than any key's policy, or a ceiling, let them."""
    for window in windows:
        cap = _cap_of(window.key, policies, ceilings)
        held = window.reserved + window.settled - sums.late[window.key]
        if cap is not None and held > cap:
            yield f"{_named(window.key)} holds {held}, its cap is {cap}"


def _cap_of(
    key: WindowKey, policies: Mapping[LineageId, Sequence[Policy]], ceilings: Mapping[str, int]
) -> int | None:
    """Return the widest cap that any key may have been held to, or None."""
    if key.scope == "account":
        return ceilings.get(key.currency) if key.window == "day" else None
    if key.scope != "key" or not key.currency:
        return None
    tables = [
        policy.caps.daily if key.window == "day" else policy.caps.monthly
        for policy in policies.get(LineageId(key.scope_id), ())
    ]
    caps = [table.get(key.currency) for table in tables]
    known = [cap for cap in caps if cap is not None]
    return max(known) if caps and len(known) == len(caps) else None


def _named(key: WindowKey) -> str:
    owner = f"{key.scope} {key.scope_id}".strip()
    return f"window {owner} {key.window} {key.start} {key.currency}"
