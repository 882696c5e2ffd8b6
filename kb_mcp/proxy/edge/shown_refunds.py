"""The refunds of a charge as a key may see them: Stripe's list, and ours that it does not show yet.

Floor: below the key API. It reads, and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.access.authorize import may_touch
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.charge_reads import ChargeReads, mark_of
from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.records import HOLDING, Operation, OperationId
from kb_mcp.proxy.rules.operation_names import attempt_key
from kb_mcp.proxy.stripe.reader import Found

CHARGE_OR_INTENT: Final = re.compile(r"(?:ch|py|pi)_[A-Za-z0-9]{1,128}")


@dataclass(frozen=True, slots=True)
class ShownRefunds:
    """Reads through `charges`."""

    charges: ChargeReads

    async def of(self, policy: Policy, named: str) -> list[Record] | None:
        """Return the refunds of a charge or an intent, newest first, whoever made them.

        None where Stripe does not say, or where the charge is not the key's to see.
        Raises: LedgerUnavailableError.
        """
        charge = await self._visible(policy, named) if CHARGE_OR_INTENT.fullmatch(named) else None
        if charge is None:
            return None
        listed = await self.charges.stripe.walk("/v1/refunds", 0, charge=charge)
        if not isinstance(listed, list):
            return None
        known = await self.charges.known(charge)
        ours: dict[str | None, OperationId] = {each.object_id: each.id for each in known}
        marks = {mark_of(each) for each in listed}
        unseen = [
            each
            for each in sorted(known, key=lambda each: each.created_at, reverse=True)
            if each.state in HOLDING and attempt_key(each, each.attempt) not in marks
        ]
        return [*map(_in_doubt, unseen), *(_made(each, ours) for each in listed)]

    async def _visible(self, policy: Policy, named: str) -> str | None:
        charge = await self.charges.charge_of(named)
        if not isinstance(charge, str) or policy.customers.any:
            return charge if isinstance(charge, str) else None
        found = await self.charges.stripe.get(f"/v1/charges/{charge}")
        owner = found.body.get("customer") if isinstance(found, Found) else None
        owner = owner.get("id") if isinstance(owner, Mapping) else owner
        return charge if isinstance(owner, str) and may_touch(policy, owner) else None


def _made(refund: Mapping[str, Any], ours: Mapping[str | None, OperationId]) -> Record:
    created = refund.get("created")
    return {
        "refund_id": refund.get("id"),
        "charge_id": refund.get("charge"),
        "amount": refund.get("amount"),
        "currency": refund.get("currency"),
        "status": refund.get("status"),
        "operation_id": ours.get(refund.get("id")),
        "created_at": rfc3339(created * 1000) if type(created) is int else None,
    }


def _in_doubt(refund: Operation) -> Record:
    return {
        "refund_id": None,
        "charge_id": refund.gives_back,
        "amount": refund.amount,
        "currency": refund.currency,
        "status": "unknown",
        "operation_id": refund.id,
        "created_at": rfc3339(refund.created_at),
    }
