"""Which policies move money without a cap over time.

Floor: above policy. Pure. A cap per charge bounds no sum, and a number of charges no amount: only a
cap per day, month, or customer and day bounds what a key that runs away can cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Moves

if TYPE_CHECKING:
    from kb_mcp.proxy.access.policy import Policy

# Writes that only release what is held, or change no more than wording.
_HARMLESS: Final = frozenset(
    {
        "POST /v1/charges/*",
        "POST /v1/payment_intents/*/cancel",
        "POST /v1/payouts/*",
        "POST /v1/payouts/*/cancel",
        "POST /v1/refunds/*",
        "POST /v1/refunds/*/cancel",
        "POST /v1/topups/*/cancel",
        "POST /v1/transfers/*",
    }
)


def moves_money(policy: Policy) -> bool:
    """Say whether `policy` grants a request that moves money."""
    return any(
        ENDPOINTS[endpoint].moves is not Moves.READS and endpoint not in _HARMLESS
        for endpoint in policy.allow
    )


def is_uncapped(policy: Policy) -> bool:
    """Say whether `policy` moves money and no cap in money bounds its sum."""
    caps = policy.caps
    return moves_money(policy) and not (caps.daily or caps.monthly or caps.per_customer_daily)
