"""Answers of Stripe's that cannot be read, or say something else than what was asked for.

Whatever goes wrong in reading an answer, the charge may have been made: the operation is unknown,
its lease is given back, and reading Stripe's list finds out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.in_process_proxy import error_of
from tests.misbehaving import Change, Heard, MisledProxy, listing, say, unmarked, with_fields
from tests.scenarios.acts import PAST_GRACE_S, broken_invariants, day_windows

HOUR_S = 3_600
POST, LIST = "POST /v1/charges", "GET /v1/charges?"


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[MisledProxy]:
    with MisledProxy(tmp_path) as in_process:
        in_process.begin_day()
        yield in_process


def deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


def spelled(change: Any) -> Change:
    """Change the bytes of an answer."""
    return lambda heard: (heard[0], change(heard[1]))


UNREADABLE: dict[str, Change] = {
    "no JSON": say(200, b"<html>"),
    "nothing": say(200, b""),
    "a list": say(200, b"[]"),
    "a number": say(200, b"7"),
    "null": say(200, b"null"),
    "deeper than the stack": say(200, deep(100_000)),
    "deep": say(200, deep(500)),
    "deep in a list": say(200, b"[" * 90_000),
    "deep within the object": with_fields(metadata=json.loads(deep(200))),
    "an error that is deep": say(500, b'{"error":' * 50_000),
    "a decline that is deep": say(402, b'{"error":{"a":' * 3_000),
    "UTF-16": spelled(lambda body: body.decode().encode("utf-16")),
    "a byte order mark": spelled(lambda body: b"\xef\xbb\xbf" + body),
    "latin-1": spelled(lambda body: body[:-1] + b',"x":"\xff"}'),
    "half a surrogate pair": spelled(lambda body: body[:-1] + b',"x":"\\ud800"}'),
    "not a number": spelled(lambda body: body[:-1] + b',"x":NaN}'),
    "an endless number": spelled(lambda body: body[:-1] + b',"x":' + b"9" * 5_000 + b"}"),
    "cut off": spelled(lambda body: body[: len(body) // 2]),
    "an id that is a path": with_fields(id="ch_1/../../x"),
    "an id with a NUL": with_fields(id="ch_1\0"),
    "an id that is a number": with_fields(id=7),
    "no id": with_fields(id=None),
    "an amount in text": with_fields(amount="2900"),
    "an amount that is a float": with_fields(amount=2900.0),
    "an amount that no store holds": with_fields(amount=10**30, amount_captured=10**30),
    "a moved amount that no store holds": with_fields(amount_captured=10**30),
    "a currency that is no code": with_fields(currency="usd\0" * 1_000),
    "a customer that is no id": with_fields(customer="cus_\0"),
    "a customer without an id": with_fields(customer={"object": "customer"}),
    "an amount below zero": with_fields(amount=-2900),
    "an amount that is true": with_fields(amount=True),
    "a currency that is a number": with_fields(currency=840),
    "a customer that is a list": with_fields(customer=["cus_A1"]),
    "a mode in text": with_fields(livemode="false"),
    "captured in text": with_fields(captured="false"),
    "a status of its own": with_fields(status="finished"),
    "a status that is a number": with_fields(status=1),
    "a status with a NUL": with_fields(status="succeeded\0"),
    "another kind of object": with_fields(object="refund"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_answer_that_cannot_be_read_leaves_the_bill_unknown_until_it_is_found(
    in_process: MisledProxy, what: str
) -> None:
    key = in_process.issue(daily={"usd": 2900})
    in_process.rogue.hear(POST, UNREADABLE[what], times=1)
    answer = in_process.charge(key, period="2026-11")
    assert (answer.status_code, error_of(answer)) == (504, "outcome_unknown")
    (operation,) = in_process.operations()
    assert (operation.state, operation.held, operation.lease_owner) == ("unknown", 2900, None)
    # It was charged, and nobody waits for a lease to end before that is found out.
    in_process.recover()
    replayed = in_process.charge(key, period="2026-11")
    assert replayed.json()["id"] == in_process.charges()[0]["id"]
    assert len(in_process.charges()) == 1
    assert broken_invariants(in_process) == []


@pytest.mark.parametrize("what", sorted(UNREADABLE.keys() - {"nothing"}))
def test_a_list_that_cannot_be_read_proves_nothing_and_keeps_no_lease(
    in_process: MisledProxy, what: str
) -> None:
    key = in_process.issue()
    in_process.fault("drop_after")
    in_process.charge(key, period="2026-11")
    in_process.turn_clock(PAST_GRACE_S)
    change = UNREADABLE[what]

    def spoiled(heard: Heard) -> Heard:
        """Spoil the first object, and hand the list over with that in it."""
        status, body = heard
        if json.loads(body).get("object") != "list" or what.startswith("an error"):
            return change(heard)
        item = json.dumps(json.loads(body)["data"][0]).encode()
        _, changed = change((200, item))
        return status, b'{"object":"list","has_more":false,"data":[' + changed + b"]}"

    in_process.rogue.hear(LIST, spoiled)
    in_process.recover()
    (operation,) = in_process.operations()
    assert (operation.state, operation.lease_owner) == ("unknown", None)
    in_process.rogue.behave()
    in_process.recover()
    assert in_process.operations()[0].state == "succeeded"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"amount": 9900}, "amount at Stripe is 9900, not 2900"),
        ({"amount": 290}, "amount at Stripe is 290, not 2900"),
        ({"currency": "eur"}, "currency at Stripe is eur, not usd"),
        ({"customer": "cus_B2"}, "customer at Stripe is cus_B2, not cus_A1"),
        ({"customer": None}, "customer at Stripe is None, not cus_A1"),
        ({"livemode": True}, "livemode at Stripe is True, not False"),
    ],
)
@pytest.mark.parametrize("lost", [False, True])
def test_what_differs_from_what_was_asked_is_recorded_flagged_and_freezes_the_key(
    in_process: MisledProxy, fields: dict[str, Any], why: str, lost: bool
) -> None:
    key = in_process.issue(daily={"usd": 50_000})
    if lost:
        in_process.fault("drop_after")
        in_process.rogue.hear(LIST, with_fields(**fields))
    else:
        in_process.rogue.hear(POST, with_fields(**fields), times=1)
    in_process.charge(key, period="2026-11")
    if lost:
        in_process.recover()
    in_process.rogue.behave()
    (operation,) = in_process.operations()
    assert (operation.state, operation.code, operation.overshoot) == (
        "succeeded",
        "answer_differs",
        True,
    )
    assert operation.object_id == in_process.charges()[0]["id"]
    refused = in_process.charge(key, period="2026-10")
    assert (refused.status_code, error_of(refused)) == (403, "vault_key_frozen")
    assert why in refused.json()["error"]["message"]
    # What it took is counted, in full where it took more.
    taken = max(2900, fields.get("amount", 2900))
    assert list(day_windows(in_process).values()) == [(0, taken)]
    assert any(row["code"] == "answer_differs" for row in in_process.audit())
    assert in_process.charge(key, period="2026-11").status_code == 200
    assert len(in_process.charges()) == 1
    assert broken_invariants(in_process) == []


def again(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**items[0], "id": "ch_same", "metadata": {}, "amount": 1}]


def endless(in_process: MisledProxy) -> Change:
    """Return a list that never ends: each page ends on an id of its own."""

    def page(heard: Heard) -> Heard:
        number = len(in_process.rogue.asked)
        item = {"id": f"ch_{number}", "object": "charge", "amount": 1, "metadata": {}}
        return 200, json.dumps({"object": "list", "data": [item], "has_more": True}).encode()

    return page


def more(change: Change) -> Change:
    def longer(heard: Heard) -> Heard:
        status, body = change(heard)
        return status, json.dumps(json.loads(body) | {"has_more": True}).encode()

    return longer


@pytest.mark.parametrize("kind", ["repeats its last id", "goes round", "is empty"])
def test_a_list_that_gets_no_further_ends_as_incomplete(in_process: MisledProxy, kind: str) -> None:
    key = in_process.issue()
    in_process.fault("drop_before")
    in_process.charge(key, period="2026-11")
    in_process.turn_clock(PAST_GRACE_S)
    post_other(in_process)
    names = iter(["ch_a", "ch_b", "ch_c"] * 1_000)
    changes = {
        "repeats its last id": listing(again),
        "goes round": listing(lambda items: [{**items[0], "id": next(names), "amount": 1}]),
        "is empty": listing(lambda _: []),
    }
    in_process.rogue.hear(LIST, more(changes[kind]))
    in_process.recover()
    assert in_process.operations()[0].state == "unknown"
    assert sum(each.startswith(LIST) for each in in_process.rogue.asked) <= 4
    in_process.rogue.behave()
    in_process.recover()
    assert in_process.operations()[0].state == "voided"


def post_other(in_process: MisledProxy) -> None:
    """Make a charge of the customer's that has nothing to do with ours."""
    form = {"customer": "cus_A1", "amount": "500", "currency": "usd"}
    headers = {"Authorization": "Bearer rk_test_sandbox"}
    assert in_process.stripe.post("/v1/charges", data=form, headers=headers).status_code == 200


