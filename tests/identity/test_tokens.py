"""RFC 8725 as attacks: whatever is wrong with a token, it reaches no vault key."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.identity.conftest import MCP_META, RESOURCE, Provider, bearer, grant
from tests.in_process_proxy import InProcessProxy, Issued, error_of

Attack = Callable[[Provider], str]
MINE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
MY_JWK = jwt.algorithms.RSAAlgorithm.to_jwk(MINE.public_key())


def encoded(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def unsigned(provider: Provider, algorithm: str, signature: str = "") -> str:
    header = {"alg": algorithm, "typ": "JWT"}
    return f"{encoded(header)}.{encoded(provider.claims())}.{signature}"


def mine(provider: Provider, **header: Any) -> str:
    """Sign with a key of the attacker's own, under the id of the provider's."""
    published = provider.http.get("/jwks").json()["keys"][0]
    named = {"kid": published["kid"], **header}
    return jwt.encode(provider.claims(), MINE, algorithm="RS256", headers=named)


def keyed_with_the_public_key(provider: Provider) -> str:
    """Sign by HMAC, with the provider's public key as the secret (RFC 8725, 2.1)."""
    published = provider.http.get("/jwks").json()["keys"][0]
    secret = json.dumps(published).encode()
    header = encoded({"alg": "HS256", "typ": "JWT", "kid": published["kid"]})
    body = f"{header}.{encoded(provider.claims())}"
    return f"{body}.{encoded(hmac.digest(secret, body.encode(), 'sha256'))}"


def tampered(provider: Provider) -> str:
    header, _, signature = provider.sign().split(".")
    return f"{header}.{encoded(provider.claims(sub='agent-8'))}.{signature}"


def without_end(provider: Provider) -> str:
    claims = json.dumps(provider.claims(exp=7)).replace('"exp": 7', '"exp": 1e999')
    return str(provider.do("sign", claims=claims)["token"])


ATTACKS: dict[str, Attack] = {
    "alg none": lambda p: unsigned(p, "none"),
    "alg None": lambda p: unsigned(p, "None"),
    "no alg": lambda p: unsigned(p, ""),
    "a signature of none": lambda p: unsigned(p, "RS256"),
    "a signature of zeros": lambda p: unsigned(p, "RS256", encoded(bytes(256))),
    "key confusion": keyed_with_the_public_key,
    "another's key under the same id": mine,
    "a key brought along": lambda p: mine(p, jwk=json.loads(MY_JWK)),
    "an address of keys brought along": lambda p: mine(p, jku=f"{p.url}/jwks", x5u=p.url),
    "a certificate brought along": lambda p: mine(p, x5c=["MIIB"]),
    "kid as a path": lambda p: mine(p, kid="../../../../dev/null"),
    "kid as SQL": lambda p: mine(p, kid="x' UNION SELECT 'secret' --"),
    "kid as a number": lambda p: f"{encoded({'alg': 'RS256', 'kid': 7})}.{encoded(p.claims())}.AA",
    "a kid of a megabyte": lambda p: mine(p, kid="k" * 10_000),
    "a critical extension": lambda p: p.sign({"crit": ["exp"], "exp": 7}),
    "an unencoded payload": lambda p: p.sign({"crit": ["b64"], "b64": False}),
    "another kind of token": lambda p: p.sign({"typ": "logout+jwt"}),
    "claims that were changed": tampered,
    "another audience": lambda p: p.sign(aud="https://other.example/mcp"),
    "an audience below": lambda p: p.sign(aud=f"{RESOURCE}/"),
    "no audience": lambda p: p.sign(aud=None),
    "another issuer": lambda p: p.sign(iss="https://evil.example"),
    "an issuer with a slash": lambda p: p.sign(iss=f"{p.url}/"),
    "no issuer": lambda p: p.sign(iss=None),
    "two issuers": lambda p: p.sign(iss=[p.url]),
    "no subject": lambda p: p.sign(sub=None),
    "a subject that is a number": lambda p: p.sign(sub=7),
    "an empty subject": lambda p: p.sign(sub=""),
    "not valid yet": lambda p: p.sign(nbf=p.claims()["iat"] + 120),
    "issued in the future": lambda p: p.sign(iat=p.claims()["iat"] + 120),
    "no end": lambda p: p.sign(exp=None),
    "an end that is no number": lambda p: p.sign(exp="tomorrow"),
    "an end without end": without_end,
    "twice encoded": lambda p: p.do("sign", claims=p.sign(), header={"cty": "JWT"})["token"],
    "scopes that are a number": lambda p: p.sign(scope=0),
    "scopes that are an object": lambda p: p.sign(scp={"charge": True}),
    "scopes that are lists": lambda p: p.sign(scope=[["charge_status"]]),
    "claims that are a list": lambda p: p.do("sign", claims="[1]")["token"],
    "claims that are no JSON": lambda p: p.do("sign", claims="{")["token"],
    "deep claims": lambda p: p.do("sign", claims="[" * 5_000)["token"],
    "three dots": lambda p: p.sign() + ".x",
    "an encrypted token": lambda p: p.sign() + ".x.y",
    "no signature part": lambda p: p.sign().rpartition(".")[0],
    "a line end": lambda p: p.sign() + "%0a",
    "too large": lambda p: p.sign(padding="x" * 20_000),
    "a megabyte": lambda p: p.sign(padding="x" * 1_000_000),
    "an identity token of another client": lambda p: p.sign(aud="client-1", azp="client-1"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_of_rfc_8725_is_refused(
    provider: Provider, in_process: InProcessProxy, key: Issued, name: str
) -> None:
    grant(in_process, key, provider.url, "sub=*")
    token = ATTACKS[name](provider)

    refused = in_process.charge(bearer(token), period="2026-11")
    door = in_process.charge_over_mcp(bearer(token), MCP_META)

    assert (refused.status_code, error_of(refused)) == (401, "vault_key_unknown")
    assert door.status_code == 401
    for answer in (refused, door):
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert token not in refused.text + door.text
    assert in_process.charges() == []
    assert in_process.operations() == []


def test_an_expired_token_is_told_so(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    grant(in_process, key, provider.url, "sub=agent-7")
    now = provider.claims()["iat"]

    late = in_process.charge(bearer(provider.sign(exp=now - 61)), period="2026-11")
    tolerated = in_process.charge(bearer(provider.sign(exp=now - 30)), period="2026-11")

    assert (late.status_code, error_of(late)) == (401, "vault_key_expired")
    assert tolerated.status_code == 200


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS512", "PS256", "PS384", "ES256", "ES384", "ES512", "EdDSA"]
)
def test_every_algorithm_with_a_public_key_is_accepted(
    provider: Provider, in_process: InProcessProxy, key: Issued, algorithm: str
) -> None:
    provider.do("rotate", alg=algorithm)
    in_process.restart()  # the proxy has asked for the keys before
    grant(in_process, key, provider.url, "sub=agent-7")

    assert in_process.charge(bearer(provider.sign()), period="2026-11").status_code == 200


def test_a_token_of_several_resources_is_good_for_each(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    grant(in_process, key, provider.url, "sub=agent-7")
    token = provider.sign(aud=["https://other.example", RESOURCE])

    assert in_process.charge(bearer(token), period="2026-11").status_code == 200
