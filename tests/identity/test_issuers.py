"""Where keys come from: fetched within bounds, kept, and never in the way of whoever is known."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from typing import Any

import pytest

from kb_mcp.proxy.access.issuers import (
    DOCUMENT_BYTES_MAX,
    END_MS,
    FRESH_MS,
    RETRY_MS,
    SEARCH_MS,
    FetchError,
    Identity,
    Issuers,
)
from kb_mcp.proxy.errors.refusals import Code, Refusal
from kb_mcp.wiring.upstream import fetch_document
from tests.identity.conftest import RESOURCE, Provider, bearer, grant
from tests.in_process_proxy import InProcessProxy, Issued, error_of


class Asked:
    """An issuer whose keys are fetched from the real provider, by a clock that a test turns."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.now_ms = 1_000_000
        self.down = False
        self.asked: Counter[str] = Counter()
        self.issuers = Issuers(
            (provider.url,), RESOURCE, self.fetch, lambda _: True, lambda: self.now_ms
        )

    async def fetch(self, url: str) -> bytes:
        self.asked[url.removeprefix(self.provider.url)] += 1
        if self.down:
            raise FetchError("it is down")
        return await fetch_document(url)

    def who(self, *tokens: str) -> list[Identity | Refusal]:
        """Say whose `tokens` are, all asked at once."""

        async def all_at_once() -> list[Identity | Refusal]:
            found = await asyncio.gather(*map(self.issuers.identify, tokens))
            # Keys may be fetched meanwhile, for those who come later.
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
            return found

        return asyncio.run(all_at_once())

    def knows(self, token: str) -> bool:
        """Say whether `token` is accepted."""
        return isinstance(self.who(token)[0], Identity)

    def code(self, token: str) -> Code | None:
        """Return why `token` is not accepted."""
        (found,) = self.who(token)
        return found.code if isinstance(found, Refusal) else None


@pytest.fixture
def asked(provider: Provider) -> Asked:
    return Asked(provider)


def test_a_thousand_tokens_are_one_fetch(provider: Provider, asked: Asked) -> None:
    token = provider.sign()

    found = asked.who(*[token] * 1_000)

    assert all(isinstance(each, Identity) for each in found)
    assert asked.asked["/jwks"] == 1


def test_a_thousand_unknown_key_ids_are_one_fetch(provider: Provider, asked: Asked) -> None:
    assert asked.knows(provider.sign())
    strangers = [provider.sign({"kid": f"k{number}"}) for number in range(3)]
    asked.now_ms += SEARCH_MS

    for _ in range(3):
        found = asked.who(*strangers * 333)
        assert {each.code for each in found if isinstance(each, Refusal)} == {
            Code.VAULT_KEY_UNKNOWN
        }

    assert asked.asked["/jwks"] == 2
    assert asked.knows(provider.sign())


def test_a_key_that_the_provider_rotated_in_is_found_at_once(
    provider: Provider, asked: Asked
) -> None:
    old = provider.sign()
    assert asked.knows(old)
    asked.now_ms += 1

    provider.do("rotate", keep=True)
    new = provider.sign()

    assert asked.knows(new)
    assert asked.knows(old)


def test_after_strangers_asked_for_keys_a_new_one_is_found_a_little_later(
    provider: Provider, asked: Asked
) -> None:
    assert asked.knows(provider.sign())
    asked.now_ms += 1
    assert asked.code(provider.sign({"kid": "stranger"})) is Code.VAULT_KEY_UNKNOWN

    provider.do("rotate")
    new = provider.sign()

    assert asked.code(new) is Code.VAULT_KEY_UNKNOWN
    asked.now_ms += SEARCH_MS
    assert asked.knows(new)


def test_keys_that_came_after_a_token_are_not_fetched_again_for_it(
    provider: Provider, asked: Asked
) -> None:
    assert asked.code(provider.sign({"kid": "stranger"})) is Code.VAULT_KEY_UNKNOWN

    assert asked.asked["/jwks"] == 1


def test_a_key_that_the_provider_rotated_out_ends_with_the_next_fetch(
    provider: Provider, asked: Asked
) -> None:
    old = provider.sign()
    assert asked.knows(old)

    provider.do("rotate")
    asked.now_ms += SEARCH_MS
    assert asked.knows(provider.sign())

    assert asked.code(old) is Code.VAULT_KEY_UNKNOWN


def test_old_keys_are_fetched_again(provider: Provider, asked: Asked) -> None:
    token = provider.sign()
    for _ in range(3):
        assert asked.knows(token)
        asked.now_ms += FRESH_MS

    assert asked.asked["/jwks"] >= 2


def test_while_a_provider_is_away_its_last_keys_serve_to_their_end(
    provider: Provider, asked: Asked
) -> None:
    token = provider.sign()
    assert asked.knows(token)
    asked.down = True

    asked.now_ms += END_MS - 1
    assert asked.knows(token)
    asked.now_ms += 1
    assert asked.code(token) is Code.ISSUER_UNREACHABLE

    asked.down = False
    asked.now_ms += RETRY_MS
    assert asked.knows(token)


