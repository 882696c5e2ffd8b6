"""What the ledger remembers, and how a decision reaches it.

Floor: the records of wing B. Pure: no IO, clock or randomness. Amounts are integer minor
units, times are milliseconds since 1970 UTC by the store's clock.
"""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, NewType

from msgspec import Struct
from msgspec.structs import replace

from kb_mcp.proxy.ledger.counts import Delivery, Stopped

OperationId = NewType("OperationId", str)
KeyId = NewType("KeyId", str)
LineageId = NewType("LineageId", str)


class State(StrEnum):
    """The states of an operation; what each proves stands in docs/exactly-once.md."""

    RESERVED = "reserved"
    UNKNOWN = "unknown"
    AWAITING_APPROVAL = "awaiting_approval"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    VOIDED = "voided"


class NamedBy(StrEnum):
    """Which rule named an operation."""

    CONTENT = "content"
    EXPLICIT = "explicit"
    BODY = "body"
    CALLER = "caller"


class Operation(Struct, frozen=True, kw_only=True):
    """One intended billing act in one Stripe account.

    `held` is what it counts for in its windows: the amount while reserved, unknown or succeeded
    (more while a raise is under way, less where only a part was captured), else zero. `reserved_at`
    fixes those windows; a raise on a later day moves all of it there. `gives_back` is the charge of
    a refund, which has windows of its own; `paid_before` what was paid of an invoice when it was
    read. `lease_token` fences: only the newest may conclude with a no. `void_look_at` is when the
    first whole look at Stripe's list began that did not show its object.

    An operator's permits: `reopened` lets a refunded bill be billed once more, for `permit_amount`,
    or a refund be made once more; `waived` lets one bill pass that looks like this one; `successor`
    took either; `released` frees the days of a refunded bill for other periods. `refunded_at` says
    since when it is known as given back in full, `refund_read_at` when that is looked at next.
    """

    id: OperationId
    name: str
    generation: int = 0
    named_by: NamedBy
    route: str
    customer: str | None
    amount: int
    currency: str
    period: str | None
    period_start: str | None = None
    period_end: str | None = None
    reference: str | None
    fingerprint: str
    upstream_name: str
    state: State
    final: bool = True
    held: int = 0
    reserved_at: int = 0
    first_arrival_at: int
    attempt: int = 0
    lease_owner: str | None = None
    lease_token: int = 0
    lease_until: int = 0
    key_id: KeyId
    lineage_id: LineageId
    object_id: str | None = None
    stripe_status: str | None = None
    code: str | None = None
    answer_status: int | None = None
    answer: bytes | None = None
    gives_back: str | None = None
    paid_before: int | None = None
    reopened: bool = False
    waived: bool = False
    permit_amount: int | None = None
    successor: OperationId | None = None
    released: bool = False
    refunded_at: int | None = None
    refund_read_at: int | None = None
    overshoot: bool = False
    voided_at: int | None = None
    empty_listings: int = 0
    void_look_at: int | None = None
    next_read_at: int | None = None
    approval_id: str | None = None
    created_at: int
    updated_at: int

    @property
    def live(self) -> bool:
        """Say whether this operation occupies its guard rows."""
        looked_for = self.state is State.VOIDED and self.empty_listings < LISTINGS_THAT_FREE
        return looked_for or self.state in {State.SUCCEEDED, *HOLDING}

    @property
    def refunded(self) -> bool:
        """Say whether this bill is known as given back: it counts as charged, and is not paid."""
        return self.refunded_at is not None

    @property
    def kind(self) -> str:
        """Say what people call this act: a charge, a refund or an invoice."""
        return kind_of(self.route, refund=self.gives_back is not None)

    @property
    def pays_invoice(self) -> bool:
        """Say whether this finalizes or pays an invoice that was read first."""
        return self.paid_before is not None

    def continued_by(self, attempt: Attempt) -> bool:
        """Say whether `attempt` goes on with this operation's object, rather than makes it."""
        return not fnmatchcase(attempt.path, self.route.split(" ")[1])

    def ended(self, now: int, *, next_read_at: int | None = None, **changes: Any) -> Operation:
        """Return it with `changes` at `now` (ms), no lease, and no reading but `next_read_at`."""
        return replace(self, lease_owner=None, next_read_at=next_read_at, updated_at=now, **changes)


