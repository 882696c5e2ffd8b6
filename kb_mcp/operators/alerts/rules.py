"""What operators are alerted to: ledger and audit, as they stand, to alerts.

Floor: operators, beside the views. Pure. The id of an alert names what happened, not when it was
noticed: however often the same state is looked at, by however many processes, it is one alert.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kb_mcp.money import Money, format_money
from kb_mcp.proxy.audit.verification import Break
from kb_mcp.proxy.edge.records import Record, Spend
from kb_mcp.proxy.rules.outcomes.conclude import REFUND_FAILED
from kb_mcp.proxy.rules.outcomes.gaps import GAP_FOUND, WALK_FAILED

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


def of_approvals(waiting: Iterable[Record], keys: Iterable[Record], soon: str) -> Iterator[Alert]:
    """Yield an alert for each approval that waits, and another once it ends before `soon`.

    `keys` are those that may have asked; `soon` is RFC 3339.
    """
    asking = {key["id"]: key for key in keys}
    for row in waiting:
        key = asking.get(row["key_id"], {})
        agent = key.get("agent") or key.get("label") or f"key {row['key_id']}"
        what = "refund" if row["charge_id"] else "charge"
        bill = f"the {what} of {_money(row)} for customer {row['customer_id']}"
        ends = row["expires_at"]
        kind, then = Kind.APPROVAL_WAITING, f"waits for an operator until {ends}"
        if ends < soon:
            kind, then = Kind.APPROVAL_EXPIRING, f"expires at {ends}"
        text = f"Approval {row['id']}: {bill}, asked for by {agent}, {then}."
        facts = {**_bill(row), "operation_id": row["operation_id"], "key_id": row["key_id"]}
        yield Alert(id=f"{kind}:{row['id']}", kind=kind, text=text, **facts)


def of_spend(spend: Iterable[Spend]) -> Iterator[Alert]:
    """Yield an alert for each window of which 80 or 100 per cent are used."""
    for row in spend:
        cap, used = row.cap or 0, row.settled + row.reserved
        reached = next((step for step in CAP_STEPS if cap and used * 100 >= cap * step), None)
        if reached is None:
            continue
        whose = f"key {row.key_id}" if row.key_id else "the whole account"
        refunds = row.scope.endswith("refunds")
        shown, of = (format_money(Money(each, row.currency)) for each in (used, cap))
        yield Alert(
            id=f"cap_{reached}:{row.key_id or 'account'}:{row.window}:"
            f"{row.window_start}:{row.currency}{':refunds' if refunds else ''}",
            kind=Kind.CAP_100 if reached == 100 else Kind.CAP_80,
            text=f"{shown} of {of} of the {row.window}'s {'refund ' if refunds else ''}cap of "
            f"{whose} are used.",
            key_id=row.key_id,
            amount=used,
            currency=row.currency,
        )


def of_keys(keys: Iterable[Record], since: str) -> Iterator[Alert]:
    """Yield an alert for each key that was revoked or frozen since then (RFC 3339)."""
    for key in keys:
        revoked, frozen = key["revoked_at"], key["frozen_at"]
        name = f"Vault key {key['id']}"
        if revoked is not None and revoked >= since:
            yield Alert(
                id=f"key_revoked:{key['id']}",
                kind=Kind.KEY_REVOKED,
                text=f"{name} was revoked{_because(key['revoke_reason'])}.",
                key_id=key["id"],
            )
        if frozen is not None and frozen >= since and key["rotated_to"] is None:
            yield Alert(
                id=f"key_frozen:{key['lineage']}:{frozen}",
                kind=Kind.KEY_FROZEN,
                text=f"{name} is frozen{_because(key['frozen_reason'])}.",
                key_id=key["id"],
            )


def of_unknown(operations: Iterable[Record]) -> Iterator[Alert]:
    """Yield an alert for each operation of which nobody knows what became of its last send."""
    for operation in operations:
        sent = operation["attempts"][-1]["last_sent_at"] if operation["attempts"] else ""
        done = "refunded" if operation["kind"] == "refund" else "charged"
        yield Alert(
            id=f"outcome_unknown:{operation['id']}:{sent}",
            kind=Kind.OUTCOME_UNKNOWN,
            text=f"Nobody knows yet whether {_money(operation)} for {operation['customer_id']} was "
            f"{done} (operation {operation['id']}).",
            key_id=operation["key_id"],
            operation_id=operation["id"],
            **_bill(operation),
        )


def of_breaks(breaks: Iterable[Break]) -> Iterator[Alert]:
    """Yield an alert for each chain of the audit that does not hold."""
    for found in breaks:
        yield Alert(
            id=f"chain_broken:{found.node}:{found.row}:{found.reason}",
            kind=Kind.CHAIN_BROKEN,
            text=f"The audit chain of {found.node} breaks at row {found.row}: {found.reason}.",
        )


# Audit rows that are an alert each, by their code, and what is said before their note.
_NOTED = {
    RECONCILE_DIFFERENCE: (Kind.RECONCILE_DIFFERENCE, "Ledger and Stripe differ"),
    GAP_FOUND: (Kind.LEDGER_BEHIND, "Nothing is sent: Stripe has what the ledger lacks"),
    WALK_FAILED: (Kind.WALK_FAILED, "Stripe's lists could not be read three times"),
}
# The codes of the audit rows that `of_row` tells of.
TOLD_CODES = (*_NOTED, REFUND_FAILED)


def of_row(row: Record) -> Alert:
    """Return the alert that an audit row with one of TOLD_CODES is."""
    if row["code"] in _NOTED:
        kind, text = _NOTED[row["code"]]
        return Alert(id=f"{kind}:{row['id']}", kind=kind, text=f"{text}: {row['note']}.")
    if row["decision"] == REFUND_FAILED:
        kind, alert_id = Kind.REFUND_FAILED, f"reopened_refund_failed:{row['id']}"
        text = f"{row['object_id']} of {row['customer_id']} was reopened. {row['note']}"
    else:
        kind, alert_id = Kind.REFUND_RETURNED, f"refund_returned:{row['object_id']}"
        text = (
            f"The refund {row['object_id']} of {_money(row)} to {row['customer_id']} failed: the "
            "money is back, and the customer has nothing of it."
        )
    return Alert(id=alert_id, kind=kind, text=text, operation_id=row["operation_id"], **_bill(row))


def of_refusals(times: Iterable[str], burst: int) -> Iterator[Alert]:
    """Yield one alert where `burst` many requests were refused within one clock minute.

    `times` are RFC 3339, newest first. One alert an hour: a runaway agent is refused every minute,
    and pages once.
    """
    counts = Counter(time[:16] for time in times)
    for minute, count in counts.items():
        if count >= burst:
            yield Alert(
                id=f"refusal_burst:{minute[:13]}",
                kind=Kind.REFUSAL_BURST,
                text=f"{count} requests or more were refused in the minute of {minute} UTC.",
            )
            return


def of_log(size: int, today: str) -> Iterator[Alert]:
    """Yield one alert a day, `today` (UTC), while the write-ahead log has so many bytes."""
    if size > WAL_LARGE_BYTES:
        yield Alert(
            id=f"wal_large:{today}",
            kind=Kind.WAL_LARGE,
            text=f"The store's write-ahead log holds {size // 2**20} MiB and cannot be emptied: "
            "something outside reads an older state of the store.",
        )


def _bill(row: Record) -> dict[str, Any]:
    return {name: row[name] for name in ("customer_id", "amount", "currency")}


def _money(row: Record) -> str:
    return format_money(Money(row["amount"], row["currency"]))


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""
