"""Abandoned intents: what a failed attempt left at Stripe, cancelled before there is another.

Floor: below the governor. A PaymentIntent that failed can still be confirmed by whoever holds its
secret; a new attempt beside it could charge twice. Cancelling moves no
money, and is asked for under a key of its own, so that it happens once.
"""

from __future__ import annotations

from dataclasses import dataclass

from kb_mcp.proxy.rules.decisions import Proceed
from kb_mcp.proxy.stripe.json_objects import parse_object
from kb_mcp.proxy.stripe.sends import Answered, Upstream, UpstreamRequest

INTENTS = "POST /v1/payment_intents"


@dataclass(frozen=True, slots=True)
class AbandonedIntents:
    """Cancels through `upstream`."""

    upstream: Upstream

    async def cancelled(self, go: Proceed, deadline_ms: int) -> bool:
        """Say whether nothing of earlier attempts can still charge; cancel what could."""
        earlier = go.operation.object_id
        if go.operation.route != INTENTS or earlier is None or go.attempt.sends > 1:
            return True
        if go.operation.continued_by(go.attempt):
            return True
        return await self.cancel(earlier, deadline_ms)

    async def cancel(self, intent: str, deadline_ms: int) -> bool:
        """Cancel `intent`; say whether Stripe says that it is canceled."""
        request = UpstreamRequest(
            method="POST",
            path=f"/v1/payment_intents/{intent}/cancel",
            body=b"",
            stripe_version=None,
            idempotency_key=f"keybrake-cancel-{intent}",
        )
        answer = await self.upstream.send(request, deadline_ms=deadline_ms)
        if _status(answer) == "canceled":
            return True
        read = UpstreamRequest(
            method="GET",
            path=f"/v1/payment_intents/{intent}",
            body=None,
            stripe_version=None,
            idempotency_key=None,
        )
        # It may have been canceled before, by somebody else: then Stripe refuses to do it again.
        return _status(await self.upstream.send(read, deadline_ms=deadline_ms)) == "canceled"


def _status(answer: object) -> str | None:
    if not isinstance(answer, Answered) or answer.status != 200:
        return None
    status = (parse_object(answer.body) or {}).get("status")
    return status if isinstance(status, str) else None
