"""What a charge, or an operation of the ledger, means to someone who asks about a bill.

Floor: wing A, above outcomes. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal

from kb_mcp.agent import wording
from kb_mcp.agent.catalogue import ChargeStatusArguments
from kb_mcp.agent.outcomes import (
    Reply,
    amount_of,
    as_list,
    as_map,
    as_number,
    as_text,
    lapsed,
    money_of,
    status_of,
)
from kb_mcp.agent.results import ChargeStatusResult, ShownRefund
from kb_mcp.periods import find_period

# What matters most about a bill, first: a charge that exists outweighs earlier attempts.
_TELLING: Final = ("succeeded", "unknown", "reserved", "awaiting_approval", "failed", "voided")
_YEAR_9999 = 253_402_300_799


def describe_charge(reply: Reply, refunds: list[ShownRefund] | None = None) -> ChargeStatusResult:
    """Describe a charge or a payment intent as Stripe shows it, and its `refunds`."""
    fields, status, currency = reply.fields, status_of(reply.fields), reply.text("currency")
    amount, refunded = amount_of(fields), as_number(fields.get("amount_refunded"))
    disputed = fields.get("disputed")
    receipt = as_text(fields.get("receipt_url"), 2000)
    kind: str = status
    if lapsed(fields):
        kind = "lapsed"
    elif status == "pending" and fields.get("captured") is False:
        kind = "authorized"
    elif status == "succeeded" and receipt:
        kind = "receipt"
    message, next_step = wording.LOOKED_UP[kind]
    more = f" {money_of(refunded, currency)} of it was refunded." if refunded else ""
    more += " The customer disputes it." if disputed is True else ""
    return ChargeStatusResult(
        found=True,
        status=status,
        charge_id=reply.text("id"),
        amount_cents=amount,
        amount_refunded=refunded,
        refunds=refunds,
        disputed=disputed if isinstance(disputed, bool) else None,
        receipt_url=receipt,
        currency=currency,
        customer_id=reply.text("customer"),
        billing_period=as_text(as_map(fields.get("metadata")).get("billing_period")),
        description=reply.text("description"),
        created=_when(as_number(fields.get("created"))),
        livemode=reply.real_money,
        message=message.format(money=money_of(amount, currency)) + more,
        next_step=next_step,
    )


def describe_operation(
    operation: Mapping[str, object], *, livemode: bool | None = None
) -> ChargeStatusResult:
    """Describe an operation of the ledger whose charge cannot be shown; `livemode` of the key."""
    state = as_text(operation.get("state")) or "unknown"
    if state == "succeeded" and operation.get("final") is False:
        state = "pending"
    approval = as_text(operation.get("approval"))
    kind = approval if state == "awaiting_approval" and approval in wording.APPROVALS else state
    message, next_step = wording.LOOKED_UP.get(kind, wording.LOOKED_UP["unknown"])
    amount, currency = as_number(operation.get("amount")), as_text(operation.get("currency"))
    return ChargeStatusResult(
        found=True,
        status="unknown" if state == "reserved" else state,
        charge_id=as_text(operation.get("charge_id")),
        amount_cents=amount,
        currency=currency,
        customer_id=as_text(operation.get("customer_id")),
        billing_period=as_text(operation.get("billing_period")),
        created=as_text(operation.get("created_at")),
        livemode=livemode,
        message=message.format(money=money_of(amount, currency), said=""),
        next_step=next_step,
    )


def describe_refunds(reply: Reply) -> list[ShownRefund] | None:
    """Return the refunds in the ledger's answer, newest first; None where it does not say."""
    listed = reply.fields.get("refunds")
    if reply.is_error or not isinstance(listed, list):
        return None
    return [
        ShownRefund(
            refund_id=as_text(each.get("refund_id")),
            amount_cents=as_number(each.get("amount")),
            status=as_text(each.get("status")),
            created=as_text(each.get("created_at")),
        )
        for each in map(as_map, listed)
    ]


def most_telling(operations: object) -> Mapping[str, object] | None:
    """Pick, of operations newest first, the one that says most about the bill."""

    def rank(operation: Mapping[str, object]) -> int:
        state = operation.get("state")
        return _TELLING.index(state) if state in _TELLING else len(_TELLING)

    return min(map(as_map, as_list(operations)), key=rank, default=None)


def nothing_shown(
    kind: Literal["not_found", "another_bill", "broken", "refused"],
    *,
    status: str | None = None,
    said: str = "",
) -> ChargeStatusResult:
    """Say why no charge is shown; `said` is what the proxy says of it."""
    message, next_step = wording.LOOKED_UP[kind]
    return ChargeStatusResult(
        found=False, status=status, message=message.format(said=said), next_step=next_step
    )


def not_readable(reply: Reply) -> ChargeStatusResult:
    """Say that the key may not look, which is no statement about the charge."""
    said = reply.text("message") or "The look-up failed."
    code = reply.text("code") or "refused"
    return nothing_shown("refused", status="refused", said=f"{said} ({code})")


def contradicts(found: ChargeStatusResult, asked: ChargeStatusArguments) -> bool:
    """Say whether a charge is of another customer or period than was asked for beside its id."""
    period = find_period(found.billing_period)
    customers = found.customer_id, asked.customer_id
    periods = period and period.label, asked.billing_period
    return found.found and any(
        None not in (known, wanted) and known != wanted for known, wanted in (customers, periods)
    )


def _when(seconds: int | None) -> str | None:
    if seconds is None or not 0 <= seconds <= _YEAR_9999:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
