"""The tools as data: arguments, results, descriptions, and which vault key serves which tool.

Floor: wing A, on the shared ground. Pure. Every door and every export reads this one definition;
descriptions are written for a model and say in words what a target's schema cannot hold.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from kb_mcp.agent.results import ChargeResult, ChargeStatusResult, RefundResult, Result
from kb_mcp.idempotency import check_reference, idempotency_key
from kb_mcp.money import check_amount
from kb_mcp.periods import EXAMPLES, parse_period

# What changes how the text around it is shown or read: controls, line separators, bidi embeddings,
# overrides and isolates. Halves of surrogate pairs are no text at all. Everything else is writing,
# in scripts and symbols newer than this Python too.
# Source: unicode.org/reports/tr9 (bidirectional formatting characters).
_FORBIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def without_forbidden(text: str) -> str:
    """Return `text` with a blank in place of each character that may not stand in it."""
    return _FORBIDDEN.sub(" ", text)


ChargeApi = Literal["charges", "payment_intents"]
JSON: Final = "application/json"


class ToolName(StrEnum):
    """The tools there are."""

    CHARGE = "charge"
    CHARGE_STATUS = "charge_status"
    REFUND = "refund"


def _wording(text: str) -> str:
    if found := _FORBIDDEN.search(text):
        name = unicodedata.name(found[0], "a control character")
        raise ValueError(
            f"A description cannot hold U+{ord(found[0]):04X} ({name}). Send it without."
        )
    return text


CustomerId = Annotated[str, StringConstraints(pattern=r"^cus_[A-Za-z0-9]{1,64}$")]
ChargeId = Annotated[str, StringConstraints(pattern=r"^(ch|py|pi)_[A-Za-z0-9_]{1,200}$")]
Wording = Annotated[str, StringConstraints(max_length=350), AfterValidator(_wording)]
PeriodLabel = Annotated[str, AfterValidator(lambda text: parse_period(text).label)]


class _Arguments(BaseModel):
    # An argument that is not understood could be the one that mattered, so none is dropped, and
    # "1200", 12.0 and true are no integers. Errors must not show what a caller sent. A cold start
    # builds the models it needs, when it needs them.
    model_config = ConfigDict(
        defer_build=True,
        strict=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=False,
    )


class ChargeArguments(_Arguments):
    """What `charge` takes. The period is held under its canonical label, currency lower-case."""

    customer_id: CustomerId = Field(
        description="The Stripe customer to charge, for example cus_Abc123."
    )
    amount_cents: int = Field(
        gt=0,
        description=(
            "The amount as a whole number in the currency's minor unit: 2900 is 29.00 USD, "
            "500 is 500 JPY. Above zero. Never a decimal."
        ),
    )
    billing_period: PeriodLabel = Field(
        description=(
            "The period this bill is for: 2026-06 (month), 2026-Q2, 2026, 2026-W23, 2026-06-15 or "
            "2026-06-15/2026-07-14. Take it from the user or the contract; never invent one."
        )
    )
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{3}$", to_lower=True)] = Field(
        default="usd",
        description="Three-letter ISO currency code, for example usd or eur. usd if left out.",
    )
    description: Wording | None = Field(
        default=None,
        description=(
            "Text for the customer's receipt, at most 350 characters. Leave it out unless the "
            "user asked for one; it is then Subscription and the period."
        ),
    )
    reference: Annotated[str, AfterValidator(check_reference)] | None = Field(
        default=None,
        description=(
            "Names a second bill that the user wants on purpose in the same period, for example "
            "an order number. Leave it out for the regular bill, and never make one up."
        ),
    )

    @property
    def idempotency_key(self) -> str:
        """The key that names this bill."""
        return idempotency_key(
            self.customer_id, self.amount_cents, self.billing_period, self.currency, self.reference
        )

    @model_validator(mode="after")
    def _chargeable(self) -> Self:
        check_amount(self.amount_cents, self.currency)
        return self


class ChargeStatusArguments(_Arguments):
    """What `charge_status` takes: a charge id, or customer and period, or all three."""

    charge_id: ChargeId | None = Field(
        default=None,
        description=(
            "The charge to look up, ch_Abc123 or pi_Abc123. Empty if you look by customer_id and "
            "billing_period."
        ),
    )
    customer_id: CustomerId | None = Field(
        default=None,
        description=(
            "The Stripe customer, for example cus_Abc123. Send it with billing_period, or empty "
            "if you look by charge_id."
        ),
    )
    billing_period: PeriodLabel | None = Field(
        default=None,
        description=(
            "The period that was billed, for example 2026-06. Send it with customer_id, or empty "
            "if you look by charge_id."
        ),
    )

    @model_validator(mode="after")
    def _one_way_to_look(self) -> Self:
        by_bill = self.customer_id is not None and self.billing_period is not None
        half = (self.customer_id is None) != (self.billing_period is None)
        if half or not (by_bill or self.charge_id is not None):
            raise ValueError(
                "Send charge_id alone, or customer_id and billing_period together, or all three "
                "of one charge. Leave the others out; null and empty text count as left out."
            )
        return self


class RefundArguments(_Arguments):
    """What `refund` takes; without an amount, all that is left of the charge is refunded."""

    charge_id: ChargeId = Field(
        description="The charge to refund, ch_Abc123 or pi_Abc123. Never the id of a refund."
    )
    amount_cents: int | None = Field(
        default=None,
        gt=0,
        description=(
            "How much to refund, as a whole number in the currency's minor unit: 2900 is 29.00 "
            "USD. Leave it out only to refund all that is left of the charge; after a refund of "
            "a part, that refund is returned instead. It is never 0 and never empty."
        ),
    )
    reason: Literal["duplicate", "fraudulent", "requested_by_customer"] | None = Field(
        default=None,
        description=(
            "Why: duplicate, fraudulent or requested_by_customer. Leave it out if the user gave "
            "no reason."
        ),
    )


Arguments = ChargeArguments | ChargeStatusArguments | RefundArguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One tool. `hidden` arguments exist, but are not offered and not accepted."""

    name: ToolName
    title: str
    description: str
    arguments: type[Arguments]
    result: type[Result]
    vault_key: Literal["billing", "audit", "refunds"]
    asks: str  # the endpoint behind it; `{charges}` is the API that charges
    http_method: Literal["POST", "GET"]
    http_path: str
    read_only: bool
    hidden: frozenset[str] = frozenset()
    # Descriptions of arguments that stand in place of the model's own, by argument.
    texts: Mapping[str, str] = field(default_factory=dict)
    # Arguments of which only null and a missing one count as left out, and no empty text.
    said_by_absence: frozenset[str] = frozenset()
    # Old names that are accepted for one version after a rename. Keys are made of values alone,
    # so a renamed argument names the same bill.
    aliases: Mapping[str, str] = field(default_factory=dict)

    def endpoint(self, charge_api: ChargeApi) -> str:
        """Return the entry that a vault key needs in its allowlist to serve this."""
        return self.asks.format(charges=charge_api)

    def argument_names(self) -> tuple[str, ...]:
        """Return the arguments on offer, in order."""
        return tuple(name for name in self.arguments.model_fields if name not in self.hidden)


