"""Finding the operation that a follow-up goes on with, and what the follow-up means for it.

Floor: beside command, below the pipeline. A follow-up names its object alone: customer, currency,
period and caps are those of the operation that made it, and it may not change whose bill it is.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from kb_mcp.money import Money, MoneyError, check_amount
from kb_mcp.periods import parse_period
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Changes, Operation, OperationId, Refs
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stripe.interpret import PERIOD_FIELD, REFERENCE_FIELD, Reading

# Whose bill it is, in what, for when: these name the operation, and its marks find it again.
FIXED: Final = frozenset({"currency", "customer", "metadata", PERIOD_FIELD, REFERENCE_FIELD})
# Between the fingerprint of a bill and what a step raises it to, in an approval.
RAISED_TO: Final = ":"
INCREMENT: Final = "POST /v1/payment_intents/*/increment_authorization"


async def find_made(ledger: Ledger, reading: Reading) -> Operation | None:
    """Return the operation that made the object `reading` goes on with, or None.

    Raises: LedgerUnavailableError.
    """
    object_id = reading.object_id
    if reading.route.belongs_to is None or object_id is None:
        return None

    def owner(snapshot: Snapshot) -> tuple[OperationId | None, Changes]:
        return snapshot.object_owners.get(object_id), Changes()

    operation_id = await ledger.transact(lambda _: Refs(objects=frozenset({object_id})), owner)
    if operation_id is None:
        return None
    refs = Refs(operations=frozenset({operation_id}))
    found = await ledger.transact(
        lambda _: refs, lambda snapshot: (snapshot.operations.get(operation_id), Changes())
    )
    if found is None or found.object_id != object_id:
        return None
    return found if found.route == reading.route.belongs_to else None


def as_step(reading: Reading, made: Operation) -> Reading | Refusal:
    """Return `reading` with what the operation it goes on with says of the bill."""
    fixed = next((name for name in reading.form if name in FIXED), None)
    if fixed is not None:
        return refuse(Code.PARAMETER_NOT_ALLOWED, param=fixed)
    if reading.total is None and reading.route.endpoint == INCREMENT:
        return refuse(Code.PARAMETER_MISSING, param="amount")
    total = made.amount if reading.total is None else reading.total
    try:
        check_amount(total, made.currency)
    except MoneyError as error:
        return refuse(Code.PARAMETER_INVALID, param=reading.route.total, reason=str(error))
    return replace(
        reading,
        customer=made.customer,
        money=Money(total, made.currency),
        period=None if made.period is None else parse_period(made.period),
        reference=made.reference,
    )


def step_fingerprint(reading: Reading, made: Operation) -> str:
    """Return what an approval of a step covers: the bill, and what it is raised to."""
    total = reading.total
    return made.fingerprint if total is None else f"{made.fingerprint}{RAISED_TO}{total}"
