"""Reading what a refund depends on: the charge, its disputes and its refunds, as Stripe has them.

Floor: below the governor. It reads outside any transaction, so what it returns says what the
ledger held before the reading: whoever decides later sees whether that is still so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from kb_mcp.idempotency import CUSTOMER_ID, refund_name
from kb_mcp.money import Money, MoneyError, check_amount
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.ledger.port import Ledger, look_up
from kb_mcp.proxy.ledger.records import HOLDING, Operation, OperationId, Refs
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.rules.command import Command, Prepared, Refundable
from kb_mcp.proxy.rules.refunds import refund_fingerprint, states_of
from kb_mcp.proxy.stripe.endpoints import CHARGED_BY
from kb_mcp.proxy.stripe.evidence import customer_of
from kb_mcp.proxy.stripe.interpret import Reading
from kb_mcp.proxy.stripe.json_objects import mark_of
from kb_mcp.proxy.stripe.reader import Found, Missing, StripeReads

# The bank has taken nothing yet, or has given it back. Source: docs.stripe.com/api/disputes/object.
_REFUNDABLE = frozenset({"won", "warning_needs_response", "warning_under_review", "warning_closed"})
_GONE = frozenset({"failed", "canceled"})
Touch = Callable[[Reading], Awaitable[Refusal | None]]
_UNREAD = refuse(Code.UPSTREAM_UNREACHABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeReads:
    """Reads charges for refunds. `look` brings one operation up to what Stripe says, if it may."""

    ledger: Ledger
    stripe: StripeReads
    look: Callable[[OperationId], Awaitable[Operation | None]]
    live: bool

    async def prepare(self, policy: Policy, reading: Reading, touch: Touch) -> Prepared | Refusal:
        """Return what `reading` asks to give back, read where the ledger does not know it.

        `touch` says why the key may not touch a customer; nothing else is told before it is asked.
        Raises: LedgerUnavailableError.
        """
        charge = await self.charge_of(reading.of or "")
        if isinstance(charge, Refusal):
            return charge
        name = refund_name(charge, reading.reference)
        known = await self.known(charge)
        newest = max(
            (each for each in known if each.name == name),
            key=lambda each: each.generation,
            default=None,
        )
        if newest is not None and newest.state is S.SUCCEEDED and not newest.reopened:
            newest = await self._still_stands(newest)
        if newest is not None and (
            newest.state in HOLDING or (newest.state is S.SUCCEEDED and not newest.reopened)
        ):
            refusal = await touch(replace(reading, customer=newest.customer))
            view = Refundable(
                charge=charge, currency=newest.currency, said=reading.total is not None
            )
            return refusal or _prepared(reading, newest.customer, name, view, newest.amount)
        return await self._read(policy, reading, charge, name, touch)

    async def again(self, command: Command) -> Command | Refusal:
        """Return `command` with its charge read anew. Raises: LedgerUnavailableError."""
        view = command.refund
        if view is None:
            return command
        read = await self._read(
            command.policy, command.reading, view.charge, command.name, _touched
        )
        return read if isinstance(read, Refusal) else read.as_read(command)

    async def charge_of(self, of: str) -> str | Refusal:
        """Return the charge that is meant: an intent has at most one that succeeded."""
        if not of.startswith("pi_"):
            return of
        listed = await self.stripe.walk("/v1/charges", 0, payment_intent=of)
        if not isinstance(listed, list):
            return _unread(listed.status)
        made = [
            each["id"]
            for each in listed
            if each.get("status") == "succeeded" and isinstance(each.get("id"), str)
        ]
        if len(made) != 1:
            return _not_refundable(of, "no charge of this intent has succeeded")
        return str(made[0])

    async def known(self, charge: str) -> list[Operation]:
        """Return the charge's refunds in the ledger. Raises: LedgerUnavailableError."""
        refs = Refs(charges=frozenset({charge}))
        return await look_up(self.ledger, refs, lambda snapshot: snapshot.refunds_of(charge))

    async def _still_stands(self, refund: Operation) -> Operation:
        """Return `refund`, looked at anew where Stripe shows that its money came back."""
        found = await self.stripe.get(f"/v1/refunds/{refund.object_id}")
        if isinstance(found, Found) and found.body.get("status") in _GONE:
            return await self.look(refund.id) or refund
        return refund

    async def _read(
        self, policy: Policy, reading: Reading, charge: str, name: str, touch: Touch
    ) -> Prepared | Refusal:
        before = states_of(await self.known(charge))
        # The list first: a refund made in between counts twice then, and never not at all.
        refunds = await self.stripe.walk("/v1/refunds", 0, charge=charge)
        if not isinstance(refunds, list):
            return _unread(refunds.status)
        found = await self.stripe.get(f"/v1/charges/{charge}")
        if isinstance(found, Missing):
            return _not_refundable(charge, "there is no such charge")
        if not isinstance(found, Found):
            return _unread(found.status)
        owned = _owned(reading, found.body)
        if owned is None or found.body.get("id") != charge:
            return _UNREAD
        refusal = await touch(owned) or await self._check(policy, charge, found.body)
        if refusal is not None:
            return refusal
        return _from_charge(owned, name, found.body, refunds, before)

    async def _check(self, policy: Policy, charge: str, body: Mapping[str, Any]) -> Refusal | None:
        """Return why this charge may not be given back at all, or None."""
        if body.get("livemode") is True and not self.live:
            return _not_refundable(charge, "it is of another mode")
        if policy.refunds_of == "ledger" and not await self._ours(charge, body):
            return _not_refundable(charge, "it was not made through this proxy")
        if body.get("status") != "succeeded":
            return _not_refundable(charge, "it has not succeeded")
        if body.get("captured") is not True:
            return _not_refundable(charge, "it is authorised and was not captured")
        return await self._check_disputes(charge) if body.get("disputed") is True else None

    async def _ours(self, charge: str, body: Mapping[str, Any]) -> bool:
        """Say whether the ledger has made or adopted the charge, or its intent."""
        intent = body.get("payment_intent")
        names = {charge, intent} if isinstance(intent, str) else {charge}
        refs = Refs(objects=frozenset(names))
        owners = await look_up(
            self.ledger, refs, lambda found: {found.object_owners.get(each) for each in names}
        )
        ids = frozenset(each for each in owners if each is not None)
        if not ids:
            return False
        refs = Refs(operations=ids)
        found = await look_up(self.ledger, refs, lambda found: [found.operations[e] for e in ids])
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


