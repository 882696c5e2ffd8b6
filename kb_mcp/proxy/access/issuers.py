"""Issuers: the identity providers whose tokens are accepted, and their keys.

Floor: wing B, in the room of access. Keys are found by the issuer's own metadata and kept. They
are fetched again when they are old, and for a key id that is not among them at most once in
SEARCH_MS: a thousand unknown ids a second are one fetch. What cannot be fetched serves until its
end, then nobody is let in.
Source: RFC 8414 (3.3: the metadata's issuer must be the one that was asked), OpenID Connect
Discovery 1.0, RFC 7517.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from kb_mcp.proxy.access.jwts import (
    SCOPE_CLAIMS,
    Claimed,
    SigningKey,
    TokenError,
    TokenExpiredError,
    choose_key,
    read_claimed,
    read_keys,
    verify,
)
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse

FRESH_MS: Final = 5 * 60_000
END_MS: Final = 60 * 60_000
RETRY_MS: Final = 1_000
SEARCH_MS: Final = 5_000
FETCH_WITHIN_S: Final = 5
DOCUMENT_BYTES_MAX: Final = 256 * 1024
_OAUTH: Final = "/.well-known/oauth-authorization-server"
_OPENID: Final = "/.well-known/openid-configuration"
_log = logging.getLogger(__name__)

Fetch = Callable[[str], Awaitable[bytes]]
"""Gets the document at a URL, at most DOCUMENT_BYTES_MAX of it. Raises: FetchError."""


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
    """One issuer: its keys, and when (ms) they came, were asked for, and a key id was sought."""

    name: str
    keys: tuple[SigningKey, ...] = ()
    fetched_at: int | None = None
    asked_at: int | None = None
    searched_at: int | None = None
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

    async def greet(self) -> None:
        """Fetch every issuer's keys, so that one that cannot be reached is told of at start."""
        await asyncio.gather(*map(self._renew, self._issuers.values()))

    async def examine(self) -> dict[str, str | None]:
        """Fetch every issuer's keys anew; return why they cannot be had, None where they can."""
        found = await asyncio.gather(*map(self._keys_or_problem, self._issuers))
        return {
            name: keys if isinstance(keys, str) else None
            for name, keys in zip(self._issuers, found, strict=True)
        }

    async def identify(self, token: str) -> Identity | Refusal:
        """Return whom `token` speaks for, or why it is not accepted."""
        came_at = self.monotonic_ms()
        try:
            claimed = read_claimed(token)
            issuer = self._known(claimed)
            if not await self._ready(issuer):
                return refuse(Code.ISSUER_UNREACHABLE)
            claims = verify(
                token,
                await self._key(issuer, claimed, came_at),
                algorithm=claimed.algorithm,
                issuer=issuer.name,
                audience=self.audience,
            )
        except TokenExpiredError:
            message = "This token has expired. Ask its issuer for a new one."
            return Refusal(Code.VAULT_KEY_EXPIRED, message)
        except TokenError as error:
            message = f"This token is not accepted: {error}. Nothing was done."
            return Refusal(Code.VAULT_KEY_UNKNOWN, message)
        return Identity(issuer.name, claims)

    def _known(self, claimed: Claimed) -> _Issuer:
        issuer = self._issuers.get(claimed.issuer)
        if issuer is None:
            raise TokenError("its issuer is not one of those that are accepted")
        return issuer

    async def _ready(self, issuer: _Issuer) -> bool:
        """Say whether there are keys that still serve; those that are old are fetched meanwhile."""
        age = self._age(issuer.fetched_at)
        apart_ms = SEARCH_MS if self._serves(issuer) else RETRY_MS
        if (age is None or age >= FRESH_MS) and self._due(issuer, issuer.asked_at, apart_ms):
            fetching = self._renew(issuer)
            if not self._serves(issuer):
                await asyncio.shield(fetching)
        return self._serves(issuer)

    async def _key(self, issuer: _Issuer, claimed: Claimed, came_at: int) -> SigningKey:
        key = choose_key(issuer.keys, claimed)
        old = issuer.fetched_at is None or issuer.fetched_at < came_at
        if key is None and old and self._due(issuer, issuer.searched_at, SEARCH_MS):
            # The issuer may have a new key: once in a while somebody may ask for it.
            if issuer.fetching is None:
                issuer.searched_at = self.monotonic_ms()
            await asyncio.shield(self._renew(issuer))
            key = choose_key(issuer.keys, claimed)
        if key is None:
            raise TokenError("its issuer has no such key, or not for that algorithm")
        return key

    def _serves(self, issuer: _Issuer) -> bool:
        age = self._age(issuer.fetched_at)
        return age is not None and age < END_MS

    def _due(self, issuer: _Issuer, last: int | None, apart_ms: int) -> bool:
        """Say whether a fetch is under way, or `last` is long enough ago for another."""
        age = self._age(last)
        return issuer.fetching is not None or age is None or age >= apart_ms

    def _age(self, then: int | None) -> int | None:
        return None if then is None else self.monotonic_ms() - then

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
        found = await self._keys_or_problem(issuer.name)
        if isinstance(found, str):
            _log.warning("the keys of the issuer %s cannot be had: %s", issuer.name, found)
        else:
            issuer.keys, issuer.fetched_at = found, self.monotonic_ms()

    async def _keys_or_problem(self, name: str) -> tuple[SigningKey, ...] | str:
        """Fetch the keys of the issuer `name`, or say why they cannot be had."""
        try:
            async with asyncio.timeout(FETCH_WITHIN_S):
                return await self._fetch_keys(name)
        except TimeoutError:
            return f"it did not answer within {FETCH_WITHIN_S} seconds"
        except FetchError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 whatever it holds, nobody is let in by it
            _log.exception("the keys of the issuer %s cannot be read", name)
            return f"what it answers cannot be read ({type(error).__name__})"

    async def _fetch_keys(self, issuer: str) -> tuple[SigningKey, ...]:
        address = (await self._metadata(issuer)).get("jwks_uri")
        if not isinstance(address, str) or not self.may_fetch(address):
            raise FetchError("its metadata names no address of keys that may be asked")
        document = _parse(await self.fetch(address))
        try:
            keys = read_keys(document)
        except ValueError as error:
            raise FetchError(f"what stands for its keys is none: {error}") from error
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
