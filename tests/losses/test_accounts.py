"""One store, one Stripe account: also where a restricted key cannot read which account it is of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kb_mcp.proxy.stores.binding import BindingError
from kb_mcp.sandbox.app import Sandbox
from kb_mcp.serving.machine import host_ms, random_name
from tests.losses.elsewhere import in_test_mode
from tests.losses.host import Host
from tests.sandbox.driver import start_in_thread

UNREADABLE = [{"match": "GET /v1/account", "kind": "403", "times": 1_000_000}]


@pytest.fixture
def restricted(host: Host) -> Iterator[Host]:
    """A host whose key may not read its account."""
    with in_test_mode(host) as built:
        built.steer("faults", UNREADABLE)
        yield built


@pytest.fixture
def other(restricted: Host, tmp_path: Path) -> Iterator[Host]:
    """The same store, with a key of another account, which it cannot read either."""
    file = tmp_path / "another-account.sandbox"
    sandbox = Sandbox(file, clock=host_ms, new_id=random_name)
    with start_in_thread(sandbox) as url:
        another = {"KEYBRAKE_STRIPE_KEY": "rk_test_Other", "KEYBRAKE_STRIPE_API_BASE": url}
        import httpx

        httpx.post(f"{url}/_sandbox/faults", json=UNREADABLE, trust_env=False)
        yield replace(restricted, extra=another)
    sandbox.close()


def with_key(host: Host, key: str) -> Host:
    return replace(host, extra=host.extra | {"KEYBRAKE_STRIPE_KEY": key})


def test_a_key_of_another_account_is_refused_and_charges_nothing(
    restricted: Host, other: Host
) -> None:
    token = restricted.token()
    assert restricted.charge(token, "2026-11").status_code == 200
    with pytest.raises(BindingError, match="another Stripe account"):
        other.charge(token, "2026-12")
    told = other.run("settings", "confirm-account", code=2).stderr
    assert "another Stripe account" in told
    assert restricted.charge(token, "2026-12").status_code == 200
    assert len(restricted.succeeded()) == 2


def test_another_key_of_the_same_account_is_taken_once_it_reads_what_the_store_made(
    restricted: Host,
) -> None:
    token = restricted.token()
    first = restricted.charge(token, "2026-11").json()["id"]
    rolled = with_key(restricted, "rk_test_Rolled")
    assert rolled.charge(token, "2026-11").json()["id"] == first
    taken = [row for row in rolled.json("audit", "list") if row["decision"] == "upstream_key_taken"]
    assert len(taken) == 2
    assert "Rolled" not in str(taken)
    # Both go on, as while a key is rolled over several hosts.
    assert restricted.charge(token, "2026-12").status_code == 200


def test_where_nothing_can_be_read_an_operator_confirms_the_account(restricted: Host) -> None:
    token = restricted.token()
    restricted.charge(token, "2026-11", amount=-1)
    rolled = with_key(restricted, "rk_test_Rolled")
    with pytest.raises(BindingError, match="confirm-account"):
        rolled.charge(token, "2026-11")
    assert rolled.succeeded() == []
    rolled.run("settings", "confirm-account")
    assert rolled.charge(token, "2026-11").status_code == 200
    assert "confirm_account" in {row["decision"] for row in rolled.json("audit", "list")}


def test_an_object_that_may_not_be_read_proves_nothing_by_itself(restricted: Host) -> None:
    token = restricted.token()
    restricted.charge(token, "2026-11")
    faults = [*UNREADABLE, {"match": "GET /v1/charges/*", "kind": "403", "times": 1_000_000}]
    restricted.steer("faults", faults)
    rolled = with_key(restricted, "rk_test_Rolled")
    with pytest.raises(BindingError, match="confirm-account"):
        rolled.charge(token, "2026-12")
    rolled.run("settings", "confirm-account")
    assert rolled.charge(token, "2026-12").status_code == 200


def test_a_key_that_reads_its_account_later_is_held_to_what_the_store_made(
    restricted: Host, other: Host
) -> None:
    import httpx

    token = restricted.token()
    restricted.charge(token, "2026-11")
    httpx.post(f"{other.extra['KEYBRAKE_STRIPE_API_BASE']}/_sandbox/reset", trust_env=False)
    with pytest.raises(BindingError, match="belongs to account acct_"):
        other.charge(token, "2026-12")
    assert restricted.charge(token, "2026-11").status_code == 200


def test_a_store_of_an_earlier_version_records_its_account_at_the_first_start(
    restricted: Host,
) -> None:
    token = restricted.token()
    restricted.charge(token, "2026-11")
    forget = "DELETE FROM facts WHERE name LIKE 'upstream_key:%'"
    if restricted.database is None:
        restricted.tamper(forget)
    else:
        restricted.database.query(forget)
    assert with_key(restricted, "rk_test_Rolled").charge(token, "2026-12").status_code == 200
    assert restricted.charge(token, "2026-12").status_code == 200
