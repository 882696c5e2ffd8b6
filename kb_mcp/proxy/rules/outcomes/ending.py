"""An ending: one send or one reading of Stripe, with what it proves.

Floor: beside the evidence, below conclude. Pure.
"""

from __future__ import annotations

from msgspec import Struct

from kb_mcp.proxy.ledger.records import AuditDraft, OperationId
from kb_mcp.proxy.stripe.evidence import Proof


class Ending(Struct, frozen=True, kw_only=True):
    """One send, or one reading of Stripe begun at `read_at`, that ended with `proof`.

    `token` is the fencing token under which it was sent or read. `daily_declines` is the policy's
    limit, past which the lineage freezes.
    """

    operation_id: OperationId
    attempt: int
    token: int
    proof: Proof
    daily_declines: int
    request: AuditDraft
    read_at: int | None = None
