"""A command, a parsed and authorised request for an operation, and every decision about one.

Floor: above interpret and policy, below the deciders. Pure.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from kb_mcp.money import Money
from kb_mcp.periods import parse_period
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.errors.refusals import Refusal
from kb_mcp.proxy.ledger import records
from kb_mcp.proxy.ledger.counts import Stopped
from kb_mcp.proxy.ledger.windows import OperationWindows, windows_at, windows_of
from kb_mcp.proxy.rules.operation_names import columns_of, tally_key
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.forms import Form
from kb_mcp.proxy.stripe.interpret import Reading


class Refundable(Struct, frozen=True, kw_only=True):
    """What is known of a charge when a refund of it is decided; amounts in minor units.

    `left` is what Stripe would still give back, or None where nothing was read because the ledger
    has the refund that is asked for. `listed` names the refunds that Stripe showed, each by its id
    and by its mark; `before` are the charge's refunds in the ledger, as they were before that
    reading. `said` tells whether the request says the amount.
    """

    charge: str
    currency: str
    said: bool
    left: int | None = None
    listed: frozenset[str] = frozenset()
    before: frozenset[tuple[records.OperationId, str]] = frozenset()


class Payable(Struct, frozen=True, kw_only=True):
    """An invoice when its payment was decided, in minor units: `left` to pay, `paid` before."""

    invoice: str
    status: str
    left: int
    paid: int
    currency: str
    customer: str | None


class Command(Struct, frozen=True, kw_only=True):
    """A parsed, authorised request for an operation; `money` is never absent here.

    `fresh_id` and `fresh_approval_id` are used if this intent begins an operation or asks for an
    approval. `lease_ms` is how long a send may take, all told. `joined` says that it waited for
    somebody else's send before, and has its audit row of that. `continues` is the operation whose
    object a step goes on with, as it was read before; `money` is what it comes to then. `refund` is
    what was read of the charge that is to be given back, `invoice` of the invoice that is to be
    paid. `caller_keys` are kept of keys that an SDK made up, where they may name the request;
    `older_…` is how an older version kept either. `grant_id` lets an identity stand for the key.
    """

    reading: Reading
    money: Money
    policy: Policy
    key_id: records.KeyId
    lineage_id: records.LineageId
    grant_id: str | None = None
    name: str
    named_by: records.NamedBy
    upstream_name: str
    older_names: tuple[str, ...] = ()
    fingerprint: str
    stripe_version: str | None
    caller_keys: tuple[str, ...] = ()
    older_caller_keys: tuple[str, ...] = ()
    fresh_id: records.OperationId
    fresh_approval_id: str
    owner: str
    lease_ms: int
    request: records.AuditDraft
    joined: bool = False
    continues: records.Operation | None = None
    refund: Refundable | None = None
    invoice: Payable | None = None

    @property
    def tally(self) -> str:
        """Return the key under which declines of this bill are counted."""
        return tally_key(self.reading, self.name)

    def asks(self) -> dict[str, Any]:
        """Return the fields of an operation that say what is asked for."""
        reading, invoice = self.reading, self.invoice
        # Of an invoice, the object is known before anything is sent.
        made = {} if invoice is None else {"object_id": invoice.invoice}
        return (
            made
            | columns_of(reading.period)
            | {
                "route": reading.route.endpoint,
                "paid_before": None if invoice is None else invoice.paid,
                "customer": reading.customer,
                "amount": self.money.amount,
                "currency": self.money.currency,
                "reference": reading.reference,
                "fingerprint": self.fingerprint,
            }
        )

    def windows(self, now: int) -> OperationWindows:
        """Return the windows in which a reservation that is made `now` counts."""
        customer, currency = self.reading.customer, self.money.currency
        refunds = self.refund is not None
        return windows_at(now, self.lineage_id, customer, currency, refunds=refunds)

    def bill(self, now: int) -> records.Bill | None:
        """Return the guard row of bills of the same customer, amount and currency."""
        customer, money = self.reading.customer, self.money
        # An invoice that costs nothing: any number of them is no charge made twice.
        free = self.invoice is not None and money.amount == 0
        if customer is None or self.refund is not None or free:
            return None
        return records.Bill(
            customer, money.amount, money.currency, now - self.policy.duplicate_window_ms
        )

    def refs(self, now: int) -> records.Refs:
        """Return the rows that deciding on this intent depends on, at the store's `now`."""
        reading, bill, windows = self.reading, self.bill(now), self.windows(now).all()
        charges, days = self.refund and [self.refund.charge], []
        if reading.customer is not None and reading.period is not None:
            period, reference = reading.period, reading.reference or ""
            first, last = period.start.isoformat(), period.end.isoformat()
            days = [records.BilledPeriod(reading.customer, reference, period.label, first, last)]
        if self.continues is not None:
            windows = (*windows, *windows_of(self.continues).all())
        return records.Refs(
            keys=frozenset({self.key_id}),
            lineages=frozenset({self.lineage_id}),
            names=frozenset({self.name, *self.older_names}),
            caller_keys=frozenset({*self.caller_keys, *self.older_caller_keys}),
            periods=frozenset(days),
            bills=frozenset(filter(None, [bill])),
            charges=frozenset(charges or ()),
            windows=frozenset(windows),
            tallies=frozenset({self.tally}),
            grants=frozenset(filter(None, [self.grant_id])),
        )


