"""What operators see: lists out of the store's records, bounded, for the API and the pages.

Floor: operators, below the admin API and the dashboard, above records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.access.tokens import Mode
from kb_mcp.proxy.audit.verification import FIELDS
from kb_mcp.proxy.edge.records import (
    Record,
    Spend,
    account_spend,
    key_record,
    operation_record,
    spend,
    spend_records,
)
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import (
    Approval,
    KeyId,
    Lineage,
    Operation,
    OperationId,
    VaultKey,
    Window,
    WindowKey,
)
from kb_mcp.proxy.ledger.windows import REFUNDS
from kb_mcp.proxy.stores.gauges import KeyCaps
from kb_mcp.proxy.stores.reads import StoreReads


def approval_record(approval: Approval, now: int) -> Record:
    """Return an approval with the request it is about; past its end it is `expired`."""
    state, invoice = approval.state, approval.endpoint.startswith("POST /v1/invoices/")
    if state in {"pending", "approved"} and approval.expires_at <= now:
        state = "expired"
    return {
        "id": approval.id,
        "state": state,
        "operation_id": approval.operation_id,
        "key_id": approval.key_id,
        "lineage": approval.lineage_id,
        "endpoint": approval.endpoint,
        "amount": approval.amount,
        "currency": approval.currency,
        "customer_id": approval.customer,
        "charge_id": None if invoice else approval.gives_back,
        "invoice_id": approval.gives_back if invoice else None,
        "billing_period": approval.period,
        "reference": approval.reference,
        "payment_method": approval.payment_method,
        "destination": approval.destination,
        "fingerprint": approval.fingerprint,
        "created_at": rfc3339(approval.created_at),
        "expires_at": rfc3339(approval.expires_at),
        "decided_by": approval.decided_by,
        "decided_at": None if approval.decided_at is None else rfc3339(approval.decided_at),
    }


async def spend_of_every_key(
    records: StoreReads, keys: Sequence[KeyCaps], day: date, *, rotated: bool
) -> list[Spend]:
    """Return the spend of each of `keys` on `day` and in its month, in their order.

    A rotated key shares its windows with its successor; with `rotated` both have rows for them.

    Raises: LedgerUnavailableError.
    """
    return await _of_every_key(records, keys, day, "key", rotated=rotated)


async def refunds_of_every_key(
    records: StoreReads, keys: Sequence[KeyCaps], day: date
) -> list[Spend]:
    """Return what was given back on `day` and in its month: the account's, then each key's.

    Raises: LedgerUnavailableError.
    """
    today = day.isoformat()
    ceilings = await records.ceilings(refunds=True)
    account = _held(await records.windows(scope=f"account{REFUNDS}", starts=(today,)))
    rows = _rows(None, f"account{REFUNDS}", "day", today, ceilings, account.get(("", "day"), {}))
    return rows + await _of_every_key(records, keys, day, f"key{REFUNDS}", rotated=False)


async def _of_every_key(
    records: StoreReads, keys: Sequence[KeyCaps], day: date, scope: str, *, rotated: bool
) -> list[Spend]:
    today, month = day.isoformat(), day.replace(day=1).isoformat()
    held = await records.held_of_keys(scope, today, month)
    rows: list[Spend] = []
    for each in keys:
        if each.rotated and not rotated:
            continue
        caps = each.caps if scope == "key" else each.refund_caps
        for window, start, limits in (("day", today, caps.daily), ("month", month, caps.monthly)):
            here = held.get((each.lineage_id, window), {})
            for currency in sorted(limits.keys() | here):
                cap, there = limits.get(currency), here.get(currency, (0, 0))
                rows.append(spend(each.key_id, scope, window, start, currency, cap, *there))
    return rows


def _held(windows: Iterable[Window]) -> dict[tuple[str, str], dict[str, tuple[int, int]]]:
    held: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    for each in windows:
        if each.key.currency:
            here = held.setdefault((each.key.scope_id, each.key.window), {})
            here[each.key.currency] = (each.reserved, each.settled)
    return held


def _rows(
    key_id: str | None,
    scope: str,
    window: str,
    start: str,
    limits: Mapping[str, int],
    held: Mapping[str, tuple[int, int]],
) -> list[Spend]:
    return [
        spend(key_id, scope, window, start, each, limits.get(each), *held.get(each, (0, 0)))
        for each in sorted(limits.keys() | held)
    ]


AGENT_ROWS_MAX = 1_000
KEY_STATUSES = ("active", "frozen", "expired", "revoked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Reads for people; money in minor units, times RFC 3339. Raises: LedgerUnavailableError."""

    ledger: Ledger
    records: StoreReads
    now_ms: Callable[[], int]

    @property
    def mode(self) -> Mode:
        """The mode of the keys that this store issues."""
        return "live" if self.ledger.settings.mode == "live" else "test"

    async def keys(self) -> list[Record]:
        """Return every vault key, oldest first."""
        return [_key(*found) for found in await self.records.keys()]

    async def key(self, key_id: str) -> Record | None:
        """Return one vault key, or None."""
        found = await self.records.keys_by_id([key_id]) if key_id.isprintable() else ()
        return _key(*found[0]) if found else None

    async def key_page(self, most: int, **wanted: str | None) -> list[Record]:
        """Return at most `most` keys with their `status`, newest first.

        `wanted` narrows them by text and status, and goes on after a key, as the store's does.
        """
        now = self.now_ms()
        found = await self.records.key_page(now, most, **wanted)
        records = [_key(*each) for each in found]
        return [{**key, "status": key_status(key, rfc3339(now))} for key in records]

    async def key_counts(self) -> dict[str, int]:
        """Return how many keys there are by status, rotated ones too."""
        counts = dict.fromkeys(KEY_STATUSES, 0)
        for each in await self.records.key_counts(self.now_ms()):
            counts[each.status] += each.count
        return counts

    async def operations(self, limit: int, **filters: str | None) -> list[Record]:
        """Return matching operations, newest first."""
        given = {name: value for name, value in filters.items() if value}
        found = await self.records.operations(limit=limit, **given)
        return [operation_record(*each) for each in found]

    async def operation(self, operation_id: str) -> Record | None:
        """Return one operation, or None."""
        found = await self.operations(1, operation_id=operation_id)
        return found[0] if found else None

    async def operations_by(
        self,
        agent: str | None,
        session: str | None,
        limit: int,
        filters: Mapping[str, str | None],
    ) -> list[Record]:
        """Return operations that an agent or a session asked for, the latest asked first.

        They are found by way of the newest AGENT_ROWS_MAX audit rows of that agent or session.
        """
        rows = self.audit(
            AGENT_ROWS_MAX, agent=agent, session=session, customer=filters.get("customer_id")
        )
        ids = list(dict.fromkeys(row["operation_id"] for row in rows if row["operation_id"]))
        given = {name: value for name, value in filters.items() if value}
        found: list[Record] = []
        for start in range(0, len(ids), limit):
            some = ids[start : start + limit]
            matching = await self.records.operations(limit=None, ids=some, **given)
            records = {each[0].id: operation_record(*each) for each in matching}
            found += [records[OperationId(each)] for each in some if each in records]
            if len(found) >= limit:
                break
        return found[:limit]

    async def raw_operation(self, operation_id: str) -> Operation | None:
        """Return one operation as the ledger holds it, for an act on it."""
        return await self._operation(OperationId(operation_id))

    async def spent_by_day(self, days: Sequence[str]) -> dict[str, dict[str, int]]:
        """Return what all keys together hold in each of `days`, by currency and day."""
        held: dict[str, dict[str, int]] = {}
        for window in await self.records.windows(scope="account", starts=days):
            if window.key.currency and window.key.window == "day":
                amount = window.settled + window.reserved
                held.setdefault(window.key.currency, {})[window.key.start] = amount
        return held

    async def spend(self, day: date) -> list[Spend]:
        """Return spend against cap on `day` and in its month: the account's, then each key's.

        A rotated key shares its windows with its successor, so only the newest key of a lineage
        stands for them.
        """
        keys = await self.records.caps_of_keys()
        rows = await spend_of_every_key(self.records, keys, day, rotated=False)
        refunds = await refunds_of_every_key(self.records, keys, day)
        return [*await self.account_spend(day), *rows, *refunds]

    async def spend_of(self, day: date, key_id: str) -> list[Spend]:
        """Return spend against cap on `day` and in its month of one key, rotated or not."""
        starts = (day.isoformat(), day.replace(day=1).isoformat())
        if not key_id.isprintable():
            return []
        found = await self.records.spend_of_keys([KeyId(key_id)], *starts, self.now_ms())
        rows = [
            spend_records(key.key_id, key.caps, key.refund_caps, key.windows, starts)
            for key in found
        ]
        return [row for each in rows for row in each]

    async def account_spend(self, day: date, *, refunds: bool = False) -> list[Spend]:
        """Return what all keys together hold on `day`, by currency, against the ceiling.

        `refunds` asks for what is given back.
        """
        scope, start = f"account{REFUNDS if refunds else ''}", day.isoformat()
        ceilings = await self.records.ceilings(refunds=refunds)
        held = {
            window.key.currency: window
            for window in await self.records.windows(scope=scope, starts=(start,))
            if window.key.currency
        }
        currencies = sorted(ceilings.keys() | held.keys())
        empty = {name: Window(WindowKey(scope, "", "day", start, name)) for name in currencies}
        return [account_spend({**empty, **held}[name], ceilings) for name in currencies]

    def audit(self, limit: int, **filters: str | None) -> list[Record]:
        """Return matching audit rows, newest first."""
        rows = self.records.audit(limit=limit, newest_first=True, **filters)
        return [{name: row[name] for name in FIELDS} for row in rows]

    async def approvals(
        self,
        limit: int,
        state: str | None = None,
        approval_id: str | None = None,
        operation_id: str | None = None,
    ) -> list[Record]:
        """Return approvals with the requests they are about, newest first."""
        now = self.now_ms()
        records = (approval_record(each, now) for each in await self.records.approvals())
        found = (
            record
            for record in records
            if state in {None, record["state"]}
            and approval_id in {None, record["id"]}
            and operation_id in {None, record["operation_id"]}
        )
        return list(islice(found, limit))

    async def _operation(self, operation_id: OperationId) -> Operation | None:
        found = await self.records.operations(operation_id=operation_id, limit=1)
        return found[0][0] if found else None


def key_status(key: Record, now: str) -> str:
    """Say what a key may do at `now` (RFC 3339): one of KEY_STATUSES."""
    if key["revoked_at"] is not None:
        return "revoked"
    if key["expires_at"] is not None and key["expires_at"] <= now:
        return "expired"
    return "active" if key["frozen_at"] is None else "frozen"


def _key(key: VaultKey, lineage: Lineage) -> Record:
    return key_record(key, lineage, policy_of(key.policy))
