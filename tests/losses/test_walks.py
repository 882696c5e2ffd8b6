"""A store that lost what it knew sends nothing until it knows what Stripe has."""

from __future__ import annotations

import pytest

from tests.losses.host import BEHIND, SINCE, Host


def test_every_object_carries_the_store_that_made_it(host: Host) -> None:
    token = host.token()
    first = host.charge(token, "2026-11").json()
    second = host.charge(token, None, customer="cus_B").json()
    store = first["metadata"]["keybrake_store"]
    assert store.startswith("st_")
    assert second["metadata"]["keybrake_store"] == store


def test_a_snapshot_of_everything_is_seen_at_stripe(host: Host) -> None:
    token = host.token()
    host.charge(token, "2026-10")
    host.save()
    lost = host.charge(token, "2026-11").json()["id"]
    host.put_back()
    assert host.error(host.charge(token, "2026-11")) == BEHIND
    assert host.error(host.charge(token, "2026-12")) == BEHIND
    found = {check["name"]: check for check in host.json("doctor", code=1)["checks"]}
    assert lost in found["gap"]["detail"]
    host.advance(700)
    (adopted,) = host.json("adopt", *SINCE, "--apply")
    assert adopted["charge_id"] == lost
    assert host.charge(token, "2026-11").json()["id"] == lost
    host.advance(25 * 3600)
    assert host.charge(token, "2026-11").json()["id"] == lost
    assert len(host.succeeded()) == 2
    assert host.json("doctor")["ok"] is True


@pytest.mark.parametrize("state", ["declined", "rejected", "unknown", "awaiting"])
def test_a_bill_that_the_backup_knows_otherwise_is_adopted_and_not_charged_again(
    host: Host, state: str
) -> None:
    policy = host.folder / "policy.toml"
    policy.write_text(
        'role = "billing"\nallow = ["POST /v1/charges"]\ndecline_retry_after = "1m"\n'
        "[caps.daily]\nusd = 100000\n"
        + ("[approval_above]\nusd = 1000\n" if state == "awaiting" else "")
    )
    token = host.json("keys", "issue", "--policy", str(policy))["token"]
    {
        "declined": lambda: host.fault("402"),
        "rejected": lambda: host.fault("429"),
        "unknown": lambda: host.fault("drop_before"),
        "awaiting": lambda: None,
    }[state]()
    host.charge(token, "2026-11")
    (before,) = host.json("operations", "list")
    host.save()
    host.advance(120)
    if state == "awaiting":
        host.run("approvals", "approve", host.json("approvals", "list")[0]["id"])
    charged = host.charge(token, "2026-11")
    assert charged.status_code == 200, charged.text
    host.put_back()
    if state != "unknown":
        assert host.error(host.charge(token, "2026-11")) == BEHIND
    host.advance(700)
    host.run("adopt", *SINCE, "--apply")
    host.advance(26 * 3600)
    again = host.charge(token, "2026-11")
    assert again.json().get("id") == charged.json()["id"], again.text
    (after,) = host.json("operations", "list")
    assert (after["id"], after["state"]) == (before["id"], "succeeded")
    assert len(host.succeeded()) == 1
    assert host.json("doctor")["ok"] is True
    host.run("reconcile", *SINCE)


def test_an_open_attempt_is_left_to_recovery_and_holds_nobody_up(host: Host) -> None:
    token = host.token()
    host.fault("drop_after")
    assert host.charge(token, "2026-11").status_code == 504
    assert host.charge(token, "2026-10").status_code == 200
    host.run("recover")
    assert len(host.succeeded()) == 2
    assert {each["state"] for each in host.json("operations", "list")} == {"succeeded"}


def test_a_charge_that_turns_up_after_a_void_is_concluded_by_the_walk(host: Host) -> None:
    """The void may still be taken back: recovery's lists are not over, so nothing is lost."""
    token = host.token()
    store = host.charge(token, "2026-09").json()["metadata"]["keybrake_store"]
    host.fault("drop_before")
    assert host.charge(token, "2026-10").status_code == 504
    host.advance(700)
    host.run("recover")
    (voided,) = host.json("operations", "list", "--state", "voided")
    marks = {
        "metadata[keybrake_operation]": voided["id"],
        "metadata[keybrake_attempt]": voided["idempotency_key"],
        "metadata[keybrake_store]": store,
        "amount": "2900", "currency": "usd", "customer": voided["customer_id"],
    }  # fmt: skip
    made = host.stripe("POST", "/v1/charges", marks)["id"]
    assert host.error(host.charge(token, "2026-11")) == (403, "vault_key_frozen")
    (late,) = (each for each in host.json("operations", "list") if each["id"] == voided["id"])
    assert (late["state"], late["charge_id"], late["overshoot"]) == ("succeeded", made, True)
    found = {check["name"]: check["ok"] for check in host.json("doctor", code=1)["checks"]}
    assert (found["gap"], found["keys"]) == (True, False)


def test_a_refund_of_ours_that_was_lost_stops_the_store_until_it_is_adopted(host: Host) -> None:
    token = host.token()
    made = host.charge(token, "2026-10").json()
    store = made["metadata"]["keybrake_store"]
    marks = {
        "metadata[keybrake_operation]": "op_0123456789abcdef01234567",
        "metadata[keybrake_attempt]": "38de2d05855909930dc2287649e68ba3",
        "metadata[keybrake_store]": store,
    }
    host.stripe("POST", "/v1/refunds", {"charge": made["id"], "amount": "500"} | marks)
    assert host.error(host.charge(token, "2026-11")) == BEHIND
    host.advance(700)
    (adopted,) = host.json("adopt", *SINCE, "--apply")
    assert adopted["adopted"] is True
    assert host.charge(token, "2026-11").status_code == 200
    assert host.json("doctor")["ok"] is True
