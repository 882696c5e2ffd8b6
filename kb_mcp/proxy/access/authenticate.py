"""Who asks: the vault key that a request carries, or the one that its identity stands for.

Floor: below the governor, above tokens, issuers and the ledger's port. The same check is repeated
inside the reserving transaction and just before the send.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import replace

from kb_mcp.proxy.access.grants import find_matching, narrowing
from kb_mcp.proxy.access.issuers import Identity, Issuers, looks_like_jwt
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.tokens import matches, parse_token, refuse_dead_key
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Grant, VaultKey
from kb_mcp.proxy.stripe.messages import Request

ROTATIONS_MAX = 1_000


class Admitted(Struct, frozen=True):
    """A key that may act, with its policy.

    `grant` and `subject` are of the identity that stands for it, where a token was presented;
    `scopes` narrow what it may do, None does not.
    """

    key: VaultKey
    policy: Policy
    grant: Grant | None = None
    subject: str | None = None
    scopes: frozenset[str] | None = None


async def admit(
    ledger: Ledger, token: str | None, now_ms: Callable[[], int], issuers: Issuers | None
) -> Admitted | Refusal:
    """Return the key that `token` is, or that its identity stands for, or why it may not act.

    Raises: LedgerUnavailableError.
    """
    if token is None:
        return refuse(Code.VAULT_KEY_MISSING)
    if issuers is not None and looks_like_jwt(token):
        identity = await issuers.identify(token)
        if isinstance(identity, Refusal):
            return identity
        return await _stand_in(ledger, identity, now_ms)
    parsed = parse_token(token)
    # Test keys reach a test-mode store only, live keys a live one.
    if parsed is None or (parsed[1] == "live") != (ledger.settings.mode == "live"):
        return refuse(Code.VAULT_KEY_UNKNOWN)
    found = await ledger.find_key(parsed[0])
    if found is None or not matches(token, found[0].token_hash):
        return refuse(Code.VAULT_KEY_UNKNOWN)
    refusal = refuse_dead_key(found[0], now_ms())
    return refusal or Admitted(found[0], policy_of(found[0].policy))


async def _stand_in(
    ledger: Ledger, identity: Identity, now_ms: Callable[[], int]
) -> Admitted | Refusal:
    """Return the key that the one grant of `identity` names, or why there is none."""
    granted = find_matching(await ledger.find_grants(identity.issuer), identity.claims)
    key = await newest_key(ledger, granted[0]) if len(granted) == 1 else None
    if key is None:
        # Which grants they are would tell a caller how to become somebody else.
        code = Code.IDENTITY_AMBIGUOUS if len(granted) > 1 else Code.IDENTITY_NOT_GRANTED
        return replace(refuse(code), subject=identity.subject)
    refusal = refuse_dead_key(key, now_ms())
    if refusal is not None:
        return replace(refusal, subject=identity.subject)
    scopes = narrowing(identity.scopes)
    return Admitted(key, policy_of(key.policy), granted[0], identity.subject, scopes)


async def newest_key(ledger: Ledger, grant: Grant) -> VaultKey | None:
    """Return the key of `grant`, or its newest successor: a grant goes on through rotations."""
    found = await ledger.find_key(grant.key_id)
    for _ in range(ROTATIONS_MAX):
        if found is None or found[0].rotated_to is None or found[0].revoked_at is not None:
            break
        found = await ledger.find_key(found[0].rotated_to)
    return None if found is None else found[0]


def presented_token(request: Request) -> str | None:
    """Return the token in the one `Authorization` header, as Bearer or as Basic user, or None."""
    values = [value for name, value in request.headers if name == "authorization"]
    if len(values) != 1:
        return None
    scheme, _, rest = values[0].partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return rest or None
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(rest, validate=True).decode("ascii").partition(":")[0] or None
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def policy_of(text: str) -> Policy:
    """Return the policy stored as `text`; it was validated when the key was issued."""
    return Policy.model_validate_json(text)
