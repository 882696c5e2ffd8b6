"""One API request, from its key to the answer that is kept: Stripe's idempotency to the letter.

Floor: sandbox, ground. Everything happens in one transaction, the faults too. Kept under an
idempotency key: 2xx, 402 and 500. Not kept: 400, 401, 403, 404, 409, 429. Keys live 24 hours of the
sandbox's clock and belong to the account, whatever API key sent them.
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
from typing import Final

from kb_mcp.sandbox.answers import Answer, Rejected, declined, invalid, mask, said
from kb_mcp.sandbox.listing import expanded
from kb_mcp.sandbox.params import Call, Params, check, decode
from kb_mcp.sandbox.resources import ENDPOINTS
from kb_mcp.sandbox.steering import PREFIX, refuse_as, steer, take_fault
from kb_mcp.sandbox.store import Records, Store

_PATTERNS: Final = tuple(
    (name, re.compile(re.sub(r"\\\{\w+\\\}", "([^/]+)", re.escape(name)))) for name in ENDPOINTS
)

API_VERSION: Final = "2026-05-27.dahlia"
BODY_MAX_BYTES: Final = 1_048_576
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


def exchange(store: Store, new_id: Callable[[], str], request: Request) -> Respond | None:
    """Serve one request, or do to it what a fault asks for.

    None: the connection is to end without a byte.
    """
    with store.transaction() as records:
        serving = _Exchange(records, new_id, request)
        if len(request.body) > BODY_MAX_BYTES:
            return serving.plain(said(413, "too_large"))
        if request.path.startswith(PREFIX):
            return serving.plain(steer(records, request.method, request.path, request.body))
        outcome = serving.outcome()
        customer = serving.params.get("customer")
        records.log(
            request.method,
            request.path,
            request.key,
            customer if isinstance(customer, str) else None,
            None if outcome is None else outcome.status,
        )
        return outcome


class _Exchange:
    """One request inside its transaction; `params` are empty until they are read."""

    def __init__(self, records: Records, new_id: Callable[[], str], request: Request) -> None:
        self._records, self._new_id, self._request = records, new_id, request
        self._request_id = f"req_{new_id()}"
        self.params: Params = {}

    def plain(self, answer: Answer) -> Respond:
        """Answer outside of Stripe's API."""
        return Respond(answer.status, json.dumps(answer.body, indent=2).encode(), self._headers())

    def _headers(self) -> dict[str, str]:
        return {
            "content-type": "application/json",
            "date": formatdate(self._records.now_ms // 1000, usegmt=True),
            "request-id": self._request_id,
        }

    def outcome(self) -> Respond | None:
        """Replay, execute or refuse; None drops the connection."""
        request = self._request
        try:
            token = _authenticate(request)
            content_type = request.headers.get("content-type", "")
            self.params = decode(request.query, request.body, content_type)
            return self._serve(token)
        except Rejected as rejected:
            return self._respond(rejected.answer.status, _written(rejected.answer))

    def _serve(self, token: str) -> Respond | None:
        records, request, key = self._records, self._request, self._request.key
        endpoint, ids = _find_endpoint(request)
        if key is not None and len(key) > KEY_LENGTH_MAX:
            raise invalid(
                f"Invalid Idempotency-Key: keys may be up to {KEY_LENGTH_MAX} characters long, but "
                f"yours has {len(key)}."
            )
        digest = hashlib.sha256(json.dumps(self.params, sort_keys=True).encode()).hexdigest()
        stored = None if key is None else self._stored(key, digest)
        fault = take_fault(records, request.method, request.path, replay=stored is not None)
        kind = "" if fault is None else fault.kind
        if kind == "drop_before":
            return None
        refuse_as(kind, token, key)
        delay_ms = fault.delay_ms if fault and kind == "delay" else 0
        if stored is not None:
            status, text, original = stored["status"], stored["body"], stored["request_id"]
        else:
            call = Call(records, request.path, self.params, ids, self._new_id, kind == "402")
            try:
                answer = _execute(endpoint, call, kind)
            except Rejected as rejected:
                answer = rejected.answer
            status, text, original = answer.status, _written(answer), None
            if key is not None and (status < 300 or status in {402, 500}):
                original = self._request_id
                busy_until_ms = records.host_ms + delay_ms if delay_ms else 0
                fate = (status, text, original, records.now_ms, busy_until_ms, os.getpid())
                records.run("put_key", key, request.method, request.path, digest, *fate)
        return None if kind == "drop_after" else self._respond(status, text, original, delay_ms)

    def _stored(self, key: str, digest: str) -> sqlite3.Row | None:
        """Return what is kept under the key. Raises: Rejected, unless it was for this request."""
        records, path = self._records, self._request.path
        records.run("expire_keys", records.now_ms - KEY_LIFE_MS)
        rows = records.run("get_key", key)
        if not rows:
            return None
        [stored] = rows
        only = None
        if stored["path"] != path:
            only = (
                f"for the same endpoint they were first used for ('{path}' vs '{stored['path']}')"
            )
        elif stored["params"] != digest:
            only = "with the same parameters they were first used with"
        if only is not None:
            raise Rejected(said(400, "key_mismatch", key=key, only=only))
        if stored["busy_until_ms"] > records.host_ms and _alive(stored["pid"]):
            raise Rejected(said(409, "key_in_use", key=key))
        return stored

    def _respond(
        self, status: int, text: str, original: str | None = None, delay_ms: int = 0
    ) -> Respond:
        """Answer; `original` is the request that first got this answer, where it is kept."""
        version = self._request.headers.get("stripe-version") or API_VERSION
        headers = self._headers() | {"stripe-version": version}
        key, first = self._request.key, original == self._request_id
        if key is not None:
            headers["idempotency-key"] = key
        if original is not None:
            headers["original-request"] = original
            if not first:
                headers["idempotent-replayed"] = "true"
        if status == 401:
            headers["www-authenticate"] = 'Basic realm="Stripe"'
        frees = (key, self._request_id) if key and first and delay_ms else None
        return Respond(status, text.encode(), headers, delay_ms, frees)


def _authenticate(request: Request) -> str:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    token = given.strip()
    if scheme.lower() == "basic":
        try:
            token = base64.b64decode(token, validate=True).decode("ascii").partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            token = ""
    elif scheme.lower() != "bearer":
        token = ""
    if not token:
        raise Rejected(said(401, "no_api_key"))
    if not _TEST_KEY.fullmatch(token):
        raise Rejected(said(401, "bad_api_key", token=mask(token)))
    return token


def _find_endpoint(request: Request) -> tuple[str, tuple[str, ...]]:
    """Return an endpoint's name in the tables, and what its path names. Raises: Rejected."""
    for name, pattern in _PATTERNS:
        found = pattern.fullmatch(f"{request.method} {request.path}")
        if found is not None:
            return name, found.groups()
    raise Rejected(said(404, "unknown_url", method=request.method, path=request.path))


def _execute(endpoint: str, call: Call, kind: str) -> Answer:
    check(endpoint, call.params)
    if kind == "500_before":
        return said(500, "server_error")
    with call.records.attempt():
        shown = ENDPOINTS[endpoint](call)
        answer = shown if isinstance(shown, Answer) else Answer(200, expanded(call, shown))
        if call.declines and answer.status != 402:
            raise Rejected(declined(None))  # nothing here has a card to say no
    return said(500, "server_error") if kind == "500_after" else answer


def _written(answer: Answer) -> str:
    return json.dumps(answer.body) + "\n"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True