def test_an_endless_list_leaves_the_others_their_turn(in_process: MisledProxy) -> None:
    key = in_process.issue()
    for customer in ("cus_A1", "cus_B2"):
        in_process.fault("drop_after")
        in_process.charge(key, customer=customer, period="2026-11")
    page = endless(in_process)

    def only_of_a(heard: Heard) -> Heard:
        return page(heard) if "cus_A1" in in_process.rogue.asked[-1] else heard

    in_process.rogue.hear(LIST, only_of_a)
    in_process.recover()
    states = {each.customer: each.state for each in in_process.operations()}
    assert states == {"cus_A1": "unknown", "cus_B2": "succeeded"}
    assert sum("cus_A1" in each for each in in_process.rogue.asked) <= 220


def test_a_list_longer_than_a_pass_is_walked_on_in_the_next(in_process: MisledProxy) -> None:
    key = in_process.issue()
    in_process.fault("drop_before")
    in_process.charge(key, period="2026-11")
    in_process.turn_clock(PAST_GRACE_S)
    pages = 450

    def page(heard: Heard) -> Heard:
        after = in_process.rogue.asked[-1].partition("starting_after=ch_")[2]
        number = int(after or 0) + 1
        item = {"id": f"ch_{number}", "object": "charge", "amount": 1, "metadata": {}}
        longer = number < pages
        return 200, json.dumps({"object": "list", "data": [item], "has_more": longer}).encode()

    in_process.rogue.hear(LIST, page)
    states = []
    for _ in range(3):
        in_process.recover()
        states.append(in_process.operations()[0].state.value)
    assert states == ["unknown", "unknown", "voided"]
    assert sum(each.startswith(LIST) for each in in_process.rogue.asked) == pages


