"""Scrubbing: what Stripe's answers must not tell the agent's side.

Floor: below the governor. Pure. Stripe's error texts name the masked key and the account
(facts: restricted keys); a `client_secret` would let its holder confirm an intent elsewhere.
"""

from __future__ import annotations

import re

_KEYS = re.compile(rb"\b(?:sk|rk|pk|whsec)_(?:live_|test_)?[A-Za-z0-9_*.\xe2\x80\xa2]{4,}")
_ACCOUNTS = re.compile(rb"\bacct_[A-Za-z0-9]+")
_CLIENT_SECRET = re.compile(rb'("client_secret"\s*:\s*)"[^"]*"')


def scrub_error(body: bytes, upstream_key: str) -> bytes:
    """Return an error body without key or account text; `upstream_key` is our own."""
    if upstream_key:
        body = body.replace(upstream_key.encode(), b"[key]")
    return _ACCOUNTS.sub(b"[account]", _KEYS.sub(b"[key]", body))


def strip_client_secret(body: bytes) -> bytes:
    """Return an object's JSON with every `client_secret` set to null."""
    return _CLIENT_SECRET.sub(rb"\1null", body)
