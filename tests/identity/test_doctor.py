"""`kb-mcp doctor` says of issuers and grants what lets nobody in, and what to do about it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cli.conftest import machine
from tests.cli.machine import Machine
from tests.identity.conftest import RESOURCE, Provider

__all__ = ["machine"]


def checks(machine: Machine, name: str, issuers: str, code: int = 0) -> list[dict[str, Any]]:
    """Return the checks of `name` on a machine that accepts tokens of `issuers`."""
    settings = {"KEYBRAKE_OAUTH_ISSUERS": issuers, "KEYBRAKE_OAUTH_AUDIENCE": RESOURCE}
    answer = machine.json("doctor", code=code, **settings)
    assert answer["ok"] is (code == 0)
    return [each for each in answer["checks"] if each["name"] == name]


def granted(machine: Machine, issuer: str, *options: str) -> tuple[str, str]:
    """Issue a key, let an identity stand for it, and return the ids of grant and key."""
    issued = machine.json("keys", "issue", "--role", "audit", *options)
    given = ("--issuer", issuer, "--match", f"sub={issued['id']}", "--key", issued["id"])
    return machine.json("grants", "add", *given)["id"], issued["id"]


def test_an_issuer_whose_keys_can_be_had_is_good(machine: Machine, provider: Provider) -> None:
    (check,) = checks(machine, "issuer", provider.url)
    (audience,) = checks(machine, "audience", provider.url)

    assert check["ok"] is True
    assert audience["detail"] == f"tokens must be meant for {RESOURCE}"
    assert provider.url in check["detail"]
    assert "issuer" not in {each["name"] for each in machine.json("doctor")["checks"]}


def test_a_public_address_that_the_listener_does_not_answer_to_is_noted(
    machine: Machine, provider: Provider
) -> None:
    def noted(hosts: str) -> str:
        found = machine.json(
            "doctor",
            KEYBRAKE_OAUTH_ISSUERS=provider.url,
            KEYBRAKE_PUBLIC_URL="https://billing.example",
            KEYBRAKE_ALLOWED_HOSTS=hosts,
        )["checks"]
        return next(str(each["detail"]) for each in found if each["name"] == "audience")

    assert "https://billing.example/mcp" in noted("agents.example")
    assert "421 until KEYBRAKE_ALLOWED_HOSTS" in noted("agents.example")
    assert "421" not in noted("billing.example")


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ({"status": 500}, "status 500"),
        ({"issuer": "https://evil.example"}, "of another issuer"),
        ({"jwks_uri": "ftp://elsewhere.example"}, "no address of keys"),
        ({"jwks_uri": "http://127.0.0.1:9/jwks"}, "ConnectError"),
        ({"jwks_bytes": 10_000_000}, "more than"),
    ],
    ids=["down", "another's", "no address", "no keys", "too large"],
)
def test_an_issuer_whose_keys_cannot_be_had_is_told_with_the_reason(
    machine: Machine, provider: Provider, lie: dict[str, Any], told: str
) -> None:
    provider.do("lie", **lie)
    away = "http://127.0.0.1:9"

    one, other = checks(machine, "issuer", f"{provider.url} {away}", code=1)

    assert (one["ok"], other["ok"]) == (False, False)
    assert provider.url in one["detail"]
    assert told in one["detail"]
    assert away in other["detail"]
    assert "503" in one["detail"]


def test_an_issuer_whose_keys_nobody_should_use_is_told(
    machine: Machine, provider: Provider
) -> None:
    provider.do("rotate", alg="RS256", bits=1024)

    (check,) = checks(machine, "issuer", provider.url, code=1)

    assert "no key that could verify" in check["detail"]


def test_grants_that_stand_are_counted(machine: Machine, provider: Provider) -> None:
    (none,) = checks(machine, "grants", provider.url)
    granted(machine, provider.url)
    (one,) = checks(machine, "grants", provider.url)

    assert "kb-mcp grants add" in none["detail"]
    assert one["detail"] == "1 stand"


def test_a_grant_of_a_revoked_or_expired_key_is_told_and_one_of_a_rotated_key_is_not(
    machine: Machine, provider: Provider
) -> None:
    revoked, dead = granted(machine, provider.url)
    rotated, old = granted(machine, provider.url)
    removed, gone = granted(machine, provider.url)
    machine.json("keys", "revoke", dead)
    machine.json("keys", "rotate", old, "--overlap", "0h")
    machine.json("keys", "revoke", gone)
    machine.json("grants", "remove", removed)

    (check,) = checks(machine, "grants", provider.url, code=1)

    assert f"`kb-mcp grants remove {revoked}`" in check["detail"]
    assert dead in check["detail"]
    assert not {rotated, removed} & set(check["detail"].split())


def test_a_grant_of_an_issuer_that_the_settings_do_not_name_is_told(
    machine: Machine, provider: Provider
) -> None:
    grant, _ = granted(machine, "https://old.example")

    (check,) = checks(machine, "grants", provider.url, code=1)
    (unset,) = [
        each for each in machine.json("doctor", code=1)["checks"] if each["name"] == "grants"
    ]

    for told in (check["detail"], unset["detail"]):
        assert grant in told
        assert "https://old.example" in told
        assert "KEYBRAKE_OAUTH_ISSUERS" in told
