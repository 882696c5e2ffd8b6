"""What operators are alerted to: ledger and audit, as they stand, to a list of alerts.

Floor: operators, beside the views. Pure. The id of an alert names what happened, not when it was
noticed: however often the same state is looked at, by however many processes, it is one alert.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kb_mcp.money import Money, format_money
from kb_mcp.proxy.audit.verification import Break
from kb_mcp.proxy.edge.records import Record, Spend
from kb_mcp.proxy.rules.outcomes.conclude import REFUND_FAILED

CAP_STEPS = (100, 80)
WAL_LARGE_BYTES = 128 * 2**20  # twice of what the writer empties by itself
RECONCILE_DIFFERENCE = "reconcile_difference"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One thing that a person should know; `text` is one sentence, without secrets."""

    id: str
    kind: Kind
    text: str
    key_id: str | None = None
    operation_id: str | None = None
    customer_id: str | None = None
    amount: int | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is looked at: records of the views. `since` (RFC 3339) bounds how old news may be.

    `refusals` are times of refused requests, newest first; `burst` many within one clock minute
    are one alert. `log_bytes` is the size of the write-ahead log on `today`, a UTC day. `waiting`
    are the approvals that nobody decided; those that end before `soon` (RFC 3339) are expiring.
    """

    spend: Sequence[Spend]
    keys: Sequence[Record]
    unknown: Sequence[Record]
    reconciled: Sequence[Record]
    refunds_failed: Sequence[Record]
    refusals: Sequence[str]
    breaks: Sequence[Break]
    since: str
    burst: int
    gaps: Sequence[Record] = ()
    unwalked: Sequence[Record] = ()
    log_bytes: int = 0
    today: str = ""
    waiting: Sequence[Record] = ()
    soon: str = ""


def alerts_of(sight: Sight) -> list[Alert]:
    """Return what stands to be told, each under an id that does not change."""
    return [
        *_caps(sight.spend),
        *_keys(sight),
        *_unknown(sight.unknown),
        *_audit(sight),
        *_refunds(sight),
        *_bursts(sight),
        *_log(sight),
        *_approvals(sight),
    ]


def _approvals(sight: Sight) -> Iterator[Alert]:
    asking = {key["id"]: key for key in sight.keys}
    for row in sight.waiting:
        key = asking.get(row["key_id"], {})
        agent = key.get("agent") or key.get("label") or f"key {row['key_id']}"
        amount = format_money(Money(row["amount"], row["currency"]))
        what = "refund" if row["charge_id"] else "charge"
        bill = f"the {what} of {amount} for customer {row['customer_id']}, asked for by {agent},"
        ends = row["expires_at"]
        expiring = ends < sight.soon
        kind = Kind.APPROVAL_EXPIRING if expiring else Kind.APPROVAL_WAITING
        yield Alert(
            id=f"{kind.value}:{row['id']}",
            kind=kind,
            text=f"Approval {row['id']}: {bill} "
            + (f"expires at {ends}." if expiring else f"waits for an operator until {ends}."),
            key_id=row["key_id"],
            operation_id=row["operation_id"],
            customer_id=row["customer_id"],
            amount=row["amount"],
            currency=row["currency"],
        )


def _caps(spend: Iterable[Spend]) -> Iterator[Alert]:
    for row in spend:
        cap, used = row.cap or 0, row.settled + row.reserved
        reached = next((step for step in CAP_STEPS if cap and used * 100 >= cap * step), None)
        if reached is None:
            continue
        whose = f"key {row.key_id}" if row.key_id else "the whole account"
        refunds = row.scope.endswith("refunds")
        kind = "refund cap" if refunds else "cap"
        shown, of = (format_money(Money(each, row.currency)) for each in (used, cap))
        yield Alert(
            id=f"cap_{reached}:{row.key_id or 'account'}:{row.window}:"
            f"{row.window_start}:{row.currency}{':refunds' if refunds else ''}",
            kind=Kind.CAP_100 if reached == 100 else Kind.CAP_80,
            text=f"{shown} of {of} of the {row.window}'s {kind} of {whose} are used.",
            key_id=row.key_id,
            amount=used,
            currency=row.currency,
        )


def _keys(sight: Sight) -> Iterator[Alert]:
    for key in sight.keys:
        revoked, frozen = key["revoked_at"], key["frozen_at"]
        if revoked is not None and revoked >= sight.since:
            yield Alert(
                id=f"key_revoked:{key['id']}",
                kind=Kind.KEY_REVOKED,
                text=f"Vault key {key['id']} was revoked{_because(key['revoke_reason'])}.",
                key_id=key["id"],
            )
        if frozen is not None and frozen >= sight.since and key["rotated_to"] is None:
            yield Alert(
                id=f"key_frozen:{key['lineage']}:{frozen}",
                kind=Kind.KEY_FROZEN,
                text=f"Vault key {key['id']} is frozen{_because(key['frozen_reason'])}.",
                key_id=key["id"],
            )


def _unknown(operations: Iterable[Record]) -> Iterator[Alert]:
    for operation in operations:
        money = format_money(Money(operation["amount"], operation["currency"]))
        sent = operation["attempts"][-1]["last_sent_at"] if operation["attempts"] else ""
        yield Alert(
            id=f"outcome_unknown:{operation['id']}:{sent}",
            kind=Kind.OUTCOME_UNKNOWN,
            text=f"Nobody knows yet whether {money} for {operation['customer_id']} was "
            f"{'refunded' if operation['kind'] == 'refund' else 'charged'} "
            f"(operation {operation['id']}).",
            key_id=operation["key_id"],
            operation_id=operation["id"],
            customer_id=operation["customer_id"],
            amount=operation["amount"],
            currency=operation["currency"],
        )


def _audit(sight: Sight) -> Iterator[Alert]:
    for found in sight.breaks:
        yield Alert(
            id=f"chain_broken:{found.node}:{found.row}:{found.reason}",
            kind=Kind.CHAIN_BROKEN,
            text=f"The audit chain of {found.node} breaks at row {found.row}: {found.reason}.",
        )
    for row in sight.reconciled:
        if row["time"] >= sight.since:
            yield Alert(
                id=f"reconcile_differs:{row['id']}",
                kind=Kind.RECONCILE_DIFFERENCE,
                text=f"Ledger and Stripe differ: {row['note']}.",
            )
    yield from _walks(sight)


def _walks(sight: Sight) -> Iterator[Alert]:
    for kind, rows, text in (
        (Kind.LEDGER_BEHIND, sight.gaps, "Nothing is sent: Stripe has what the ledger lacks"),
        (Kind.WALK_FAILED, sight.unwalked, "Stripe's lists could not be read three times"),
    ):
        for row in rows:
            if row["time"] >= sight.since:
                yield Alert(id=f"{kind}:{row['id']}", kind=kind, text=f"{text}: {row['note']}.")


def _refunds(sight: Sight) -> Iterator[Alert]:
    for row in sight.refunds_failed:
        reopened = row["decision"] == REFUND_FAILED
        text = f"{row['object_id']} of {row['customer_id']} was reopened. {row['note']}"
        alert_id = f"reopened_refund_failed:{row['id']}"
        if not reopened:
            alert_id = f"refund_returned:{row['object_id']}"
            money = format_money(Money(row["amount"], row["currency"]))
            text = f"The refund {row['object_id']} of {money} to {row['customer_id']} failed: the "
            text += "money is back, and the customer has nothing of it."
        yield Alert(
            id=alert_id,
            kind=Kind.REFUND_FAILED if reopened else Kind.REFUND_RETURNED,
            text=text,
            operation_id=row["operation_id"],
            customer_id=row["customer_id"],
            amount=row["amount"],
            currency=row["currency"],
        )


def _bursts(sight: Sight) -> Iterator[Alert]:
    counts: dict[str, int] = {}
    for time in sight.refusals:
        if time >= sight.since:
            minute = time[:16]
            counts[minute] = counts.get(minute, 0) + 1
    for minute, count in counts.items():
        if count >= sight.burst:
            # One alert an hour: a runaway agent is refused every minute, and pages once.
            yield Alert(
                id=f"refusal_burst:{minute[:13]}",
                kind=Kind.REFUSAL_BURST,
                text=f"{count} requests or more were refused in the minute of {minute} UTC.",
            )
            return


def _log(sight: Sight) -> Iterator[Alert]:
    if sight.log_bytes > WAL_LARGE_BYTES:
        yield Alert(
            id=f"wal_large:{sight.today}",
            kind=Kind.WAL_LARGE,
            text=f"The store's write-ahead log holds {sight.log_bytes // 2**20} MiB and cannot be "
            "emptied: something outside reads an older state of the store.",
        )


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""
