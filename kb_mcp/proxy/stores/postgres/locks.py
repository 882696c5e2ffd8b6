"""Which guard rows a step must hold, by what it names and by what it changed.

Floor: inside the stores, above the records. Pure. The order of `Guard` is the global lock order. A
lineage's guard stands for its keys, windows, counts and approvals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum

from kb_mcp.proxy.ledger.records import LineageId, Operation, OperationId, Refs, WindowKey
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import REFUNDS

Lock = tuple[int, str]
# What never changes about an operation: its name and its lineage at the last look.
Known = Callable[[OperationId], tuple[str, LineageId] | None]


class Guard(IntEnum):
    """Kinds of guard rows, in the order in which they are locked."""

    ACCOUNT_DAY = 0
    LINEAGE = 1
    CUSTOMER_DAY = 2
    REFERENCE = 3
    PERIOD = 4
    BILL = 5
    OPERATION = 6
    NODES = 7
    BINDING = 8
    ISSUER = 9


def lock(kind: Guard, *parts: object) -> Lock:
    """Return the guard row of `kind` that stands for `parts`."""
    text = "\x00".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int(kind), hashlib.blake2b(text, digest_size=16).hexdigest()


def locks_named(refs: Iterable[Refs], known: Known) -> set[Lock]:
    """Return the locks that steps with `refs` are known to need before they run."""
    wanted: set[Lock] = set()
    for each in refs:
        wanted.update(map(_window, each.windows))
        wanted.update(lock(Guard.LINEAGE, lineage) for lineage in each.lineages)
        for period in each.periods:
            # Two periods that share days have rows of their own: their one row comes before both.
            wanted.add(lock(Guard.REFERENCE, period.customer, period.reference))
            wanted.add(lock(Guard.PERIOD, period.row))
        wanted.update(
            lock(Guard.BILL, bill.customer, bill.amount, bill.currency) for bill in each.bills
        )
        wanted.update(map(_charge, each.charges))
        wanted.update(map(_tally, each.tallies))
        wanted.update(map(_delivery, each.deliveries))
        wanted.update(lock(Guard.OPERATION, name) for name in each.names)
        wanted.update(map(_caller_key, each.caller_keys))
        wanted.update(lock(Guard.ISSUER, issuer) for issuer in each.issuers)
        for operation_id in each.operations:
            found = known(operation_id)
            if found is not None:
                wanted |= {lock(Guard.OPERATION, found[0]), lock(Guard.LINEAGE, found[1])}
    return wanted


def locks_changed(snapshot: Snapshot, before: Mapping[OperationId, Operation]) -> set[Lock]:
    """Return the locks that must have been held to change what the steps changed.

    `before` holds the operations as they were loaded. Whoever lacks one of these begins anew.
    """
    dirty = snapshot.dirty
    wanted = set(map(_window, dirty.windows)) | set(map(_tally, dirty.tallies))
    wanted |= set(map(_caller_key, dirty.caller_keys)) | set(map(_delivery, dirty.deliveries))
    lineages = set(dirty.lineages)
    lineages |= {snapshot.keys[key_id].lineage_id for key_id in dirty.keys}
    lineages |= {snapshot.approvals[approval].lineage_id for approval in dirty.approvals}
    granted = {snapshot.grants[grant].key_id for grant in dirty.grants}
    lineages |= {snapshot.keys[key_id].lineage_id for key_id in granted}
    touched = dirty.operations.keys() | {operation_id for operation_id, _ in dirty.attempts}
    for operation_id in touched:
        operation = snapshot.operations[operation_id]
        lineages.add(operation.lineage_id)
        wanted.add(lock(Guard.OPERATION, operation.name))
        earlier = before.get(operation_id)
        if operation.live and (earlier is None or not earlier.live):
            wanted.update(_occupied(operation))
    return wanted | {lock(Guard.LINEAGE, lineage) for lineage in lineages}


def _occupied(operation: Operation) -> Iterator[Lock]:
    """Yield the guards that a live operation occupies."""
    if operation.gives_back is not None:
        yield _charge(operation.gives_back)
        return
    if operation.customer is None:
        return
    yield lock(Guard.BILL, operation.customer, operation.amount, operation.currency)
    if operation.period is not None:
        reference = operation.reference or ""
        yield lock(Guard.REFERENCE, operation.customer, reference)
        yield lock(Guard.PERIOD, f"{operation.customer}|{operation.period}|{reference}")


def _charge(charge: str) -> Lock:
    # All refunds of one charge, which no other bill's guard can be.
    return lock(Guard.BILL, "refunds", charge)


def _window(key: WindowKey) -> Lock:
    # A window of refunds is a row beside the one of charges.
    of = (REFUNDS,) if key.scope.endswith(REFUNDS) else ()
    match key.scope.removesuffix(REFUNDS):
        case "account":
            return lock(Guard.ACCOUNT_DAY, key.start, key.currency, *of)
        case "customer":
            return lock(Guard.CUSTOMER_DAY, key.scope_id, key.start, key.currency, *of)
        case _:
            return lock(Guard.LINEAGE, key.scope_id)


def _caller_key(key: str) -> Lock:
    # A key names an operation, as its name does.
    return lock(Guard.OPERATION, "caller_key", key)


def _delivery(key: str) -> Lock:
    return lock(Guard.PERIOD, "alert", key)


def _tally(key: str) -> Lock:
    # A tally counts for a period, or else for one name (naming.tally_key).
    name = key.removeprefix("name|")
    return lock(Guard.PERIOD, key) if name == key else lock(Guard.OPERATION, name)
