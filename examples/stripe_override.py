"""A Lambda handler as samples publish it, with one line added: `stripe.api_base`.

Without that line, and with a Stripe key, it charges once for every call. With it, the proxy finds
the first charge of the bill (customer, amount, period), whoever asks again.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import stripe

stripe.api_key = (
    Path(os.environ["KEYBRAKE_VAULT_KEY_BILLING_FILE"]).expanduser().read_text().strip()
)
stripe.api_base = os.environ["KEYBRAKE_PROXY_URL"] + "/stripe"  # the one line


def lambda_handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Charge what the event says; nothing in here knows about kb-mcp."""
    content = event["requestBody"]["content"]["application/json"]
    params = {each["name"]: each["value"] for each in content["properties"]}
    charge = stripe.Charge.create(
        amount=int(params["amount_cents"]),
        currency="usd",
        customer=params["customer_id"],
        description=f"Subscription {params['billing_period']}",
    )
    return {
        "messageVersion": "1.0",
        "response": {
            "actionGroup": event["actionGroup"],
            "apiPath": event["apiPath"],
            "httpMethod": event["httpMethod"],
            "httpStatusCode": 200,
            "responseBody": {"application/json": {"body": json.dumps({"charge_id": charge.id})}},
        },
    }


EVENT = {
    "messageVersion": "1.0",
    "actionGroup": "billing",
    "apiPath": "/charge",
    "httpMethod": "POST",
    "requestBody": {
        "content": {
            "application/json": {
                "properties": [
                    {"name": "customer_id", "type": "string", "value": "cus_Override1"},
                    {"name": "amount_cents", "type": "integer", "value": "2900"},
                    {"name": "billing_period", "type": "string", "value": time.strftime("%Y-%m")},
                ]
            }
        }
    },
}

if __name__ == "__main__":
    for _ in range(2):
        answer = lambda_handler(EVENT, None)["response"]
        print(answer["httpStatusCode"], answer["responseBody"]["application/json"]["body"])
