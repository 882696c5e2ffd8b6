"""Issuers: the identity providers whose tokens are accepted, and which of their keys signed one.

Floor: wing B, in the room of access. Keys are found by the issuer's own metadata and kept. They
are fetched again when they are old, and for a key id that is not among them at most once in
SEARCH_MS: a thousand unknown ids a second are one fetch. What cannot be fetched serves until its
end, then nobody is let in. PyJWT verifies; what stands here is which keys and which algorithms it
may use. Nothing that a token names (`jku`, `x5u`, `jwk`, `x5c`) is ever followed.
Source: RFC 8414 (3.3: the metadata's issuer must be the one that was asked), OpenID Connect
Discovery 1.0, RFC 7517 (keys), RFC 8725 (best current practices), RFC 9068 (access tokens).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import jwt

from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse

FRESH_MS: Final = 5 * 60_000
END_MS: Final = 60 * 60_000
RETRY_MS: Final = 1_000
SEARCH_MS: Final = 5_000
FETCH_WITHIN_S: Final = 5
DOCUMENT_BYTES_MAX: Final = 256 * 1024
_NEVER: Final = -(10**15)
_OAUTH: Final = "/.well-known/oauth-authorization-server"
_OPENID: Final = "/.well-known/openid-configuration"
_log = logging.getLogger(__name__)

Fetch = Callable[[str], Awaitable[bytes]]
"""Gets the document at a URL, at most DOCUMENT_BYTES_MAX of it. Raises: FetchError."""
TOKEN_BYTES_MAX: Final = 16_384
LEEWAY_S: Final = 60
SCOPE_CLAIMS: Final = ("scope", "scp")
KEYS_MAX: Final = 100
_NAME_MAX: Final = 256
_MODULUS_MAX: Final = 1_400  # base64url: 8192 bits
# By key type and curve. Signatures of a shared secret, and `none`, are never accepted.
_ALGORITHMS: Final[Mapping[tuple[str, object], tuple[str, ...]]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
_PUBLIC: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("kty", "n", "e"),
    "EC": ("kty", "crv", "x", "y"),
    "OKP": ("kty", "crv", "x"),
}
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
_JWT = jwt.PyJWT(options={"enforce_minimum_key_length": True})
_WRONG: Final[Mapping[type[Exception], str]] = {
    jwt.InvalidAudienceError: "it is meant for another resource",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.MissingRequiredClaimError: "a claim is missing: iss, sub, aud and exp are needed",
}


class FetchError(Exception):
    """A document that cannot be had, or is none; the message says why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a verified token speaks for."""

    issuer: str
    claims: Mapping[str, Any]

    @property
    def subject(self) -> str:
        """The issuer and the subject, as the audit has them."""
        return f"{self.issuer} {self.claims['sub']}"

    @property
    def scopes(self) -> frozenset[str]:
        """Every scope that the token has."""
        found: set[str] = set()
        for name in SCOPE_CLAIMS:
            given = self.claims.get(name) or ""
            found.update(given if isinstance(given, list) else given.split())
        return frozenset(found)


@dataclass(slots=True)
class _Issuer:
    """One issuer: its keys, and when (ms) they came, were asked for, and a key id was sought.

    `problem` is why the last fetch brought none.
    """

    name: str
    keys: tuple[SigningKey, ...] = ()
    fetched_at: int = _NEVER
    asked_at: int = _NEVER
    searched_at: int = _NEVER
    problem: str | None = None
    fetching: asyncio.Task[None] | None = field(default=None, repr=False)


@dataclass(slots=True)
class Issuers:
    """Verifies the tokens of the issuers `names`, for one audience.

    `may_fetch` says whether a URL of theirs may be asked.
    """

    names: InitVar[tuple[str, ...]]
    audience: str
    fetch: Fetch
    may_fetch: Callable[[str], bool]
    monotonic_ms: Callable[[], int]
    _issuers: dict[str, _Issuer] = field(init=False)

    def __post_init__(self, names: tuple[str, ...]) -> None:
        self._issuers = {name: _Issuer(name) for name in names}

    async def examine(self) -> dict[str, str | None]:
        """Fetch every issuer's keys anew; return why they cannot be had, None where they can."""
        await asyncio.gather(*map(self._renew, self._issuers.values()))
        return {name: issuer.problem for name, issuer in self._issuers.items()}

    async def identify(self, token: str) -> Identity | Refusal:
        """Return whom `token` speaks for, or why it is not accepted."""
        came_at = self.monotonic_ms()
        try:
            claimed = _read_claimed(token, self._issuers)
            issuer = self._issuers[claimed.issuer]
            if not await self._ready(issuer):
                return refuse(Code.ISSUER_UNREACHABLE)
            key = await self._key(issuer, claimed, came_at)
            claims = _verify(token, key, claimed, self.audience)
        except jwt.ExpiredSignatureError:
            message = "This token has expired. Ask its issuer for a new one."
            return Refusal(Code.VAULT_KEY_EXPIRED, message)
        except TokenError as error:
            message = f"This token is not accepted: {error}. Nothing was done."
            return Refusal(Code.VAULT_KEY_UNKNOWN, message)
        return Identity(issuer.name, claims)

    async def _ready(self, issuer: _Issuer) -> bool:
        """Say whether there are keys that still serve; those that are old are fetched meanwhile."""
        old = self.monotonic_ms() - issuer.fetched_at >= FRESH_MS
        apart_ms = SEARCH_MS if self._serves(issuer) else RETRY_MS
        if old and self._due(issuer, issuer.asked_at, apart_ms):
            fetching = self._renew(issuer)
            if not self._serves(issuer):
                await asyncio.shield(fetching)
        return self._serves(issuer)

    async def _key(self, issuer: _Issuer, claimed: Claimed, came_at: int) -> SigningKey:
        key = _choose_key(issuer.keys, claimed)
        old = issuer.fetched_at < came_at
        if key is None and old and self._due(issuer, issuer.searched_at, SEARCH_MS):
            # The issuer may have a new key: once in a while somebody may ask for it.
            if issuer.fetching is None:
                issuer.searched_at = self.monotonic_ms()
            await asyncio.shield(self._renew(issuer))
            key = _choose_key(issuer.keys, claimed)
        if key is None:
            raise TokenError("its issuer has no such key, or not for that algorithm")
        return key

    def _serves(self, issuer: _Issuer) -> bool:
        return self.monotonic_ms() - issuer.fetched_at < END_MS

    def _due(self, issuer: _Issuer, last: int, apart_ms: int) -> bool:
        """Say whether a fetch is under way, or `last` is long enough ago for another."""
        return issuer.fetching is not None or self.monotonic_ms() - last >= apart_ms

    def _renew(self, issuer: _Issuer) -> asyncio.Task[None]:
        """Fetch the keys anew, or join the fetch that is under way.

        Whoever waits shields it: a caller that goes away does not take the keys from the others.
        """
        if issuer.fetching is None:
            issuer.asked_at = self.monotonic_ms()
            issuer.fetching = asyncio.create_task(self._load(issuer))
            issuer.fetching.add_done_callback(lambda _: setattr(issuer, "fetching", None))
        return issuer.fetching

    async def _load(self, issuer: _Issuer) -> None:
        """Fetch the keys of `issuer`, or note why they cannot be had."""
        try:
            async with asyncio.timeout(FETCH_WITHIN_S):
                issuer.keys = await self._fetch_keys(issuer.name)
        except TimeoutError:
            issuer.problem = f"it did not answer within {FETCH_WITHIN_S} seconds"
        except FetchError as error:
            issuer.problem = str(error)
        except Exception as error:  # noqa: BLE001 whatever it holds, nobody is let in by it
            _log.exception("the keys of the issuer %s cannot be read", issuer.name)
            issuer.problem = f"what it answers cannot be read ({type(error).__name__})"
        else:
            issuer.problem, issuer.fetched_at = None, self.monotonic_ms()
            return
        _log.warning("the keys of the issuer %s cannot be had: %s", issuer.name, issuer.problem)

    async def _fetch_keys(self, issuer: str) -> tuple[SigningKey, ...]:
        address = (await self._metadata(issuer)).get("jwks_uri")
        if not isinstance(address, str) or not self.may_fetch(address):
            raise FetchError("its metadata names no address of keys that may be asked")
        document = _parse(await self.fetch(address))
        listed = document.get("keys") if isinstance(document, Mapping) else None
        if not isinstance(listed, list) or len(listed) > KEYS_MAX:
            reason = f"it is no list of at most {KEYS_MAX} keys"
            raise FetchError(f"what stands for its keys is none: {reason}")
        # Those that cannot verify signatures are left out.
        keys = tuple(key for each in listed if (key := _signing_key(each)) is not None)
        if not keys:
            raise FetchError("it has no key that could verify a signature")
        return keys

    async def _metadata(self, name: str) -> Mapping[str, Any]:
        problem, lie = FetchError("it has no metadata"), None
        for address in _addresses(name):
            try:
                document = _parse(await self.fetch(address))
            except FetchError as error:
                problem = error
                continue
            if isinstance(document, Mapping) and document.get("issuer") == name:
                return document
            # Above a path may stand the metadata of a neighbour; its own may stand further on.
            lie = FetchError(f"its metadata at {address} is of another issuer")
        raise lie or problem


