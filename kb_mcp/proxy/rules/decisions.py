"""The decisions, as values.

Floor: above the records, below the deciders. Each carries the rows it leaves behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from kb_mcp.money import Money
from kb_mcp.proxy.errors.refusals import Refusal
from kb_mcp.proxy.ledger.records import Attempt, Changes, Operation, State, kind_of
from kb_mcp.proxy.ledger.stopped import Stopped

if TYPE_CHECKING:
    from kb_mcp.proxy.rules.command import Command


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


def stopped_by(command: Command, decision: Decision) -> tuple[Stopped, ...]:
    """Return what this call would have moved, where it is stopped and nothing is sent for it.

    A repeated call counts where what it asks for was made; a decline that is told again, and a
    step that is told again, would have moved nothing.
    """
    endpoint, money = command.reading.route.endpoint, command.money
    match decision:
        case Replay(operation=made):
            if made.state is not State.SUCCEEDED or command.continues is not None:
                return ()
            why, money = "replay", Money(made.amount, made.currency)
        case Refuse(refusal=refusal, changes=Changes(approvals=(asked, *_))):
            why, money = "held", Money(asked.amount, asked.currency)
        case Refuse(refusal=refusal):
            why = refusal.code.value
        case _:
            return ()
    return (
        Stopped(
            why=why,
            kind=kind_of(endpoint, refund=command.refund is not None),
            key_id=command.key_id,
            agent_id=command.request.agent_id or "",
            currency=money.currency,
            amount=money.amount,
        ),
    )
