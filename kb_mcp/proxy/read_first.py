"""What no request tells is read first: the charge that a refund names, the invoice that is paid.

Floor: below the governor. It reads outside any transaction. What it returns of a charge says what
the ledger held before the reading, so that whoever decides later sees whether that is still so; a
decision on an invoice is bound to what was read, and that is read once more directly before the
send.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from kb_mcp.idempotency import CUSTOMER_ID, invoice_name, refund_name
from kb_mcp.money import Money, MoneyError, check_amount
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.errors.refusals import Code, Refusal, invalid, refuse, strip_client_secret
from kb_mcp.proxy.ledger.port import Ledger, look_up
from kb_mcp.proxy.ledger.records import HOLDING, Operation, OperationId, Refs
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.rules.command import Command, Payable, Prepared, Refundable
from kb_mcp.proxy.rules.duplicates import (
    amount_changed,
    changed_facts,
    goes_on_with,
    invoice_fingerprint,
    refund_fingerprint,
    states_of,
)
from kb_mcp.proxy.rules.follow_ups import step_fingerprint
from kb_mcp.proxy.stripe.endpoints import CHARGED_BY, INVOICES
from kb_mcp.proxy.stripe.evidence import (
    Made,
    currency,
    customer_of,
    mark_of,
    payment_of,
    whole,
    word,
)
from kb_mcp.proxy.stripe.interpret import Reading
from kb_mcp.proxy.stripe.messages import NotSent, Reply
from kb_mcp.proxy.stripe.reader import PAGE, Missing, StripeReads, Unread

# The bank has taken nothing yet, or has given it back. Source: docs.stripe.com/api/disputes/object.
_REFUNDABLE = frozenset({"won", "warning_needs_response", "warning_under_review", "warning_closed"})
_GONE = frozenset({"failed", "canceled"})
# What may be done only while the invoice is in another status is over for good in these.
_DONE = frozenset({"open", "paid"})
Touch = Callable[[Reading], Awaitable[Refusal | None]]
"""Says why the key may not touch a customer; nothing else is told before it is asked."""
_UNREAD = refuse(Code.UPSTREAM_UNREACHABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reads:
    """Reads for one store; `look` brings one operation up to what Stripe says, if it may."""

    ledger: Ledger
    stripe: StripeReads
    look: Callable[[OperationId], Awaitable[Operation | None]]
    live: bool

    async def _get(self, path: str, missing: Refusal) -> Mapping[str, Any] | Refusal:
        """Return the object at `path`, or why it cannot be read: `missing` where there is none."""
        found = await self.stripe.get(path)
        if isinstance(found, Missing):
            return missing
        return _unread(found) if isinstance(found, Unread) else found


class ChargeReads(_Reads):
    """Reads the charges that refunds give back, with their disputes and their refunds."""

    async def prepare(self, policy: Policy, reading: Reading, touch: Touch) -> Prepared | Refusal:
        """Return what `reading` asks to give back, read where the ledger does not know it.

        Raises: LedgerUnavailableError.
        """
        charge = await self.charge_of(reading.of or "")
        if isinstance(charge, Refusal):
            return charge
        name = refund_name(charge, reading.reference)
        named = [each for each in await self.known(charge) if each.name == name]
        newest = max(named, key=lambda each: each.generation, default=None)
        if newest is not None and newest.state is S.SUCCEEDED and not newest.reopened:
            newest = await self._still_stands(newest)
        if newest is None or not (
            newest.state in HOLDING or (newest.state is S.SUCCEEDED and not newest.reopened)
        ):
            return await self._read(policy, reading, charge, name, touch)
        refusal = await touch(replace(reading, customer=newest.customer))
        said = reading.total is not None
        view = Refundable(charge=charge, currency=newest.currency, said=said)
        return refusal or _refund(reading, newest.customer, name, view, newest.amount)

    async def again(self, command: Command) -> Command | Refusal:
        """Return `command` with its charge read anew. Raises: LedgerUnavailableError."""
        if command.refund is None:
            return command
        policy, charge = command.policy, command.refund.charge
        read = await self._read(policy, command.reading, charge, command.name, _touched)
        return read if isinstance(read, Refusal) else read.as_read(command)

    async def charge_of(self, of: str) -> str | Refusal:
        """Return the charge that is meant: an intent has at most one that succeeded."""
        if not of.startswith("pi_"):
            return of
        listed = await self.stripe.walk("/v1/charges", 0, payment_intent=of)
        if isinstance(listed, Unread):
            return _unread(listed)
        made = [str(each["id"]) for each in listed if each.get("status") == "succeeded"]
        if len(made) != 1:
            return _not_refundable(of, "no charge of this intent has succeeded")
        return made[0]

    async def known(self, charge: str) -> list[Operation]:
        """Return the charge's refunds in the ledger. Raises: LedgerUnavailableError."""
        refs = Refs(charges=frozenset({charge}))
        return await look_up(self.ledger, refs, lambda snapshot: snapshot.refunds_of(charge))

    async def _still_stands(self, refund: Operation) -> Operation:
        """Return `refund`, looked at anew where Stripe shows that its money came back."""
        shown = await self.stripe.body(f"/v1/refunds/{refund.object_id}") or {}
        return (await self.look(refund.id) if shown.get("status") in _GONE else None) or refund

    async def _read(
        self, policy: Policy, reading: Reading, charge: str, name: str, touch: Touch
    ) -> Prepared | Refusal:
        before = states_of(await self.known(charge))
        # The list first: a refund made in between counts twice then, and never not at all.
        refunds = await self.stripe.walk("/v1/refunds", 0, charge=charge)
        if isinstance(refunds, Unread):
            return _unread(refunds)
        missing = _not_refundable(charge, "there is no such charge")
        body = await self._get(f"/v1/charges/{charge}", missing)
        if isinstance(body, Refusal):
            return body
        if not _says_its_customer(body) or body.get("id") != charge:
            return _UNREAD
        owned = replace(reading, customer=customer_of(body))
        refusal = await touch(owned) or await self._check(policy, charge, body)
        return refusal or _refund_of(owned, name, body, refunds, before)

    async def _check(self, policy: Policy, charge: str, body: Mapping[str, Any]) -> Refusal | None:
        """Return why this charge may not be given back at all, or None."""
        ours = policy.refunds_of == "any" or await self._ours(charge, body)
        for wrong, reason in (
            (body.get("livemode") is True and not self.live, "it is of another mode"),
            (not ours, "it was not made through this proxy"),
            (body.get("status") != "succeeded", "it has not succeeded"),
            (body.get("captured") is not True, "it is authorised and was not captured"),
        ):
            if wrong:
                return _not_refundable(charge, reason)
        return await self._check_disputes(charge) if body.get("disputed") is True else None

    async def _ours(self, charge: str, body: Mapping[str, Any]) -> bool:
        """Say whether the ledger has made or adopted the charge, or its intent."""
        intent = body.get("payment_intent")
        names = frozenset({charge, intent} if isinstance(intent, str) else {charge})
        owners = await look_up(
            self.ledger, Refs(objects=names), lambda found: set(map(found.object_owners.get, names))
        )
        ids = frozenset(each for each in owners if each is not None)
        if not ids:
            return False
        found = await look_up(
            self.ledger, Refs(operations=ids), lambda found: [found.operations[e] for e in ids]
        )
        # Of an invoice, it is the attempt that has the charge.
        return any(
            (each.route in CHARGED_BY and each.object_id in names) or each.pays_invoice
            for each in found
        )

    async def _check_disputes(self, charge: str) -> Refusal | None:
        listed = await self.stripe.walk("/v1/disputes", 0, charge=charge)
        statuses = {each.get("status") for each in listed} if isinstance(listed, list) else set()
        if statuses and statuses <= _REFUNDABLE:
            return None
        # A dispute that cannot be read is taken for one that has the money.
        return refuse(Code.CHARGE_DISPUTED, facts={"charge_id": charge})


