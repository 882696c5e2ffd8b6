"""The sentences that tools say to a model, in one place.

Floor: the bottom of wing A. Pure. A next step never invites a retry that could hurt, and never
suggests another amount, period, currency or reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from kb_mcp.instants import how_many

UNAVAILABLE: Final = (
    "The billing proxy could not be reached, and nothing was sent. "
    "The same call can be made again later."
)
UNREACHED: Final = (
    "The billing proxy cannot be reached: {cause}. Nothing was sent. "
    "The same call can be made again later."
)
RATE_LIMITED: Final = (
    "Too many requests, and nothing was done. Wait, then make the same call again."
)
DENIED: Final = "approval_required, denied"
NOT_OFFERED: Final = "There is no such tool here."
NO_CARD: Final = (
    "The customer has no default payment method, so nothing was charged. Set one in Stripe first."
)
LOOKUP_FAILED: Final = "The look-up failed. This says nothing about whether a charge exists."
NOTHING_DONE: Final = "Nothing was done."
CORRECT: Final = "Correct the arguments from what the user said; ask the user for what is missing."
USE_ANOTHER: Final = "Use one of the tools that are listed."
# What an operator may have said of a charge that waits.
APPROVALS: Final = frozenset({"approved", "denied", "expired"})
LATER: Final = "Tell the user that billing is not available at the moment."

LAPSED: Final = "The authorisation of this charge expired, and no money moved."
NOT_FOUND: Final = "There is no such charge in the records."
ANOTHER_BILL: Final = (
    "There is a charge with this charge_id, but it is of another customer or period than was asked "
    "for with it. This says nothing about whether that customer's period was charged."
)
OPERATION_MESSAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "succeeded": "{money} was charged.",
        "pending": "A charge of {money} was accepted and is not final yet.",
        "authorized": "{money} was authorised, and is not charged yet.",
        "lapsed": "{money} was authorised, and the authorisation expired. No money moved.",
        "failed": "A charge of {money} failed. No money moved.",
        "unknown": "A charge of {money} was sent, and its outcome is not known yet.",
        "reserved": "A charge of {money} is under way, and may have been sent.",
        "awaiting_approval": "A charge of {money} waits for an operator's approval.",
        "approved": "A charge of {money} was approved by an operator, and is not made yet.",
        "denied": "A charge of {money} was denied by an operator. Nothing was charged.",
        "expired": "A charge of {money} waited for an approval that expired. Nothing was charged.",
        "voided": "A charge of {money} was asked for and never happened.",
    }
)

_TEST_MODE = " This is test mode: no real money."


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of a charge, or of a refund, by its status; of a replay, `before`.

    `by_code` are next steps that are more exact; `done_before` is that of a replay that succeeded.
    """

    messages: Mapping[str, str]
    steps: Mapping[str, str]
    by_code: Mapping[str, str]
    before: Mapping[str, str]
    done_before: str

    def message(
        self, status: str, money: str, said: str | None, *, replayed: bool, livemode: bool
    ) -> str:
        """Say what became of it; `said` are the proxy's own words, which are more exact."""
        text = said or self.messages[status].format(money=money)
        if replayed and status in self.before:
            text = self.before[status].format(money=money)
        return text if livemode or status not in {"succeeded", "pending"} else text + _TEST_MODE

    def step(self, status: str, code: str | None, *, replayed: bool) -> str:
        """Say what a model should do next."""
        if replayed and status == "succeeded":
            return self.done_before
        return self.by_code.get(code or "", self.steps[status])


_TELL = "Do not charge again. Tell the user what the message says."
_OPERATOR = f"{_TELL} An operator of kb-mcp can help."