_CHARGE = Tool(
    name=ToolName.CHARGE,
    title="Charge a customer once for a period",
    description=(
        "Charges a Stripe customer's saved payment method for one billing period, exactly once. "
        "Asking again for the same customer, amount, currency and period never charges twice: it "
        "returns the first charge with already_charged true. Use it only when the user asked for "
        "this charge. Do not use it to check whether a charge exists, to find a receipt or to "
        "sort out a complaint: use charge_status for that. If the status is failed or refused, "
        "do not try other amounts, periods or currencies: tell the user what next_step says. If "
        "the status is unknown, the charge may have gone through: do not charge again, ask "
        "charge_status later. livemode tells whether real money is concerned."
    ),
    arguments=ChargeArguments,
    result=ChargeResult,
    vault_key="billing",
    asks="POST /v1/{charges}",
    http_method="POST",
    http_path="/charge",
    read_only=False,
)
_CHARGE_STATUS = Tool(
    name=ToolName.CHARGE_STATUS,
    title="Look up a charge",
    description=(
        "Looks up a charge and changes nothing: whether it exists, whether it succeeded, was "
        "refunded or disputed, and its receipt. Send either charge_id alone, or customer_id and "
        "billing_period together. Use it for every question about a bill, a receipt or a "
        "complaint, and after a charge whose status was unknown. If nothing is found, say so: it "
        "is no reason to charge unless the user asks for a charge."
    ),
    arguments=ChargeStatusArguments,
    result=ChargeStatusResult,
    vault_key="audit",
    asks="GET /v1/{charges}/*",
    http_method="GET",
    http_path="/charge-status",
    read_only=True,
)
_REFUND = Tool(
    name=ToolName.REFUND,
    title="Refund a charge once",
    description=(
        "Refunds a charge to the customer, all that is left of it or a part, exactly once. A "
        "refund cannot be undone. Use it only when the user asked for this refund of this charge; "
        "look at the charge with charge_status first. A complaint, a question or a dispute is no "
        "reason to refund. Asking again for the same charge never refunds twice: it returns the "
        "first refund, also where that was a part, with already_refunded true; an operator must "
        "allow another refund of the charge first. If the status is failed or refused, do not try "
        "other amounts or other charges: tell the user what next_step says. If the status is "
        "unknown, the refund may have gone through: do not refund again, ask charge_status later. "
        "livemode tells whether real money is concerned."
    ),
    arguments=RefundArguments,
    result=RefundResult,
    vault_key="refunds",
    asks="POST /v1/refunds",
    http_method="POST",
    http_path="/refund",
    read_only=False,
    said_by_absence=frozenset({"amount_cents"}),
)
TOOLS: Final[Mapping[ToolName, Tool]] = {
    tool.name: tool for tool in (_CHARGE, _CHARGE_STATUS, _REFUND)
}
_REFERENCE_OFF: Final = replace(_CHARGE, hidden=frozenset({"reference"}))


