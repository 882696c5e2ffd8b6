"""One API request, from its key to the answer that is kept: Stripe's idempotency to the letter.

Floor: sandbox, ground. Everything happens in one transaction, the faults too. Kept under an
idempotency key: 2xx, 402 and 500. Not kept: 400, 401, 403, 404, 409, 429. Keys live 24 hours of the
sandbox's clock and belong to the account, whatever API key sent them. Each endpoint has its row of
parameters in `requests.json`.
Source: docs.stripe.com/api/idempotent_requests and /error-low-level.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Final, TypeAlias

from kb_mcp.sandbox.answers import (
    Answer,
    Rejected,
    bad_api_key,
    declined,
    invalid,
    key_in_use,
    key_mismatch,
    no_api_key,
    server_error,
    unknown_url,
)
from kb_mcp.sandbox.listing import Endpoint, lists, retrieves, searches
from kb_mcp.sandbox.params import Call, Params, check, decode
from kb_mcp.sandbox.resources import charges, customers, intents, invoices, refunds
from kb_mcp.sandbox.steering import Fault, refusal, take_fault
from kb_mcp.sandbox.store import Records, Store

ENDPOINTS: Final[dict[str, Endpoint]] = {
    "POST /v1/charges": charges.create_charge,
    "GET /v1/charges": lists("charge", "customer", "payment_intent", "transfer_group"),
    "GET /v1/charges/search": searches("charge"),
    "GET /v1/charges/{charge}": retrieves("charge"),
    "POST /v1/charges/{charge}": charges.update_charge,
    "POST /v1/charges/{charge}/capture": charges.capture_charge,
    "POST /v1/payment_intents": intents.create_intent,
    "GET /v1/payment_intents": lists("payment_intent", "customer"),
    "GET /v1/payment_intents/search": searches("payment_intent"),
    "GET /v1/payment_intents/{intent}": retrieves("payment_intent"),
    "POST /v1/payment_intents/{intent}": intents.update_intent,
    "POST /v1/payment_intents/{intent}/confirm": intents.confirm_intent,
    "POST /v1/payment_intents/{intent}/capture": intents.capture_intent,
    "POST /v1/payment_intents/{intent}/cancel": intents.cancel_intent,
    "POST /v1/payment_intents/{intent}/increment_authorization": intents.increment_intent,
    "POST /v1/invoices": invoices.create_invoice,
    "GET /v1/invoices": lists("invoice", "customer"),
    "GET /v1/invoices/{invoice}": retrieves("invoice"),
    "POST /v1/invoices/{invoice}/finalize": invoices.finalize_invoice,
    "POST /v1/invoices/{invoice}/pay": invoices.pay_invoice,
    "POST /v1/invoices/{invoice}/void": invoices.void_invoice,
    "POST /v1/invoices/{invoice}/mark_uncollectible": invoices.write_off_invoice,
    "POST /v1/invoiceitems": invoices.create_item,
    "GET /v1/invoice_payments": lists("invoice_payment", "invoice"),
    "POST /v1/refunds": refunds.create_refund,
    "GET /v1/refunds": lists("refund", "charge", "payment_intent"),
    "GET /v1/refunds/{refund}": retrieves("refund"),
    "POST /v1/refunds/{refund}": refunds.update_refund,
    "POST /v1/refunds/{refund}/cancel": refunds.cancel_refund,
    "GET /v1/disputes": lists("dispute", "charge", "payment_intent"),
    "GET /v1/disputes/{dispute}": retrieves("dispute"),
    "POST /v1/customers": customers.create_customer,
    "GET /v1/customers": lists("customer", "email"),
    "GET /v1/customers/{customer}": customers.get_customer,
    "POST /v1/customers/{customer}": customers.update_customer,
    "DELETE /v1/customers/{customer}": customers.delete_customer,
    "GET /v1/customers/{customer}/payment_methods": customers.list_payment_methods,
    "GET /v1/customers/{customer}/payment_methods/{payment_method}": (
        customers.get_own_payment_method
    ),
    "GET /v1/payment_methods": customers.list_payment_methods,
    "GET /v1/payment_methods/{payment_method}": retrieves("payment_method"),
    "POST /v1/payment_methods/{payment_method}/attach": customers.attach_payment_method,
    "POST /v1/payment_methods/{payment_method}/detach": customers.detach_payment_method,
    "GET /v1/account": customers.get_account,
}

_PATTERNS: Final = tuple(
    (name, re.compile(re.sub(r"\\\{\w+\\\}", "([^/]+)", re.escape(name)))) for name in ENDPOINTS
)


API_VERSION: Final = "2026-05-27.dahlia"
KEY_LENGTH_MAX: Final = 255
KEY_LIFE_MS: Final = 24 * 60 * 60 * 1000

_TEST_KEY = re.compile(r"[rs]k_test_[A-Za-z0-9_]{1,250}")


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request; header names in lower case."""

    method: str
    path: str
    query: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def key(self) -> str | None:
        """The idempotency key; it means nothing on GET and DELETE."""
        return (self.headers.get("idempotency-key") or None) if self.method == "POST" else None


@dataclass(frozen=True, slots=True)
class Respond:
    """Answer, after `delay_ms`; then the key is free again if `frees` names it and its request."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    delay_ms: int = 0
    frees: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """End the connection without a byte."""


Outcome: TypeAlias = Respond | Drop


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of a request: the text of its answer, and the request that it first answered."""

    status: int
    text: str
    original: str | None = None
    replayed: bool = False
    fault: Fault | None = None
    stored: bool = False


