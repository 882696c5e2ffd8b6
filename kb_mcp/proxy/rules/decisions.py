"""The decisions, as values.

Floor: above the records, below the deciders. Each carries the rows it leaves behind.
"""

from __future__ import annotations

from msgspec import Struct, field

from kb_mcp.proxy.errors.refusals import Refusal
from kb_mcp.proxy.ledger.records import Attempt, Changes, Operation


class Proceed(Struct, frozen=True):
    """Reserved: send `attempt` now; `operation.lease_token` is the caller's fencing token."""

    operation: Operation
    attempt: Attempt
    changes: Changes = field(default_factory=Changes)


class Replay(Struct, frozen=True):
    """The operation's answer is known: give it again."""

    operation: Operation
    changes: Changes = field(default_factory=Changes)


class Join(Struct, frozen=True):
    """Somebody is sending it right now: wait for that outcome."""

    operation: Operation
    changes: Changes = field(default_factory=Changes)


class Look(Struct, frozen=True):
    """Its last step may or may not have happened: the object must be read before anything else."""

    operation: Operation
    changes: Changes = field(default_factory=Changes)


class ReadAgain(Struct, frozen=True):
    """What the request depends on at Stripe must be read before anything is reserved."""

    operation: Operation | None = None
    changes: Changes = field(default_factory=Changes)


class Refuse(Struct, frozen=True):
    """Our own no."""

    refusal: Refusal
    operation: Operation | None = None
    changes: Changes = field(default_factory=Changes)


Decision = Proceed | Replay | Join | Look | ReadAgain | Refuse
