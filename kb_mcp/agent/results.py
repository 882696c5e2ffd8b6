"""What the tools answer: one model each, read by every door and every export.

Floor: wing A, on the shared ground, below the catalogue. Pure.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["succeeded", "pending", "failed", "unknown", "refused"]


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)


class ChargeResult(_Shown):
    """What `charge` answers; what is None is left out."""

    status: Status = Field(
        description=(
            "succeeded (the money moved), pending (accepted, not final), failed (declined, no "
            "money moved), unknown (sent, outcome not known: do not charge again), or refused "
            "(stopped by a rule, nothing was charged)."
        )
    )
    charge_id: str | None = Field(default=None, description="The charge, ch_Abc123 or pi_Abc123.")
    amount_cents: int = Field(description="The amount in the currency's minor unit.")
    currency: str = Field(description="Lower-case ISO currency code.")
    customer_id: str = Field(description="The customer.")
    billing_period: str = Field(description="The period, in its canonical form.")
    idempotency_key: str = Field(description="The key that names this bill.")
    already_charged: bool = Field(
        description="True if the charge existed before this call, so that nothing was charged now."
    )
    livemode: bool = Field(description="True if real money is concerned, false in test mode.")
    operation_id: str | None = Field(default=None, description="The operation in the ledger.")
    code: str | None = Field(default=None, description="Why it failed or was refused.")
    message: str = Field(description="What happened, in words.")
    next_step: str = Field(description="What to do next, and what not to do.")


class ShownRefund(_Shown):
    """One refund of a charge, whoever made it; what is None is left out."""

    refund_id: str | None = Field(default=None, description="The refund, re_Abc123.")
    amount_cents: int | None = Field(default=None, description="Amount in minor units.")
    status: str | None = Field(
        default=None,
        description="succeeded, pending, failed, canceled, or unknown (sent, outcome not known).",
    )
    created: str | None = Field(default=None, description="When it was made, RFC 3339 in UTC.")


class ChargeStatusResult(_Shown):
    """What `charge_status` answers; what is None is left out."""

    found: bool = Field(description="True if there is such a charge.")
    status: str | None = Field(
        default=None,
        description=(
            "succeeded, pending, failed, unknown (sent, outcome not known), awaiting_approval, "
            "voided (nothing happened), or refused (this key may not look)."
        ),
    )
    charge_id: str | None = Field(default=None, description="The charge, ch_Abc123 or pi_Abc123.")
    amount_cents: int | None = Field(default=None, description="Amount in minor units.")
    amount_refunded: int | None = Field(
        default=None, description="How much of it was refunded, in minor units."
    )
    refunds: list[ShownRefund] | None = Field(
        default=None, description="Its refunds, newest first, whoever made them."
    )
    disputed: bool | None = Field(default=None, description="True if the customer disputes it.")
    receipt_url: str | None = Field(default=None, description="The receipt to show or send.")
    currency: str | None = Field(default=None, description="Lower-case ISO currency code.")
    customer_id: str | None = Field(default=None, description="The customer.")
    billing_period: str | None = Field(default=None, description="The period that was billed.")
    description: str | None = Field(default=None, description="The text on the receipt.")
    created: str | None = Field(default=None, description="When it was made, RFC 3339 in UTC.")
    livemode: bool | None = Field(default=None, description="True if real money is concerned.")
    message: str = Field(description="What was found, in words.")
    next_step: str = Field(description="What to do next, and what not to do.")


class RefundResult(_Shown):
    """What `refund` answers; what is None is left out."""

    status: Status = Field(
        description=(
            "succeeded (the money is on its way back), pending (accepted, not final), failed "
            "(nothing was refunded), unknown (sent, outcome not known: do not refund again), or "
            "refused (stopped by a rule, nothing was refunded)."
        )
    )
    refund_id: str | None = Field(default=None, description="The refund, re_Abc123.")
    charge_id: str = Field(description="The charge that is refunded.")
    amount_cents: int | None = Field(default=None, description="Amount in minor units.")
    currency: str | None = Field(default=None, description="Lower-case ISO currency code.")
    already_refunded: bool = Field(
        description="True if the refund existed before this call: nothing was refunded now."
    )
    amount_left: int | None = Field(
        default=None, description="What is left of the charge, in minor units, where it is known."
    )
    livemode: bool = Field(description="True if real money is concerned, false in test mode.")
    operation_id: str | None = Field(default=None, description="The operation in the ledger.")
    code: str | None = Field(default=None, description="Why it failed or was refused.")
    message: str = Field(description="What happened, in words.")
    next_step: str = Field(description="What to do next, and what not to do.")


Result = ChargeResult | ChargeStatusResult | RefundResult
