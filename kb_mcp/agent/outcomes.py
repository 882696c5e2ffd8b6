"""What an answer of the proxy means for a tool: status, wording, and the next step.

Floor: wing A, above the catalogue. Pure. What is not proven is `unknown`, never a no.
Source of codes: the refusals of the proxy; statuses: docs.stripe.com/api/charges/object,
docs.stripe.com/payments/paymentintents/lifecycle and docs.stripe.com/api/refunds/object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from kb_mcp.agent import wording
from kb_mcp.agent.catalogue import ChargeArguments, RefundArguments, without_forbidden
from kb_mcp.agent.results import ChargeResult, RefundResult, Status
from kb_mcp.money import Money, format_money

NO_FIELDS: Final[Mapping[str, object]] = MappingProxyType({})
STATUSES: Final[Mapping[str, Status]] = {
    "succeeded": "succeeded",
    "pending": "pending",
    "failed": "failed",
    "processing": "pending",
    "requires_capture": "pending",
    "requires_action": "pending",
    "requires_confirmation": "pending",
    "requires_payment_method": "pending",
    "canceled": "failed",
}
LAPSED: Final = "authorization_lapsed"
_UNKNOWN: Final = "outcome_unknown"
_NOT_SENT = frozenset(
    "ledger_unavailable ledger_behind issuer_unreachable draining overloaded "
    "upstream_unreachable".split()
)
# What the proxy says about the operation itself. Anything else that follows a send whose answer
# was lost speaks of the second request alone, and the first may have charged.
_SPEAKS_OF_THE_BILL = frozenset({400, 402, 403})
# Client errors that leave the outcome open: timed out on the way, being sent elsewhere.
_OPEN = frozenset({408, 409})


class ProxyUnavailableError(Exception):
    """The proxy, or its store, was not reachable, and nothing was sent: asking again is safe."""

    def __init__(self, message: str = wording.UNAVAILABLE) -> None:
        """Say it in words for a model."""
        super().__init__(message)


class ToolNotGrantedError(Exception):
    """The vault key does not grant the tool: nothing was sent."""


class RateLimitedError(Exception):
    """Too many requests, and nothing was done; wait `retry_after_s` seconds where it is known."""

    def __init__(self, retry_after_s: int | None) -> None:
        """Say it in words, with the wait in seconds."""
        super().__init__(wording.RATE_LIMITED)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: `fields` of the object or of the error; header names in lower case.

    `doubtful`: an earlier try of the same call may have been sent and its answer was lost.
    `livemode` is the mode of the key that asked.
    """

    status: int
    fields: Mapping[str, object] = field(default_factory=lambda: NO_FIELDS)
    headers: Mapping[str, str] = field(default_factory=dict)
    is_error: bool = False
    doubtful: bool = False
    livemode: bool = False

    def text(self, name: str) -> str | None:
        """Return the text field `name`, bounded, or None."""
        return as_text(self.fields.get(name))

    @property
    def facts(self) -> Mapping[str, object]:
        """What the proxy tells programs beside its refusal."""
        return as_map(self.fields.get("keybrake"))

    @property
    def is_replay(self) -> bool:
        """Whether this is the answer to an earlier call, given again."""
        return not self.is_error and self.headers.get("idempotent-replayed") == "true"

    @property
    def real_money(self) -> bool:
        """Whether real money is concerned: the object says so, else the mode of the key."""
        livemode = self.fields.get("livemode")
        return livemode if isinstance(livemode, bool) else self.livemode


def unread(*, livemode: bool) -> Reply:
    """Return what stands for an answer that did not come, or is none of the proxy's or Stripe's.

    Its status is 0. The request may have acted; `livemode` is the mode of the key that asked.
    """
    return Reply(0, is_error=True, doubtful=True, livemode=livemode)


def without_card(*, livemode: bool) -> Reply:
    """Return the refusal to charge a customer who has no payment method that could be meant."""
    fields = {"code": "no_default_payment_method", "message": wording.NO_CARD}
    return Reply(400, fields, is_error=True, livemode=livemode)


def charge_outcome(arguments: ChargeArguments, reply: Reply) -> ChargeResult:
    """Return the result of a charge, from the answer to it.

    Raises: RateLimitedError, ProxyUnavailableError, where nothing was sent.
    """
    fields = reply.fields
    status, code, charge_id = status_of(fields), None, reply.text("id")
    if reply.is_error:
        status, code = _read_no(reply)
        charge_id = as_text(reply.facts.get("charge_id"))
        if status == "failed" and reply.status == 402:
            intent = as_map(fields.get("payment_intent"))
            charge_id = as_text(intent.get("id")) or reply.text("charge")
    elif lapsed(fields):
        code = LAPSED
    amount = amount_of(fields) or arguments.amount_cents
    currency = reply.text("currency") or arguments.currency
    # A refusal that names a charge: this bill, or another of the same period, is charged.
    exists = status == "refused" and charge_id is not None
    return ChargeResult(
        charge_id=charge_id,
        amount_cents=amount,
        currency=currency,
        customer_id=arguments.customer_id,
        billing_period=arguments.billing_period,
        idempotency_key=arguments.idempotency_key,
        already_charged=(reply.is_replay and status == "succeeded") or exists,
        **_told(wording.CHARGED, reply, status, code, format_money(Money(amount, currency))),
    )


