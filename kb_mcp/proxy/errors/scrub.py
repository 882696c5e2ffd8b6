"""Scrubbing: what Stripe's answers must not tell the agent's side, and what nobody may keep.

Floor: the bottom of wing B. Pure. Stripe's error texts name the masked key and the account; a
`client_secret` would let its holder confirm an intent elsewhere.
"""

from __future__ import annotations

import re

_KEYS = re.compile(rb"\b(?:sk|rk|pk|whsec)_(?:live_|test_)?[A-Za-z0-9_*.\xe2\x80\xa2]{4,}")
# As clients send them by mistake, in a path, a name or a header: underscores may be encoded.
_SECRETS = re.compile(
    r"(?:vk|sk|rk)(?:_|%5f)(?:test|live)(?:_|%5f)[a-z0-9_%]{6,}|whsec(?:_|%5f)[a-z0-9_%]{6,}",
    re.IGNORECASE,
)
_ACCOUNTS = re.compile(rb"\bacct_[A-Za-z0-9]+")
_CLIENT_SECRET = re.compile(rb'("client_secret"\s*:\s*)"[^"]*"')


def scrub_error(body: bytes, upstream_key: str) -> bytes:
    """Return an error body without key or account text; `upstream_key` is our own."""
    if upstream_key:
        body = body.replace(upstream_key.encode(), b"[key]")
    return _ACCOUNTS.sub(b"[account]", _KEYS.sub(b"[key]", body))


def mask_secrets(text: str) -> str:
    """Return a client's text without vault keys and Stripe keys, for the audit and for errors."""
    return _SECRETS.sub("[key]", text)


def strip_client_secret(body: bytes) -> bytes:
    """Return an object's JSON with every `client_secret` set to null."""
    return _CLIENT_SECRET.sub(rb"\1null", body)
