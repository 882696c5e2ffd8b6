"""Each run-book of a loss, run exactly as the page says, and then the next day's calls.

Whatever was done, Stripe's own list decides: a bill is there once.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.losses.elsewhere import in_test_mode
from tests.losses.host import BEHIND, Host
from tests.losses.test_new_stores import lose
from tests.months import lately

PAGE = (Path(__file__).parents[2] / "docs" / "runbooks.md").read_text(encoding="utf-8")
DAY_S = 86_400
MONTHS = ("2026-09", "2026-10", "2026-11")


def follow(host: Host, heading: str) -> str:
    """Run every command of the section called `heading`; return what the commands said."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    said = ""
    for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
        for line in filter(None, map(str.strip, block.splitlines())):
            command, _, comment = line.partition("   # ")
            words = shlex.split(command)
            assert words[0] == "kb-mcp", line
            result = host.run(*words[1:], code=int(comment.removeprefix("exits ") or 0))
            said += result.output
    return said


def settle(host: Host) -> None:
    """Wait until nothing that was lost is younger than the recovery grace."""
    host.advance(700)


def call_again(host: Host, token: str, months: tuple[str, ...] = MONTHS) -> None:
    """Make the next day's calls, and count what Stripe has: each bill once."""
    host.advance(26 * 3600)
    host.run("recover")
    for month in months:
        for _ in range(2):
            answer = host.charge(token, month)
            assert answer.status_code == 200, (month, answer.text)
    billed = [each["metadata"]["billing_period"] for each in host.succeeded()]
    assert sorted(billed) == sorted(map(lately, months))
    host.run("reconcile", "--since", "30d")
    assert host.json("doctor")["ok"] is True


@pytest.mark.parametrize("heads", [True, False])
def test_a_restored_backup(host: Host, *, heads: bool) -> None:
    token = host.token()
    assert host.charge(token, MONTHS[0]).status_code == 200
    host.fault("402")
    assert host.charge(token, MONTHS[1]).status_code == 402
    host.save()
    host.advance(DAY_S + 3600)
    assert host.charge(token, MONTHS[1]).status_code == 200
    assert host.charge(token, MONTHS[2]).status_code == 200
    host.put_back(heads=heads)
    for month in MONTHS:
        assert host.error(host.charge(token, month)) == BEHIND
    settle(host)
    follow(host, "The store was restored from a backup")
    call_again(host, token)


def test_a_restored_backup_with_an_outcome_that_nobody_knew(host: Host) -> None:
    token = host.token()
    host.fault("drop_after")
    assert host.charge(token, MONTHS[0]).status_code == 504
    host.save()
    host.run("recover")
    assert host.charge(token, MONTHS[0]).status_code == 200
    assert host.charge(token, MONTHS[1]).status_code == 200
    host.put_back()
    settle(host)
    follow(host, "The store was restored from a backup")
    call_again(host, token)


def test_a_restored_backup_that_lacks_a_refund(host: Host) -> None:
    token = host.token()
    of = host.charge(token, MONTHS[0]).json()["id"]
    back = host.json("keys", "issue", "--role", "refunds", "--refund-daily-cap", "50.00usd")[
        "token"
    ]

    def refund(**form: str) -> httpx.Response:
        return host.post("/v1/refunds", {"charge": of} | form, back)

    host.save()
    made = refund(amount="900").json()["id"]
    host.put_back()
    assert host.error(refund(amount="900")) == BEHIND
    settle(host)
    follow(host, "The store was restored from a backup")
    call_again(host, token, MONTHS[:1])
    assert refund(amount="900").json()["id"] == refund().json()["id"] == made
    assert host.error(refund(amount="2000")) == (400, "already_refunded")
    listed = host.stripe("GET", f"/v1/refunds?charge={of}")["data"]
    assert [(each["id"], each["amount"]) for each in listed] == [(made, 900)]


def test_a_backup_of_which_nothing_was_charged_since_serves_at_once(host: Host) -> None:
    token = host.token()
    assert host.charge(token, MONTHS[0]).status_code == 200
    host.save()
    host.put_back()
    assert host.charge(token, MONTHS[1]).status_code == 200
    call_again(host, token)


def test_a_lost_master_key_without_a_copy(host: Host) -> None:
    if host.database is not None:
        pytest.skip("the key of a PostgreSQL store is always in the environment")
    token = host.token()
    for month in MONTHS:
        assert host.charge(token, month).status_code == 200
    host.store.with_name(f"{host.store.name}.master-key").unlink()
    host.run("keys", "list", code=2)
    lose(host)
    settle(host)
    follow(host, "The master key is lost")
    call_again(host, host.token())


@pytest.fixture
def testing(host: Host) -> Iterator[Host]:
    with in_test_mode(host) as built:
        yield built


def test_a_new_store_beside_another_one(testing: Host) -> None:
    assert testing.charge(testing.token(), MONTHS[0]).status_code == 200
    lose(testing)
    token = testing.token()
    assert testing.error(testing.charge(token, MONTHS[1])) == BEHIND
    follow(testing, "A new store says `ledger_behind`")
    assert testing.charge(token, MONTHS[1]).status_code == 200


def test_charges_from_before(host: Host) -> None:
    for month in MONTHS:
        form = {"amount": "2900", "currency": "usd", "customer": "cus_Abc123"}
        described = {"description": f"Subscription {lately(month)}"}
        host.stripe("POST", "/v1/charges", form | described)
    follow(host, "Charges from before kb-mcp came")
    host.advance(26 * 3600)
    token = host.token()
    for month in MONTHS:
        assert host.charge(token, month).status_code == 200
    assert len(host.succeeded()) == len(MONTHS)
    assert host.json("doctor")["ok"] is True


def test_another_stripe_key(testing: Host) -> None:
    assert testing.charge(testing.token(), MONTHS[0]).status_code == 200
    follow(testing, "Another Stripe key")
    assert testing.json("doctor")["ok"] is True