def refund_outcome(arguments: RefundArguments, reply: Reply) -> RefundResult:
    """Return the result of a refund, from the answer to it. Raises: as `charge_outcome`."""
    facts = reply.facts
    status, code = STATUSES.get(reply.text("status") or "", "unknown"), None
    refund_id = reply.text("id")
    if reply.is_error:
        status, code = _read_no(reply)
        refund_id = as_text(facts.get("refund_id"))
    amount = as_number(reply.fields.get("amount")) or arguments.amount_cents
    currency = reply.text("currency") or as_text(facts.get("currency"))
    money = "what is left of it" if arguments.amount_cents is None else "that amount"
    before = (reply.is_replay and status in {"succeeded", "pending"}) or code == "already_refunded"
    return RefundResult(
        refund_id=refund_id,
        charge_id=reply.text("charge") or arguments.charge_id,
        amount_cents=amount,
        currency=currency,
        already_refunded=before,
        amount_left=None if "cap" in facts else as_number(facts.get("left")),
        **_told(wording.REFUNDED, reply, status, code, money_of(amount, currency, money)),
    )


def _told(
    words: wording.Told, reply: Reply, status: Status, code: str | None, money: str
) -> dict[str, Any]:
    """Return the fields that the results of a charge and of a refund share."""
    facts, replayed, livemode = reply.facts, reply.is_replay, reply.real_money
    said = reply.text("message") if reply.is_error else None
    # What was denied does not wait any more.
    denied = code == "approval_required" and facts.get("state") == "denied"
    return {
        "status": status,
        "livemode": livemode,
        "operation_id": as_text(reply.headers.get("keybrake-operation"))
        or as_text(facts.get("operation")),
        "code": code,
        "message": words.message(
            status,
            money,
            wording.LAPSED if code == LAPSED else said,
            replayed=replayed,
            livemode=livemode,
        ),
        "next_step": words.step(status, wording.DENIED if denied else code, replayed=replayed),
    }


def _read_no(reply: Reply) -> tuple[Status, str]:
    """Say what an error proves of what was asked for, `unknown` where nothing, and its code.

    Raises: RateLimitedError, ProxyUnavailableError, where nothing was sent.
    """
    code = reply.text("code")
    if reply.doubtful and reply.status not in _SPEAKS_OF_THE_BILL:
        return "unknown", _UNKNOWN
    raise_if_nothing_sent(reply)
    if proves_nothing(reply) and code != "upstream_rejected_key":
        return "unknown", _UNKNOWN if reply.doubtful else code or _UNKNOWN
    if reply.status == 402:
        return "failed", reply.text("decline_code") or code or "card_declined"
    # Our own refusals carry facts, be they empty; what Stripe itself rejects has none.
    no: Status = "refused" if "keybrake" in reply.fields else "failed"
    return no, code or reply.text("type") or "rejected"


def raise_if_nothing_sent(reply: Reply) -> None:
    """Raise for what stopped a request before anything happened.

    Raises: RateLimitedError, ProxyUnavailableError.
    """
    if reply.status == 429:
        wait = reply.headers.get("retry-after", "")
        seconds = int(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else None
        raise RateLimitedError(seconds)
    if says_nothing_sent(reply):
        raise ProxyUnavailableError(reply.text("message") or wording.UNAVAILABLE)


def proves_nothing(reply: Reply) -> bool:
    """Say whether an error leaves open what became of the request."""
    return reply.is_error and (not 400 <= reply.status < 500 or reply.status in _OPEN)


def says_nothing_sent(reply: Reply) -> bool:
    """Say whether an answer tells that its request went no further than the proxy."""
    return reply.text("code") in _NOT_SENT


def as_text(value: object, limit: int = 1000) -> str | None:
    """Return `value` if it is text that is not empty: at most `limit` characters, no controls."""
    if not isinstance(value, str):
        return None
    return without_forbidden(value[:limit]).strip() or None


def as_number(value: object) -> int | None:
    """Return `value` if it is an integer and no boolean."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_map(value: object) -> Mapping[str, object]:
    """Return `value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else NO_FIELDS


def as_list(value: object) -> list[object]:
    """Return `value` if it is a JSON list, else an empty one."""
    return value if isinstance(value, list) else []


def money_of(amount: int | None, currency: str | None, unknown: str = "an amount") -> str:
    """Write an amount for people; `unknown` where it or its currency is not known."""
    if amount is None or currency is None:
        return unknown
    return format_money(Money(amount, currency))


def status_of(fields: Mapping[str, object]) -> Status:
    """Return what the object of a charge or an intent means for its bill.

    A charge that is authorised is not paid, and has failed once it was let go of. An intent waits
    for a payment method, until it says why one failed.
    """
    told = STATUSES.get(as_text(fields.get("status")) or "", "unknown")
    if told == "succeeded" and fields.get("captured") is False:
        return "failed" if fields.get("refunded") is True else "pending"
    waits = fields.get("status") == "requires_payment_method"
    return "failed" if waits and fields.get("last_payment_error") else told


def amount_of(fields: Mapping[str, object]) -> int | None:
    """Return what a charge or an intent took, or what it is for where nothing is taken yet."""
    taken = fields.get("amount_captured") or fields.get("amount_received")
    return as_number(taken or fields.get("amount"))


def lapsed(fields: Mapping[str, object]) -> bool:
    """Say whether a charge was authorised and let go of, so that nothing was taken."""
    return fields.get("captured") is False and status_of(fields) == "failed"