STATUS_STEPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "succeeded": "Nothing more to charge. Tell the user.",
        "receipt": "Nothing more to charge. Tell the user; the receipt is at receipt_url.",
        "pending": "Do not charge again. Ask charge_status later whether it succeeded.",
        "processing": "Do not charge again. Ask charge_status later whether it succeeded.",
        "failed": "No money moved. Tell the user; charge only if the user asks for it.",
        "unknown": "Do not charge again. Ask charge_status again in a few minutes.",
        "reserved": "Do not charge again. Ask charge_status again in a few minutes.",
        "awaiting_approval": "Do not charge again. An operator has to approve it first.",
        "approved": "Make the same call of charge once more, with nothing changed.",
        "denied": "Do not charge. Tell the user that an operator denied it.",
        "expired": "Tell the user. Charge only if the user asks for it: it then waits for an "
        "operator again.",
        "voided": "No money moved. Tell the user; charge only if the user asks for it.",
        "refused": "Tell the user that this cannot be looked up here. Do not charge because of it.",
        "another_bill": "Do not charge because of it. Ask again with charge_id alone, or with "
        "customer_id and billing_period.",
        "not_found": "Say that nothing was found. Charge only if the user asks for a charge.",
    }
)
_CHARGE_STEPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "succeeded": "Done. Tell the user, with the charge id. Do not charge again.",
        "pending": "Accepted, not final. Do not charge again; ask charge_status later.",
        "failed": "No money moved. Tell the user why. Do not try again unless the user fixed the "
        "cause and asks for it.",
        "unknown": "The charge may have gone through. Do not charge again; ask charge_status with "
        "customer_id and billing_period in a few minutes.",
        "refused": _OPERATOR,
    }
)
_CODE_STEPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "period_already_charged": "Do not charge again. Use charge_status to look at the charge "
        "that exists, and tell the user.",
        "duplicate_suspected": "Do not charge again. Use charge_status to look at the charge that "
        "exists, and tell the user.",
        "idempotency_key_reused": "Do not charge again. Use charge_status with customer_id and "
        "billing_period to see what was charged, and tell the user.",
        "spend_cap_exceeded": "Do not split, lower or repeat the charge. Tell the user what "
        "the message says.",
        "charge_count_exceeded": "Do not charge again today. Tell the user.",
        "approval_required": "Tell the user that an operator must approve this charge. Do not make "
        "the same call again before the user says that it was approved.",
        DENIED: "Tell the user that an operator denied this charge. Do not make the same call "
        "again, and do not change it.",
        "period_out_of_window": "Do not choose another period. Ask the user which period is meant.",
        "authentication_required": "No money moved. The customer must confirm the payment with "
        "the bank; tell the user. Do not try again.",
        "no_default_payment_method": "No money moved. Tell the user that the customer needs a "
        "default payment method. Do not try again before that.",
        "idempotency_key_in_use": "The same bill is being sent right now. Do not change it; ask "
        "charge_status in a moment.",
    }
)
_MESSAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "succeeded": "{money} was charged.",
        "pending": "The charge of {money} was accepted and is not final yet.",
        "failed": "The charge of {money} failed. No money moved.",
        "unknown": "The charge of {money} may have been sent, and its outcome is not known yet.",
        "refused": "The charge of {money} was refused. Nothing was charged.",
    }
)


CHARGED: Final = Told(
    _MESSAGES,
    _CHARGE_STEPS,
    _CODE_STEPS,
    before={
        "succeeded": "{money} had been charged before for this period; nothing was charged now.",
        "pending": "A charge of {money} was accepted before and is not final yet; nothing was sent "
        "now.",
    },
    done_before="This bill was charged before. Do not charge again; tell the user. charge_status "
    "says whether it was refunded since.",
)


_REFUND_MESSAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "succeeded": "{money} was refunded.",
        "pending": "The refund of {money} was accepted and is not final yet.",
        "failed": "The refund of {money} failed. Nothing was refunded.",
        "unknown": "The refund of {money} was sent, and its outcome is not known yet.",
        "refused": "The refund of {money} was refused. Nothing was refunded.",
    }
)
_REFUND_STEPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "succeeded": "Done. Tell the user, with the refund id. Do not refund again.",
        "pending": "Accepted, not final. Do not refund again; ask charge_status later.",
        "failed": "Nothing was refunded. Tell the user why. Do not try another amount.",
        "unknown": "The refund may have gone through. Do not refund again; ask charge_status with "
        "charge_id in a few minutes.",
        "refused": "Do not refund again. Tell the user what the message says. An operator of "
        "kb-mcp can help.",
    }
)
_REFUND_CODE_STEPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "already_refunded": "Do not refund again. Use charge_status to look at the refunds of the "
        "charge, and tell the user.",
        "refund_exceeds_charge": "Nothing was refunded. Tell the user how much is left; do not "
        "choose another amount yourself.",
        "charge_disputed": "Do not refund. Tell the user that the bank is dealing with this "
        "charge.",
        "charge_not_refundable": "Check the charge id with the user. Do not try other ids.",
        "refund_cap_exceeded": "Do not split, lower or repeat the refund. Tell the user what "
        "the message says.",
        "refund_count_exceeded": "Do not refund again today. Tell the user.",
        "approval_required": "Tell the user that an operator must approve this refund. Do not make "
        "the same call again before the user says that it was approved.",
        DENIED: "Tell the user that an operator denied this refund. Do not make the same call "
        "again, and do not change it.",
        "idempotency_key_in_use": "The same refund is being sent right now. Do not change it; ask "
        "charge_status in a moment.",
    }
)


REFUNDED: Final = Told(
    _REFUND_MESSAGES,
    _REFUND_STEPS,
    _REFUND_CODE_STEPS,
    before=dict.fromkeys(
        ("succeeded", "pending"), "{money} had been refunded before; nothing was refunded now."
    ),
    done_before="This amount was refunded before, and nothing more was refunded now. Do not refund "
    "again; tell the user. A further refund of this charge must first be allowed by an operator.",
)


def status_step(status: str) -> str:
    """Say what a model should do next after a look-up."""
    return STATUS_STEPS.get(status, STATUS_STEPS["unknown"])


def wait(seconds: int | None) -> str:
    """Say how long to wait after too many requests."""
    return "Wait a minute." if seconds is None else f"Wait {how_many(seconds, 'second')}."