def test_a_provider_that_is_away_is_not_asked_by_every_request(
    provider: Provider, asked: Asked
) -> None:
    asked.down = True
    token = provider.sign()

    for _ in range(5):
        assert asked.code(token) is Code.ISSUER_UNREACHABLE

    assert asked.asked["/.well-known/oauth-authorization-server"] == 1


@pytest.mark.parametrize(
    "lie",
    [
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": ["x"]},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "no address"},
        {"jwks_bytes": DOCUMENT_BYTES_MAX},
        {"jwks_bytes": 10_000_000},
        {"status": 500},
        {"status": 302},
    ],
    ids=str,
)
def test_a_provider_that_lies_or_floods_lets_nobody_in(
    provider: Provider, asked: Asked, lie: dict[str, Any]
) -> None:
    token = provider.sign()
    provider.do("lie", **lie)

    assert asked.code(token) is Code.ISSUER_UNREACHABLE


def test_keys_are_asked_for_only_where_they_may_be(provider: Provider) -> None:
    asked = Asked(provider)
    asked.issuers = Issuers(
        (provider.url,), RESOURCE, asked.fetch, lambda url: "jwks" not in url, lambda: 1
    )

    assert asked.code(provider.sign()) is Code.ISSUER_UNREACHABLE


@pytest.mark.parametrize(
    "document",
    [
        b"[]",
        b"null",
        b"no json",
        b"[" * 50_000,
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [null, 7, {}]}',
        json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}).encode(),
        json.dumps({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "enc"}]}).encode(),
        json.dumps({"keys": [{"kty": "RSA", "n": "A" * 2_000, "e": "AQAB"}]}).encode(),
        json.dumps({"keys": [{"kty": "EC", "crv": "secp256k1", "x": "A", "y": "A"}]}).encode(),
        json.dumps({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}] * 101}).encode(),
    ],
    ids=[str(number) for number in range(12)],
)
def test_what_is_no_list_of_keys_lets_nobody_in(provider: Provider, document: bytes) -> None:
    async def fetch(url: str) -> bytes:
        return document if url.endswith("/jwks") else await fetch_document(url)

    issuers = Issuers((provider.url,), RESOURCE, fetch, lambda _: True, lambda: 1)

    found = asyncio.run(issuers.identify(provider.sign()))

    assert isinstance(found, Refusal)
    assert found.code is Code.ISSUER_UNREACHABLE


def test_of_two_issuers_neither_can_sign_for_the_other(provider: Provider) -> None:
    other = Provider()
    try:
        names = (provider.url, other.url)
        issuers = Issuers(names, RESOURCE, fetch_document, lambda _: True, lambda: 1)
        kid = provider.http.get("/jwks").json()["keys"][0]["kid"]

        async def who(*tokens: str) -> list[Identity | Refusal]:
            return [await issuers.identify(token) for token in tokens]

        forged = other.sign({"kid": kid}, iss=provider.url)
        found = asyncio.run(who(forged, other.sign(), provider.sign()))
    finally:
        other.stop()

    assert isinstance(found[0], Refusal)
    assert found[0].code is Code.VAULT_KEY_UNKNOWN
    subjects = [each.subject for each in found[1:] if isinstance(each, Identity)]
    assert subjects == [f"{other.url} agent-7", f"{provider.url} agent-7"]


@pytest.mark.parametrize(
    "odd",
    [
        {"kty": "RSA", "key_ops": None, "use": ["sig"], "alg": 7},
        {"kty": ["RSA"], "n": {}, "e": None},
        {"kty": "EC", "crv": ["P-256"], "key_ops": "verify"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": ["a"]},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        7,
    ],
    ids=str,
)
def test_a_key_that_is_none_does_not_hide_the_others(provider: Provider, odd: object) -> None:
    async def fetch(url: str) -> bytes:
        document = await fetch_document(url)
        if not url.endswith("/jwks"):
            return document
        # A good key may say null of what it could leave out.
        (good,) = json.loads(document)["keys"]
        return json.dumps({"keys": [odd, {**good, "use": None, "key_ops": None}]}).encode()

    issuers = Issuers((provider.url,), RESOURCE, fetch, lambda _: True, lambda: 1)

    assert isinstance(asyncio.run(issuers.identify(provider.sign())), Identity)


def test_a_proxy_starts_without_its_provider_and_says_so(
    in_process: InProcessProxy,
    provider: Provider,
    key: Issued,
    caplog: pytest.LogCaptureFixture,
) -> None:
    grant(in_process, key, provider.url, "sub=agent-7")
    token = provider.sign()
    provider.stop()
    try:
        in_process.restart()
        with caplog.at_level(logging.WARNING):
            in_process.run(in_process.proxy.start())
        refused = in_process.charge(bearer(token), period="2026-11")
        door = in_process.charge_over_mcp(bearer(token), {})
        by_key = in_process.charge(key, period="2026-11")
    finally:
        provider.start()

    assert provider.url in caplog.text
    assert (refused.status_code, error_of(refused)) == (503, "issuer_unreachable")
    assert door.status_code == 503
    assert by_key.status_code == 200
