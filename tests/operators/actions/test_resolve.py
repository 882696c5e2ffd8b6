"""An operator's word about an operation, checked against Stripe: voids take two looks, objects fit.

On both stores: the first look is kept there, and so is what an object settles.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.operators.actions.operations import By, NotDone
from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.ledger.records import Attempt, Operation
from kb_mcp.proxy.stripe.reader import StripeReads
from kb_mcp.serving.machine import boottime_ms
from tests.in_process_proxy import InProcessProxy, Issued, error_of
from tests.misbehaving import Change, MisledProxy, listing, say, unmarked, with_fields
from tests.months import lately
from tests.postgres import database, server  # noqa: F401 fixtures are found by name
from tests.scenarios.acts import (
    PAST_GRACE_S,
    broken_invariants,
    day_windows,
    deliver_late,
    post_at_stripe,
)

HOUR_S = 3_600
LIST = "GET /v1/charges?"
ONE = "GET /v1/charges/ch"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def proxy(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MisledProxy]:
    if request.param == "postgres":
        environ = request.getfixturevalue("database").environ
        monkeypatch.setattr(InProcessProxy, "store", environ)
    with MisledProxy(tmp_path) as proxy:
        proxy.begin_day()
        yield proxy


def acts(proxy: MisledProxy) -> StripeActs:
    """Return the acts of a process that was opened for this one act."""
    built = proxy.proxy
    proxy.run(built.app.pipeline.follow())
    reads = StripeReads(built.upstream, built.store.clock, boottime_ms)
    return StripeActs(built.store.ledger, reads, built.recovery)


def void(proxy: MisledProxy) -> str:
    """Ask for a void of the newest operation; return what is told, or the state it is in."""
    return told(proxy, None, "the dashboard shows nothing")


def settle(proxy: MisledProxy, object_id: str) -> str:
    return told(proxy, object_id)


def told(proxy: MisledProxy, object_id: str | None, reason: str | None = None) -> str:
    (operation, *_) = proxy.operations()
    outcome = proxy.run(acts(proxy).resolve(operation, object_id, By("mira", reason)))
    if isinstance(outcome, NotDone):
        return f"{outcome.why}. {outcome.hint}"
    assert isinstance(outcome, Operation)
    return str(outcome.state.value)


def newest(proxy: MisledProxy) -> tuple[Operation, list[Attempt]]:
    found = proxy.run(proxy.proxy.store.records.operations(limit=1))
    return found[0]


def unknown(proxy: MisledProxy, kind: str = "drop_before") -> Issued:
    """Leave one bill unknown, past its grace, of a key that may charge no more than that a day."""
    key = proxy.issue(daily={"usd": 2900})
    proxy.fault(kind)
    assert proxy.charge(key, period="2026-11").status_code == 504
    proxy.turn_clock(PAST_GRACE_S)
    return key


def test_a_void_takes_two_whole_looks_a_minute_apart_and_keeps_the_key(proxy: MisledProxy) -> None:
    key = unknown(proxy)
    assert "in 60 seconds" in void(proxy)
    assert newest(proxy)[0].state == "unknown"
    # Whoever looks next, in whatever process, finds the first look in the store.
    proxy.restart()
    proxy.turn_clock(40)
    assert "in 20 seconds" in void(proxy)
    proxy.turn_clock(21)
    assert void(proxy) == "voided"
    operation, attempts = newest(proxy)
    assert (operation.live, operation.held, operation.code) == (False, 0, "voided_by_operator")
    assert void(proxy).startswith(f"operation {operation.id} is voided already")
    assert proxy.charge(key, period="2026-11").status_code == 200
    assert [each.upstream_key for each in newest(proxy)[1]] == [attempts[0].upstream_key]
    assert len(proxy.charges()) == 1
    assert broken_invariants(proxy) == []
    decisions = [row["decision"] for row in proxy.audit() if row["kind"] == "admin"]
    assert decisions[-3:] == ["resolve_look", "resolve_look", "resolve_void"]


def test_a_list_that_lags_leads_to_the_same_key_and_one_charge(proxy: MisledProxy) -> None:
    key = unknown(proxy, "drop_after")
    proxy.rogue.hear(LIST, listing(lambda _: []))
    void(proxy)
    proxy.turn_clock(61)
    assert void(proxy) == "voided"
    replayed = proxy.charge(key, period="2026-11")
    assert (replayed.status_code, replayed.json()["id"]) == (200, proxy.charges()[0]["id"])
    assert len(proxy.charges()) == 1


def test_after_a_void_other_values_or_another_day_get_a_new_key(proxy: MisledProxy) -> None:
    key = unknown(proxy)
    void(proxy)
    proxy.turn_clock(61)
    void(proxy)
    proxy.turn_clock(23 * HOUR_S)
    assert proxy.charge(key, period="2026-11").status_code == 200
    operation, attempts = newest(proxy)
    assert attempts[-1].upstream_key == f"{operation.upstream_name}-2"
    assert len(proxy.charges()) == 1


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("an error", say(500)),
        ("a limit", say(429)),
        ("our key refused", say(401)),
        ("no right to list", say(403)),
        ("no JSON", say(200, b"<html>")),
        ("no list", say(200, b"{}")),
        ("no end", say(200, {"data": []})),
        ("more to come that does not come", say(200, {"data": [], "has_more": True})),
        ("something that is no object", say(200, {"data": [7], "has_more": False})),
    ],
)
def test_a_look_that_is_not_whole_is_none(proxy: MisledProxy, what: str, change: Change) -> None:
    del what
    unknown(proxy, "drop_after")
    for _ in range(3):
        proxy.rogue.hear(LIST, change, times=1)
        assert void(proxy).startswith("Stripe's list could not be read to its end. Nothing was")
        proxy.turn_clock(61)
    operation, _ = newest(proxy)
    assert (operation.state, operation.void_look_at, operation.lease_owner) == (
        "unknown",
        None,
        None,
    )
    # A whole look finds the charge.
    assert "has succeeded" in void(proxy)
    assert newest(proxy)[0].object_id == proxy.charges()[0]["id"]


def test_a_second_look_that_fails_leaves_the_first_one_good(proxy: MisledProxy) -> None:
    unknown(proxy)
    void(proxy)
    proxy.turn_clock(61)
    proxy.rogue.hear(LIST, say(500), times=1)
    void(proxy)
    assert newest(proxy)[0].state == "unknown"
    assert void(proxy) == "voided"


def test_a_send_between_two_looks_makes_the_second_the_first(proxy: MisledProxy) -> None:
    key = unknown(proxy)
    void(proxy)
    proxy.fault("drop_before")
    proxy.charge(key, period="2026-11")
    proxy.turn_clock(61)
    assert "so lately" in void(proxy)
    proxy.turn_clock(PAST_GRACE_S)
    assert "in 60 seconds" in void(proxy)


def test_a_charge_that_shows_between_two_looks_settles_the_bill(proxy: MisledProxy) -> None:
    unknown(proxy)
    void(proxy)
    deliver_late(proxy, newest(proxy)[1][0])
    proxy.turn_clock(61)
    assert "has succeeded" in void(proxy)
    assert newest(proxy)[0].state == "succeeded"


def test_an_error_that_stripe_keeps_is_not_void_before_a_day_and_an_hour(
    proxy: MisledProxy,
) -> None:
    key = unknown(proxy, "500_before")
    # A later send that is lost does not make the stored error forgotten.
    proxy.fault("drop_before")
    proxy.charge(key, period="2026-11")
    proxy.turn_clock(PAST_GRACE_S)
    assert "25 hours" in void(proxy)
    proxy.turn_clock(24 * HOUR_S)
    assert "keeps under the key for a day" in void(proxy)
    proxy.turn_clock(HOUR_S)
    void(proxy)
    proxy.turn_clock(61)
    assert void(proxy) == "voided"
    assert proxy.charge(key, period="2026-11").status_code == 200
    assert newest(proxy)[1][-1].upstream_key.endswith("-2")
    assert len(proxy.charges()) == 1


def test_what_recovery_has_voided_is_freed_by_a_second_look(proxy: MisledProxy) -> None:
    key = unknown(proxy)
    proxy.recover()
    assert newest(proxy)[0].live
    changed = proxy.charge(key, period="2026-11", amount=3000)
    assert error_of(changed) == "period_already_charged"
    assert "Look a second time" in void(proxy)
    proxy.turn_clock(61)
    assert void(proxy) == "voided"
    assert proxy.charge(key, period="2026-11", amount=2800).status_code == 200


def test_a_void_names_the_unmarked_charge_that_may_be_the_one(proxy: MisledProxy) -> None:
    unknown(proxy, "drop_after")
    (charge,) = proxy.charges()
    proxy.rogue.hear(LIST, listing(unmarked))
    assert f"resolve with --succeeded {charge['id']}" in void(proxy)
    proxy.rogue.hear(ONE, with_fields(metadata={"billing_period": lately("2026-11")}))
    assert settle(proxy, charge["id"]) == "succeeded"


@pytest.mark.parametrize("state", ["succeeded", "failed", "awaiting_approval"])
def test_only_what_is_unknown_is_voided(proxy: MisledProxy, state: str) -> None:
    policy = built_in("billing").model_copy(update={"approval_above": {"usd": 5000}})
    key = proxy.issue(policy)
    customer = "cus_Declined1" if state == "failed" else "cus_A1"
    amount = 9900 if state == "awaiting_approval" else 2900
    proxy.charge(key, period="2026-11", customer=customer, amount=amount)
    proxy.turn_clock(PAST_GRACE_S)
    assert f"is {state}; only unknown ones" in void(proxy)


# The object that an operator names.


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"amount": 2901}, "its amount is 2901, the operation's is 2900"),
        ({"amount": None}, "its amount is None, the operation's is 2900"),
        ({"currency": "eur"}, "its currency is eur"),
        ({"customer": "cus_B2"}, "its customer is cus_B2"),
        ({"customer": None}, "its customer is None"),
        ({"livemode": True}, "its livemode is True"),
        ({"metadata": {"keybrake_operation": "op_else"}}, "it belongs to operation op_else"),
        ({"metadata": {"keybrake_attempt": "else"}}, "keybrake_attempt says so"),
        ({"metadata": {"billing_period": "2020-01"}}, "its billing period is 2020-01"),
        ({"metadata": {"billing_period": "June"}}, "its billing period 'June' cannot be read"),
        ({"metadata": {}, "description": "Subscription 2020-01"}, "its billing period is 2020-01"),
        ({"metadata": {"reference": "seat-2"}}, "its reference is seat-2"),
        ({"created": -91}, "created before the operation was first sent"),
        ({"created": 10**30}, "created before the operation was first sent"),
        ({"created": "now"}, "created before the operation was first sent"),
        ({"payment_intent": "pi_\0", "amount": 1}, "its amount is 1"),
        ({"metadata": {"reference": "\x1b[2Jx"}}, "its reference is [2Jx"),
        ({"created": None}, "created before the operation was first sent"),
        ({"status": "failed"}, "is failed: it took no money"),
        ({"object": "refund"}, "another kind of object"),
        ({"id": "ch_other"}, "Stripe answered with another object"),
    ],
)
def test_an_object_of_something_else_settles_nothing(
    proxy: MisledProxy, fields: dict[str, Any], why: str
) -> None:
    unknown(proxy, "drop_after")
    (charge,) = proxy.charges()
    created = fields.get("created")
    if isinstance(created, int):
        first_sent_at = newest(proxy)[1][0].first_sent_at
        fields = {"created": first_sent_at // 1000 + created}
    proxy.rogue.hear(ONE, with_fields(**fields))
    assert why in settle(proxy, charge["id"])
    operation, _ = newest(proxy)
    assert (operation.state, operation.object_id) == ("unknown", None)


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {}},
        {"metadata": {"billing_period": lately("2026-11")}},
        {"metadata": {}, "description": "a seat"},
        {"created": -89},
    ],
)
def test_an_object_that_says_nothing_else_settles_the_bill(
    proxy: MisledProxy, fields: dict[str, Any]
) -> None:
    key = unknown(proxy, "drop_after")
    (charge,) = proxy.charges()
    created = fields.get("created")
    if created is not None:
        fields = {"created": newest(proxy)[1][0].first_sent_at // 1000 + created}
    proxy.rogue.hear(ONE, with_fields(**fields))
    assert settle(proxy, charge["id"]) == "succeeded"
    assert proxy.charge(key, period="2026-11").json()["id"] == charge["id"]
    assert len(proxy.charges()) == 1
    assert broken_invariants(proxy) == []
    assert "it is not settled" not in settle(proxy, charge["id"])


def test_the_charge_of_another_operation_settles_nothing(proxy: MisledProxy) -> None:
    key = proxy.issue()
    other = proxy.charge(key, period="2026-10").json()["id"]
    proxy.fault("drop_before")
    proxy.charge(key, period="2026-11")
    proxy.turn_clock(PAST_GRACE_S)
    # Its marks and its period were edited away.
    proxy.rogue.hear(ONE, with_fields(metadata={}, description=None))
    assert "it already concluded operation" in settle(proxy, other)
    # Nor does the charge of an intent that is another operation's.
    bill: dict[str, Any] = {"customer": "cus_A1", "amount": 2900, "currency": "usd"}
    by_hand = post_at_stripe(proxy, "/v1/charges", **bill).json()["id"]
    proxy.rogue.behave()
    proxy.rogue.hear(ONE, with_fields(payment_intent=other))
    assert "it already concluded operation" in settle(proxy, by_hand)


def test_a_voided_bill_that_was_charged_is_settled_counted_and_flagged(
    proxy: MisledProxy,
) -> None:
    key = unknown(proxy)
    proxy.recover()
    made = deliver_late(proxy, newest(proxy)[1][0]).json()["id"]
    assert settle(proxy, made) == "succeeded"
    operation, _ = newest(proxy)
    assert (operation.overshoot, operation.held) == (True, 2900)
    assert list(day_windows(proxy).values()) == [(0, 2900)]
    assert error_of(proxy.charge(key, period="2026-10")) == "vault_key_frozen"
    assert broken_invariants(proxy) == []


@pytest.mark.parametrize("state", ["failed", "awaiting_approval"])
def test_what_the_ledger_lost_is_settled_by_its_marked_object_alone(
    proxy: MisledProxy, state: str
) -> None:
    """A restored store knows a bill as failed, or waiting; it was charged afterwards."""
    policy = built_in("billing").model_copy(update={"approval_above": {"usd": 5000}})
    key = proxy.issue(policy)
    if state == "failed":
        proxy.fault("402")
    amount = 2900 if state == "failed" else 9900
    proxy.charge(key, period="2026-11", amount=amount)
    operation, attempts = newest(proxy)
    assert operation.state == state
    bill: dict[str, Any] = {"customer": "cus_A1", "amount": amount, "currency": "usd"}
    by_hand = post_at_stripe(proxy, "/v1/charges", **bill).json()["id"]
    assert f"bears no mark of this operation, which is {state}" in settle(proxy, by_hand)
    lost_key = operation.upstream_name + ("-2" if attempts else "")
    marks = {
        "metadata[keybrake_operation]": operation.id,
        "metadata[keybrake_attempt]": lost_key,
    }
    made = post_at_stripe(proxy, "/v1/charges", lost_key, **bill, **marks).json()["id"]
    assert settle(proxy, made) == "succeeded"
    operation, attempts = newest(proxy)
    assert (operation.object_id, operation.held, operation.overshoot) == (made, amount, True)
    assert (attempts[-1].upstream_key, attempts[-1].outcome.value) == (lost_key, "succeeded")
    assert list(day_windows(proxy).values()) == [(0, amount)]
    assert broken_invariants(proxy) == []
    assert proxy.charge(key, period="2026-11", amount=amount).json()["id"] == made


def test_an_awaiting_bill_is_not_settled_by_the_mark_of_another_generation(
    proxy: MisledProxy,
) -> None:
    proxy.fault("402")
    proxy.charge(proxy.issue(), period="2026-11")
    operation, _ = newest(proxy)
    bill: dict[str, Any] = {"customer": "cus_A1", "amount": 2900, "currency": "usd"}
    for mark in ("-r1", "-x", "7", "-2-3"):
        marks = {"metadata[keybrake_attempt]": operation.upstream_name + mark}
        made = post_at_stripe(proxy, "/v1/charges", **bill, **marks).json()["id"]
        assert "keybrake_attempt says so" in settle(proxy, made)


@pytest.mark.parametrize("wrong", ["ch_none", "../x", "ch_1?expand", "ch_1/refunds", ""])
def test_what_is_no_object_settles_nothing(proxy: MisledProxy, wrong: str) -> None:
    unknown(proxy, "drop_after")
    assert settle(proxy, wrong) not in {"succeeded", "voided"}
    assert newest(proxy)[0].state == "unknown"
