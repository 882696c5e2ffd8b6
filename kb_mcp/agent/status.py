"""What a charge, or an operation of the ledger, means to someone who asks about a bill.

Floor: wing A, above outcomes. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from kb_mcp.agent import wording
from kb_mcp.agent.catalogue import ChargeStatusArguments
from kb_mcp.agent.outcomes import Reply, amount_of, as_map, as_number, as_text, lapsed, status_of
from kb_mcp.agent.results import ChargeStatusResult
from kb_mcp.money import Money, format_money
from kb_mcp.periods import PeriodError, parse_period

# What matters most about a bill, first: a charge that exists outweighs earlier attempts.
_TELLING: Final = ("succeeded", "unknown", "reserved", "awaiting_approval", "failed", "voided")
_YEAR_9999 = 253_402_300_799


def describe_charge(reply: Reply) -> ChargeStatusResult:
    """Describe a charge or a payment intent as Stripe shows it."""
    status = status_of(reply.fields)
    amount, currency = amount_of(reply.fields), reply.text("currency")
    refunded = as_number(reply.fields.get("amount_refunded"))
    livemode = reply.fields.get("livemode")
    disputed = reply.fields.get("disputed")
    receipt = as_text(reply.fields.get("receipt_url"), 2000)
    kind = _kind_of(status, reply.fields)
    return ChargeStatusResult(
        found=True,
        status=status,
        charge_id=reply.text("id"),
        amount_cents=amount,
        amount_refunded=refunded,
        disputed=disputed if isinstance(disputed, bool) else None,
        receipt_url=receipt,
        currency=currency,
        customer_id=reply.text("customer"),
        billing_period=as_text(as_map(reply.fields.get("metadata")).get("billing_period")),
        description=reply.text("description"),
        created=_when(as_number(reply.fields.get("created"))),
        livemode=livemode if isinstance(livemode, bool) else reply.livemode,
        message=_charge_message(kind, amount, refunded, currency, disputed=disputed is True),
        next_step=wording.status_step("receipt" if status == "succeeded" and receipt else status),
    )


def describe_operation(
    operation: Mapping[str, object], *, livemode: bool | None = None
) -> ChargeStatusResult:
    """Describe an operation of the ledger whose charge cannot be shown; `livemode` of the key."""
    state = as_text(operation.get("state")) or "unknown"
    if state == "succeeded" and operation.get("final") is False:
        state = "pending"
    status = "unknown" if state == "reserved" else state
    approval = as_text(operation.get("approval"))
    told = approval if state == "awaiting_approval" and approval in wording.APPROVALS else state
    amount, currency = as_number(operation.get("amount")), as_text(operation.get("currency"))
    return ChargeStatusResult(
        found=True,
        status=status,
        charge_id=as_text(operation.get("charge_id")),
        amount_cents=amount,
        currency=currency,
        customer_id=as_text(operation.get("customer_id")),
        billing_period=as_text(operation.get("billing_period")),
        created=as_text(operation.get("created_at")),
        livemode=livemode,
        message=wording.OPERATION_MESSAGES.get(told, wording.OPERATION_MESSAGES["unknown"]).format(
            money=_money(amount, currency)
        ),
        next_step=wording.status_step(told if told in wording.APPROVALS else status),
    )


def most_telling(operations: object) -> Mapping[str, object] | None:
    """Pick, of operations newest first, the one that says most about the bill."""
    found = [as_map(entry) for entry in operations] if isinstance(operations, list) else []
    return min(found, key=lambda operation: _rank(operation.get("state")), default=None)


def not_found() -> ChargeStatusResult:
    """Say that there is no such charge."""
    return ChargeStatusResult(
        found=False, message=wording.NOT_FOUND, next_step=wording.status_step("not_found")
    )


def another_bill() -> ChargeStatusResult:
    """Say that the charge of this id is not the bill that was asked for with it."""
    return ChargeStatusResult(
        found=False,
        message=wording.ANOTHER_BILL,
        next_step=wording.status_step("another_bill"),
    )


def contradicts(found: ChargeStatusResult, asked: ChargeStatusArguments) -> bool:
    """Say whether a charge is of another customer or period than was asked for beside its id."""
    customers = found.customer_id, asked.customer_id
    periods = _label(found.billing_period), asked.billing_period
    return found.found and any(
        None not in (known, wanted) and known != wanted for known, wanted in (customers, periods)
    )


def not_readable(reply: Reply) -> ChargeStatusResult:
    """Say that the key may not look, which is no statement about the charge."""
    code = reply.text("code") or "refused"
    said = reply.text("message") or wording.LOOKUP_FAILED
    return ChargeStatusResult(
        found=False,
        status="refused",
        message=f"{said} ({code}) This says nothing about whether a charge exists.",
        next_step=wording.status_step("refused"),
    )


def _kind_of(status: str, fields: Mapping[str, object]) -> str:
    """Return the wording of a charge: authorised and lapsed ones are told apart."""
    if lapsed(fields):
        return "lapsed"
    return "authorized" if status == "pending" and fields.get("captured") is False else status


def _label(period: str | None) -> str | None:
    """Return the canonical form of a charge's own period; of one that cannot be read, None."""
    try:
        return None if period is None else parse_period(period).label
    except PeriodError:
        return None


def _rank(state: object) -> int:
    return _TELLING.index(state) if state in _TELLING else len(_TELLING)


def _charge_message(
    kind: str, amount: int | None, refunded: int | None, currency: str | None, *, disputed: bool
) -> str:
    parts: Iterable[str] = (
        wording.OPERATION_MESSAGES[kind].format(money=_money(amount, currency)),
        f" {_money(refunded, currency)} of it was refunded." if refunded else "",
        " The customer disputes it." if disputed else "",
    )
    return "".join(parts)


def _money(amount: int | None, currency: str | None) -> str:
    return (
        "an amount" if amount is None or currency is None else format_money(Money(amount, currency))
    )


def _when(seconds: int | None) -> str | None:
    if seconds is None or not 0 <= seconds <= _YEAR_9999:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
