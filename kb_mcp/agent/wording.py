"""The sentences that tools say to a model, in one place.

Floor: the bottom of wing A. Pure. A next step never invites a retry that could hurt, and never
suggests another amount, period, currency or reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
NOTHING_DONE: Final = "Nothing was done."
CORRECT: Final = "Correct the arguments from what the user said; ask the user for what is missing."
USE_ANOTHER: Final = "Use one of the tools that are listed."
LATER: Final = "Tell the user that billing is not available at the moment."
LAPSED: Final = "The authorisation of this charge expired, and no money moved."

# What an operator may have said of a charge that waits.
APPROVALS: Final = frozenset({"approved", "denied", "expired"})
_PAID = "Nothing more to charge. Tell the user."
_ASK_LATER = "Do not charge again. Ask charge_status later whether it succeeded."
_ASK_SOON = "Do not charge again. Ask charge_status again in a few minutes."
_NOT_PAID = "No money moved. Tell the user; charge only if the user asks for it."
LOOKED_UP: Final[Mapping[str, tuple[str, str]]] = {
    "succeeded": ("{money} was charged.", _PAID),
    "receipt": ("{money} was charged.", f"{_PAID[:-1]}; the receipt is at receipt_url."),
    "pending": ("A charge of {money} was accepted and is not final yet.", _ASK_LATER),
    "authorized": ("{money} was authorised, and is not charged yet.", _ASK_LATER),
    "lapsed": ("{money} was authorised, and the authorisation expired. No money moved.", _NOT_PAID),
    "failed": ("A charge of {money} failed. No money moved.", _NOT_PAID),
    "voided": ("A charge of {money} was asked for and never happened.", _NOT_PAID),
    "unknown": ("A charge of {money} was sent, and its outcome is not known yet.", _ASK_SOON),
    "reserved": ("A charge of {money} is under way, and may have been sent.", _ASK_SOON),
    "broken": ("The look-up failed. This says nothing about whether a charge exists.", _ASK_SOON),
    "awaiting_approval": (
        "A charge of {money} waits for an operator's approval.",
        "Do not charge again. An operator has to approve it first.",
    ),
    "approved": (
        "A charge of {money} was approved by an operator, and is not made yet.",
        "Make the same call of charge once more, with nothing changed.",
    ),
    "denied": (
        "A charge of {money} was denied by an operator. Nothing was charged.",
        "Do not charge. Tell the user that an operator denied it.",
    ),
    "expired": (
        "A charge of {money} waited for an approval that expired. Nothing was charged.",
        "Tell the user. Charge only if the user asks for it: it then waits for an operator again.",
    ),
    "not_found": (
        "There is no such charge in the records.",
        "Say that nothing was found. Charge only if the user asks for a charge.",
    ),
    "another_bill": (
        "There is a charge with this charge_id, but it is of another customer or period than "
        "was asked for with it. This says nothing about whether that customer's period was "
        "charged.",
        "Do not charge because of it. Ask again with charge_id alone, or with customer_id and "
        "billing_period.",
    ),
    "refused": (
        "{said} This says nothing about whether a charge exists.",
        "Tell the user that this cannot be looked up here. Do not charge because of it.",
    ),
}
"""What a look-up says by what it found: the message, and the next step."""


_TEST_MODE = " This is test mode: no real money."
# By status: the message, that of a replay, and the next step.
_MESSAGES: Final[Mapping[str, str]] = {
    "succeeded": "{money} was {done}.",
    "pending": "The {act} of {money} was accepted and is not final yet.",
    "failed": "The {act} of {money} failed. {nothing}",
    "unknown": "The {act} of {money} may have been sent, and its outcome is not known yet.",
    "refused": "The {act} of {money} was refused. Nothing was {done}.",
}
_BEFORE: Final[Mapping[str, str]] = {
    "succeeded": "{money} had been {done} before{of_what}; nothing was {done} now.",
    "pending": "A {act} of {money} was accepted before and is not final yet; nothing was sent now.",
}
_STEPS: Final[Mapping[str, str]] = {
    "succeeded": "Done. Tell the user, with the {act} id. Do not {act} again.",
    "pending": "Accepted, not final. Do not {act} again; ask charge_status later.",
    "failed": "{nothing} Tell the user why. {after_failure}",
    "unknown": "The {act} may have gone through. Do not {act} again; ask charge_status with "
    "{by} in a few minutes.",
    "refused": "Do not {act} again. Tell the user what the message says. An operator of kb-mcp "
    "can help.",
}
_LOOK = (
    "Do not {act} again. Use charge_status to look at the charge that exists, and tell the user."
)
_NOT_SPLIT = "Do not split, lower or repeat the {act}. Tell the user what the message says."
_NOT_TODAY = "Do not {act} again today. Tell the user."
# Next steps that are more exact than those by status.
_BY_CODE: Final[Mapping[str, str]] = {
    "period_already_charged": _LOOK,
    "duplicate_suspected": _LOOK,
    "idempotency_key_reused": "Do not {act} again. Use charge_status with {by} to see what was "
    "{done}, and tell the user.",
    "spend_cap_exceeded": _NOT_SPLIT,
    "refund_cap_exceeded": _NOT_SPLIT,
    "charge_count_exceeded": _NOT_TODAY,
    "refund_count_exceeded": _NOT_TODAY,
    "approval_required": "Tell the user that an operator must approve this {act}. Do not make "
    "the same call again before the user says that it was approved.",
    DENIED: "Tell the user that an operator denied this {act}. Do not make the same call again, "
    "and do not change it.",
    "period_out_of_window": "Do not choose another period. Ask the user which period is meant.",
    "authentication_required": "No money moved. The customer must confirm the payment with the "
    "bank; tell the user. Do not try again.",
    "no_default_payment_method": "No money moved. Tell the user that the customer needs a default "
    "payment method. Do not try again before that.",
    "idempotency_key_in_use": "The same {bill} is being sent right now. Do not change it; ask "
    "charge_status in a moment.",
    "already_refunded": "Do not refund again. Use charge_status to look at the refunds of the "
    "charge, and tell the user.",
    "refund_exceeds_charge": "Nothing was refunded. Tell the user how much is left; do not choose "
    "another amount yourself.",
    "charge_disputed": "Do not refund. Tell the user that the bank is dealing with this charge.",
    "charge_not_refundable": "Check the charge id with the user. Do not try other ids.",
}


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of a charge, or of a refund: the words in the sentences that both share."""

    act: str
    done: str
    bill: str
    by: str  # what charge_status finds it by
    nothing: str  # that nothing happened
    after_failure: str
    of_what: str  # that was done before, with a blank before it
    done_before: str  # the next step of a replay that succeeded

    def message(
        self, status: str, money: str, said: str | None, *, replayed: bool, livemode: bool
    ) -> str:
        """Say what became of it; `said` are the proxy's own words, which are more exact."""
        final = status in _BEFORE
        text = said or self._say((_BEFORE if replayed and final else _MESSAGES)[status], money)
        return text if livemode or not final else text + _TEST_MODE

    def step(self, status: str, code: str | None, *, replayed: bool) -> str:
        """Say what a model should do next."""
        if replayed and status == "succeeded":
            return self.done_before
        return self._say(_BY_CODE.get(code or "", _STEPS[status]))

    def _say(self, sentence: str, money: str = "") -> str:
        words = {name: getattr(self, name) for name in self.__slots__}
        return sentence.format(money=money, **words)


CHARGED: Final = Told(
    act="charge",
    done="charged",
    bill="bill",
    by="customer_id and billing_period",
    nothing="No money moved.",
    after_failure="Do not try again unless the user fixed the cause and asks for it.",
    of_what=" for this period",
    done_before="This bill was charged before. Do not charge again; tell the user. charge_status "
    "says whether it was refunded since.",
)
REFUNDED: Final = Told(
    act="refund",
    done="refunded",
    bill="refund",
    by="charge_id",
    nothing="Nothing was refunded.",
    after_failure="Do not try another amount.",
    of_what="",
    done_before="This amount was refunded before, and nothing more was refunded now. Do not refund "
    "again; tell the user. A further refund of this charge must first be allowed by an operator.",
)


def wait(seconds: int | None) -> str:
    """Say how long to wait after too many requests."""
    return "Wait a minute." if seconds is None else f"Wait {how_many(seconds, 'second')}."
