"""Which policies move money without a cap over time.

Floor: above policy. Pure. A cap per charge bounds no sum, and a number of charges no amount: only a
cap per day, month, or customer and day bounds what a key that runs away can cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Moves

if TYPE_CHECKING:
    from kb_mcp.proxy.access.policy import Policy

REFUND: Final = "POST /v1/refunds"
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
    return any(map(_moves_money, policy.allow))


def is_uncapped(policy: Policy) -> bool:
    """Say whether `policy` moves money and no cap in money bounds its sum."""
    return bool(missing_caps(policy))


def missing_caps(policy: Policy) -> tuple[str, ...]:
    """Return the options of `keys issue` that would bound what `policy` leaves unbounded.

    What is charged and what is given back are bounded apart.
    """
    granted = frozenset(policy.allow)
    missing = []
    # The first of each four is the cap of a single act, which bounds no sum.
    if any(map(_moves_money, granted - {REFUND})) and not any(policy.caps.tables()[1:]):
        missing.append("--daily-cap")
    if REFUND in granted and not any(policy.refund_caps.tables()[1:]):
        missing.append("--refund-daily-cap")
    return tuple(missing)


def _moves_money(endpoint: str) -> bool:
    return ENDPOINTS[endpoint].moves is not Moves.READS and endpoint not in _HARMLESS
