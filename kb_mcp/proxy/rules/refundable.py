"""What is known of a charge when a refund of it is decided.

Floor: above the records, below command. Pure.
"""

from __future__ import annotations

from msgspec import Struct

from kb_mcp.proxy.ledger.records import OperationId


class Refundable(Struct, frozen=True, kw_only=True):
    """What is known of a charge when a refund of it is decided; amounts in minor units.

    `left` is what Stripe would still give back, or None where nothing was read because the ledger
    has the refund that is asked for. `listed` names the refunds that Stripe showed, each by its id
    and by its mark; `before` are the charge's refunds in the ledger, as they were before that
    reading. `said` tells whether the request says the amount.
    """

    charge: str
    currency: str
    said: bool
    left: int | None = None
    listed: frozenset[str] = frozenset()
    before: frozenset[tuple[OperationId, str]] = frozenset()
