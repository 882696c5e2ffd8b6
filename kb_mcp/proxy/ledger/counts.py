"""What is counted beside the audit: calls that moved no money, and how often an alert was sent.

Floor: below the records. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

if TYPE_CHECKING:
    from kb_mcp.proxy.ledger.records import AuditDraft


class Stopped(NamedTuple):
    """A call that moved no money: what it asked for, in minor units, and whose it was.

    `why` is `replay` where it was answered with what the first such call had made, `held` where a
    person is asked, else the code of its refusal. An amount that was not read is 0.
    """

    why: str
    kind: str  # charge | refund | invoice, or "" where no operation was named
    key_id: str
    agent_id: str
    currency: str
    amount: int

    @staticmethod
    def unread(row: AuditDraft) -> Stopped:
        """Return the call of `row`, which was refused before its amount counted."""
        return Stopped(row.code or "", "", row.key_id or "", row.agent_id or "", "", 0)


class Delivery(Struct, frozen=True):
    """How often an alert was sent one way, and when last (ms); named without a way, its raising."""

    key: str
    tries: int = 0
    last_tried_at: int = 0
