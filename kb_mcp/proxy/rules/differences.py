"""Differences: in what an object at Stripe is not what an operation had asked for.

Floor: above the records and proofs, below conclude. Pure. Stripe answers with what was sent; an
object that says otherwise was changed by somebody, or is not ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kb_mcp.proxy.ledger.records import Operation
    from kb_mcp.proxy.ledger.snapshot import Snapshot
    from kb_mcp.proxy.stripe.evidence import Made


def difference(
    snapshot: Snapshot, operation: Operation, made: Made, *, step: bool = False
) -> str | None:
    """Return in what `made` differs from `operation`, in a sentence for operators, or None.

    What the object does not say differs in nothing. A follow-up (`step`) may change the amount, up
    to what is held; an operation whose request told no amount (0) is compared by its mode alone.
    """
    wanted: dict[str, object] = {"livemode": snapshot.settings.mode == "live"}
    if operation.amount > 0:
        wanted |= {"currency": operation.currency, "customer": operation.customer}
        at_most = max(operation.amount, operation.held)
        if not step or (made.total or 0) > at_most:
            wanted["amount"] = at_most if step else operation.amount
    return next(
        (
            f"its {name} at Stripe is {made.facts[name]}, not {value}"
            for name, value in sorted(wanted.items())
            if name in made.facts and made.facts[name] != value
        ),
        None,
    )
