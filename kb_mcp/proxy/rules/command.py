"""A command: a parsed, authorised request for an operation, and the rows it depends on.

Floor: above interpret and policy, below the deciders. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from kb_mcp.proxy.ledger.records import (
    AuditDraft,
    Bill,
    BilledPeriod,
    KeyId,
    LineageId,
    NamedBy,
    Operation,
    OperationId,
    Refs,
)
from kb_mcp.proxy.ledger.windows import OperationWindows, windows_at, windows_of
from kb_mcp.proxy.rules.operation_names import tally_key, tally_of
from kb_mcp.proxy.rules.refundable import Refundable

if TYPE_CHECKING:
    from kb_mcp.money import Money
    from kb_mcp.proxy.access.policy import Policy
    from kb_mcp.proxy.stripe.interpret import Reading


class Command(Struct, frozen=True, kw_only=True):
    """A parsed, authorised request for an operation; `money` is never absent here.

    `fresh_id` and `fresh_approval_id` are used if this intent begins an operation or asks for an
    approval. `lease_ms` is how long a send may take, all told. `joined` says that it waited for
    somebody else's send before, and has its audit row of that. `continues` is the operation whose
    object a step goes on with, as it was read before; `money` is what it comes to then. `refund` is
    what was read of the charge that is to be given back. `caller_keys` are kept of keys that an SDK
    made up, where they may name the request; `older_…` is how an older version kept either.
    `grant_id` is the grant that lets an identity stand for the key.
    """

    reading: Reading
    money: Money
    policy: Policy
    key_id: KeyId
    lineage_id: LineageId
    grant_id: str | None = None
    name: str
    named_by: NamedBy
    upstream_name: str
    older_names: tuple[str, ...] = ()
    fingerprint: str
    stripe_version: str | None
    caller_keys: tuple[str, ...] = ()
    older_caller_keys: tuple[str, ...] = ()
    fresh_id: OperationId
    fresh_approval_id: str
    owner: str
    lease_ms: int
    request: AuditDraft
    joined: bool = False
    continues: Operation | None = None
    refund: Refundable | None = None

    @property
    def tally(self) -> str:
        """Return the key under which declines of this bill are counted."""
        if self.continues is not None:
            return tally_of(self.continues)
        return tally_key(self.reading, self.name)

    def windows(self, now: int) -> OperationWindows:
        """Return the windows in which a reservation that is made `now` counts."""
        customer, currency = self.reading.customer, self.money.currency
        refunds = self.refund is not None
        return windows_at(now, self.lineage_id, customer, currency, refunds=refunds)

    def bill(self, now: int) -> Bill | None:
        """Return the guard row of bills of the same customer, amount and currency."""
        reading = self.reading
        if reading.customer is None or self.refund is not None:
            return None
        return Bill(
            customer=reading.customer,
            amount=self.money.amount,
            currency=self.money.currency,
            since=now - self.policy.duplicate_window_ms,
        )

    def refs(self, now: int) -> Refs:
        """Return the rows that deciding on this intent depends on, at the store's `now`."""
        reading = self.reading
        periods: frozenset[BilledPeriod] = frozenset()
        if reading.customer is not None and reading.period is not None:
            period = reading.period
            days = BilledPeriod(
                customer=reading.customer,
                reference=reading.reference or "",
                label=period.label,
                start=period.start.isoformat(),
                end=period.end.isoformat(),
            )
            periods = frozenset({days})
        bill = self.bill(now)
        windows = self.windows(now).all()
        if self.continues is not None:
            windows = (*windows, *windows_of(self.continues).all())
        return Refs(
            keys=frozenset({self.key_id}),
            lineages=frozenset({self.lineage_id}),
            names=frozenset({self.name, *self.older_names}),
            caller_keys=frozenset({*self.caller_keys, *self.older_caller_keys}),
            periods=periods,
            bills=frozenset() if bill is None else frozenset({bill}),
            charges=frozenset() if self.refund is None else frozenset({self.refund.charge}),
            windows=frozenset(windows),
            tallies=frozenset({self.tally}),
            grants=frozenset() if self.grant_id is None else frozenset({self.grant_id}),
        )
