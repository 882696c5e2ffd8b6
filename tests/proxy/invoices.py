"""Invoices in tests: made at Stripe by hand, finalized and paid through the proxy."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import httpx

from kb_mcp.operators.actions.operations import decide_approval
from kb_mcp.proxy.access.policy import Policy
from tests.in_process_proxy import Issued
from tests.misbehaving import Heard, MisledProxy

STRIPE = {"Authorization": "Bearer rk_test_sandbox"}
PAY, FINALIZE = "POST /v1/invoices/*/pay", "POST /v1/invoices/*/finalize"
CAPS = {"daily": {"usd": 10_000}, "monthly": {"usd": 20_000}}


def payer(in_process: MisledProxy, **fields: Any) -> Issued:
    """Issue a key that may finalize and pay, with caps unless told otherwise."""
    record = {
        "version": 1,
        "role": "invoices",
        "allow": [PAY, FINALIZE, "POST /v1/charges", "POST /v1/refunds", "GET /v1/charges/*"],
        "caps": CAPS,
        **fields,
    }
    return in_process.issue(Policy.model_validate(record, strict=False))


def by_hand(in_process: MisledProxy, path: str, **form: object) -> dict[str, Any]:
    """Do something at Stripe, past the proxy."""
    data = {name: str(value) for name, value in form.items()}
    answer = in_process.stripe.post(path, data=data, headers=STRIPE)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def add(in_process: MisledProxy, invoice: str, amount: int, customer: str = "cus_A1") -> None:
    form = {"invoice": invoice, "customer": customer, "amount": amount}
    by_hand(in_process, "/v1/invoiceitems", **form)


def drafted(
    in_process: MisledProxy, amount: int = 2900, customer: str = "cus_A1", **form: Any
) -> str:
    invoice = str(by_hand(in_process, "/v1/invoices", customer=customer, **form)["id"])
    add(in_process, invoice, amount, customer)
    return invoice


def opened(in_process: MisledProxy, amount: int = 2900, **form: Any) -> str:
    invoice = drafted(in_process, amount, **form)
    by_hand(in_process, f"/v1/invoices/{invoice}/finalize")
    return invoice


def act(
    in_process: MisledProxy, key: Issued, invoice: str, act: str = "pay", **form: Any
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key.token}"}
    if "key_header" in form:
        headers["Idempotency-Key"] = str(form.pop("key_header"))
    data = {name: str(value) for name, value in form.items()}
    return in_process.client.post(f"/v1/invoices/{invoice}/{act}", data=data, headers=headers)


def only(in_process: MisledProxy) -> Any:
    [operation] = [each for each in in_process.operations() if each.kind == "invoice"]
    return operation


def sends(in_process: MisledProxy, invoice: str, act: str = "pay") -> int:
    """Return how often the proxy asked Stripe to do `act`."""
    return in_process.rogue.asked.count(f"POST /v1/invoices/{invoice}/{act}")


def hear(in_process: MisledProxy, invoice: str, nth: int = 1, /, **fields: object) -> None:
    """Let the `nth` reading of `invoice` from now on, and those after it, show other `fields`."""
    readings = count(1)

    def change(heard: Heard) -> Heard:
        body = json.loads(heard[1])
        return heard[0], json.dumps(body | fields if next(readings) >= nth else body).encode()

    in_process.rogue.hear(f"GET /v1/invoices/{invoice}", change)


def taken(in_process: MisledProxy) -> int:
    return sum(each["amount"] for each in in_process.charges())


def held(in_process: MisledProxy, key: Issued) -> tuple[int, int]:
    """Return what counts against the daily cap: settled and reserved."""
    spend = in_process.get(key, "/keybrake/v1/key").json()["spend"]
    [day] = [each for each in spend if each["window"] == "day" and each["currency"] == "usd"]
    return day["settled"], day["reserved"]


def facts_of(answer: httpx.Response) -> dict[str, Any]:
    return dict(answer.json()["error"]["keybrake"])


def approve(in_process: MisledProxy, approval: str) -> None:
    decided = decide_approval(in_process.proxy.store.ledger, approval, "approved", "test")
    assert in_process.run(decided) is not None
