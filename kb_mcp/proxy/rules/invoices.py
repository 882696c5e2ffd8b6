"""Invoices: what finalizing and paying an invoice may do, by what was read of it.

Floor: beside duplicates, below decide. Pure. An invoice is one operation, whichever of the two
begins it; paying one that was finalized through the proxy goes on with it, so that its amount is
held once. What else holds for any operation holds here too; these are the differences:

the operation           the request                    what follows
----------------------  -----------------------------  ----------------------------------------
leased                  another act, or another amount Join, then what became of it decides
reserved, unknown       another act                    Look: reading says what became of the first
reserved, unknown,      another amount                 amount_changed
  voided and live
succeeded, not final    pay, after finalize            ReadAgain: the payment goes on with it
succeeded               any other                      Replay
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from kb_mcp.money import Money, format_money
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.records import HOLDING, Operation, State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules.command import (
    Command,
    Decision,
    Join,
    Look,
    Payable,
    ReadAgain,
    Refuse,
    Replay,
)
from kb_mcp.proxy.stripe.interpret import Reading

FINALIZE: Final = "POST /v1/invoices/*/finalize"
PAY: Final = "POST /v1/invoices/*/pay"
# It says who is there, and changes nothing of what is paid.
_WORDING: Final = "off_session"


def invoice_fingerprint(reading: Reading, view: Payable) -> str:
    """Hash what is done to an invoice and what was read of it."""
    form = sorted(reading.form.without(_WORDING).items())
    read = (view.invoice, view.left, view.currency, view.customer)
    parts = ("invoice", reading.route.endpoint, *read, form)
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


def goes_on_with(operation: Operation, reading: Reading) -> bool:
    """Say whether `reading` pays what `operation` has finalized."""
    held = operation.state is State.SUCCEEDED and not operation.final
    return held and operation.route == FINALIZE and reading.route.endpoint == PAY


def decide_again(
    snapshot: Snapshot, command: Command, operation: Operation, *, same: bool
) -> Decision | None:
    """Decide where an invoice differs from any other operation that is known; else None."""
    view = command.invoice
    if view is None or same:
        return None
    another_act = operation.route != command.reading.route.endpoint
    if operation.state in HOLDING and snapshot.leased(operation):
        return Join(operation)
    if operation.state in HOLDING and another_act:
        return Look(operation)
    if operation.state in HOLDING or (operation.state is State.VOIDED and operation.live):
        return Refuse(amount_changed(operation, view), operation)
    if goes_on_with(operation, command.reading):
        return ReadAgain()
    return (
        Replay(operation) if operation.state is State.SUCCEEDED and not operation.refunded else None
    )


def decide_payment_of_finalized(snapshot: Snapshot, command: Command) -> Decision | None:
    """Decide where what is gone on with is over meanwhile; None where it stands."""
    read = command.continues
    operation = None if read is None else snapshot.operations.get(read.id)
    if command.invoice is None or operation is None:
        return None
    if operation.state is State.SUCCEEDED and operation.final:
        return Replay(operation)
    return None if operation.state is State.SUCCEEDED else ReadAgain()


def amount_changed(operation: Operation, view: Payable) -> Refusal:
    """Refuse to go on with `operation`, which reserved something else than `view` shows."""
    held = format_money(Money(operation.amount, operation.currency))
    now = format_money(Money(view.left, view.currency))
    reason = f"{held} was reserved, and now {now} is left to pay and it is {view.status}"
    return refuse(Code.AMOUNT_CHANGED, facts=changed_facts(operation, view), reason=reason)


def changed_facts(operation: Operation, view: Payable) -> dict[str, Fact]:
    """Return what was reserved for an invoice, and what is left of it now."""
    return {
        "operation": operation.id,
        "invoice_id": view.invoice,
        "amount": operation.amount,
        "currency": operation.currency,
        "amount_now": view.left,
        "currency_now": view.currency,
        "status": view.status,
    }
