"""Reading the invoice that a request finalizes or pays: its status, what is left, and whose it is.

Floor: below the governor. It reads outside any transaction; the decision is bound to what was read,
and it is read once more directly before the send.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from kb_mcp.idempotency import CUSTOMER_ID, invoice_name
from kb_mcp.money import Money
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse, strip_client_secret
from kb_mcp.proxy.ledger.port import Ledger, look_up
from kb_mcp.proxy.ledger.records import HOLDING, Operation, OperationId, Refs
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.rules.command import Command, Payable, Prepared
from kb_mcp.proxy.rules.follow_ups import step_fingerprint
from kb_mcp.proxy.rules.invoices import (
    amount_changed,
    changed_facts,
    goes_on_with,
    invoice_fingerprint,
)
from kb_mcp.proxy.stripe.endpoints import INVOICES
from kb_mcp.proxy.stripe.evidence import Made, customer_of, payment_of
from kb_mcp.proxy.stripe.interpret import Reading
from kb_mcp.proxy.stripe.json_objects import currency, whole, word
from kb_mcp.proxy.stripe.messages import NotSent, Reply
from kb_mcp.proxy.stripe.reader import PAGE, Found, Missing, StripeReads

Touch = Callable[[Reading], Awaitable[Refusal | None]]
# What may be done only while the invoice is in another status is over for good in these.
_DONE = frozenset({"open", "paid"})


class AsItStands(Struct, frozen=True):
    """There is nothing left to do, and nothing was done by us: the invoice as Stripe shows it."""

    reply: Reply
    customer: str | None


class _Seen(Struct, frozen=True):
    view: Payable
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceReads:
    """Reads invoices. `look` brings one operation up to what Stripe says, if it may."""

    ledger: Ledger
    stripe: StripeReads
    look: Callable[[OperationId], Awaitable[Operation | None]]
    live: bool

    async def prepare(self, reading: Reading, touch: Touch) -> Prepared | AsItStands | Refusal:
        """Return what `reading` asks to pay, or the invoice where there is nothing to do any more.

        `touch` says why the key may not touch a customer; nothing else is told before it is asked.
        Raises: LedgerUnavailableError.
        """
        standing, invoice = reading.route.standing, reading.of
        if standing is None or invoice is None:
            return refuse(Code.AMOUNT_NOT_METERED)
        # The ledger first: what it knows as paid before the reading must be paid in the reading.
        known = await self._known(invoice)
        seen = await self._see(invoice)
        if isinstance(seen, Refusal):
            return seen
        view = seen.view
        refusal = await touch(replace(reading, customer=view.customer))
        if refusal is not None:
            return refusal
        if view.status not in standing:
            return await self._over(reading, seen)
        if known is not None and known.state is S.SUCCEEDED and known.final:
            # It was paid, and it is not any more: a person must say what that means.
            return amount_changed(known, view)
        made = known if known is not None and goes_on_with(known, reading) else None
        if made is not None and (made.customer, made.currency) != (view.customer, view.currency):
            return amount_changed(made, view)
        return _prepared(reading, view, made)

    async def again(self, command: Command) -> Command | Refusal:
        """Return `command` with its invoice read anew. Raises: LedgerUnavailableError."""
        read = await self.prepare(command.reading, _touched)
        if isinstance(read, Prepared):
            return read.as_read(command)
        if isinstance(read, Refusal):
            return read
        return refuse(Code.AMOUNT_CHANGED, reason="it was paid elsewhere")

    async def changed(self, command: Command, operation: Operation) -> NotSent | None:
        """Return why `command` must not be sent: its invoice is not what it was; else None."""
        before = command.invoice
        if before is None:
            return None
        seen = await self._see(before.invoice)
        if isinstance(seen, Refusal):
            return NotSent(seen.code.value)
        if seen.view == before:
            return None
        return NotSent("amount_changed", changed_facts(operation, seen.view))

    async def with_payment(self, made: Made) -> Made:
        """Return what a paid invoice proves, with what paid it, as far as that can be read now."""
        return await with_payment(self.stripe, made)

    async def _known(self, invoice: str) -> Operation | None:
        name = invoice_name(invoice)
        refs = Refs(names=frozenset({name}))
        return await look_up(self.ledger, refs, lambda snapshot: snapshot.newest(name))

    async def _over(self, reading: Reading, seen: _Seen) -> Prepared | AsItStands | Refusal:
        """Return what is said where the invoice is paid, finalized, voided or written off."""
        view = seen.view
        known = await self._known(view.invoice)
        if known is not None and known.state not in {S.FAILED, S.AWAITING_APPROVAL}:
            if known.state is not S.SUCCEEDED or not known.final:
                known = await self.look(known.id) or known
            if known.state in HOLDING or known.state is S.SUCCEEDED:
                return _prepared(reading, view, None)
        if view.status not in _DONE:
            reason = f"{view.invoice} is {view.status}. Nothing was done."
            return refuse(Code.PARAMETER_INVALID, param="invoice", reason=reason)
        body = strip_client_secret(json.dumps(seen.body, separators=(",", ":")).encode())
        return AsItStands(Reply(200, body), view.customer)

    async def _see(self, invoice: str) -> _Seen | Refusal:
        found = await self.stripe.get(f"{INVOICES}/{invoice}")
        if isinstance(found, Missing):
            reason = f"Stripe has no {invoice}. Check the id; do not try others."
            return refuse(Code.PARAMETER_INVALID, param="invoice", reason=reason)
        if not isinstance(found, Found):
            refused = found.status in {401, 403}
            return refuse(Code.UPSTREAM_REJECTED_KEY if refused else Code.UPSTREAM_UNREACHABLE)
        view = _payable(invoice, found.body)
        if view is None:
            return refuse(Code.UPSTREAM_UNREACHABLE)
        if found.body.get("livemode") is not self.live and "livemode" in found.body:
            reason = "the invoice is of another mode"
            return refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason=reason)
        return _Seen(view, found.body)


async def with_payment(stripe: StripeReads, made: Made) -> Made:
    """Return what a paid invoice proves, with the charge or the intent that paid it."""
    if made.verdict != "done" or "paid_by" in made.facts or not made.moved:
        return made
    paid_by = await payment_with(stripe, made.object_id, "paid")
    return made if paid_by is None else replace(made, facts={**made.facts, "paid_by": paid_by})


async def payment_with(stripe: StripeReads, invoice: str, status: str) -> str | None:
    """Return the newest payment of `invoice` that has that `status`, by its intent or charge."""
    payments = await stripe.body(f"/v1/invoice_payments?invoice={invoice}&limit={PAGE}")
    return None if payments is None else payment_of({"payments": payments}, status)


async def _touched(_reading: Reading) -> Refusal | None:
    return None


def _payable(invoice: str, body: Mapping[str, Any]) -> Payable | None:
    """Return what was read of `invoice`; None where anything that decides cannot be read."""
    status, customer = word(body.get("status")), customer_of(body)
    left, paid = whole(body.get("amount_remaining")), whole(body.get("amount_paid", 0))
    unit = currency(body.get("currency"))
    strange = body.get("id") != invoice or body.get("object", "invoice") != "invoice"
    nameless = body.get("customer") is not None and not CUSTOMER_ID.fullmatch(customer or "")
    if status is None or left is None or paid is None or unit is None or strange or nameless:
        return None
    return Payable(
        invoice=invoice, status=status, left=left, paid=paid, currency=unit, customer=customer
    )


def _prepared(reading: Reading, view: Payable, made: Operation | None) -> Prepared:
    money = Money(view.left, view.currency)
    total = None if made is None else view.left
    understood = replace(reading, customer=view.customer, money=money, total=total)
    return Prepared(
        reading=understood,
        money=money,
        name=invoice_name(view.invoice),
        fingerprint=(
            invoice_fingerprint(understood, view)
            if made is None
            else step_fingerprint(understood, made)
        ),
        invoice=view,
        continues=made,
    )
