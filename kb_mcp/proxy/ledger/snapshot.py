"""What the ledger knows that a decision needs: the rows of one transaction, in memory.

Floor: above the records, below the deciders. Pure. A store fills it, deciders read it, and
`apply` makes the next command of a batch see what the ones before it did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec import Struct
from typing_extensions import override

from kb_mcp.proxy.ledger import records
from kb_mcp.proxy.ledger.clock import Doubt
from kb_mcp.proxy.ledger.counts import Delivery, Stopped

# What every transaction reads before it decides: why nothing may be sent, if so.
GAP = "gap"
MOVED_TO = "moved_to"
HALTS = (GAP, MOVED_TO)
# Tables whose rows are kept under one field of theirs.
NAMED = dict.fromkeys(("windows", "tallies", "caller_keys", "deliveries"), "key") | dict.fromkeys(
    ("keys", "lineages", "approvals", "grants"), "id"
)
# Says that no walk of Stripe's lists was ever whole for this store.
NEW_STORE = "new_store"


class StoreSettings(Struct, frozen=True):
    """What all processes on one store agree on; all that it makes at Stripe carries `store_id`."""

    account: str
    mode: str
    ceilings: Mapping[str, int] = {}
    refund_ceilings: Mapping[str, int] = {}
    upstream_timeout_ms: int = 25_000
    recovery_grace_ms: int = 600_000
    store_id: str = ""


class Operations(dict[records.OperationId, records.Operation]):
    """Operations by id, and by what is asked for: a batch holds many, and asks for few.

    Each is also found by what it once was: whoever asks must check what it is now. Only
    `operations[id] = operation` puts one in.
    """

    def __init__(self, operations: Iterable[records.Operation] = ()) -> None:
        """Hold `operations`."""
        super().__init__()
        self._ids: defaultdict[tuple[str, str | None], dict[records.OperationId, None]] = (
            defaultdict(dict)
        )
        for operation in operations:
            self[operation.id] = operation

    @override
    def __setitem__(self, name: records.OperationId, operation: records.Operation) -> None:
        """Find `operation` from now on by its name, its customer or its charge, and its successor.

        A refund is no bill: nothing that is charged is taken for it.
        """
        super().__setitem__(name, operation)
        refund, successor = operation.gives_back, operation.successor
        of = ("bill", operation.customer) if refund is None else ("refund", refund)
        for key in (("name", operation.name), of, ("successor", successor)):
            if key != ("successor", None):
                self._ids[key][name] = None

    def by(self, what: str, value: str) -> list[records.Operation]:
        """Return the operations that were once `what` of `value`, in the order they were put in."""
        return [self[each] for each in self._ids.get((what, value), ())]


@dataclass(slots=True)
class Dirty:
    """The rows to persist, last image each, and the audit rows in order.

    Operations and attempts, which are wide, keep what was loaded of them, None where they are new:
    a store need not write again what is the same.
    """

    operations: dict[records.OperationId, records.Operation | None] = field(default_factory=dict)
    attempts: dict[tuple[records.OperationId, int], records.Attempt | None] = field(
        default_factory=dict
    )
    windows: set[records.WindowKey] = field(default_factory=set)
    tallies: set[str] = field(default_factory=set)
    caller_keys: set[str] = field(default_factory=set)
    keys: set[records.KeyId] = field(default_factory=set)
    lineages: set[records.LineageId] = field(default_factory=set)
    approvals: set[str] = field(default_factory=set)
    grants: set[str] = field(default_factory=set)
    deliveries: set[str] = field(default_factory=set)
    facts: dict[str, str] = field(default_factory=dict)
    audit: list[records.AuditDraft] = field(default_factory=list)
    stopped: list[Stopped] = field(default_factory=list)


@dataclass(slots=True)
class Snapshot:
    """The loaded rows, and which of them a batch has changed (`dirty`).

    `skewed` says that the clocks disagree, and `latest` what the latest of them says: an age that
    has passed by one of the two alone has not surely passed. `turning` says that they do not even
    agree on the day; `unheard` that Stripe has not answered yet. Times in `doubt` may be earlier
    than they say.
    """

    now: int
    settings: StoreSettings
    latest: int = 0
    skewed: bool = False
    turning: bool = False
    unheard: bool = False
    doubt: Doubt | None = None
    gone_owners: frozenset[str] = frozenset()
    keys: dict[records.KeyId, records.VaultKey] = field(default_factory=dict)
    lineages: dict[records.LineageId, records.Lineage] = field(default_factory=dict)
    operations: Operations = field(default_factory=Operations)
    attempts: dict[tuple[records.OperationId, int], records.Attempt] = field(default_factory=dict)
    windows: dict[records.WindowKey, records.Window] = field(default_factory=dict)
    tallies: dict[str, records.Tally] = field(default_factory=dict)
    caller_keys: dict[str, records.CallerKey] = field(default_factory=dict)
    approvals: dict[str, records.Approval] = field(default_factory=dict)
    grants: dict[str, records.Grant] = field(default_factory=dict)
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    unresolved: dict[records.LineageId, int] = field(default_factory=dict)
    outstanding_approvals: dict[records.LineageId, int] = field(default_factory=dict)
    object_owners: dict[str, records.OperationId] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    dirty: Dirty = field(default_factory=Dirty)

    def newest(self, name: str) -> records.Operation | None:
        """Return the newest generation of the operation called `name`."""
        return max(self.operations.by("name", name), key=lambda each: each.generation, default=None)

    def answered_under(self, keys: Iterable[str]) -> records.Operation | None:
        """Return the operation that answered one of the callers' `keys` before, or None."""
        rows = (self.caller_keys[key] for key in keys if key in self.caller_keys)
        return next((self.operations.get(row.operation_id) for row in rows), None)

    def period_peers(self, customer: str, reference: str | None) -> list[records.Operation]:
        """Return the live operations that bill a period to `customer` under `reference`."""
        bills = (each for each in self._standing_bills(customer) if each.period is not None)
        return [each for each in bills if (each.reference or "") == (reference or "")]

    def bill_peers(self, bill: records.Bill) -> list[records.Operation]:
        """Return the live operations of the same customer, amount and currency."""
        bills, wanted = self._standing_bills(bill.customer), (bill.amount, bill.currency)
        return [each for each in bills if (each.amount, each.currency) == wanted]

    def refunds_of(self, charge: str) -> list[records.Operation]:
        """Return the refunds of `charge`, those that came to nothing too."""
        return self.operations.by("refund", charge)

    def attempt(self, operation: records.Operation) -> records.Attempt | None:
        """Return the current attempt of `operation`."""
        return self.attempts.get((operation.id, operation.attempt))

    def attempts_of(self, operation: records.Operation) -> list[records.Attempt]:
        """Return every attempt of `operation`, oldest first."""
        return [self.attempts[key] for key in sorted(self.attempts) if key[0] == operation.id]

    def maker(self, operation: records.Operation) -> records.Attempt | None:
        """Return the attempt that made the object of `operation`, as far as it is known."""
        made, found = operation.object_id, self.attempts_of(operation)
        return next((each for each in found if made is not None and each.object_id == made), None)

    def approvals_of(
        self, operation: records.Operation, lineage: records.LineageId
    ) -> list[records.Approval]:
        """Return what `lineage` asked operators about `operation`, newest first."""
        of, asked = (operation.id, lineage), self.approvals.values()
        mine = (each for each in asked if (each.operation_id, each.lineage_id) == of)
        return sorted(mine, key=lambda each: (each.created_at, each.id), reverse=True)

    def window(self, key: records.WindowKey) -> records.Window:
        """Return the window called `key`, empty where it has no row yet."""
        return self.windows.get(key) or records.Window(key)

    def tally(self, key: str) -> records.Tally:
        """Return the tally called `key`, at zero where it has no row yet."""
        return self.tallies.get(key) or records.Tally(key)

    def delivery(self, key: str) -> Delivery:
        """Return the delivery called `key`, untried where it has no row yet."""
        return self.deliveries.get(key) or Delivery(key)

    def lineage(self, key: records.LineageId) -> records.Lineage:
        """Return the lineage `key`."""
        return self.lineages.get(key) or records.Lineage(key)

    def leased(self, operation: records.Operation) -> bool:
        """Say whether somebody who may still be alive is sending `operation`."""
        owner = operation.lease_owner
        held = owner is not None and self.now < operation.lease_until
        return held and owner not in self.gone_owners

    @property
    def halted(self) -> bool:
        """Say whether nothing may be sent: the store lost records, or was moved elsewhere."""
        return any(self.facts.get(name) for name in HALTS)

    def apply(self, changes: records.Changes) -> None:
        """Make `changes` visible to the next step, and remember them for the store."""
        dirty = self.dirty
        for operation in changes.operations:
            old = self.operations.get(operation.id)
            dirty.operations.setdefault(operation.id, old)
            was_unknown = old is not None and old.state is records.State.UNKNOWN
            is_unknown = operation.state is records.State.UNKNOWN
            _count(self.unresolved, operation.lineage_id, is_unknown - was_unknown)
            self.operations[operation.id] = operation
        for approval in changes.approvals:
            asked = self.approvals.get(approval.id)
            waited = asked is not None and asked.state_at(self.now) == "pending"
            waits = approval.state_at(self.now) == "pending"
            _count(self.outstanding_approvals, approval.lineage_id, waits - waited)
        for attempt in changes.attempts:
            name = (attempt.operation_id, attempt.number)
            dirty.attempts.setdefault(name, self.attempts.get(name))
            self.attempts[name] = attempt
            if attempt.object_id is not None:
                self.object_owners.setdefault(attempt.object_id, attempt.operation_id)
        for table, key in NAMED.items():
            rows = {getattr(row, key): row for row in getattr(changes, table)}
            getattr(dirty, table).update(rows)
            getattr(self, table).update(rows)
        for facts in (dirty.facts, self.facts):
            facts.update(changes.facts)
        dirty.audit.extend(changes.audit)
        dirty.stopped.extend(changes.stopped)

    def successor(self, operation: records.Operation) -> records.Operation | None:
        """Return the operation that took the permit of `operation`, while it is live."""
        taken = self.operations.get(operation.successor) if operation.successor else None
        return taken if taken is not None and taken.live else None

    def predecessors(self, operation: records.Operation) -> list[records.Operation]:
        """Return the operations whose permit `operation` took."""
        return self.operations.by("successor", operation.id)

    def _standing_bills(self, customer: str) -> list[records.Operation]:
        """Return live bills of `customer`, newest first; no refunded one with a live successor."""
        bills = (each for each in self.operations.by("bill", customer) if each.customer == customer)
        live = (
            each for each in bills if each.live and not (each.refunded and self.successor(each))
        )
        return sorted(live, key=lambda each: (-each.reserved_at, each.id))


def _count(counts: dict[records.LineageId, int], lineage: records.LineageId, change: int) -> None:
    if change:
        counts[lineage] = counts.get(lineage, 0) + change


class KnownAttempt(Struct, frozen=True):
    """What the ledger knows of the attempt that an object is marked with."""

    operation_id: records.OperationId
    outcome: str
    state: str
    next_read_at: int | None
