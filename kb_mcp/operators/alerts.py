"""Alerts: raised once, queued in the store, and sent until the receiver has taken them.

Floor: operators, above the views. An alert is raised in one transaction: its audit row, and a
delivery under its id that keeps every other process from raising it again. The id names what
happened, not when it was noticed. What was raised and not yet delivered is the queue: it outlives
this process, and any process on the store goes on with it. Whom to tell, and of what, is set by a
file only (`alert_file`): no page and no API can point alerts at another address.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from msgspec.structs import asdict

from kb_mcp.instants import day_of, rfc3339
from kb_mcp.money import Money, format_money
from kb_mcp.operators.reports.views import Views
from kb_mcp.proxy.audit.chain import Break, clean_text
from kb_mcp.proxy.edge.records import Record, Spend
from kb_mcp.proxy.ledger.counts import Delivery
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, Refs, State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules.outcomes.conclude import REFUND_FAILED
from kb_mcp.proxy.rules.outcomes.matching import GAP_FOUND, WALK_FAILED

AUDIT_KIND = "alert"
WAL_LARGE_BYTES = 128 * 2**20  # twice of what the writer empties by itself
RECONCILE_DIFFERENCE = "reconcile_difference"
_TEXT_MAX = 400
_PASSED_ON = ("key_id", "operation_id", "customer_id", "amount", "currency")
Alerted = Iterator[AuditDraft]


class Kind(StrEnum):
    """Everything that raises an alert."""

    CAP_80 = "cap_80"
    CAP_100 = "cap_100"
    KEY_REVOKED = "key_revoked"
    KEY_FROZEN = "key_frozen"
    OUTCOME_UNKNOWN = "outcome_unknown"
    CHAIN_BROKEN = "chain_broken"
    RECONCILE_DIFFERENCE = "reconcile_differs"
    REFUND_FAILED = "reopened_refund_failed"
    REFUND_RETURNED = "refund_returned"
    REFUSAL_BURST = "refusal_burst"
    LEDGER_BEHIND = "ledger_behind"
    WALK_FAILED = "walk_failed"
    WAL_LARGE = "wal_large"
    APPROVAL_WAITING = "approval_waiting"
    APPROVAL_EXPIRING = "approval_expiring"


def _alert(kind: Kind, what: object, text: str, about: Mapping[str, Any]) -> AuditDraft:
    """Return the row of one thing that a person should know, under the id `kind`:`what`.

    `text` is one sentence, without secrets; of `about` the row takes what is passed on.
    """
    return AuditDraft(
        kind=AUDIT_KIND,
        decision="raise",
        code=kind.value,
        # An alert answers no request: the column names the alert instead.
        request_id=clean_text(f"{kind}:{what}", _TEXT_MAX),
        note=clean_text(text, _TEXT_MAX),
        **{name: about.get(name) for name in _PASSED_ON},
    )


def of_approvals(waiting: Iterable[Record], keys: Iterable[Record], soon: str) -> Alerted:
    """Yield an alert for each approval that waits, and another once it ends before `soon`.

    `keys` are those that may have asked; `soon` is RFC 3339.
    """
    asking = {key["id"]: key for key in keys}
    for row in waiting:
        key, ends = asking.get(row["key_id"], {}), row["expires_at"]
        agent = key.get("agent") or key.get("label") or f"key {row['key_id']}"
        what = "refund" if row["charge_id"] else "charge"
        kind, then = Kind.APPROVAL_WAITING, f"waits for an operator until {ends}"
        if ends < soon:
            kind, then = Kind.APPROVAL_EXPIRING, f"expires at {ends}"
        bill = f"the {what} of {_money(row)} for {_whose(row)}, asked for by {agent}"
        yield _alert(kind, row["id"], f"Approval {row['id']}: {bill}, {then}.", row)


def of_spend(spend: Iterable[Spend]) -> Alerted:
    """Yield an alert for each window of which 80 or 100 per cent are used."""
    for row in spend:
        cap, used = row.cap or 0, row.settled + row.reserved
        if not cap or used * 100 < cap * 80:
            continue
        kind, about = Kind.CAP_100 if used >= cap else Kind.CAP_80, {**asdict(row), "amount": used}
        shown, of = (format_money(Money(each, row.currency)) for each in (used, cap))
        refund, tail = ("refund ", ":refunds") if row.scope.endswith("refunds") else ("", "")
        whose = f"key {row.key_id}" if row.key_id else "the whole account"
        text = f"{shown} of {of} of the {row.window}'s {refund}cap of {whose} are used."
        window = f"{row.window}:{row.window_start}:{row.currency}{tail}"
        yield _alert(kind, f"{row.key_id or 'account'}:{window}", text, about)


def of_keys(keys: Iterable[Record], since: str) -> Alerted:
    """Yield an alert for each key that was revoked or frozen since then (RFC 3339)."""
    for key in keys:
        revoked, frozen, key_id = key["revoked_at"], key["frozen_at"], key["id"]
        name, about = f"Vault key {key_id}", {"key_id": key_id}
        if revoked is not None and revoked >= since:
            text = f"{name} was revoked{_because(key['revoke_reason'])}."
            yield _alert(Kind.KEY_REVOKED, key_id, text, about)
        if frozen is not None and frozen >= since and key["rotated_to"] is None:
            text = f"{name} is frozen{_because(key['frozen_reason'])}."
            yield _alert(Kind.KEY_FROZEN, f"{key['lineage']}:{frozen}", text, about)


def of_unknown(operations: Iterable[Record]) -> Alerted:
    """Yield an alert for each operation of which nobody knows what became of its last send."""
    for row in operations:
        sent = row["attempts"][-1]["last_sent_at"] if row["attempts"] else ""
        done = "refunded" if row["kind"] == "refund" else "charged"
        text = f"Nobody knows yet whether {_money(row)} for {_whose(row)} was {done}"
        about = {**row, "operation_id": row["id"]}
        what = f"{row['id']}:{sent}"
        yield _alert(Kind.OUTCOME_UNKNOWN, what, f"{text} (operation {row['id']}).", about)


def of_breaks(breaks: Iterable[Break]) -> Alerted:
    """Yield an alert for each chain of the audit that does not hold."""
    for found in breaks:
        what = f"{found.node}:{found.row}:{found.reason}"
        text = f"The audit chain of {found.node} breaks at row {found.row}: {found.reason}."
        yield _alert(Kind.CHAIN_BROKEN, what, text, {})


# Audit rows that are an alert each, by their code, and what is said before their note.
_NOTED = {
    RECONCILE_DIFFERENCE: (Kind.RECONCILE_DIFFERENCE, "Ledger and Stripe differ"),
    GAP_FOUND: (Kind.LEDGER_BEHIND, "Nothing is sent: Stripe has what the ledger lacks"),
    WALK_FAILED: (Kind.WALK_FAILED, "Stripe's lists could not be read three times"),
}
# The codes of the audit rows that `of_row` tells of.
TOLD_CODES = (*_NOTED, REFUND_FAILED)


def of_row(row: Record) -> AuditDraft:
    """Return the alert that an audit row with one of TOLD_CODES is."""
    about = {**row, "key_id": None}
    if row["code"] in _NOTED:
        kind, text = _NOTED[row["code"]]
        return _alert(kind, row["id"], f"{text}: {row['note']}.", about)
    if row["decision"] == REFUND_FAILED:
        text = f"{row['object_id']} of {_whose(row)} was reopened. {row['note']}"
        return _alert(Kind.REFUND_FAILED, row["id"], text, about)
    text = (
        f"The refund {row['object_id']} of {_money(row)} to {_whose(row)} failed: the money is "
        "back, and the customer has nothing of it."
    )
    return _alert(Kind.REFUND_RETURNED, row["object_id"], text, about)


def of_refusals(times: Iterable[str], burst: int) -> Alerted:
    """Yield one alert where `burst` many requests were refused within one clock minute.

    `times` are RFC 3339, newest first. One alert an hour: a runaway agent is refused every minute,
    and pages once.
    """
    counts = Counter(time[:16] for time in times)
    for minute, count in counts.items():
        if count >= burst:
            text = f"Requests refused in the minute of {minute} UTC: {count} or more."
            yield _alert(Kind.REFUSAL_BURST, minute[:13], text, {})
            return


def of_log(size: int, today: str) -> Alerted:
    """Yield one alert a day, `today` (UTC), while the write-ahead log has so many bytes."""
    if size > WAL_LARGE_BYTES:
        text = (
            f"The store's write-ahead log holds {size // 2**20} MiB and cannot be emptied: "
            "something outside reads an older state of the store."
        )
        yield _alert(Kind.WAL_LARGE, today, text, {})


def _whose(row: Record) -> str:
    return row["customer_id"] or "no customer"


def _money(row: Record) -> str:
    return format_money(Money(row["amount"], row["currency"]))


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""


NEWS_MS = 24 * 3_600_000
EXPIRING_MS = 3_600_000  # an approval that ends within this time is told once more
QUEUE_MS = 3 * 24 * 3_600_000
LOOK_BACK_ROWS = 2_000
OPEN_MAX = 100
QUEUE_MAX = 200
TRIES_MAX = 12
BACKOFF_FIRST_MS = 5_000
BACKOFF_MAX_MS = 3_600_000
_DELIVERED = 1_000_000


@dataclass(frozen=True, slots=True)
class Sender:
    """A way to tell somebody of the kinds in `on`.

    Its deliveries are counted under `name`, which is the same after a restart and holds no secret.
    `send` delivers a JSON document, and returns None, or in one line why not.
    """

    name: str
    on: frozenset[Kind]
    send: Callable[[bytes], Awaitable[str | None]]


@dataclass(slots=True, kw_only=True)
class Alerts:
    """Looks, raises and delivers; one per serving process. `breaks` verifies the audit.

    `page_url` is where operators reach the dashboard; an alert links to its operation there.
    """

    views: Views
    senders: Sequence[Sender]
    breaks: Callable[[], Sequence[Break]]
    burst: int
    verify_every_ms: int
    page_url: str | None = None
    _verified_at: int = -1
    _broken: Sequence[Break] = ()
    _over: set[tuple[str, str]] = field(default_factory=set)
    _raised: set[str | None] = field(default_factory=set)

    async def run(self) -> None:
        """Make one round. Raises: LedgerUnavailableError."""
        for alert in await self._look():
            if alert.request_id not in self._raised:
                await self._record(f"alert|{alert.request_id}", 1, alert)
                self._raised.add(alert.request_id)
        for row in list(raised(self.views, self._ago(QUEUE_MS), QUEUE_MAX)):
            for sender in self.senders:
                if row["code"] in sender.on and (row["request_id"], sender.name) not in self._over:
                    await self._deliver(row, sender)

    async def _look(self) -> list[AuditDraft]:
        """Return what stands to be told, each under an id that does not change."""
        views, now, since = self.views, self.views.now_ms(), self._ago(NEWS_MS)
        if self._verified_at < 0 or now - self._verified_at >= self.verify_every_ms:
            # Walking the audit takes long; on a thread of its own it holds no charge up.
            self._broken = await asyncio.to_thread(self.breaks)
            self._verified_at = now
        keys, today = await views.keys(), day_of(now)
        rows = [row for code in TOLD_CODES for row in views.audit(OPEN_MAX, code=code, since=since)]
        newest = views.audit(LOOK_BACK_ROWS, since=since)
        refused = [row["time"] for row in newest if row["decision"] == "refuse"]
        waiting = await views.approvals(OPEN_MAX, "pending")
        return [
            *of_spend(await views.spend(today)),
            *of_keys(keys, since),
            *of_unknown(await views.operations(OPEN_MAX, state=State.UNKNOWN.value)),
            *of_breaks(self._broken),
            *map(of_row, rows),
            *of_refusals(refused, self.burst),
            *of_log(views.records.log_bytes() or 0, today.isoformat()),
            *of_approvals(waiting, keys, self._ago(-EXPIRING_MS)),
        ]

    def _ago(self, ms: int) -> str:
        return rfc3339(self.views.now_ms() - ms)

    async def _deliver(self, row: Record, sender: Sender) -> None:
        key = f"alert|{row['request_id']}|{sender.name}"
        tried = await self._take(key)
        if tried is None:
            return
        if tried >= 0:
            failure = await sender.send(self._body(row))
            if failure is not None and tried + 1 < TRIES_MAX:
                return
            note = AuditDraft(
                kind=AUDIT_KIND,
                decision="deliver" if failure is None else "give_up",
                request_id=row["request_id"],
                key_id=row["key_id"],
                operation_id=row["operation_id"],
                note=clean_text(f"{sender.name}: {failure or 'taken'}", _TEXT_MAX),
            )
            await self._record(key, _DELIVERED, note)
        self._over.add((row["request_id"], sender.name))

    async def _take(self, key: str) -> int | None:
        """Take one delivery: return how often it was tried; -1 it is over, None not due yet."""

        def step(snapshot: Snapshot) -> tuple[int | None, Changes]:
            delivery = snapshot.delivery(key)
            if delivery.tries >= TRIES_MAX:
                return -1, Changes()
            wait = min(BACKOFF_FIRST_MS << max(delivery.tries - 1, 0), BACKOFF_MAX_MS)
            if delivery.tries and snapshot.now < delivery.last_tried_at + wait:
                return None, Changes()
            taken = Delivery(key, tries=delivery.tries + 1, last_tried_at=snapshot.now)
            return delivery.tries, Changes(deliveries=(taken,))

        return await self.views.ledger.transact(lambda _: Refs(deliveries=frozenset({key})), step)

    async def _record(self, key: str, tries: int, row: AuditDraft) -> None:
        """Write `row` with its delivery; what any process has raised is not raised again."""

        def step(snapshot: Snapshot) -> tuple[None, Changes]:
            if tries == 1 and snapshot.delivery(key).tries:
                return None, Changes()
            delivery = Delivery(key, tries=tries, last_tried_at=snapshot.now)
            return None, Changes(deliveries=(delivery,), audit=(row,))

        await self.views.ledger.transact(lambda _: Refs(deliveries=frozenset({key})), step)

    def _body(self, row: Record) -> bytes:
        settings, operation_id = self.views.ledger.settings, row["operation_id"]
        linked = self.page_url and operation_id
        document = {
            "id": row["request_id"],
            "kind": row["code"],
            "text": row["note"],
            "time": row["time"],
            "account": settings.account,
            "mode": settings.mode,
            "link": f"{self.page_url}/operations/{operation_id}" if linked else None,
            **{name: row[name] for name in _PASSED_ON},
        }
        return json.dumps(document, separators=(",", ":")).encode("ascii")


def raised(views: Views, since: str, most: int) -> Iterator[Record]:
    """Yield the alerts raised since then (RFC 3339), at most `most` of a kind, oldest of it first.

    Raises: LedgerUnavailableError.
    """
    for kind in Kind:  # refusals bear some of these codes too, and may be many
        yield from views.audit(most, code=kind.value, since=since, kind=AUDIT_KIND)[::-1]
