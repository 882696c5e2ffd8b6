"""A new store beside charges of an old one, and marks whose store nobody knows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.losses.elsewhere import in_test_mode
from tests.losses.host import BEHIND, SINCE, Host

OLD_MARKS = {
    "metadata[keybrake_operation]": "op_0123456789abcdef01234567",
    "metadata[keybrake_attempt]": "38de2d05855909930dc2287649e68ba3",
    "metadata[keybrake_key]": "lineage1",
    "metadata[billing_period]": "2026-11",
}


@pytest.fixture
def testing(host: Host) -> Iterator[Host]:
    with in_test_mode(host) as built:
        yield built


def marked(host: Host, **marks: str) -> str:
    """Make a charge at Stripe as another kb-mcp would."""
    form = {"amount": "2900", "currency": "usd", "customer": "cus_Old"} | OLD_MARKS | marks
    return str(host.stripe("POST", "/v1/charges", form)["id"])


def lose(host: Host) -> None:
    """Take the store away, with its keys and its master key."""
    host.begin_anew()
    if host.database is not None:
        server, name = host.database.server, host.database.name
        server.query(f"DROP DATABASE {name} WITH (FORCE)")
        server.query(f"CREATE DATABASE {name} TEMPLATE migrated OWNER keybrake_owner")


def test_a_new_store_beside_an_old_ones_charges_sends_nothing_until_they_are_adopted(
    testing: Host,
) -> None:
    first = testing.charge(testing.token(), "2026-11").json()["id"]
    lose(testing)
    token = testing.token()
    assert testing.error(testing.charge(token, "2026-11")) == BEHIND
    assert testing.error(testing.charge(token, "2026-12")) == BEHIND
    (adopted,) = testing.json("adopt", *SINCE, "--apply")
    assert adopted["charge_id"] == first
    assert testing.charge(token, "2026-11").json()["id"] == first
    assert testing.charge(token, "2026-12").status_code == 200
    assert len(testing.succeeded()) == 2
    assert testing.json("doctor")["ok"] is True


def test_a_new_store_that_is_confirmed_as_new_sends(testing: Host) -> None:
    made = marked(testing)
    token = testing.token()
    assert testing.error(testing.charge(token, "2026-11")) == BEHIND
    found = {each["name"]: each for each in testing.json("doctor", code=1)["checks"]}
    assert made in found["gap"]["detail"]
    testing.run("settings", "confirm-new-store")
    assert testing.charge(token, "2026-11").status_code == 200
    assert testing.charge(token, "2026-12").status_code == 200
    rows = testing.json("audit", "list")
    assert "confirm_new_store" in {row["decision"] for row in rows}


def test_a_store_with_a_loss_is_not_confirmed_as_new(testing: Host) -> None:
    token = testing.token()
    testing.charge(token, "2026-10")
    testing.save()
    testing.charge(token, "2026-11")
    testing.put_back()
    assert testing.error(testing.charge(token, "2026-11")) == BEHIND
    told = testing.run("settings", "confirm-new-store", code=1).stderr
    assert "not new" in told
    assert testing.error(testing.charge(token, "2026-11")) == BEHIND


def test_a_new_store_beside_plain_charges_sends(testing: Host) -> None:
    bill = {"amount": "2900", "currency": "usd", "customer": "cus_Old"}
    testing.stripe("POST", "/v1/charges", bill)
    assert testing.charge(testing.token(), "2026-11").status_code == 200


def test_the_sandbox_of_another_store_is_a_warning_alone(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    made = marked(host)
    assert host.charge(host.token(), "2026-11").status_code == 200
    assert made in caplog.text


@pytest.mark.parametrize("mode", ["sandbox", "test"])
def test_an_older_mark_of_an_unknown_lineage_is_ours_until_it_is_named_foreign(
    host: Host, testing: Host, mode: str
) -> None:
    on = host if mode == "sandbox" else testing
    token = on.token()
    assert on.charge(token, "2026-10").status_code == 200
    made = marked(on)
    assert on.error(on.charge(token, "2026-11")) == BEHIND
    told = on.run("settings", "foreign-lineage", "lineage1").output
    assert "lineage1" in told
    assert on.charge(token, "2026-11").status_code == 200
    assert made not in str(on.json("operations", "list"))
    assert "foreign_lineage" in {row["decision"] for row in on.json("audit", "list")}


def test_a_lineage_of_the_store_itself_is_never_foreign(testing: Host) -> None:
    key = testing.json("keys", "issue", "--role", "billing", "--uncapped")
    testing.charge(key["token"], "2026-10")
    told = testing.run("settings", "foreign-lineage", key["id"], code=1).stderr
    assert "of this store" in told
    marked(testing, **{"metadata[keybrake_key]": key["id"]})
    assert testing.error(testing.charge(key["token"], "2026-11")) == BEHIND


@pytest.mark.parametrize("text", ["", "a b", "x" * 65, "../x"])
def test_what_is_no_lineage_is_refused(testing: Host, text: str) -> None:
    testing.run("settings", "foreign-lineage", text, code=1)


def test_charges_of_another_store_beside_this_one_are_not_its_own(testing: Host) -> None:
    token = testing.token()
    assert testing.charge(token, "2026-10").status_code == 200
    marked(testing, **{"metadata[keybrake_store]": "st_another"})
    assert testing.charge(token, "2026-11").status_code == 200


def test_what_failed_or_was_cancelled_at_stripe_proves_nothing(testing: Host) -> None:
    token = testing.token()
    store = testing.charge(token, "2026-10").json()["metadata"]["keybrake_store"]
    testing.steer("faults", [{"match": "POST /v1/charges", "kind": "402"}])
    form = {"amount": "2900", "currency": "usd", "customer": "cus_Old"} | OLD_MARKS
    with pytest.raises(AssertionError, match="card_declined"):
        testing.stripe("POST", "/v1/charges", form | {"metadata[keybrake_store]": store})
    intent = testing.stripe("POST", "/v1/payment_intents",
                            form | {"metadata[keybrake_store]": store})  # fmt: skip
    assert testing.error(testing.charge(token, "2026-11")) == BEHIND
    testing.stripe("POST", f"/v1/payment_intents/{intent['id']}/cancel")
    assert testing.charge(token, "2026-11").status_code == 200
