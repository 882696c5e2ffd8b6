"""Charges through every door from inside the container: prints a charge id for each.

Run by the installed Python, with nothing of the checkout: `doors.py URL KEY`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import stripe

from kb_mcp.converse import ConverseTools
from kb_mcp.lambda_entry import handler
from kb_mcp.settings import load_settings

Json = dict[str, Any]
URL, KEY = sys.argv[1:3]
ENVIRON = {"KEYBRAKE_PROXY_URL": URL, "KEYBRAKE_VAULT_KEY_BILLING": KEY}
SETTINGS = load_settings(ENVIRON)
AMOUNT, PERIOD = 2900, sys.argv[3]
HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "inside", "version": "1"},
}


def bill(door: str) -> Json:
    return {"customer_id": f"cus_{door}", "amount_cents": AMOUNT, "billing_period": PERIOD}


def stripe_sdk(door: str) -> Any:
    # Of itself, this release of the SDK looks for a home folder, and fails where there is none.
    stripe.enable_telemetry = False
    client = stripe.StripeClient(KEY, base_addresses={"api": f"{URL}/stripe/"})
    params: Any = {
        "amount": AMOUNT,
        "currency": "usd",
        "customer": f"cus_{door}",
        "metadata": {"billing_period": PERIOD},
    }
    return client.v1.charges.create(params).id


def action_group(door: str) -> Any:
    properties = [
        {"name": name, "type": "string", "value": str(value)} for name, value in bill(door).items()
    ]
    event = {
        "messageVersion": "1.0",
        "actionGroup": "billing",
        "apiPath": "/charge",
        "httpMethod": "POST",
        "requestBody": {"content": {"application/json": {"properties": properties}}},
    }
    answer = handler(event, None, settings=SETTINGS)
    return json.loads(answer["response"]["responseBody"]["application/json"]["body"])["charge_id"]


def function(door: str) -> Any:
    given = [{"name": n, "type": "string", "value": str(v)} for n, v in bill(door).items()]
    event = {
        "messageVersion": "1.0",
        "actionGroup": "billing",
        "function": "charge",
        "parameters": given,
    }
    answer = handler(event, None, settings=SETTINGS)["response"]["functionResponse"]
    return json.loads(answer["responseBody"]["TEXT"]["body"])["charge_id"]


def gateway(door: str) -> Any:
    custom = {"bedrockAgentCoreToolName": "billing___charge"}
    context = SimpleNamespace(client_context=SimpleNamespace(custom=custom))
    return handler(bill(door), context, settings=SETTINGS)["charge_id"]


def converse(door: str) -> Any:
    use = {"toolUseId": "t1", "name": "charge", "input": bill(door)}
    message = {"role": "assistant", "content": [{"toolUse": use}]}
    answer = ConverseTools(SETTINGS).handle(message) or {}
    return answer["content"][0]["toolResult"]["content"][0]["json"]["charge_id"]


def mcp_http(door: str) -> Any:
    headers = {"authorization": f"Bearer {KEY}", "accept": "application/json, text/event-stream"}
    params = {"name": "charge", "arguments": bill(door)}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    answer = httpx.post(f"{URL}/mcp", json=call, headers=headers, timeout=60).text
    # As JSON, or as one event of a stream.
    found = next(line.removeprefix("data: ") for line in answer.splitlines() if "charge_id" in line)
    return json.loads(found)["result"]["structuredContent"]["charge_id"]


def mcp_stdio(door: str) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-m", "kb_mcp", "mcp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRON,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    params = {"name": "charge", "arguments": bill(door)}
    calls = (("initialize", HELLO), ("tools/call", params))
    answer: Json = {}
    for number, (method, given) in enumerate(calls):
        call = {"jsonrpc": "2.0", "id": number, "method": method, "params": given}
        process.stdin.write(json.dumps(call) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
    process.stdin.close()
    assert process.wait(60) == 0
    return answer["result"]["structuredContent"]["charge_id"]


DOORS: dict[str, Callable[[str], Any]] = {
    each.__name__.replace("_", ""): each
    for each in (
        stripe_sdk, action_group, function, gateway, converse, mcp_http, mcp_stdio,
    )
}  # fmt: skip

if __name__ == "__main__":
    sys.stdout.write(json.dumps({name: charge(name) for name, charge in DOORS.items()}))