def kind_of(route: str, *, refund: bool) -> str:
    """Say what people call the act that `route` asks for."""
    return "refund" if refund else "invoice" if route.startswith("POST /v1/invoices/") else "charge"


HOLDING = frozenset({State.RESERVED, State.UNKNOWN})
# A voided operation is listed after grace, after 1 h and after 25 h; the last frees its guards.
LISTINGS_THAT_FREE = 3


class AttemptOutcome(StrEnum):
    """What is known about one upstream key."""

    OPEN = "open"
    SUCCEEDED = "succeeded"
    DECLINED = "declined"
    REJECTED = "rejected"
    NOT_SENT = "not_sent"
    VOIDED = "voided"


class Attempt(Struct, frozen=True, kw_only=True):
    """One upstream (Stripe) idempotency key of an operation, with the request it stands for.

    Most make the operation's object; a step (`Operation.continued_by`) goes on with it. `body` is
    sent byte for byte every time. `open_sends` counts the sends whose own outcome is not known.
    """

    operation_id: OperationId
    number: int
    upstream_key: str
    path: str
    stripe_version: str | None
    body: bytes
    first_sent_at: int
    last_sent_at: int
    sends: int = 1
    open_sends: int = 1
    status: int | None = None
    object_id: str | None = None
    outcome: AttemptOutcome = AttemptOutcome.OPEN
    key_id: KeyId

    def closed(self, outcome: AttemptOutcome, status: int | None, **changes: Any) -> Attempt:
        """Return it with `changes` as one whose every send has this `outcome`."""
        return replace(self, outcome=outcome, open_sends=0, status=status, **changes)


class WindowKey(Struct, frozen=True, cache_hash=True):
    """Names a window: whose, day or month, its first day (UTC), and the currency ("" counts)."""

    scope: str
    scope_id: str
    window: str
    start: str
    currency: str


class CallerKey(Struct, frozen=True):
    """A key that an SDK made up and the operation that answered it: kept, as a hash, for good."""

    key: str
    operation_id: OperationId


class Window(Struct, frozen=True):
    """What a window holds: money in minor units, or sends and declines where currency is ""."""

    key: WindowKey
    reserved: int = 0
    settled: int = 0
    sends: int = 0
    declines: int = 0


class Tally(Struct, frozen=True):
    """Declines of one (customer, period, reference), whatever the amount: drift resets nothing."""

    key: str
    declines: int = 0
    last_declined_at: int = 0
    last_operation: OperationId | None = None


class VaultKey(Struct, frozen=True, kw_only=True):
    """A vault key as the store knows it: the hash of its token, never the token."""

    id: KeyId
    lineage_id: LineageId
    token_hash: str
    mode: str
    role: str
    label: str | None
    agent: str | None
    policy: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None = None
    revoke_reason: str | None = None
    last_used_at: int | None = None
    rotated_to: KeyId | None = None


class Lineage(Struct, frozen=True):
    """What rotated keys share: one freeze, one set of caps."""

    id: LineageId
    frozen_at: int | None = None
    frozen_reason: str | None = None


class Approval(Struct, frozen=True, kw_only=True):
    """An operator's leave for one request, by one key lineage; used once.

    `amount` is in minor units: what a bill comes to, also where a step raises it; `gives_back` the
    charge given back, or the invoice that is paid.
    """

    id: str
    operation_id: OperationId
    lineage_id: LineageId
    key_id: KeyId
    endpoint: str
    customer: str | None
    amount: int
    currency: str
    period: str | None
    reference: str | None
    payment_method: str | None
    destination: str | None
    gives_back: str | None = None
    fingerprint: str
    state: str  # pending | approved | denied | used
    expires_at: int
    created_at: int
    decided_by: str | None = None
    decided_at: int | None = None

    def state_at(self, now: int) -> str:
        """Return its state at `now` (ms), which is `expired` past its end."""
        open_one = self.state in {"pending", "approved"}
        return "expired" if open_one and self.expires_at <= now else self.state


