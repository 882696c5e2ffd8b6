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
