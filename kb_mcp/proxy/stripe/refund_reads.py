"""Reading whether a charge was given back: the charge, and the list of its refunds.

Floor: wing B, beside the reader. A refund counts once it has succeeded; one that waits may still
fail, and so may, days later, one that succeeded.
Source: docs.stripe.com/refunds#failed-refunds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kb_mcp.proxy.ledger.records import Operation
from kb_mcp.proxy.stripe.reader import Found, Missing, StripeReads, Unread

_INTENTS = "POST /v1/payment_intents"
_WAITING = frozenset({"pending", "requires_action"})


@dataclass(frozen=True, slots=True)
class GivenBack:
    """Whether all of a charge was given back, and the refund that still waits, if any."""

    whole: bool
    waiting: str | None = None


async def read_refund(reads: StripeReads, operation: Operation) -> GivenBack | Missing | Unread:
    """Read what was given back of the charge that `operation` made."""
    path = f"/v1/charges/{operation.object_id}"
    if operation.route == _INTENTS:
        path = f"/v1/payment_intents/{operation.object_id}?expand[]=latest_charge"
    seen = await reads.get(path)
    if not isinstance(seen, Found):
        return seen
    charge = seen.body.get("latest_charge") if operation.route == _INTENTS else seen.body
    if not isinstance(charge, Mapping) or not isinstance(charge.get("id"), str):
        return GivenBack(whole=False)
    listed = await reads.get(f"/v1/refunds?charge={charge['id']}&limit=100")
    if not isinstance(listed, Found):
        return listed if isinstance(listed, Unread) else Unread("Stripe's answer is no list")
    refunds = listed.body.get("data")
    if not isinstance(refunds, list) or listed.body.get("has_more") is not False:
        return Unread("Stripe's list of its refunds is not whole")
    return judge_refunds(charge, [each for each in refunds if isinstance(each, Mapping)])


def judge_refunds(charge: Mapping[str, Any], refunds: Sequence[Mapping[str, Any]]) -> GivenBack:
    """Say what `refunds` have given back of `charge`; amounts are minor units of one currency."""
    waiting = next((each for each in refunds if each.get("status") in _WAITING), None)
    if waiting is not None:
        return GivenBack(whole=False, waiting=f"{waiting.get('id')} ({waiting.get('status')})")
    given = sum(
        each["amount"]
        for each in refunds
        if each.get("status") == "succeeded" and type(each.get("amount")) is int
    )
    taken = charge.get("amount_captured")
    taken = taken if type(taken) is int else charge.get("amount")
    whole = charge.get("refunded") is True and type(taken) is int and 0 < taken <= given
    return GivenBack(whole=whole)
