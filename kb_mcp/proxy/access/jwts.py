"""JSON Web Tokens: what a token says of itself, and whether a key of its issuer signed it.

Floor: wing B, in the room of access. PyJWT verifies; what stands here is which keys and which
algorithms it may use. Nothing that a token names (`jku`, `x5u`, `jwk`, `x5c`) is ever followed.
Source: RFC 8725 (best current practices), RFC 7517 (keys), RFC 9068 (access tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import jwt

TOKEN_BYTES_MAX: Final = 16_384
LEEWAY_S: Final = 60
SCOPE_CLAIMS: Final = ("scope", "scp")
KEYS_MAX: Final = 100
_NAME_MAX: Final = 256
_MODULUS_MAX: Final = 1_400  # base64url: 8192 bits
# By key type and curve. Signatures of a shared secret, and `none`, are never accepted.
_ALGORITHMS: Final[Mapping[tuple[str, str | None], tuple[str, ...]]] = MappingProxyType(
    {
        ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
        ("EC", "P-256"): ("ES256",),
        ("EC", "P-384"): ("ES384",),
        ("EC", "P-521"): ("ES512",),
        ("OKP", "Ed25519"): ("EdDSA",),
    }
)
_PUBLIC: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}
)
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
_JWT = jwt.PyJWT(options={"enforce_minimum_key_length": True})
_REQUIRED: Final = ("iss", "sub", "aud", "exp")


class TokenError(Exception):
    """A token that is not accepted; the message says why, without anything of the token."""


class TokenExpiredError(TokenError):
    """A token whose time is over, and which is otherwise not looked at any further."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a token says of itself before anything is verified."""

    issuer: str
    key_id: str | None
    algorithm: str


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One public key of an issuer; `algorithms` are those that it may be used with."""

    key_id: str | None
    algorithms: tuple[str, ...]
    public: Any  # as `cryptography` has it


def looks_like_jwt(token: str) -> bool:
    """Say whether `token` has the form of a signed JWT, and is worth reading."""
    return len(token) <= TOKEN_BYTES_MAX and token.startswith("ey") and token.count(".") == 2


def read_claimed(token: str) -> Claimed:
    """Read what `token` says of its issuer and its key. Raises: TokenError."""
    try:
        header = jwt.get_unverified_header(token)
        claims = jwt.decode(token, options={"verify_signature": False})
    except Exception as error:  # whatever a token holds, it is no more than wrong
        raise TokenError("it cannot be read") from error
    issuer, key_id = claims.get("iss"), header.get("kid")
    if not isinstance(issuer, str):
        raise TokenError("it names no issuer")
    if key_id is not None and not (isinstance(key_id, str) and len(key_id) <= _NAME_MAX):
        raise TokenError("its key id is none")
    if "crit" in header or str(header.get("typ", "JWT")).lower() not in _TYPES:
        raise TokenError("it is of another kind")
    return Claimed(issuer, key_id, str(header.get("alg")))


def read_keys(document: object) -> tuple[SigningKey, ...]:
    """Read the keys of a JWKS that can verify signatures, and leave out all others.

    Raises: ValueError, where it is no JWKS or has too many keys.
    """
    listed = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(listed, list) or len(listed) > KEYS_MAX:
        raise ValueError(f"it is no list of at most {KEYS_MAX} keys")
    return tuple(key for each in listed if (key := _signing_key(each)) is not None)


def choose_key(keys: Sequence[SigningKey], claimed: Claimed) -> SigningKey | None:
    """Return the key that `claimed` means: by its id, or without one the only one that fits."""
    fitting = [key for key in keys if claimed.algorithm in key.algorithms]
    if claimed.key_id is not None:
        return next((key for key in fitting if key.key_id == claimed.key_id), None)
    return fitting[0] if len(fitting) == 1 else None


def verify(
    token: str, key: SigningKey, *, algorithm: str, issuer: str, audience: str
) -> Mapping[str, Any]:
    """Verify signature, issuer, audience and times of `token`; return its claims.

    Raises: TokenError, TokenExpiredError.
    """
    if algorithm not in key.algorithms:
        raise TokenError("its algorithm is not accepted")
    try:
        claims = _JWT.decode(
            token,
            key.public,
            algorithms=[algorithm],
            audience=audience,
            issuer=issuer,
            leeway=LEEWAY_S,
            options={"require": list(_REQUIRED)},
        )
    except jwt.ExpiredSignatureError as error:
        raise TokenExpiredError("it has expired") from error
    except jwt.InvalidAudienceError as error:
        raise TokenError("it is meant for another resource") from error
    except jwt.ImmatureSignatureError as error:
        raise TokenError("it is not valid yet") from error
    except jwt.MissingRequiredClaimError as error:
        raise TokenError("a claim is missing: iss, sub, aud and exp are needed") from error
    except Exception as error:  # a time that is no number
        raise TokenError("its signature or its claims do not hold") from error
    if not isinstance(claims["sub"], str) or not claims["sub"]:
        raise TokenError("its subject is none")
    if not all(_lists_scopes(claims.get(name)) for name in SCOPE_CLAIMS):
        # Read as no scopes, it would reach all that its vault key may do.
        raise TokenError("its scopes are none")
    return claims


def _lists_scopes(claim: object) -> bool:
    listed = claim if isinstance(claim, list) else ["" if claim is None else claim]
    return all(isinstance(each, str) for each in listed)


def _signing_key(jwk: object) -> SigningKey | None:
    if not isinstance(jwk, Mapping):
        return None
    kind = str(jwk.get("kty"))
    curve = jwk.get("crv") if kind != "RSA" else None
    fitting = _ALGORITHMS.get((kind, curve if isinstance(curve, str) else None), ())
    use, operations, algorithm = jwk.get("use"), jwk.get("key_ops"), jwk.get("alg")
    verifies = not isinstance(operations, list) or "verify" in operations
    usable = (use is None or use == "sig") and verifies
    if algorithm is not None:
        fitting = tuple(each for each in fitting if each == algorithm)
    if not fitting or not usable or len(str(jwk.get("n", ""))) > _MODULUS_MAX:
        return None
    members = {name: jwk.get(name) for name in _PUBLIC[kind]}
    try:
        made = jwt.PyJWK(members, fitting[0])
    except Exception:  # noqa: BLE001 whatever its members hold, it is no key
        return None
    if made.Algorithm.check_key_length(made.key) is not None:
        return None
    key_id = jwk.get("kid")
    return SigningKey(key_id if isinstance(key_id, str) else None, fitting, made.key)
