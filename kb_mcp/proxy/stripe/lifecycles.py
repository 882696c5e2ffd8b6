"""Lifecycles: what the status of each kind of object says about its money.

Floor: wing B, below the endpoints. Pure. Source: docs.stripe.com/api, the object of each kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What an object's status says: the money moved, may still move, or did not.

    Kinds of object without a status are done once they exist. `unless` names a boolean field that
    makes a done object pending while it is false: a charge that is authorised, not captured.
    `after` names the field that must say why, before a status in `failed` that also stands at the
    beginning counts as a failure. `moved` names the field that says how much money moved, `total`
    the one that says what the object is for, or what is left of that.
    """

    done: frozenset[str] = frozenset()
    pending: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    unless: str | None = None
    after: tuple[str, str] | None = None
    moved: str | None = None
    total: str = "amount"


CHARGE: Final = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset({"pending"}),
    failed=frozenset({"failed"}),
    unless="captured",
    moved="amount_captured",
)
INTENT: Final = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset(
        {"processing", "requires_action", "requires_capture", "requires_confirmation"}
    ),
    failed=frozenset({"canceled", "requires_payment_method"}),
    # An intent made without a payment method waits for one; it has failed once it says why.
    after=("requires_payment_method", "last_payment_error"),
    moved="amount_received",
)
PAYOUT: Final = Lifecycle(
    done=frozenset({"paid"}),
    pending=frozenset({"in_transit", "pending"}),
    failed=frozenset({"canceled", "failed"}),
)
TOPUP: Final = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset({"pending"}),
    failed=frozenset({"canceled", "failed", "reversed"}),
)
REFUND: Final = Lifecycle(
    done=frozenset({"succeeded"}),
    pending=frozenset({"pending", "requires_action"}),
    failed=frozenset({"canceled", "failed"}),
)
INVOICE: Final = Lifecycle(
    done=frozenset({"paid"}),
    pending=frozenset({"draft", "open"}),
    failed=frozenset({"uncollectible", "void"}),
    moved="amount_paid",
    total="amount_remaining",
)
NONE: Final = Lifecycle()