class Prepared(Struct, frozen=True, kw_only=True):
    """What a request asks for once it was read at Stripe; its fields are those of the command."""

    reading: Reading
    money: Money
    name: str
    fingerprint: str
    refund: Refundable | None = None
    invoice: Payable | None = None
    continues: records.Operation | None = None

    def as_read(self, command: Command) -> Command:
        """Return `command` with what was read."""
        return replace(command, **asdict(self))


class Proceed(Struct, frozen=True):
    """Reserved: send `attempt` now; `operation.lease_token` is the caller's fencing token."""

    operation: records.Operation
    attempt: records.Attempt
    changes: records.Changes = field(default_factory=records.Changes)


class _Found(Struct, frozen=True):
    operation: records.Operation
    changes: records.Changes = field(default_factory=records.Changes)


class Replay(_Found, frozen=True):
    """The operation's answer is known: give it again."""


class Join(_Found, frozen=True):
    """Somebody is sending it right now: wait for that outcome."""


class Look(_Found, frozen=True):
    """Its last step may or may not have happened: the object must be read before anything else."""


class ReadAgain(Struct, frozen=True):
    """What the request depends on at Stripe must be read before anything is reserved."""

    operation: None = None
    changes: records.Changes = field(default_factory=records.Changes)


class Refuse(Struct, frozen=True):
    """Our own no."""

    refusal: Refusal
    operation: records.Operation | None = None
    changes: records.Changes = field(default_factory=records.Changes)


Decision = Proceed | Replay | Join | Look | ReadAgain | Refuse


def asked_again(
    approval: records.Approval, operation: records.Operation, policy: Policy
) -> Command:
    """Return the request of `approval`, about `operation`, as if it needed no approval."""
    reading = Reading(
        route=ENDPOINTS[approval.endpoint],
        path=ENDPOINTS[approval.endpoint].template,
        form=Form(),
        customer=approval.customer,
        period=None if approval.period is None else parse_period(approval.period),
        reference=approval.reference,
        payment_method=approval.payment_method,
        destination=approval.destination,
    )
    refund = None
    if approval.gives_back is not None and operation.gives_back is not None:
        refund = Refundable(charge=approval.gives_back, currency=approval.currency, said=True)
    return Command(
        reading=reading,
        money=Money(approval.amount, approval.currency),
        policy=policy.model_copy(update={"approval_above": {}, "refund_approval_above": {}}),
        key_id=approval.key_id,
        lineage_id=approval.lineage_id,
        name=operation.name,
        named_by=operation.named_by,
        upstream_name=operation.upstream_name,
        fingerprint=approval.fingerprint,
        stripe_version=None,
        fresh_id=operation.id,
        fresh_approval_id=approval.id,
        owner="",
        lease_ms=0,
        request=records.AuditDraft(kind="decision"),
        continues=operation if operation.live else None,
        refund=refund,
    )


def stopped_by(command: Command, decision: Decision) -> tuple[Stopped, ...]:
    """Return what this call would have moved, where it is stopped and nothing is sent for it.

    A repeated call counts where what it asks for was made; a decline that is told again, and a
    step that is told again, would have moved nothing.
    """
    money = command.money
    match decision:
        case Replay(operation=made):
            if made.state is not records.State.SUCCEEDED or command.continues is not None:
                return ()
            why, money = "replay", Money(made.amount, made.currency)
        case Refuse(refusal=refusal, changes=records.Changes(approvals=(asked, *_))):
            why, money = "held", Money(asked.amount, asked.currency)
        case Refuse(refusal=refusal):
            why = refusal.code.value
        case _:
            return ()
    kind = records.kind_of(command.reading.route.endpoint, refund=command.refund is not None)
    agent_id = command.request.agent_id or ""
    return (Stopped(why, kind, command.key_id, agent_id, money.currency, money.amount),)


def why_refused(decision: Decision) -> str | None:
    """Say for the audit what is left of the cap (minor units), or which approval is wanted."""
    facts = decision.refusal.facts if isinstance(decision, Refuse) else {}
    if "cap" in facts:
        return f"{facts['cap_kind']}: {facts['left']} of {facts['cap']} left"
    return f"{facts['approval']}, {facts['state']}" if "approval" in facts else None
