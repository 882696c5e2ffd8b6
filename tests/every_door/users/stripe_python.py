"""Stripe's Python SDK, with the key and the address changed and nothing else."""

from __future__ import annotations

import os

import stripe

from tests.every_door.users.line import Json, serve

client = stripe.StripeClient(
    os.environ["STRIPE_SECRET_KEY"],  # noqa: TID251 - as a user's own program reads it
    base_addresses={"api": os.environ["STRIPE_API_BASE"] + "/stripe"},  # noqa: TID251 - as above
)


def charge(bill: Json) -> Json:
    made = client.v1.charges.create(
        params={
            "amount": bill["amount_cents"],
            "currency": "usd",
            "customer": bill["customer_id"],
            "description": f"Subscription {bill['billing_period']}",
            "metadata": {"billing_period": bill["billing_period"]},
        }
    )
    return {"status": made.status, "charge_id": made.id}


serve(charge)
