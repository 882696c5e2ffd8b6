"""What operators see: lists out of the store's records, bounded, for the API and the pages.

Floor: operators, below the admin API and the dashboard, above records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import islice

from msgspec.structs import asdict

from kb_mcp.instants import day_of, rfc3339
from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.access.tokens import Mode
from kb_mcp.proxy.audit.chain import audit_record
from kb_mcp.proxy.edge.records import (
    Record,
    Spend,
    grant_record,
    key_record,
    operation_records,
    spans,
    spend_records,
    spend_rows,
)
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import (
    Approval,
    Attempt,
    Changes,
    KeyId,
    Lineage,
    Operation,
    State,
    VaultKey,
)
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import REFUNDS
from kb_mcp.proxy.rules.command import asked_again
from kb_mcp.proxy.rules.reserve import blocking
from kb_mcp.proxy.stores.gauges import KeyCounts, KeySpend
from kb_mcp.proxy.stores.reads import StoreReads

AGENT_ROWS_MAX = 1_000
OPEN = frozenset({"pending", "approved"})  # approvals that may still be used
KEY_STATUSES = ("active", "frozen", "expired", "revoked")


class NoSuchKeyError(Exception):
    """There is no vault key with this id."""

    def __init__(self, key_id: str) -> None:
        """Take the id that was looked for."""
        super().__init__(f"there is no vault key {key_id}")


class NoSuchOperationError(Exception):
    """There is no operation with this id."""


# What a record calls some fields of an approval.
_CALLED = {"lineage_id": "lineage", "customer": "customer_id", "period": "billing_period"}


def approval_record(approval: Approval, now: int) -> Record:
    """Return an approval with the request it is about; past its end it is `expired`."""
    record = {_CALLED.get(name, name): value for name, value in asdict(approval).items()}
    given_back = record.pop("gives_back")
    invoice = approval.endpoint.startswith("POST /v1/invoices/")
    about = {"charge_id": None, "invoice_id": None}
    about["invoice_id" if invoice else "charge_id"] = given_back
    times = {name: record[name] for name in ("created_at", "expires_at", "decided_at")}
    told = {name: None if at is None else rfc3339(at) for name, at in times.items()}
    return record | about | told | {"state": approval.state_at(now)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Reads for people; money in minor units, times RFC 3339.

    Raises: LedgerUnavailableError, and NoSuchKeyError or NoSuchOperationError for one by its id.
    """

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

    async def key(self, key_id: str) -> Record:
        """Return one vault key."""
        found = await self.records.keys_by_id([key_id]) if key_id.isprintable() else ()
        if not found:
            raise NoSuchKeyError(key_id)
        return _key(*found[0])

    async def key_page(self, most: int, **wanted: str | None) -> list[Record]:
        """Return at most `most` keys with their `status`, newest first.

        `wanted` narrows them by text and status, and goes on after a key, as the store's does.
        """
        now = self.now_ms()
        records = [_key(*each) for each in await self.records.key_page(now, most, **wanted)]
        return [{**key, "status": key_status(key, rfc3339(now))} for key in records]

    async def key_counts(self) -> dict[str, int]:
        """Return how many keys there are by status, rotated ones too."""
        return by_status(await self.records.key_counts(self.now_ms()))

    async def labels(self, ids: Iterable[str | None]) -> dict[str, str]:
        """Return what people call these keys, by id."""
        wanted = sorted({each for each in ids if each is not None})
        found = await self.records.keys_by_id(wanted) if wanted else ()
        return {key.id: key.label or key.agent or key.id for key, _ in found}

    async def operations(
        self,
        limit: int | None,
        *,
        agent: str | None = None,
        session: str | None = None,
        **filters: str | None,
    ) -> list[Record]:
        """Return matching operations, newest first.

        Those that an agent or a session asked for are found by way of its newest AGENT_ROWS_MAX
        audit rows, the latest asked first.
        """
        given = {name: value for name, value in filters.items() if value}
        if not agent and not session:
            return await self._shown(await self.records.operations(limit=limit, **given))
        customer = filters.get("customer_id")
        rows = self.audit(AGENT_ROWS_MAX, agent=agent, session=session, customer=customer)
        ids = list(dict.fromkeys(row["operation_id"] for row in rows if row["operation_id"]))
        found: list[tuple[Operation, list[Attempt]]] = []
        most = limit or AGENT_ROWS_MAX
        # No more than are shown, where that is enough: they are unsealed where charges are served.
        for at in range(0, len(ids), most):
            some = await self.records.operations(limit=None, ids=ids[at : at + most], **given)
            found += sorted(some, key=lambda each: ids.index(each[0].id))
            if len(found) >= most:
                break
        return await self._shown(found[:limit])

    async def operation(self, operation_id: str) -> Record:
        """Return one operation."""
        return (await self._shown([await self._operation(operation_id)]))[0]

    async def raw_operation(self, operation_id: str) -> Operation:
        """Return one operation as the ledger holds it, for an act on it."""
        return (await self._operation(operation_id))[0]

    async def _operation(self, operation_id: str) -> tuple[Operation, list[Attempt]]:
        found = await self.records.operations(operation_id=operation_id, limit=1)
        if not found:
            raise NoSuchOperationError(f"there is no operation {operation_id}")
        return found[0]

    async def spent_by_day(self, days: Sequence[str]) -> dict[str, dict[str, int]]:
        """Return what all keys together hold in each of `days`, by currency and day."""
        held: dict[str, dict[str, int]] = {}
        for window in await self.records.windows(scope="account", starts=days):
            if window.key.currency and window.key.window == "day":
                amount = window.settled + window.reserved
                held.setdefault(window.key.currency, {})[window.key.start] = amount
        return held

    async def spend(self, day: date, *, rotated: bool = False) -> list[Spend]:
        """Return spend against cap on `day` and in its month: the account's, then each key's.

        What was given back stands behind it. A rotated key shares its windows with its successor:
        with `rotated` both have rows for what they spend, else only the newest of a lineage has.
        """
        starts = _starts(day)
        keys = await self.records.caps_of_keys()
        rows: list[Spend] = []
        for of in ("", REFUNDS):
            scope = f"key{of}"
            rows += await self.account_spend(day, of)
            held = await self.records.held_of_keys(scope, *starts)
            for each in keys:
                if each.rotated and (of or not rotated):
                    continue
                for window, start, caps in spans(each.refund_caps if of else each.caps, starts):
                    here = held.get((each.lineage_id, window), {})
                    rows += spend_rows(each.key_id, (scope, window, start), caps, here)
        return rows

    async def spend_of(self, day: date, key_id: str) -> list[Spend]:
        """Return spend against cap on `day` and in its month of one key, rotated or not."""
        await self.key(key_id)
        found = await self.spend_of_keys(day, [KeyId(key_id)])
        return [row for _, rows in found.values() for row in rows]

    async def spend_of_keys(
        self, day: date, ids: Sequence[KeyId]
    ) -> dict[KeyId, tuple[KeySpend, list[Spend]]]:
        """Return of each of these keys what caps it, and its rows on `day` and in its month."""
        starts = _starts(day)
        found = await self.records.spend_of_keys(ids, *starts, self.now_ms())
        return {key.key_id: (key, spend_records(key, starts)) for key in found}

    async def account_spend(self, day: date, of: str = "") -> list[Spend]:
        """Return what all keys hold on `day` against the ceiling; given back with `of` REFUNDS."""
        place = (f"account{of}", "day", day.isoformat())
        ceilings = await self.records.ceilings(refunds=bool(of))
        windows = await self.records.windows(scope=place[0], starts=place[2:])
        held = {each.key.currency: (each.reserved, each.settled) for each in windows}
        held.pop("", None)  # counts sends
        return [*spend_rows(None, place, ceilings, held)]

    async def grants(self) -> list[Record]:
        """Return every grant that is not removed, oldest first."""
        found = await self.records.grants()
        return [grant_record(each) for each in found if each.removed_at is None]

    def audit(self, limit: int, **filters: str | None) -> list[Record]:
        """Return matching audit rows, newest first."""
        return [*map(audit_record, self.records.audit(limit=limit, newest_first=True, **filters))]

    async def approvals(
        self,
        limit: int | None = None,
        state: str | None = None,
        approval_id: str | None = None,
        operation_id: str | None = None,
    ) -> list[Record]:
        """Return approvals with the requests they are about, newest first.

        `blocked_by` says why the approved call would move nothing as things are, or is None.
        """
        now = self.now_ms()
        matching = (
            each
            for each in await self.records.approvals()
            if state in {None, each.state_at(now)}
            and approval_id in {None, each.id}
            and operation_id in {None, each.operation_id}
        )
        found = list(islice(matching, limit))
        blocked = await self._blocked([each for each in found if each.state_at(now) in OPEN])
        return [approval_record(each, now) | {"blocked_by": blocked.get(each.id)} for each in found]

    async def _blocked(self, approvals: Sequence[Approval]) -> dict[str, str | None]:
        """Say of each approval why its request would move nothing now, by its id."""
        if not approvals:
            return {}
        ids = {each.operation_id for each in approvals}
        about = {each.id: each for each, _ in await self.records.operations(ids=sorted(ids))}
        keys = await self.records.keys_by_id(sorted({each.key_id for each in approvals}))
        known = {key.id: (key, lineage) for key, lineage in keys}
        asking = {
            each.id: self._block(each, about[each.operation_id], *known[each.key_id])
            for each in approvals
            if each.operation_id in about and each.key_id in known
        }
        # What is asked of the ledger at once is one transaction.
        return dict(zip(asking, await asyncio.gather(*asking.values()), strict=True))

    async def _block(
        self, approval: Approval, operation: Operation, key: VaultKey, lineage: Lineage
    ) -> str | None:
        """Say why a call by `key` with its `approval` would move nothing as things are, or None."""
        status = key_status(_key(key, lineage), rfc3339(self.now_ms()))
        if status != "active" and key.rotated_to is None:
            return f"its key is {status}"
        command = asked_again(approval, operation, policy_of(key.policy))

        def step(snapshot: Snapshot) -> tuple[str | None, Changes]:
            now = snapshot.operations.get(operation.id, operation)
            if now.state is State.SUCCEEDED and now.fingerprint == approval.fingerprint:
                return f"it was made already, {now.object_id}", Changes()
            refusal = blocking(snapshot, command, now)
            # What follows the first sentence is told to agents: what to do instead.
            return None if refusal is None else refusal.message.partition(". ")[0], Changes()

        return await self.ledger.transact(command.refs, step)

    async def _shown(self, found: Iterable[tuple[Operation, list[Attempt]]]) -> list[Record]:
        return await operation_records(self.records, found, self.now_ms())