def exchange(store: Store, new_id: Callable[[], str], request: Request) -> Outcome:
    """Serve one API request, or do to it what a fault asks for."""
    request_id = f"req_{new_id()}"
    with store.transaction() as records:
        params: Params = {}
        try:
            token = _authenticate(request)
            params = decode(request.query, request.body, request.headers.get("content-type", ""))
            result = _serve(records, new_id, request, params, request_id, token)
        except Rejected as rejected:
            result = _fresh(rejected.answer)
        dropped = result is None or (result.fault is not None and result.fault.kind == "drop_after")
        customer = params.get("customer")
        records.log(
            request.method,
            request.path,
            request.key,
            customer if isinstance(customer, str) else None,
            None if result is None or dropped else result.status,
        )
        if result is None or dropped:
            return Drop()
        return _respond(records, request, request_id, result)


def free_key(store: Store, frees: tuple[str, str]) -> None:
    """Say that the request which first used a key has been answered."""
    with store.transaction() as records:
        records.run("free_key", *frees)


def _authenticate(request: Request) -> str:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    token = given.strip()
    if scheme.lower() == "basic":
        try:
            token = base64.b64decode(token, validate=True).decode("ascii").partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            raise Rejected(no_api_key()) from None
    elif scheme.lower() != "bearer":
        token = ""
    if not token:
        raise Rejected(no_api_key())
    if not _TEST_KEY.fullmatch(token):
        raise Rejected(bad_api_key(token))
    return token


def _find_endpoint(method: str, path: str) -> tuple[str, tuple[str, ...]]:
    """Return an endpoint's name in the tables, and what its path names. Raises: Rejected."""
    for name, pattern in _PATTERNS:
        found = pattern.fullmatch(f"{method} {path}")
        if found is not None:
            return name, found.groups()
    raise unknown_url(method, path)


def _serve(
    records: Records,
    new_id: Callable[[], str],
    request: Request,
    params: Params,
    request_id: str,
    token: str,
) -> _Result | None:
    """Replay or execute; None drops the connection before anything."""
    endpoint, ids = _find_endpoint(request.method, request.path)
    key = request.key
    if key is not None and len(key) > KEY_LENGTH_MAX:
        raise invalid(
            f"Invalid Idempotency-Key: keys may be up to {KEY_LENGTH_MAX} characters long, but "
            f"yours has {len(key)}."
        )
    digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()
    stored = _stored(records, key)
    if stored is not None:
        _demand_same(records, request, stored, digest)
    fault = take_fault(records, request.method, request.path, replay=stored is not None)
    kind = None if fault is None else fault.kind
    if kind == "drop_before":
        return None
    refused = None if kind is None else refusal(kind, token, key)
    if refused is not None:
        raise Rejected(refused)
    if stored is not None:
        return _Result(stored["status"], stored["body"], stored["request_id"], True, fault)  # noqa: FBT003 - it is a replay
    try:
        call = Call(records, request.path, params, ids, new_id, declines=kind == "402")
        answer = _execute(endpoint, call, kind)
    except Rejected as rejected:
        answer = rejected.answer
    result = _fresh(answer, fault)
    if key is not None and (result.status < 300 or result.status in {402, 500}):
        busy_until_ms = records.host_ms + fault.delay_ms if fault and kind == "delay" else 0
        fate = (result.status, result.text, request_id, records.now_ms, busy_until_ms, os.getpid())
        records.run("put_key", key, request.method, request.path, digest, *fate)
        return _Result(result.status, result.text, request_id, fault=fault, stored=True)
    return result


def _stored(records: Records, key: str | None) -> sqlite3.Row | None:
    if key is None:
        return None
    records.run("expire_keys", records.now_ms - KEY_LIFE_MS)
    rows = records.run("get_key", key)
    return rows[0] if rows else None


def _demand_same(records: Records, request: Request, stored: sqlite3.Row, digest: str) -> None:
    key = stored["key"]
    if stored["path"] != request.path or stored["params"] != digest:
        raise Rejected(key_mismatch(key, request.path, stored["path"]))
    if stored["busy_until_ms"] > records.host_ms and _alive(stored["pid"]):
        raise Rejected(key_in_use(key))


def _execute(endpoint: str, call: Call, kind: str | None) -> Answer:
    check(endpoint, call.params)
    if kind == "500_before":
        return server_error()
    with call.records.attempt():
        answer = ENDPOINTS[endpoint](call)
        if call.declines and answer.status != 402:
            raise Rejected(declined(None))  # nothing here has a card to say no
    return server_error() if kind == "500_after" else answer


def _fresh(answer: Answer, fault: Fault | None = None) -> _Result:
    return _Result(answer.status, json.dumps(answer.body) + "\n", fault=fault)


def _respond(records: Records, request: Request, request_id: str, result: _Result) -> Respond:
    headers = {
        "content-type": "application/json",
        "date": formatdate(records.now_ms // 1000, usegmt=True),
        "request-id": request_id,
        "stripe-version": request.headers.get("stripe-version") or API_VERSION,
    }
    if request.key is not None:
        headers["idempotency-key"] = request.key
    if result.original is not None:
        headers["original-request"] = result.original
    if result.replayed:
        headers["idempotent-replayed"] = "true"
    if result.status == 401:
        headers["www-authenticate"] = 'Basic realm="Stripe"'
    delay_ms = result.fault.delay_ms if result.fault and result.fault.kind == "delay" else 0
    frees = (request.key, request_id) if request.key and result.stored and delay_ms else None
    return Respond(result.status, result.text.encode(), headers, delay_ms, frees)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