class Grant(Struct, frozen=True, kw_only=True):
    """An identity of a provider that stands for a vault key.

    `claims` is JSON: the claims that the identity must have; a value ending in `*` is a prefix.
    """

    id: str
    issuer: str
    claims: str
    key_id: KeyId
    label: str | None
    created_at: int
    removed_at: int | None = None


class AuditDraft(Struct, frozen=True, kw_only=True):
    """What a request or an operator did; the store adds time, node, sequence and hash."""

    kind: str  # decision | outcome | read | refusal | recovery | admin | noise | node
    decision: str | None = None
    code: str | None = None
    key_id: str | None = None
    role: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    method: str | None = None
    path: str | None = None
    operation_id: str | None = None
    attempt: int | None = None
    amount: int | None = None
    currency: str | None = None
    stripe_status: int | None = None
    request_id: str | None = None
    object_id: str | None = None
    duration_ms: int | None = None
    note: str | None = None
    customer_id: str | None = None
    subject: str | None = None

    def about(self, operation: Operation, **columns: Any) -> AuditDraft:
        """Return this row about `operation`: which, its money, whose; `columns` say more of it."""
        columns |= {"operation_id": operation.id, "customer_id": operation.customer}
        return replace(self, amount=operation.amount, currency=operation.currency, **columns)


class Changes(Struct, frozen=True, kw_only=True):
    """The rows a decision leaves behind, as whole images, its audit rows, and calls it `stopped`.

    `facts` are (name, value) of what the store holds for all processes; "" stands for none.
    """

    operations: tuple[Operation, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    windows: tuple[Window, ...] = ()
    tallies: tuple[Tally, ...] = ()
    caller_keys: tuple[CallerKey, ...] = ()
    keys: tuple[VaultKey, ...] = ()
    lineages: tuple[Lineage, ...] = ()
    approvals: tuple[Approval, ...] = ()
    grants: tuple[Grant, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    audit: tuple[AuditDraft, ...] = ()
    stopped: tuple[Stopped, ...] = ()


class Refs(Struct, frozen=True, kw_only=True):
    """The rows a step depends on: made if absent, locked in one global order, then loaded.

    `periods` name two rows each, (customer, reference) and (customer, period, reference); `charges`
    stand for all of their refunds, `issuers` for all of their grants that are not removed.
    """

    keys: frozenset[KeyId] = frozenset()
    lineages: frozenset[LineageId] = frozenset()
    names: frozenset[str] = frozenset()
    caller_keys: frozenset[str] = frozenset()
    operations: frozenset[OperationId] = frozenset()
    objects: frozenset[str] = frozenset()
    periods: frozenset[BilledPeriod] = frozenset()
    bills: frozenset[Bill] = frozenset()
    charges: frozenset[str] = frozenset()
    windows: frozenset[WindowKey] = frozenset()
    tallies: frozenset[str] = frozenset()
    approvals: frozenset[str] = frozenset()
    grants: frozenset[str] = frozenset()
    issuers: frozenset[str] = frozenset()
    deliveries: frozenset[str] = frozenset()


class BilledPeriod(Struct, frozen=True):
    """The guard of bills that share days, `start` and `end` included; `reference` may be ""."""

    customer: str
    reference: str
    label: str
    start: str
    end: str

    @property
    def row(self) -> str:
        """Return what the row of this very period is called."""
        return f"{self.customer}|{self.label}|{self.reference}"

    @property
    def labels(self) -> tuple[str, str]:
        """Return the first label, and the one after the last, of periods that may share a day.

        Labels begin with the year of the first day or the next; no period exceeds a year and a day.
        """
        return str(int(self.start[:4]) - 1), str(int(self.end[:4]) + 2)


class Bill(Struct, frozen=True):
    """What bills without a period are compared by; `since` bounds how far back arrivals matter."""

    customer: str
    amount: int
    currency: str
    since: int