def _addresses(issuer: str) -> Iterator[str]:
    """Yield where the metadata of `issuer` may stand, as MCP's clients look for it."""
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    yield f"{origin}{_OAUTH}{path}"
    yield f"{origin}{_OPENID}{path}"
    if path:
        yield f"{origin}{path}{_OPENID}"


def _parse(document: bytes) -> object:
    try:
        parsed: object = json.loads(document)
    except (ValueError, RecursionError):
        raise FetchError("what it answers is no JSON") from None
    return parsed


class TokenError(Exception):
    """A token that is not accepted; the message says why, without anything of the token."""


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


def _read_claimed(token: str, issuers: Container[str]) -> Claimed:
    """Read what `token` says of its issuer, one of `issuers`, and its key. Raises: TokenError."""
    try:
        read = jwt.decode_complete(token, options={"verify_signature": False})
    except Exception as error:  # whatever a token holds, it is no more than wrong
        raise TokenError("it cannot be read") from error
    header, issuer = read["header"], read["payload"].get("iss")
    key_id = header.get("kid")
    if not isinstance(issuer, str):
        raise TokenError("it names no issuer")
    if issuer not in issuers:
        raise TokenError("its issuer is not one of those that are accepted")
    if key_id is not None and not (isinstance(key_id, str) and len(key_id) <= _NAME_MAX):
        raise TokenError("its key id is none")
    if "crit" in header or str(header.get("typ", "JWT")).lower() not in _TYPES:
        raise TokenError("it is of another kind")
    return Claimed(issuer, key_id, str(header.get("alg")))


def _choose_key(keys: Sequence[SigningKey], claimed: Claimed) -> SigningKey | None:
    """Return the key that `claimed` means: by its id, or without one the only one that fits."""
    fitting = [key for key in keys if claimed.algorithm in key.algorithms]
    if claimed.key_id is not None:
        return next((key for key in fitting if key.key_id == claimed.key_id), None)
    return fitting[0] if len(fitting) == 1 else None


def _verify(token: str, key: SigningKey, claimed: Claimed, audience: str) -> Mapping[str, Any]:
    """Verify signature, issuer, audience and times of `token`; return its claims.

    Raises: TokenError, and ExpiredSignatureError for a token whose time is over.
    """
    try:
        claims = _JWT.decode(
            token,
            key.public,
            algorithms=[claimed.algorithm],
            audience=audience,
            issuer=claimed.issuer,
            leeway=LEEWAY_S,
            options={"require": ["iss", "sub", "aud", "exp"]},
        )
    except jwt.ExpiredSignatureError:
        raise
    except Exception as error:  # a time that is no number, too
        why = _WRONG.get(type(error), "its signature or its claims do not hold")
        raise TokenError(why) from error
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
