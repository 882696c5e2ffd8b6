"""What an answer of the proxy means for `refund`, and the refunds that a charge has.

Floor: wing A, above outcomes. Pure. What is not proven is `unknown`, never a no.
Source of statuses: docs.stripe.com/api/refunds/object.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from kb_mcp.agent import wording
from kb_mcp.agent.catalogue import RefundArguments
from kb_mcp.agent.outcomes import (
    Reply,
    as_map,
    as_number,
    as_text,
    is_definite_no,
    raise_if_nothing_sent,
)
from kb_mcp.agent.results import RefundResult, ShownRefund, Status
from kb_mcp.money import Money, format_money

_STATUSES: Final[Mapping[str, Status]] = MappingProxyType(
    {
        "succeeded": "succeeded",
        "pending": "pending",
        "requires_action": "pending",
        "failed": "failed",
        "canceled": "failed",
    }
)
_UNKNOWN: Final = "outcome_unknown"


def refund_params(arguments: RefundArguments) -> dict[str, Any]:  # the SDK's parameters
    """Return what Stripe is asked for; without an amount it is all that is left."""
    of = "payment_intent" if arguments.charge_id.startswith("pi_") else "charge"
    asked = {of: arguments.charge_id, "amount": arguments.amount_cents, "reason": arguments.reason}
    return {name: value for name, value in asked.items() if value is not None}


def refund_outcome(arguments: RefundArguments, reply: Reply) -> RefundResult:
    """Read the answer to a refund.

    Raises: RateLimitedError, ProxyUnavailableError, where nothing was sent.
    """
    if not reply.is_error:
        status = _STATUSES.get(reply.text("status") or "", "unknown")
        return _result(arguments, reply, status, refund_id=reply.text("id"))
    code = reply.text("code")
    if not reply.doubtful:
        raise_if_nothing_sent(reply)
    if not is_definite_no(reply):
        return _result(arguments, reply, "unknown", code=_UNKNOWN if reply.doubtful else code)
    # Our own refusals carry facts, be they empty; what Stripe itself rejects has none.
    refused: Status = "refused" if "keybrake" in reply.fields else "failed"
    return _result(
        arguments,
        reply,
        refused,
        refund_id=as_text(reply.facts.get("refund_id")),
        code=code or reply.text("type") or "rejected",
    )


def refund_unknown(
    arguments: RefundArguments, *, code: str = _UNKNOWN, livemode: bool
) -> RefundResult:
    """Say that the request may have been sent, and that no answer can be read."""
    return _result(arguments, Reply(0, livemode=livemode), "unknown", code=code)


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


def _result(
    arguments: RefundArguments,
    reply: Reply,
    status: Status,
    *,
    refund_id: str | None = None,
    code: str | None = None,
) -> RefundResult:
    replayed = not reply.is_error and reply.headers.get("idempotent-replayed") == "true"
    facts = reply.facts
    livemode = reply.fields.get("livemode")
    livemode = livemode if isinstance(livemode, bool) else reply.livemode
    amount = as_number(reply.fields.get("amount")) or arguments.amount_cents
    currency = reply.text("currency") or as_text(facts.get("currency"))
    money = "what is left of it" if arguments.amount_cents is None else "that amount"
    if amount is not None and currency is not None:
        money = format_money(Money(amount, currency))
    before = (replayed and status in {"succeeded", "pending"}) or code == "already_refunded"
    return RefundResult(
        status=status,
        refund_id=refund_id,
        charge_id=reply.text("charge") or arguments.charge_id,
        amount_cents=amount,
        currency=currency,
        already_refunded=before,
        amount_left=as_number(facts.get("left")),
        livemode=livemode,
        operation_id=as_text(reply.headers.get("keybrake-operation"))
        or as_text(facts.get("operation")),
        code=code,
        message=wording.refund_message(
            status,
            money,
            reply.text("message") if reply.is_error else None,
            replayed=replayed,
            livemode=livemode,
        ),
        next_step=wording.refund_step(status, code, replayed=replayed),
    )
