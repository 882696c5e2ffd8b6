"""One charge through the whole of wing B, with a real store and the real sandbox."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.roles import built_in
from tests.in_process_proxy import InProcessProxy, error_of
from tests.months import lately

BOTH = Policy(role="both", allow=("POST /v1/charges", "POST /v1/payment_intents"))


def test_the_same_bill_asked_for_five_times_is_charged_once(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        answers = [in_process.charge(key, period="2026-11") for _ in range(5)]
        assert [each.status_code for each in answers] == [200] * 5
        assert len({each.json()["id"] for each in answers}) == 1
        assert [each.headers.get("idempotent-replayed") for each in answers] == [None] + [
            "true"
        ] * 4
        assert len(in_process.charges()) == 1


def test_concurrent_callers_share_one_charge_and_one_answer(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process, ThreadPoolExecutor(20) as pool:
        key = in_process.issue()
        answers = list(pool.map(lambda _: in_process.charge(key, period="2026-11"), range(20)))
        assert {each.status_code for each in answers} == {200}
        assert len({each.json()["id"] for each in answers}) == 1
        assert len(in_process.charges()) == 1


def test_sixty_concurrent_charges_against_a_cap_of_five_make_exactly_five(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process, ThreadPoolExecutor(60) as pool:
        key = in_process.issue(daily={"usd": 500})

        def ask(number: int) -> int:
            return in_process.charge(
                key, customer=f"cus_C{number}", amount=100, period="2026-11"
            ).status_code

        statuses = list(pool.map(ask, range(60)))
        assert (statuses.count(200), statuses.count(403)) == (5, 55)
        assert len(in_process.charges()) == 5


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
def test_a_lost_answer_is_unknown_and_the_next_call_makes_no_second_charge(
    tmp_path: Path, kind: str
) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault(kind)
        first = in_process.charge(key, period="2026-11")
        assert (first.status_code, error_of(first)) == (504, "outcome_unknown")
        assert in_process.operations()[0].held == 2900
        assert in_process.charge(key, period="2026-11").status_code == 200
        assert len(in_process.charges()) == 1


def test_recovery_reads_what_became_of_a_lost_answer(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault("drop_after")
        in_process.charge(key, period="2026-11")
        in_process.recover()
        operation = in_process.operations()[0]
        assert (operation.state.value, operation.object_id) == (
            "succeeded",
            in_process.charges()[0]["id"],
        )


def test_recovery_voids_what_stripe_never_saw_only_after_grace(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(daily={"usd": 3000})
        in_process.fault("drop_before")
        in_process.charge(key, period="2026-11")
        in_process.recover()
        assert in_process.operations()[0].state.value == "unknown"
        in_process.turn_clock(700)
        in_process.recover()
        assert (in_process.operations()[0].state.value, in_process.operations()[0].held) == (
            "voided",
            0,
        )
        assert (
            error_of(in_process.charge(key, amount=2800, period="2026-11"))
            == "period_already_charged"
        )
        assert in_process.charge(key, period="2026-11").status_code == 200
        assert len(in_process.charges()) == 1


def test_the_cap_refuses_with_what_is_left_and_when_it_turns(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(daily={"usd": 3000})
        in_process.charge(key, period="2026-11")
        refused = in_process.charge(key, customer="cus_B2", period="2026-11")
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (403, "spend_cap_exceeded")
        assert (error["keybrake"]["left"], error["keybrake"]["window"]) == (100, "day")
        assert error["keybrake"]["resets_at"].endswith("T00:00:00Z")
        assert refused.headers["stripe-should-retry"] == "false"


def test_a_drifted_amount_in_a_charged_period_names_the_charge(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        made = in_process.charge(key, period="2026-11").json()["id"]
        refused = in_process.charge(key, amount=3000, period="2026-11").json()["error"]
        assert (refused["code"], refused["keybrake"]["charge_id"]) == (
            "period_already_charged",
            made,
        )


def test_a_decline_is_replayed_then_tried_again_then_exhausted(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()

        def ask() -> tuple[int, str]:
            answer = in_process.charge(key, customer="cus_Declined", period="2026-11")
            return answer.status_code, error_of(answer)

        assert [ask(), ask()] == [(402, "card_declined")] * 2
        assert len(in_process.operations()[0:1]) == 1
        assert in_process.operations()[0].attempt == 1
        for attempt in (2, 3, 4):
            in_process.turn_clock(16 * 60)
            assert ask() == (402, "card_declined")
            assert in_process.operations()[0].attempt == attempt
        in_process.turn_clock(16 * 60)
        assert ask() == (403, "attempts_exhausted")


def test_a_body_without_a_name_is_safe_against_runtime_retries(tmp_path: Path) -> None:
    sdk_key = "0f8fad5b-d9cb-469f-a165-70867728950e"
    other, third = ("7c9e6679-7425-40de-944b-e07fc1f90ae7", "9b2f1c1e-52d4-4f0a-8a3a-1f0e5d6c7b8a")
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        made = in_process.charge(key, key_header=sdk_key).json()["id"]
        assert in_process.charge(key, key_header=other).json()["id"] == made
        in_process.turn_clock(16 * 60)
        assert error_of(in_process.charge(key, key_header=third)) == "duplicate_suspected"
        assert in_process.charge(key, key_header=sdk_key).json()["id"] == made
        in_process.turn_clock(21 * 3600)
        # Both were told of that charge: it is theirs for good.
        assert in_process.charge(key, key_header=other).json()["id"] == made
        assert in_process.charge(key, key_header=third).json()["id"] != made
        assert len(in_process.charges()) == 2


def test_a_tool_and_a_legacy_handler_do_not_bill_the_same_thing_twice(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        made = in_process.charge(key, period="2026-11").json()["id"]
        legacy = in_process.charge(key, key_header="order-17").json()["error"]
        assert (legacy["code"], legacy["keybrake"]["charge_id"]) == ("duplicate_suspected", made)
        assert len(in_process.charges()) == 1


def test_explicit_keys_are_scoped_by_customer(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        first = in_process.charge(key, key_header="june")
        second = in_process.charge(key, customer="cus_B2", key_header="june")
        assert (first.status_code, second.status_code) == (200, 200)
        assert (
            error_of(in_process.charge(key, amount=100, key_header="june"))
            == "idempotency_key_reused"
        )
        assert len(in_process.charges()) == 2


def test_a_restart_between_charge_and_answer_gives_the_same_charge(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault("drop_after")
        in_process.charge(key, period="2026-11")
        in_process.restart()
        answer = in_process.charge(key, period="2026-11")
        assert (answer.status_code, answer.json()["id"]) == (200, in_process.charges()[0]["id"])
        assert len(in_process.charges()) == 1


def test_every_money_request_has_a_decision_and_an_outcome_row(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.charge(key, period="2026-11")
        operation = in_process.operations()[0]
        rows = in_process.audit(operation=operation.id)
        assert [(row["kind"], row["decision"]) for row in rows] == [
            ("decision", "proceed"),
            ("outcome", "succeeded"),
        ]
        assert rows[1]["object_id"] == operation.object_id


REFUSALS: dict[str, tuple[dict[str, Any], str | None, int, str]] = {
    "no key": ({}, None, 401, "vault_key_missing"),
    "amount zero": ({"amount": 0}, "billing", 400, "parameter_invalid"),
    "amount negative": ({"amount": -1}, "billing", 400, "parameter_invalid"),
    "amount decimal": ({"amount": "29.00"}, "billing", 400, "parameter_invalid"),
    "amount float": ({"amount": "2900.0"}, "billing", 400, "parameter_invalid"),
    "amount full width": (
        {"amount": "\uff12\uff19\uff10\uff10"},
        "billing",
        400,
        "parameter_invalid",
    ),
    "amount not a number": ({"amount": "NaN"}, "billing", 400, "parameter_invalid"),
    "amount huge": ({"amount": 10**12}, "billing", 400, "parameter_invalid"),
    "yen with decimals": (
        {"amount": "500.5", "currency": "jpy"},
        "billing",
        400,
        "parameter_invalid",
    ),
    "krona by one": (
        {"amount": 101, "currency": "isk"},
        "billing",
        400,
        "parameter_invalid",
    ),
    "month thirteen": ({"period": "2026-13"}, "billing", 400, "parameter_invalid"),
    "month without year": ({"period": "June"}, "billing", 400, "parameter_invalid"),
    "empty period": ({"period": ""}, "billing", 400, "parameter_invalid"),
    "far period": ({"period": "2031-01"}, "billing", 400, "period_out_of_window"),
    "customer malformed": ({"customer": "alice"}, "billing", 400, "parameter_invalid"),
    "own mark": ({"metadata[keybrake_operation]": "x"}, "billing", 403, "parameter_not_allowed"),
    "transfer": ({"transfer_data[destination]": "acct_1"}, "billing", 403, "parameter_not_allowed"),
    "reference": ({"metadata[reference]": "x"}, "billing", 403, "parameter_not_allowed"),
    "audit key": ({"period": "2026-11"}, "audit", 403, "vault_key_not_authorized"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_with_its_code_and_reserves_nothing(tmp_path: Path, case: str) -> None:
    form, role, status, code = REFUSALS[case]
    with InProcessProxy(tmp_path) as in_process:
        if role is None:
            answer = in_process.client.post("/v1/charges", data={"amount": "1"})
        else:
            answer = in_process.charge(in_process.issue(role), **form)
        assert (answer.status_code, error_of(answer)) == (status, code)
        assert in_process.operations() == []
        assert in_process.stripe.get("/_sandbox/state").json()["charges"] == []


def test_a_revoked_key_does_nothing_more(tmp_path: Path) -> None:
    from kb_mcp.operators.actions.keys import revoke_key
    from kb_mcp.proxy.ledger.records import KeyId

    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        store = in_process.proxy.store
        in_process.run(revoke_key(store.ledger, store.records, KeyId(key.id), "test", "me", 1))
        refused = in_process.charge(key, period="2026-11")
        assert (refused.status_code, error_of(refused)) == (401, "vault_key_revoked")
        assert in_process.charges() == []


def test_a_dropped_answer_is_replayed_by_reading_the_charge(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        made = in_process.charge(key, period="2026-11").json()["id"]
        in_process.turn_clock(91 * 86_400)
        in_process.recover()
        in_process.run(in_process.proxy.recovery.drop_answers())
        assert in_process.operations()[0].answer is None
        replayed = in_process.charge(key, period="2026-11")
        assert (replayed.json()["id"], replayed.headers["idempotent-replayed"]) == (made, "true")
        assert len(in_process.charges()) == 1


def test_a_joined_caller_leaves_one_row_however_often_it_looks(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process, ThreadPoolExecutor(2) as pool:
        key = in_process.issue()
        in_process.stripe.post(
            "/_sandbox/faults",
            json=[{"match": "POST /v1/charges", "kind": "delay", "times": 1, "seconds": 1}],
        )
        answers = list(pool.map(lambda _: in_process.charge(key, period="2026-11"), range(2)))
        assert {each.status_code for each in answers} == {200}
        decisions = [row["decision"] for row in in_process.audit() if row["kind"] == "decision"]
        assert sorted(decisions) == ["join", "proceed", "replay"]


def test_a_body_paid_late_in_its_window_is_not_charged_again_by_a_runtime(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        in_process.fault("402")
        assert in_process.charge(key).status_code == 402
        in_process.turn_clock(20 * 3600 - 60)
        made = in_process.charge(key).json()["id"]
        in_process.turn_clock(120)
        assert in_process.charge(key).json()["id"] == made
        in_process.turn_clock(15 * 60)
        assert in_process.charge(key).json()["id"] != made


def test_periods_that_share_days_are_one_bill_through_every_endpoint(tmp_path: Path) -> None:
    intents = "/v1/payment_intents"
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(BOTH)
        assert in_process.charge(key, period="2026-11").status_code == 200
        refused = (
            in_process.charge(key, period="2026-11-10/2026-11-20", amount=100),
            in_process.charge(key, period="2026-11-11", currency="eur", key_header="mine"),
            in_process.charge(key, description=f"Subscription {lately('2026-11-28/2026-12-28')}"),
            in_process.charge(key, intents, period="2026-10-15/2026-11-15", amount=5000),
        )
        for answer in refused:
            assert (answer.status_code, error_of(answer)) == (400, "period_already_charged")
            told = answer.json()["error"]
            assert told["keybrake"]["charge_id"] == in_process.charges()[0]["id"]
            assert told["keybrake"]["billing_period"] == lately("2026-11")
        assert in_process.charge(key, intents, period="2026-10", amount=5000).status_code == 200
        assert len(in_process.charges()) == 1


def test_overlapping_periods_asked_for_at_once_are_charged_once(tmp_path: Path) -> None:
    periods = ["2026-11", "2026-11-10/2026-11-20", "2026-11-11", "2026-10-15/2026-11-15"] * 4
    with InProcessProxy(tmp_path) as in_process, ThreadPoolExecutor(16) as pool:
        key = in_process.issue()
        bills = enumerate(periods)
        answers = list(
            pool.map(lambda b: in_process.charge(key, period=b[1], amount=100 + b[0]), bills)
        )
        assert [each.status_code for each in answers].count(200) == 1
        assert len(in_process.charges()) == 1


def test_a_key_bills_the_kinds_of_period_that_its_policy_names(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(built_in("billing").model_copy(update={"period_kinds": ("month",)}))
        refused = in_process.charge(key, period="2026-11-11")
        assert (refused.status_code, error_of(refused)) == (400, "period_out_of_window")
        assert refused.json()["error"]["keybrake"] == {"period_kinds": ["month"]}
        described = in_process.charge(key, description=f"Subscription {lately('2026-11-11')}")
        assert error_of(described) == "period_out_of_window"
        assert in_process.charge(key, period="2026-11").status_code == 200
        own = in_process.get(key, "/keybrake/v1/key").json()
        assert own["policy"]["period_kinds"] == ["month"]
