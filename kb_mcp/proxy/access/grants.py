"""Grants and scopes: which vault key an identity of a provider stands for, and what of it counts.

Floor: wing B, in the room of access. Pure. A grant names an issuer and claims, each by its value
or by a prefix that ends in `*`; an identity must have all of them. Of a claim that is a list, one
element is enough. A token that has any of the tools' scopes may do no more than they say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse
from kb_mcp.proxy.ledger.records import Grant

CLAIMS_MAX: Final = 10
TEXT_MAX: Final = 512
Claims = Mapping[str, str]
CHARGE: Final = "charge"
CHARGE_STATUS: Final = "charge_status"
REFUND: Final = "refund"
SCOPES: Final = (CHARGE, CHARGE_STATUS, REFUND)
# What is looked up in order to charge: the customer, and the payment method to use.
_LOOKED_UP: Final = ("GET /v1/customers", "GET /v1/payment_methods")


class MatchError(ValueError):
    """What should be matched is not valid; the message says what to write."""


def read_matches(texts: Sequence[str]) -> Claims:
    """Read `CLAIM=VALUE` texts into claims. Raises: MatchError."""
    claims: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name or not value or max(len(name), len(value)) > TEXT_MAX:
            raise MatchError('a match is CLAIM=VALUE, like "sub=agent-7" or "sub=agent-*"')
        if name in claims:
            raise MatchError(f"the claim {name} is matched twice")
        if name == "iss":
            raise MatchError("the issuer is the grant's own: --issuer")
        if not (name + value).isprintable():
            raise MatchError("a match holds characters that cannot be printed")
        claims[name] = value
    if not 1 <= len(claims) <= CLAIMS_MAX:
        raise MatchError(f"between 1 and {CLAIMS_MAX} claims can be matched")
    return claims


def write_claims(claims: Claims) -> str:
    """Write claims as a grant holds them."""
    return json.dumps(claims, sort_keys=True)


@lru_cache(maxsize=4096)
def claims_of(text: str) -> Claims:
    """Read the claims that a grant holds."""
    claims: Claims = json.loads(text)
    return claims


def find_matching(grants: Iterable[Grant], identity: Mapping[str, object]) -> list[Grant]:
    """Return the grants whose every claim `identity` has."""
    return [
        grant
        for grant in grants
        if all(_has(identity.get(name), value) for name, value in claims_of(grant.claims).items())
    ]


def overlapping(grants: Iterable[Grant], claims: Claims) -> Grant | None:
    """Return a grant on the same claims whose values an identity could have with these, too."""
    for grant in grants:
        other = claims_of(grant.claims)
        if other.keys() == claims.keys() and all(
            _overlap(other[name], value) for name, value in claims.items()
        ):
            return grant
    return None


def _has(claim: object, wanted: str) -> bool:
    """Say whether a claim is `wanted`, as it is written in JSON.

    Objects, null and fractions match nothing.
    """
    if isinstance(claim, list):
        return any(_has(each, wanted) for each in claim if not isinstance(each, list))
    text = str(claim).lower() if isinstance(claim, bool) else str(claim)
    return isinstance(claim, str | int) and _fits(text, wanted)


def _fits(text: str, wanted: str) -> bool:
    return text.startswith(wanted[:-1]) if wanted.endswith("*") else text == wanted


def _overlap(one: str, other: str) -> bool:
    return _fits(one.removesuffix("*"), other) or _fits(other.removesuffix("*"), one)


def narrowing(scopes: frozenset[str]) -> frozenset[str] | None:
    """Return the scopes that narrow, or None where a token has none of them."""
    return scopes & frozenset(SCOPES) or None


def check_scopes(scopes: frozenset[str] | None, endpoint: str) -> Refusal | None:
    """Return why a token with `scopes` does not reach `endpoint` (`POST /v1/charges`), or None."""
    needed = _reaching(endpoint)
    if scopes is None or scopes & needed:
        return None
    return refuse(Code.TOOL_NOT_GRANTED, scope=min(needed))


def _reaching(endpoint: str) -> frozenset[str]:
    """Return the scopes any of which reaches `endpoint`."""
    if endpoint.startswith(_LOOKED_UP):
        return frozenset(SCOPES)
    if "/refund" in endpoint:
        reads = endpoint.startswith("GET ")
        return frozenset({CHARGE_STATUS, REFUND} if reads else {REFUND})
    return frozenset({CHARGE_STATUS} if endpoint.startswith("GET ") else {CHARGE})