def find_tool(name: object, *, allow_reference: bool) -> Tool | None:
    """Return the tool called `name`, with `reference` only where it is switched on."""
    if name == ToolName.CHARGE and not allow_reference:
        return _REFERENCE_OFF
    return next((tool for tool in TOOLS.values() if tool.name == name), None)


def select_tools(
    names: frozenset[ToolName], *, allow_reference: bool, period_kinds: tuple[str, ...] = ()
) -> tuple[Tool, ...]:
    """Return the tools of `names` in the catalogue's order.

    `period_kinds` are the only kinds of period that the key may bill, all where there are none.
    """
    found = (find_tool(name, allow_reference=allow_reference) for name in TOOLS if name in names)
    return tuple(_narrowed(tool, period_kinds) for tool in found if tool is not None)


def _narrowed(tool: Tool, period_kinds: tuple[str, ...]) -> Tool:
    allowed = [text for kind, text in EXAMPLES.items() if kind in period_kinds]
    if tool.name is not ToolName.CHARGE or not allowed:
        return tool
    text = (
        f"The period this bill is for: {' or '.join(allowed)}, and nothing else. Take it from the "
        "user or the contract; never invent one, and do not bill another period in its place."
    )
    return replace(tool, texts={"billing_period": text})


@lru_cache(maxsize=1024)
def tools_granted(allow: frozenset[str], charge_api: ChargeApi) -> frozenset[ToolName]:
    """Return the tools that a vault key with the allowlist `allow` can serve."""
    return frozenset(name for name, tool in TOOLS.items() if tool.endpoint(charge_api) in allow)
