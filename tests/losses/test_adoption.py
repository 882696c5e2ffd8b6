"""What is adopted: bills without a period, not final ones, reopened ones, voided ones."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from kb_mcp.operators.actions.adopt import suspected_days
from tests.losses.host import BEHIND, SINCE, Host
from tests.months import lately

PAY = {"amount": "2900", "currency": "usd", "customer": "cus_P", "payment_method": "pm_card_visa"}
DAY_S = 86_400


def policy(host: Host, allow: str, more: str = "") -> str:
    """Issue a key of a policy."""
    file = host.folder / "policy.toml"
    file.write_text(f'role = "billing"\nallow = [{allow}]\n{more}[caps.daily]\nusd = 100000\n')
    token: str = host.json("keys", "issue", "--policy", str(file))["token"]
    return token


def legacy(host: Host, **form: str) -> str:
    bill = {"amount": "2900", "currency": "usd", "customer": "cus_Abc123"} | form
    return str(host.stripe("POST", "/v1/charges", bill)["id"])


def test_a_charge_without_a_readable_period_is_listed_and_not_adopted(host: Host) -> None:
    legacy(host, description="Consulting")
    (listed,) = host.json("adopt", *SINCE, "--apply")
    assert listed["adopted"] is False
    assert "--period-from" in listed["why"]
    assert host.json("operations", "list") == []
    (adopted,) = host.json("adopt", *SINCE, "--apply", "--period-from", "none")
    assert (adopted["adopted"], adopted["billing_period"]) == (True, None)


@pytest.mark.parametrize("period", ["2026-11", None])
def test_an_adopted_charge_without_a_period_may_be_any_bill_of_its_month(
    host: Host, period: str | None
) -> None:
    legacy(host)
    host.run("adopt", *SINCE, "--apply", "--period-from", "none")
    token = host.token()
    host.advance(21 * 3600)
    refused = host.charge(token, period and month_of(host))
    assert host.error(refused) == (400, "duplicate_suspected")
    if period is None:
        assert host.charge(token, None, amount=3000).status_code == 200
    (suspected,) = (each for each in host.json("operations", "list") if each["amount"] == 2900)
    host.run("operations", "reopen", suspected["id"], "--reason", "another bill")
    assert host.charge(token, period and month_of(host)).status_code == 200
    assert host.json("doctor")["ok"] is True


def month_of(host: Host) -> str:
    """Return the month in which Stripe made the only charge, as the tests write it."""
    created = min(each["created"] for each in host.charges())
    return f"{datetime.fromtimestamp(created, UTC):%Y-%m}"


@pytest.mark.parametrize(
    ("day", "first", "last"),
    [
        ("2026-11-10", "2026-11-01", "2026-11-30"),
        ("2026-11-27", "2026-11-01", "2026-11-30"),
        ("2026-11-28", "2026-11-01", "2026-12-31"),
        ("2026-12-31", "2026-12-01", "2027-01-31"),
        ("2028-02-26", "2028-02-01", "2028-02-29"),
        ("2028-02-27", "2028-02-01", "2028-03-31"),
    ],
)
def test_a_charge_of_a_months_last_three_days_may_be_the_next_months(
    day: str, first: str, last: str
) -> None:
    at = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC) + timedelta(hours=23)
    assert suspected_days(int(at.timestamp()) * 1000) == (first, last)


def test_the_month_of_creation_is_taken_where_the_operator_says_so(host: Host) -> None:
    made = legacy(host)
    (adopted,) = host.json("adopt", *SINCE, "--apply", "--period-from", "created")
    assert adopted["billing_period"] == month_of(host)
    token = host.token()
    fields = {"metadata[billing_period]": month_of(host), "amount": "2900", "currency": "usd"}
    answer = host.post("/v1/charges", fields | {"customer": "cus_Abc123"}, token)
    assert answer.json()["id"] == made


@pytest.mark.parametrize("end", ["captured", "lapsed"])
def test_what_was_only_authorised_is_held_until_it_is_captured_or_lapses(
    host: Host, end: str
) -> None:
    made = legacy(host, capture="false", description=f"Subscription {lately('2026-11')}")
    host.run("adopt", *SINCE, "--apply")
    (operation,) = host.json("operations", "list")
    assert (operation["state"], operation["final"]) == ("succeeded", False)
    assert host.json("doctor")["ok"] is True
    if end == "captured":
        host.stripe("POST", f"/v1/charges/{made}/capture", {"amount": "1000"})
    else:
        host.stripe("POST", "/v1/refunds", {"charge": made})
    host.advance(3700)
    host.run("recover")
    assert host.json("doctor")["ok"] is True
    (operation,) = host.json("operations", "list")
    assert operation["final"] is True
    # It counts in the day on which it was made, which may be over by now.
    rows = host.json("spend", "--day", operation["created_at"][:10])
    spent = sum(row["settled"] for row in rows if row["scope"] == "account")
    assert (operation["state"], spent) == (
        ("succeeded", 1000) if end == "captured" else ("failed", 0)
    )


def test_an_unfinished_intent_of_a_lost_store_is_adopted_and_ends(host: Host) -> None:
    token = policy(host, '"POST /v1/payment_intents", "POST /v1/payment_intents/*/confirm"')
    host.charge(token, "2026-09")
    host.save()
    form = PAY | {"metadata[billing_period]": lately("2026-11")}
    made = host.post("/v1/payment_intents", form, token).json()
    assert made["status"] == "requires_confirmation"
    host.put_back()
    assert host.error(host.post("/v1/payment_intents", form, token)) == BEHIND
    host.advance(700)
    (adopted,) = host.json("adopt", *SINCE, "--apply")
    assert adopted["adopted"] is True
    (operation,) = host.json("operations", "list")
    assert (operation["final"], operation["charge_id"]) == (False, made["id"])
    assert host.json("doctor")["ok"] is True
    host.stripe("POST", f"/v1/payment_intents/{made['id']}/confirm")
    host.advance(3700)
    host.run("recover")
    (operation,) = host.json("operations", "list")
    assert (operation["final"], operation["stripe_status"]) == (True, "succeeded")
    again = host.post("/v1/payment_intents", form, token)
    # What card the request named is lost with the store: the bill is told, and not made again.
    assert host.error(again) == (400, "period_already_charged")
    assert again.json()["error"]["keybrake"]["charge_id"] == made["id"]
    assert len(host.succeeded()) == 1
    assert host.json("doctor")["ok"] is True


def test_a_reopened_bill_that_was_lost_is_adopted_alone_and_reopened_again(host: Host) -> None:
    token = host.token()
    host.save("empty")
    first = host.charge(token, "2026-11").json()["id"]
    (operation,) = host.json("operations", "list")
    host.stripe("POST", "/v1/refunds", {"charge": first})
    host.run("operations", "reopen", operation["id"], "--reason", "once more")
    second = host.charge(token, "2026-11").json()
    assert second["metadata"]["keybrake_attempt"].endswith("-r1")
    host.put_back("empty")
    host.advance(700)
    taken = {each["charge_id"]: each for each in host.json("adopt", *SINCE, "--apply")}
    assert taken[second["id"]]["adopted"] is True
    assert host.charge(token, "2026-11").json()["id"] == second["id"]
    newest = taken[second["id"]]["operation_id"]
    host.stripe("POST", "/v1/refunds", {"charge": second["id"]})
    host.run("operations", "reopen", newest, "--reason", "and again")
    third = host.charge(token, "2026-11")
    assert third.status_code == 200, third.text
    assert third.json()["metadata"]["keybrake_attempt"].endswith("-r2")
    assert host.json("doctor")["ok"] is True


def test_a_later_attempt_that_was_lost_is_adopted_and_its_number_is_kept(host: Host) -> None:
    token = policy(host, '"POST /v1/charges"', 'decline_retry_after = "1m"\n')
    host.save("empty")
    host.fault("402")
    host.charge(token, "2026-11")
    host.advance(120)
    made = host.charge(token, "2026-11").json()
    assert made["metadata"]["keybrake_attempt"].endswith("-2")
    host.put_back("empty")
    host.advance(700)
    host.run("adopt", *SINCE, "--apply")
    (operation,) = host.json("operations", "list")
    assert operation["attempts"][0]["upstream_key"].endswith("-2")
    assert host.charge(token, "2026-11").json()["id"] == made["id"]


def test_a_voided_bill_that_was_charged_after_the_backup_succeeds(host: Host) -> None:
    token = host.token()
    host.fault("drop_before")
    host.charge(token, "2026-11")
    for _ in range(3):
        host.advance(26 * 3600)
        host.run("recover")
    (operation,) = host.json("operations", "list")
    assert operation["state"] == "voided"
    host.save()
    made = host.charge(token, "2026-11").json()["id"]
    host.put_back()
    assert host.error(host.charge(token, "2026-11")) == BEHIND
    host.advance(700)
    host.run("adopt", *SINCE, "--apply")
    host.advance(26 * 3600)
    assert host.charge(token, "2026-11").json()["id"] == made
    (operation,) = host.json("operations", "list")
    assert operation["state"] == "succeeded"
    assert len(host.succeeded()) == 1
    assert host.json("doctor")["ok"] is True


def test_a_charge_made_twice_before_is_told_as_charged_twice(host: Host) -> None:
    described = f"Subscription {lately('2026-11')}"
    first, second = legacy(host, description=described), legacy(host, description=described)
    host.run("adopt", *SINCE, "--apply")
    found = host.json("reconcile", *SINCE, code=1)
    (twice,) = found["differing"]
    assert (twice["field"], {twice["charge_id"], twice["ledger"]}) == (
        "charged_twice",
        {first, second},
    )
    host.stripe("POST", "/v1/refunds", {"charge": first})
    assert host.json("reconcile", *SINCE, code=1)["differing"] == []
    host.run("adopt", *SINCE, "--apply")  # which takes the refund in
    host.run("reconcile", *SINCE)


def test_what_the_ledger_lost_and_charged_again_is_adopted_beside_it(host: Host) -> None:
    """The second charge was made by somebody who did not wait: both are known, and told."""
    token = host.token()
    host.save("empty")
    first = host.charge(token, "2026-11").json()
    host.put_back("empty")
    marks = {f"metadata[{name}]": value for name, value in first["metadata"].items()}
    bill: dict[str, Any] = {"amount": "2900", "currency": "usd", "customer": first["customer"]}
    second = host.stripe("POST", "/v1/charges", bill | marks)["id"]
    host.advance(700)
    taken = host.json("adopt", *SINCE, "--apply")
    assert {each["charge_id"] for each in taken if each["adopted"]} == {first["id"], second}
    assert host.charge(token, "2026-11").json()["id"] == second
    found = host.json("reconcile", *SINCE, code=1)
    assert [each["field"] for each in found["differing"]] == ["charged_twice"]
    assert host.json("doctor")["ok"] is True


def test_a_charge_of_a_bill_whose_outcome_is_unknown_is_left(host: Host) -> None:
    """It may be the very charge that nobody heard of: recovery or an operator decides."""
    token = host.token()
    host.fault("drop_before")
    assert host.charge(token, "2026-11").status_code == 504
    (unknown,) = host.json("operations", "list")
    made = legacy(
        host, customer=unknown["customer_id"], description=f"Subscription {lately('2026-11')}"
    )
    (left,) = host.json("adopt", *SINCE, "--apply")
    assert (left["charge_id"], left["adopted"]) == (made, False)
    assert left["why"] == f"operation {unknown['id']} of the same bill is unresolved"
    assert [each["id"] for each in host.json("operations", "list")] == [unknown["id"]]


def test_a_second_refund_of_one_name_is_left(host: Host) -> None:
    token = host.token()
    made = host.charge(token, "2026-10").json()
    host.advance(700)
    refund = {"charge": made["id"], "amount": "500", "metadata[keybrake_attempt]": "38de2d05"}
    first, second = (host.stripe("POST", "/v1/refunds", refund)["id"] for _ in range(2))
    taken = {each["refund_id"]: each for each in host.json("adopt", *SINCE, "--apply")}
    adopted = [name for name in (first, second) if taken[name]["adopted"]]
    assert len(adopted) == 1
    (other,) = {first, second} - set(adopted)
    assert taken[other]["why"].endswith("is of the same refund")
