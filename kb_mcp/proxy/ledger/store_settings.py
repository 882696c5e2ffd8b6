"""What all processes on one store agree on, and the facts that stop every send.

Floor: beside the records. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field


class StoreSettings(Struct, frozen=True):
    """What all processes on one store must agree on.

    `store_id` is the store's own name; every object that is made at Stripe carries it.
    """

    account: str
    mode: str
    ceilings: Mapping[str, int] = field(default_factory=dict)
    refund_ceilings: Mapping[str, int] = field(default_factory=dict)
    upstream_timeout_ms: int = 25_000
    recovery_grace_ms: int = 600_000
    store_id: str = ""


# What every transaction reads before it decides: why nothing may be sent, if so.
GAP = "gap"
MOVED_TO = "moved_to"
HALTS = (GAP, MOVED_TO)
# Says that no walk of Stripe's lists was ever whole for this store.
NEW_STORE = "new_store"