async def _touched(_reading: Reading) -> Refusal | None:
    return None


def _owned(reading: Reading, body: Mapping[str, Any]) -> Reading | None:
    """Return `reading` with the customer whose charge this is; None where it cannot be read."""
    customer = customer_of(body)
    if body.get("customer") is not None and not CUSTOMER_ID.fullmatch(customer or ""):
        return None
    return replace(reading, customer=customer)


def _from_charge(
    reading: Reading,
    name: str,
    body: Mapping[str, Any],
    refunds: list[Mapping[str, Any]],
    before: frozenset[tuple[OperationId, str]],
) -> Prepared | Refusal:
    amount, refunded, currency = (
        body.get(name) for name in ("amount", "amount_refunded", "currency")
    )
    if not isinstance(currency, str) or type(amount) is not int or type(refunded) is not int:
        return _UNREAD
    listed = {str(each.get("id")) for each in refunds} | {mark_of(each) or "" for each in refunds}
    view = Refundable(
        charge=str(body["id"]),
        currency=currency,
        said=reading.total is not None,
        left=amount - refunded,
        listed=frozenset(listed - {""}),
        before=before,
    )
    return _prepared(reading, reading.customer, name, view, max(amount - refunded, 0))


def _prepared(
    reading: Reading, customer: str | None, name: str, view: Refundable, meant: int
) -> Prepared | Refusal:
    """Return the refund, its request written anew: one charge, one amount, no currency.

    `meant` is the amount where the request leaves it out.
    """
    form = reading.form
    if form.get("currency", view.currency).lower() != view.currency:
        reason = f"the charge is in {view.currency}, and nothing is converted. Leave it out."
        return refuse(Code.PARAMETER_INVALID, param="currency", reason=reason)
    amount = meant if reading.total is None else reading.total
    try:
        if reading.total is not None:
            check_amount(amount, view.currency)
    except MoneyError as error:
        return refuse(Code.PARAMETER_INVALID, param="amount", reason=str(error))
    named = {"amount": str(amount), "charge": view.charge}
    money = Money(amount, view.currency)
    written = form.without("currency", "payment_intent").with_(named)
    understood = replace(reading, customer=customer, money=money, form=written)
    return Prepared(
        reading=understood,
        money=money,
        name=name,
        fingerprint=refund_fingerprint(view.charge, money, reading.reference),
        refund=view,
    )


def _not_refundable(charge: str, reason: str) -> Refusal:
    return refuse(Code.CHARGE_NOT_REFUNDABLE, facts={"charge_id": charge}, reason=reason)


def _unread(status: int | None) -> Refusal:
    return refuse(Code.UPSTREAM_REJECTED_KEY) if status in {401, 403} else _UNREAD
