"""One refund through the whole of wing B, with each of the real stores and the real sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.roles import built_in
from tests.in_process_proxy import InProcessProxy, Issued, error_of
from tests.postgres import database, server

__all__ = ["database", "server"]

STRIPE = {"Authorization": "Bearer rk_test_sandbox"}


@pytest.fixture(params=["sqlite", "postgres"])
def in_process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InProcessProxy]:
    stored: dict[str, str] = {}
    if request.param == "postgres":
        stored = request.getfixturevalue("database").environ
    with InProcessProxy(tmp_path, **stored) as built:
        built.begin_day()
        yield built


def policy(**fields: Any) -> Policy:
    """Return the role `refunds` with other fields."""
    return Policy.model_validate(
        built_in("refunds").model_dump(mode="json", by_alias=True) | fields, strict=False
    )


def charged(in_process: InProcessProxy, customer: str = "cus_A1", **form: Any) -> str:
    key = in_process.issue("billing-payment-intents" if "path" in form else "billing")
    answer = in_process.charge(key, customer=customer, period="2026-11", **form)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def refunder(in_process: InProcessProxy, **fields: Any) -> Issued:
    return in_process.issue(policy(**fields))


def by_hand(in_process: InProcessProxy, charge: str, amount: int) -> str:
    made = in_process.stripe.post(
        "/v1/refunds", data={"charge": charge, "amount": str(amount)}, headers=STRIPE
    )
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def given_back(in_process: InProcessProxy) -> int:
    return sum(each["amount"] for each in in_process.refunds())


def facts_of(answer: Any) -> dict[str, Any]:
    return dict(answer.json()["error"]["keybrake"])


def test_the_same_refund_asked_for_five_times_is_made_once(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process)
    answers = [in_process.refund(key, charge, amount=900) for _ in range(5)]
    assert [each.status_code for each in answers] == [200] * 5, answers[-1].text
    assert len({each.json()["id"] for each in answers}) == 1
    assert given_back(in_process) == 900


@pytest.mark.parametrize(
    "changes",
    [
        {"key_header": "another"},
        {"reason": "duplicate"},
        {"metadata[note]": "again"},
        {"amount": None},
        {"currency": "usd"},
        {"metadata[billing_period]": "2026-11"},
    ],
)
def test_another_key_or_one_more_parameter_makes_no_second_refund(
    in_process: InProcessProxy, changes: dict[str, Any]
) -> None:
    charge, key = charged(in_process), refunder(in_process)
    first = in_process.refund(key, charge, amount=900, key_header="first")
    again = in_process.refund(key, charge, **({"amount": 900} | changes))
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert given_back(in_process) == 900


def test_without_an_amount_what_is_left_is_given_back_and_said(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process)
    by_hand(in_process, charge, 400)
    made = in_process.refund(key, charge)
    assert (made.status_code, made.json()["amount"]) == (200, 2500)
    [operation] = [each for each in in_process.operations() if each.kind == "refund"]
    assert (operation.amount, operation.customer, operation.held) == (2500, "cus_A1", 2500)
    assert in_process.refund(key, charge).json()["id"] == made.json()["id"]
    assert given_back(in_process) == 2900


def test_another_amount_is_refused_and_names_the_refund(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process)
    made = in_process.refund(key, charge, amount=900).json()["id"]
    other = in_process.refund(key, charge, amount=800)
    assert (other.status_code, error_of(other)) == (400, "already_refunded")
    assert facts_of(other)["refund_id"] == made
    assert f"before: {made}, 9.00 USD. Nothing" in other.json()["error"]["message"]
    assert given_back(in_process) == 900


def test_refunds_made_by_hand_are_counted(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process)
    by_hand(in_process, charge, 2000)
    over = in_process.refund(key, charge, amount=901)
    assert (over.status_code, error_of(over), facts_of(over)["left"]) == (
        400,
        "refund_exceeds_charge",
        900,
    )
    assert in_process.refund(key, charge, amount=900).status_code == 200
    assert given_back(in_process) == 2900


def test_a_charge_that_is_refunded_in_full_is_named_as_such(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process)
    by_hand(in_process, charge, 2900)
    for amount in (None, 100):
        refused = in_process.refund(key, charge, amount=amount)
        assert (refused.status_code, error_of(refused)) == (400, "already_refunded")
    assert given_back(in_process) == 2900


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "500_after"])
def test_a_lost_answer_is_unknown_and_the_next_call_makes_no_second_refund(
    in_process: InProcessProxy, kind: str
) -> None:
    charge, key = charged(in_process), refunder(in_process)
    in_process.fault(kind, "POST /v1/refunds")
    first = in_process.refund(key, charge, amount=900)
    assert (first.status_code, error_of(first)) == (504, "outcome_unknown")
    assert "Do not charge or refund again" in first.json()["error"]["message"]
    assert in_process.operations()[0].held == 900
    in_process.refund(key, charge, amount=900)
    in_process.recover()
    assert in_process.refund(key, charge).status_code == 200
    assert given_back(in_process) == 900


def test_recovery_reads_what_became_of_a_lost_answer(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process)
    in_process.fault("drop_after", "POST /v1/refunds")
    in_process.refund(key, charge)
    in_process.recover()
    operation = in_process.operations()[0]
    assert (operation.state.value, operation.object_id) == (
        "succeeded",
        in_process.refunds()[0]["id"],
    )


def test_recovery_voids_only_after_grace_and_the_charge_can_then_be_refunded(
    in_process: InProcessProxy,
) -> None:
    charge, key = charged(in_process), refunder(in_process)
    in_process.fault("drop_before", "POST /v1/refunds")
    in_process.refund(key, charge, amount=900)
    in_process.recover()
    assert in_process.operations()[0].state.value == "unknown"
    in_process.turn_clock(700)
    in_process.recover()
    assert (in_process.operations()[0].state.value, in_process.operations()[0].held) == (
        "voided",
        0,
    )
    assert error_of(in_process.refund(key, charge, amount=800)) == "already_refunded"
    assert in_process.refund(key, charge, amount=900).status_code == 200
    assert given_back(in_process) == 900


def test_while_one_refund_is_unknown_no_other_can_exceed_the_charge(
    in_process: InProcessProxy,
) -> None:
    charge = charged(in_process)
    key = refunder(in_process, max_refunds_per_charge=5)
    in_process.fault("drop_before", "POST /v1/refunds")
    assert in_process.refund(key, charge, amount=2000).status_code == 504
    reference = {"metadata[reference]": "second"}
    over = in_process.refund(key, charge, amount=901, **reference)
    assert (error_of(over), facts_of(over)["left"]) == ("refund_exceeds_charge", 900)
    assert in_process.refund(key, charge, **reference).json()["amount"] == 900
    assert in_process.refund(key, charge, amount=2000).status_code == 200
    assert given_back(in_process) == 2900


def test_a_further_refund_needs_leave_and_a_reference(in_process: InProcessProxy) -> None:
    charge = charged(in_process)
    once, thrice = refunder(in_process), refunder(in_process, max_refunds_per_charge=3)
    assert in_process.refund(once, charge, amount=100).status_code == 200
    sent = {"metadata[reference]": "b"}
    assert error_of(in_process.refund(once, charge, amount=200, **sent)) == "parameter_not_allowed"
    assert error_of(in_process.refund(thrice, charge, amount=200)) == "already_refunded"
    assert in_process.refund(thrice, charge, amount=200, **sent).status_code == 200
    third = {"metadata[reference]": "c"}
    assert in_process.refund(thrice, charge, amount=300, **third).status_code == 200
    fourth = {"metadata[reference]": "d"}
    assert error_of(in_process.refund(thrice, charge, amount=400, **fourth)) == "already_refunded"
    assert given_back(in_process) == 600


def test_concurrent_callers_share_one_refund(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: in_process.refund(key, charge, amount=900), range(20)))
    assert {each.status_code for each in answers} == {200}, [each.text for each in answers]
    assert len({each.json()["id"] for each in answers}) == 1
    assert given_back(in_process) == 900


def test_concurrent_refunds_of_one_charge_never_exceed_it(in_process: InProcessProxy) -> None:
    charge = charged(in_process)
    key = refunder(in_process, max_refunds_per_charge=60)

    def ask(number: int) -> int:
        sent = {"metadata[reference]": f"part-{number}"}
        return in_process.refund(key, charge, amount=500, **sent).status_code

    with ThreadPoolExecutor(30) as pool:
        statuses = list(pool.map(ask, range(30)))
    assert given_back(in_process) == 2500
    assert statuses.count(200) == 5


def test_sixty_callers_against_a_refund_cap_of_five_make_exactly_five(
    in_process: InProcessProxy,
) -> None:
    charges = [charged(in_process, f"cus_C{number}") for number in range(60)]
    key = refunder(in_process, refund_caps={"daily": {"usd": 500}})
    with ThreadPoolExecutor(60) as pool:
        statuses = list(
            pool.map(lambda charge: in_process.refund(key, charge, amount=100).status_code, charges)
        )
    assert (statuses.count(200), statuses.count(403)) == (5, 55)
    assert given_back(in_process) == 500


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"refund_caps": {"per_refund": {"usd": 899}}}, "per refund"),
        ({"refund_caps": {"daily": {"usd": 899}}}, "per key and day"),
        ({"refund_caps": {"monthly": {"usd": 899}}}, "per key and month"),
        ({"refund_caps": {"per_customer_daily": {"usd": 899}}}, "per customer and day"),
    ],
)
def test_every_refund_cap_holds_and_gives_charges_no_room(
    in_process: InProcessProxy, fields: dict[str, Any], kind: str
) -> None:
    charge, key = charged(in_process), refunder(in_process, **fields)
    refused = in_process.refund(key, charge, amount=900)
    assert (refused.status_code, error_of(refused)) == (403, "refund_cap_exceeded")
    assert facts_of(refused)["cap_kind"] == kind
    assert in_process.refund(key, charge, amount=899).status_code == 200


def test_a_refund_cap_in_another_currency_refuses(in_process: InProcessProxy) -> None:
    charge = charged(in_process)
    key = refunder(in_process, refund_caps={"daily": {"eur": 5000}})
    assert error_of(in_process.refund(key, charge)) == "currency_not_allowed"
    assert given_back(in_process) == 0


def test_a_policy_that_caps_charges_alone_refunds_nothing(in_process: InProcessProxy) -> None:
    charge, key = charged(in_process), refunder(in_process, caps={"daily": {"usd": 5000}})
    refused = in_process.refund(key, charge, amount=900)
    assert (refused.status_code, error_of(refused)) == (403, "amount_not_metered")
    assert given_back(in_process) == 0


def test_the_number_of_refunds_a_day_is_limited(in_process: InProcessProxy) -> None:
    key = refunder(in_process, daily_refunds=1)
    assert in_process.refund(key, charged(in_process)).status_code == 200
    second = in_process.refund(key, charged(in_process, "cus_B2"))
    assert (second.status_code, error_of(second)) == (403, "refund_count_exceeded")


def test_refunds_and_charges_have_windows_of_their_own(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path, KEYBRAKE_ACCOUNT_DAILY_REFUND_CAP="10.00usd") as in_process:
        caps = {"caps": {"daily": {"usd": 2900}}, "refund_caps": {"daily": {"usd": 2900}}}
        both = built_in("billing-with-refunds").model_dump(mode="json", by_alias=True) | caps
        key = in_process.issue(Policy.model_validate(both, strict=False))
        charge = in_process.charge(key, period="2026-11").json()["id"]
        over = in_process.refund(key, charge, amount=1001)
        assert (error_of(over), facts_of(over)["cap_kind"]) == (
            "refund_cap_exceeded",
            "account and day",
        )
        assert in_process.refund(key, charge, amount=1000).status_code == 200
        refused = in_process.charge(key, customer="cus_B2", amount=50, period="2026-11")
        assert error_of(refused) == "spend_cap_exceeded", "a refund gives no cap back"


def test_a_refund_above_the_threshold_waits_for_an_operator(in_process: InProcessProxy) -> None:
    charge = charged(in_process)
    key = refunder(in_process, refund_approval_above={"usd": 500})
    waits = in_process.refund(key, charge)
    assert (waits.status_code, error_of(waits)) == (403, "approval_required")
    assert given_back(in_process) == 0
    assert in_process.refund(key, charge, amount=500).status_code == 200
