"""The handlers that samples publish for Bedrock agents, changed only where they do not run.

Floor: the demo, run in a process of its own like an AWS Lambda function. Nothing here is to be
copied: docs/from-samples.md says what is wrong with each line. The changes:

- the arguments of a POST arrive in `requestBody`; samples read `parameters` alone: a KeyError
- the address is the sandbox's; samples pass `base_url`, which StripeClient does not know
- the key inside `params` is answered with 400, unknown parameter; inside `metadata`, the one
  place among the parameters where Stripe takes it, the handler runs
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import stripe

STRIPE_KEY = os.environ["STRIPE_SECRET_KEY"]  # noqa: TID251 - as published
STRIPE_ADDRESS = os.environ["STRIPE_API_BASE"]  # noqa: TID251 - a Lambda reads its environment

stripe.api_key = STRIPE_KEY
stripe.api_base = STRIPE_ADDRESS


def without_key(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Charge and refund as most samples do: no idempotency key at all."""
    params = _arguments(event)
    if event["apiPath"] == "/refund":
        return _answer(event, stripe.Refund.create(**_refund(params)))
    return _answer(event, stripe.Charge.create(**_charge(params)))


def with_key_in_params(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Charge and refund with a good key in the wrong place: the SDK sends one of its own."""
    params = _arguments(event)
    named = ":".join(params.values())
    key = {"metadata": {"idempotency_key": hashlib.sha256(named.encode()).hexdigest()[:32]}}
    client = stripe.StripeClient(STRIPE_KEY, base_addresses={"api": STRIPE_ADDRESS})
    if event["apiPath"] == "/refund":
        return _answer(event, client.v1.refunds.create(params=_refund(params) | key))
    return _answer(event, client.v1.charges.create(params=_charge(params) | key))


def _charge(params: dict[str, str]) -> Any:
    return {
        "amount": int(params["amount_cents"]),
        "currency": "usd",
        "customer": params["customer_id"],
        "description": f"Subscription {params['billing_period']}",
    }


def _refund(params: dict[str, str]) -> Any:
    return {"charge": params["charge_id"], "amount": int(params["amount_cents"])}


def _arguments(event: dict[str, Any]) -> dict[str, str]:
    properties = event["requestBody"]["content"]["application/json"]["properties"]
    return {each["name"]: each["value"] for each in properties}


def _answer(event: dict[str, Any], made: stripe.Charge | stripe.Refund) -> dict[str, Any]:
    named = "refund_id" if event["apiPath"] == "/refund" else "charge_id"
    body = json.dumps({named: made.id, "status": made.status})
    return {
        "messageVersion": "1.0",
        "response": {
            "actionGroup": event["actionGroup"],
            "apiPath": event["apiPath"],
            "httpMethod": event["httpMethod"],
            "httpStatusCode": 200,
            "responseBody": {"application/json": {"body": body}},
        },
    }