@dataclass(slots=True)
class Fullest:
    """The account's spend, and that of the keys nearest to their caps.

    Where there are very many keys, which they are is decided anew only now and then: it takes a
    look at every key, on the thread on which charges are served.
    """

    views: Views
    keys: Sequence[KeyId] = field(default=(), init=False)
    _chosen_until: int = field(default=0, init=False)

    async def today(
        self, most: int, chosen_for_ms: int
    ) -> tuple[list[Spend], dict[KeyId, tuple[KeySpend, list[Spend]]]]:
        """Return the account's rows of today, and of each of `most` keys what caps it and its rows.

        Those chosen stay for `chosen_for_ms`. Raises: LedgerUnavailableError.
        """
        now = self.views.now_ms()
        day = day_of(now)
        if len(self.keys) < most or now >= self._chosen_until:
            self.keys = await self.views.records.fullest_keys(*_starts(day), now, most)
            self._chosen_until = now + chosen_for_ms
        account = [row for of in ("", REFUNDS) for row in await self.views.account_spend(day, of)]
        return account, await self.views.spend_of_keys(day, self.keys)


def key_status(key: Record, now: str) -> str:
    """Say what a key may do at `now` (RFC 3339): one of KEY_STATUSES."""
    if key["revoked_at"] is not None:
        return "revoked"
    if key["expires_at"] is not None and key["expires_at"] <= now:
        return "expired"
    return "active" if key["frozen_at"] is None else "frozen"


def by_status(counts: Sequence[KeyCounts]) -> dict[str, int]:
    """Return how many keys have each of KEY_STATUSES, rotated ones too."""
    return {
        status: sum(each.count for each in counts if each.status == status)
        for status in KEY_STATUSES
    }


def _key(key: VaultKey, lineage: Lineage) -> Record:
    return key_record(key, lineage, policy_of(key.policy))


def _starts(day: date) -> tuple[str, str]:
    """Return the first days of the windows of `day`, and of its month."""
    return day.isoformat(), day.replace(day=1).isoformat()