class AsItStands(Struct, frozen=True):
    """There is nothing left to do, and nothing was done by us: the invoice as Stripe shows it."""

    reply: Reply
    customer: str | None


class InvoiceReads(_Reads):
    """Reads the invoices that are finalized or paid: status, what is left, and whose they are."""

    async def prepare(self, reading: Reading, touch: Touch) -> Prepared | AsItStands | Refusal:
        """Return what `reading` asks to pay, or the invoice where there is nothing to do any more.

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
        view, body = seen
        refusal = await touch(replace(reading, customer=view.customer))
        if refusal is not None:
            return refusal
        if view.status not in standing:
            return await self._over(reading, view, body)
        if known is not None and known.state is S.SUCCEEDED and known.final:
            # It was paid, and it is not any more: a person must say what that means.
            return amount_changed(known, view)
        made = known if known is not None and goes_on_with(known, reading) else None
        if made is not None and (made.customer, made.currency) != (view.customer, view.currency):
            return amount_changed(made, view)
        return _payment(reading, view, made)

    async def again(self, command: Command) -> Command | Refusal:
        """Return `command` with its invoice read anew. Raises: LedgerUnavailableError."""
        read = await self.prepare(command.reading, _touched)
        if isinstance(read, AsItStands):
            return refuse(Code.AMOUNT_CHANGED, reason="it was paid elsewhere")
        return read if isinstance(read, Refusal) else read.as_read(command)

    async def changed(self, command: Command, operation: Operation) -> NotSent | None:
        """Return why `command` must not be sent: its invoice is not what it was; else None."""
        before = command.invoice
        if before is None:
            return None
        seen = await self._see(before.invoice)
        if isinstance(seen, Refusal):
            return NotSent(seen.code.value)
        changed = seen[0] != before
        return NotSent("amount_changed", changed_facts(operation, seen[0])) if changed else None

    async def _known(self, invoice: str) -> Operation | None:
        name = invoice_name(invoice)
        refs = Refs(names=frozenset({name}))
        return await look_up(self.ledger, refs, lambda snapshot: snapshot.newest(name))

    async def _over(
        self, reading: Reading, view: Payable, body: Mapping[str, Any]
    ) -> Prepared | AsItStands | Refusal:
        """Return what is said where the invoice is paid, finalized, voided or written off."""
        known = await self._known(view.invoice)
        if known is not None and known.state not in {S.FAILED, S.AWAITING_APPROVAL}:
            if known.state is not S.SUCCEEDED or not known.final:
                known = await self.look(known.id) or known
            if known.state in HOLDING or known.state is S.SUCCEEDED:
                return _payment(reading, view, None)
        if view.status not in _DONE:
            return invalid("invoice", f"{view.invoice} is {view.status}. Nothing was done.")
        written = strip_client_secret(json.dumps(body, separators=(",", ":")).encode())
        return AsItStands(Reply(200, written), view.customer)

    async def _see(self, invoice: str) -> tuple[Payable, Mapping[str, Any]] | Refusal:
        reason = f"Stripe has no {invoice}. Check the id; do not try others."
        body = await self._get(f"{INVOICES}/{invoice}", invalid("invoice", reason))
        if isinstance(body, Refusal):
            return body
        view = _payable(invoice, body)
        if view is None:
            return _UNREAD
        if body.get("livemode") is not self.live and "livemode" in body:
            reason = "the invoice is of another mode"
            return refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason=reason)
        return view, body


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


def _says_its_customer(body: Mapping[str, Any]) -> bool:
    """Say whether a charge or an invoice has no customer, or one that can be read."""
    return body.get("customer") is None or bool(CUSTOMER_ID.fullmatch(customer_of(body) or ""))


def _refund_of(
    reading: Reading,
    name: str,
    body: Mapping[str, Any],
    refunds: list[Mapping[str, Any]],
    before: frozenset[tuple[OperationId, str]],
) -> Prepared | Refusal:
    amount, refunded, unit = map(body.get, ("amount", "amount_refunded", "currency"))
    if not isinstance(unit, str) or type(amount) is not int or type(refunded) is not int:
        return _UNREAD
    listed = {str(each["id"]) for each in refunds} | {mark_of(each) or "" for each in refunds}
    view = Refundable(
        charge=str(body["id"]),
        currency=unit,
        said=reading.total is not None,
        left=amount - refunded,
        listed=frozenset(listed - {""}),
        before=before,
    )
    return _refund(reading, reading.customer, name, view, max(amount - refunded, 0))


def _refund(
    reading: Reading, customer: str | None, name: str, view: Refundable, meant: int
) -> Prepared | Refusal:
    """Return the refund, its request written anew: one charge, one amount, no currency.

    `meant` is the amount where the request leaves it out.
    """
    form = reading.form
    if form.get("currency", view.currency).lower() != view.currency:
        reason = f"the charge is in {view.currency}, and nothing is converted. Leave it out."
        return invalid("currency", reason)
    amount = meant if reading.total is None else reading.total
    try:
        if reading.total is not None:
            check_amount(amount, view.currency)
    except MoneyError as error:
        return invalid("amount", error)
    money = Money(amount, view.currency)
    written = form.without("currency", "payment_intent")
    written = written.with_({"amount": str(amount), "charge": view.charge})
    return Prepared(
        reading=replace(reading, customer=customer, money=money, form=written),
        money=money,
        name=name,
        fingerprint=refund_fingerprint(view.charge, money, reading.reference),
        refund=view,
    )


def _payable(invoice: str, body: Mapping[str, Any]) -> Payable | None:
    """Return what was read of `invoice`; None where anything that decides cannot be read."""
    status, unit = word(body.get("status")), currency(body.get("currency"))
    left, paid = whole(body.get("amount_remaining")), whole(body.get("amount_paid", 0))
    strange = body.get("id") != invoice or body.get("object", "invoice") != "invoice"
    if status is None or left is None or paid is None or unit is None or strange:
        return None
    if not _says_its_customer(body):
        return None
    return Payable(
        invoice=invoice,
        status=status,
        left=left,
        paid=paid,
        currency=unit,
        customer=customer_of(body),
    )


def _payment(reading: Reading, view: Payable, made: Operation | None) -> Prepared:
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


def _not_refundable(charge: str, reason: str) -> Refusal:
    return refuse(Code.CHARGE_NOT_REFUNDABLE, facts={"charge_id": charge}, reason=reason)


def _unread(found: Unread) -> Refusal:
    return refuse(Code.UPSTREAM_REJECTED_KEY) if found.status in {401, 403} else _UNREAD
