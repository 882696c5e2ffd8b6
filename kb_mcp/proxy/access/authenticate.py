"""Admission: which vault key a request carries, and whether it may do anything at all.

Floor: below the governor, above vault and ledger. The same check is repeated inside the
reserving transaction and just before the send (design: One charge).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from functools import lru_cache

from msgspec import Struct

from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.tokens import matches, parse_token
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import VaultKey
from kb_mcp.proxy.stripe.messages import Request


class Admitted(Struct, frozen=True):
    """A key that may act, with its policy."""

    key: VaultKey
    policy: Policy


async def admit(ledger: Ledger, request: Request, now_ms: Callable[[], int]) -> Admitted | Refusal:
    """Return the key that `request` carries as Bearer or as Basic user, or why it may not act.

    Raises: LedgerUnavailableError.
    """
    token = presented_token(request)
    if token is None:
        return refuse(Code.VAULT_KEY_MISSING)
    parsed = parse_token(token)
    if parsed is None or (parsed.mode == "live") != (ledger.settings.mode == "live"):
        # Test keys reach a test-mode store only, live keys a live one (design: Vault keys).
        return refuse(Code.VAULT_KEY_UNKNOWN)
    found = await ledger.find_key(parsed.id)
    if found is None or not matches(token, found[0].token_hash):
        return refuse(Code.VAULT_KEY_UNKNOWN)
    refusal = spent(found[0], now_ms())
    return refusal or Admitted(found[0], policy_of(found[0].policy))


def spent(key: VaultKey, now: int) -> Refusal | None:
    """Return why `key` may no longer act at `now` (ms), or None."""
    if key.revoked_at is not None:
        return refuse(Code.VAULT_KEY_REVOKED)
    if key.expires_at is not None and key.expires_at <= now:
        return refuse(Code.VAULT_KEY_EXPIRED)
    return None


def presented_token(request: Request) -> str | None:
    """Return the token in the one `Authorization` header, or None."""
    values = [value for name, value in request.headers if name == "authorization"]
    if len(values) != 1:
        return None
    scheme, _, rest = values[0].partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return rest or None
    return _basic_user(rest) if scheme.lower() == "basic" else None


@lru_cache(maxsize=1024)
def policy_of(text: str) -> Policy:
    """Return the policy stored as `text`; it was validated when the key was issued."""
    return Policy.model_validate_json(text)


def _basic_user(encoded: str) -> str | None:
    try:
        user = base64.b64decode(encoded, validate=True).decode("ascii").partition(":")[0]
    except (binascii.Error, ValueError):
        return None
    return user or None
