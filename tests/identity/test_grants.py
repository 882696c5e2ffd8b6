"""An identity stands for one vault key: its policy, its caps, its end."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from kb_mcp.operators.actions.grants import NotGrantedError, remove_grant
from kb_mcp.operators.actions.keys import revoke_key, rotate_key
from kb_mcp.operators.reports.views import NoSuchKeyError
from kb_mcp.proxy.access.grants import MatchError, read_matches
from kb_mcp.serving.machine import random_bytes
from tests.identity.conftest import MCP_META, Provider, bearer, grant
from tests.in_process_proxy import InProcessProxy, Issued, error_of

AGENT = "sub=agent-7"


either_store = pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the settings of the store that a test names; SQLite where it names none."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return {}
    return dict(request.getfixturevalue("database").environ)


def remove(in_process: InProcessProxy, grant_id: str) -> None:
    store = in_process.proxy.store
    in_process.run(remove_grant(store.ledger, store.records, grant_id, "test", 0))


@either_store
def test_the_same_bill_by_token_and_by_key_is_one_charge(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    grant(in_process, key, provider.url, AGENT)
    token = bearer(provider.sign())

    first = in_process.charge(token, period="2026-11")
    again = in_process.charge(key, period="2026-11")
    tool = in_process.charge_over_mcp(token, MCP_META)

    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert tool.json()["result"]["structuredContent"]["already_charged"] is True
    assert len(in_process.charges()) == 1


@either_store
def test_a_cap_holds_over_token_and_key_together(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    grant(in_process, key, provider.url, AGENT)
    in_process.begin_day()
    token = bearer(provider.sign())

    spent = in_process.charge(key, amount=6_000, period="2026-10")
    over = in_process.charge(token, amount=6_000, period="2026-11")
    within = in_process.charge(token, amount=4_000, period="2026-11")

    assert (spent.status_code, within.status_code) == (200, 200)
    assert error_of(over) == "spend_cap_exceeded"


@either_store
def test_an_identity_without_a_grant_gets_nothing(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    grant(in_process, key, provider.url, "sub=agent-8")
    token = bearer(provider.sign())

    refused = in_process.charge(token, period="2026-11")
    door = in_process.charge_over_mcp(token, MCP_META)

    assert (refused.status_code, error_of(refused)) == (403, "identity_not_granted")
    assert (door.status_code, door.json()["code"]) == (403, "identity_not_granted")
    assert in_process.charges() == []


@pytest.mark.parametrize(
    ("matches", "claims", "granted"),
    [
        (["sub=agent-*"], {}, True),
        (["sub=*"], {}, True),
        (["sub=agent-7", "client_id=app"], {"client_id": "app"}, True),
        (["sub=agent-7", "client_id=app"], {}, False),
        (["sub=agent-7", "client_id=app"], {"client_id": "App"}, False),
        (["groups=billing"], {"groups": ["people", "billing"]}, True),
        (["groups=bill*"], {"groups": ["people", "billing"]}, True),
        (["groups=billing"], {"groups": ["people", ["billing"]]}, False),
        (["groups=billing"], {"groups": "billing"}, True),
        (["groups=billing"], {"groups": {"billing": True}}, False),
        (["level=3"], {"level": 3}, True),
        (["level=3"], {"level": 3.0}, False),
        (["verified=true"], {"verified": True}, True),
        (["verified=True"], {"verified": True}, False),
        (["verified=1"], {"verified": True}, False),
        (["org=None"], {"org": None}, False),
        (["https://x.example/role=a=b"], {"https://x.example/role": "a=b"}, True),
    ],
    ids=str,
)
def test_every_claim_must_match_by_value_or_prefix(
    provider: Provider,
    in_process: InProcessProxy,
    key: Issued,
    matches: list[str],
    claims: dict[str, Any],
    granted: bool,
) -> None:
    grant(in_process, key, provider.url, *matches)

    answer = in_process.charge(bearer(provider.sign(**claims)), period="2026-11")

    assert answer.status_code == (200 if granted else 403), answer.text


@either_store
def test_an_identity_that_several_grants_match_gets_nothing_and_hears_of_none(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    one = grant(in_process, key, provider.url, AGENT)
    other = grant(in_process, key, provider.url, "groups=billing")

    refused = in_process.charge(bearer(provider.sign(groups=["billing"])), period="2026-11")

    assert (refused.status_code, error_of(refused)) == (403, "identity_ambiguous")
    assert not {one.id, other.id, key.id} & set(refused.text.split('"'))
    assert in_process.charge(bearer(provider.sign()), period="2026-11").status_code == 200


@pytest.mark.parametrize(
    ("first", "second", "overlaps"),
    [
        (["sub=a"], ["sub=a"], True),
        (["sub=a-*"], ["sub=a-7"], True),
        (["sub=a-7"], ["sub=a-*"], True),
        (["sub=a*"], ["sub=a-*"], True),
        (["sub=*"], ["sub=a"], True),
        (["sub=a", "org=x"], ["org=x", "sub=a"], True),
        (["sub=a"], ["sub=b"], False),
        (["sub=a-*"], ["sub=b-*"], False),
        (["sub=a", "org=x"], ["sub=a", "org=y"], False),
        (["sub=a"], ["org=x"], False),
    ],
    ids=str,
)
def test_a_grant_that_overlaps_another_on_the_same_claims_is_refused(
    provider: Provider,
    in_process: InProcessProxy,
    key: Issued,
    first: list[str],
    second: list[str],
    overlaps: bool,
) -> None:
    made = grant(in_process, key, provider.url, *first)
    grant(in_process, key, "https://other.example", *first)

    if not overlaps:
        grant(in_process, key, provider.url, *second)
        return
    with pytest.raises(NotGrantedError, match=made.id):
        grant(in_process, key, provider.url, *second)
    remove(in_process, made.id)
    grant(in_process, key, provider.url, *second)


@pytest.mark.parametrize(
    "matches", [[], ["sub"], ["=a"], ["sub="], ["sub=a", "sub=b"], ["iss=x"], ["sub=a\x1b"]]
)
def test_a_match_that_cannot_be_meant_is_refused(matches: list[str]) -> None:
    with pytest.raises(MatchError):
        read_matches(matches)


def test_a_grant_needs_a_key_that_lives(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    store = in_process.proxy.store
    in_process.run(revoke_key(store.ledger, store.records, key.id, None, "test", 0))  # type: ignore[arg-type]  # an id

    with pytest.raises(NotGrantedError, match="revoked"):
        grant(in_process, key, provider.url, AGENT)
    with pytest.raises(NoSuchKeyError):
        grant(in_process, Issued("nosuchkeyaaa", ""), provider.url, AGENT)


def test_a_revoked_key_ends_what_its_identities_may_do(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    grant(in_process, key, provider.url, AGENT)
    store = in_process.proxy.store
    in_process.run(revoke_key(store.ledger, store.records, key.id, None, "test", 0))  # type: ignore[arg-type]  # an id

    refused = in_process.charge(bearer(provider.sign()), period="2026-11")

    assert (refused.status_code, error_of(refused)) == (401, "vault_key_revoked")


@either_store
def test_a_grant_goes_on_with_the_successor_of_a_rotated_key(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    grant(in_process, key, provider.url, AGENT)
    ledger = in_process.proxy.store.ledger
    successor, _ = in_process.run(rotate_key(ledger, key.id, 0, random_bytes, "test"))  # type: ignore[arg-type]  # an id

    charged = in_process.charge(bearer(provider.sign()), period="2026-11")

    assert charged.status_code == 200
    assert in_process.operations()[0].key_id == successor.id


@either_store
def test_a_removed_grant_ends_at_once(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    made = grant(in_process, key, provider.url, AGENT)
    token = bearer(provider.sign())
    assert in_process.charge(token, period="2026-10").status_code == 200

    remove(in_process, made.id)

    refused = in_process.charge(token, period="2026-11")
    assert (refused.status_code, error_of(refused)) == (403, "identity_not_granted")
    assert in_process.charge(key, period="2026-11").status_code == 200
    rows = [row["decision"] for row in in_process.audit() if row["kind"] == "admin"]
    assert rows == ["issue", "grant_add", "grant_remove"]


@either_store
def test_no_reservation_is_made_after_a_grant_was_removed_while_its_agent_charges(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    made = grant(in_process, key, provider.url, AGENT)
    token = bearer(provider.sign())
    answers: list[tuple[int, int]] = []
    begun = threading.Barrier(5, timeout=60)

    def charge_on(number: int) -> None:
        begun.wait()
        for turn in range(30):
            customer = f"cus_A{number}x{turn}"
            answers.append((in_process.charge(token, customer=customer, amount=1).status_code, 0))

    threads = [threading.Thread(target=charge_on, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    remove(in_process, made.id)
    for thread in threads:
        thread.join()

    rows = in_process.audit()
    removed = next(at for at, row in enumerate(rows) if row["decision"] == "grant_remove")
    after = [row for row in rows[removed:] if row["decision"] == "proceed"]
    assert after == []
    assert answers[-1][0] == 403


@either_store
def test_of_two_grants_for_one_identity_that_are_added_at_once_one_stands(
    provider: Provider, in_process: InProcessProxy, key: Issued
) -> None:
    other = in_process.issue("billing", daily={"usd": 10_000})
    told: list[bool] = []
    begun = threading.Barrier(2, timeout=60)

    def add(to: Issued) -> None:
        begun.wait()
        try:
            grant(in_process, to, provider.url, AGENT)
        except NotGrantedError:
            told.append(False)
        else:
            told.append(True)

    threads = [threading.Thread(target=add, args=(each,)) for each in (key, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(told) == [False, True]
    assert in_process.charge(bearer(provider.sign()), period="2026-11").status_code == 200