def test_what_was_sent_in_between_begins_the_walk_anew(in_process: MisledProxy) -> None:
    key = in_process.issue()
    in_process.fault("drop_before", times=2)
    in_process.charge(key, period="2026-11")
    in_process.turn_clock(PAST_GRACE_S)
    page = endless(in_process)
    in_process.rogue.hear(LIST, page)
    in_process.recover()
    in_process.rogue.behave()
    in_process.charge(key, period="2026-11")
    in_process.recover()
    # The first walk began after its grace; the second send has none yet.
    assert in_process.operations()[0].state == "unknown"
    asked = [each for each in in_process.rogue.asked if each.startswith(LIST)]
    assert "starting_after" not in asked[-1]


def test_a_charge_whose_mark_was_edited_away_is_never_voided_by_recovery(
    in_process: MisledProxy,
) -> None:
    key = in_process.issue()
    in_process.fault("drop_after")
    in_process.charge(key, period="2026-11")
    in_process.rogue.hear(LIST, listing(unmarked))
    for seconds in (PAST_GRACE_S, HOUR_S, 28 * HOUR_S, 48 * HOUR_S):
        in_process.turn_clock(seconds)
        in_process.recover()
        (operation,) = in_process.operations()
        assert (operation.state, operation.code) == ("unknown", "unmarked_charge")
    again_told = in_process.charge(key, period="2026-11")
    assert (again_told.status_code, error_of(again_told)) == (504, "outcome_unknown")
    assert len(in_process.charges()) == 1
