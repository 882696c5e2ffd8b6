"""Scopes: what of a vault key's rights a token reaches.

Floor: wing B, in the room of access. Pure. A token that has any of the tools' scopes may do no
more than they say; one that has none of them is narrowed by its grant's vault key alone.
"""

from __future__ import annotations

from typing import Final

from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse

CHARGE: Final = "charge"
CHARGE_STATUS: Final = "charge_status"
REFUND: Final = "refund"
SCOPES: Final = (CHARGE, CHARGE_STATUS, REFUND)
# What is looked up in order to charge: the customer, and the payment method to use.
_LOOKED_UP: Final = ("GET /v1/customers", "GET /v1/payment_methods")


def narrowing(scopes: frozenset[str]) -> frozenset[str] | None:
    """Return the scopes that narrow, or None where a token has none of them."""
    return scopes & frozenset(SCOPES) or None


def check_scopes(scopes: frozenset[str] | None, endpoint: str) -> Refusal | None:
    """Return why a token with `scopes` does not reach `endpoint` (`POST /v1/charges`), or None."""
    needed = _reaching(endpoint)
    if scopes is None or scopes & needed:
        return None
    return refuse(Code.TOOL_NOT_GRANTED, scope=min(needed))


def _reaching(endpoint: str) -> frozenset[str]:
    """Return the scopes any of which reaches `endpoint`."""
    if endpoint.startswith(_LOOKED_UP):
        return frozenset(SCOPES)
    if "/refund" in endpoint:
        reads = endpoint.startswith("GET ")
        return frozenset({CHARGE_STATUS, REFUND} if reads else {REFUND})
    return frozenset({CHARGE_STATUS} if endpoint.startswith("GET ") else {CHARGE})
