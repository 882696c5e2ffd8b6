"""The five further ways in which agents bill twice, each through the whole of kb-mcp."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kb_mcp.agent.calls import Invalid, read_arguments
from kb_mcp.agent.catalogue import ChargeArguments, ToolName, find_tool
from kb_mcp.agent.client.line import CallContext
from tests.in_process_proxy import InProcessProxy, error_of
from tests.months import lately, spelled
from tests.scenarios.acts import another, billing, broken_invariants, policy

BILL = {"customer_id": "cus_Abc123", "amount_cents": 2900, "billing_period": lately("2026-11")}


def test_concurrent_invocations_of_one_bill_make_one_charge(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process, ThreadPoolExecutor(24) as pool:
        keys = [in_process.issue(), in_process.issue("billing-with-status")]

        def ask(number: int) -> tuple[int, str]:
            # Each invocation has a key that its SDK made up, as a runtime's retries do.
            answer = in_process.charge(
                keys[number % 2], period="2026-11", key_header=str(uuid.UUID(int=number, version=4))
            )
            return answer.status_code, answer.json()["id"]

        answers = set(pool.map(ask, range(24)))
        assert answers == {(200, in_process.charges()[0]["id"])}
        assert len(in_process.charges()) == 1
        assert broken_invariants(in_process) == []


def test_an_amount_inflated_by_a_knowledge_base_is_no_second_bill(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(per_charge={"usd": 10_000})
        first = in_process.charge(key, amount=2900, period="2026-11")
        for inflated in (2901, 3190, 9999):
            refused = in_process.charge(key, amount=inflated, period="2026-11")
            assert error_of(refused) == "period_already_charged"
            assert refused.json()["error"]["keybrake"]["charge_id"] == first.json()["id"]
        refused = in_process.charge(key, amount=290_000, period="2026-12")
        assert error_of(refused) == "spend_cap_exceeded"
        assert [each["amount"] for each in in_process.charges()] == [2900]


def test_inflating_a_declined_amount_does_not_buy_more_attempts(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue(policy(max_attempts=2))
        for amount in (2900, 3900):
            answer = in_process.charge(
                key, customer="cus_Declined", amount=amount, period="2026-11"
            )
            assert answer.status_code == 402
            in_process.turn_clock(16 * 60)
        answer = in_process.charge(key, customer="cus_Declined", amount=4900, period="2026-11")
        assert (answer.status_code, error_of(answer)) == (403, "attempts_exhausted")


def test_fields_renamed_under_an_old_alias_name_the_same_bill(tmp_path: Path) -> None:
    tool = find_tool(ToolName.CHARGE, allow_reference=False)
    assert tool is not None
    renamed = replace(tool, aliases={"customer": "customer_id", "amount": "amount_cents"})
    old = {"customer": "cus_Abc123", "amount": 2900, "billing_period": lately("2026-11")}
    with InProcessProxy(tmp_path) as in_process:
        mine = billing(in_process, in_process.issue())
        before, after = read_arguments(renamed, old), read_arguments(tool, BILL)
        assert isinstance(before, ChargeArguments)
        assert isinstance(after, ChargeArguments)
        first = mine.charge(before, CallContext(session_id="old-alias"))
        second = mine.charge(after, CallContext(session_id="new-alias"))
        assert (second.charge_id, second.already_charged) == (first.charge_id, True)
        # Beside them a handler of an older version, with wording and a key of its own.
        legacy = in_process.charge(
            in_process.issue(),
            customer="cus_Abc123",
            description=f"Subscription {spelled('2026-11')}",
            key_header="invoice-77",
        )
        assert legacy.json()["id"] == first.charge_id
        assert len(in_process.charges()) == 1


def test_an_old_name_that_nobody_knows_any_more_is_refused_and_sends_nothing(
    tmp_path: Path,
) -> None:
    tool = find_tool(ToolName.CHARGE, allow_reference=False)
    assert tool is not None
    read = read_arguments(tool, {**BILL, "amount": 2900})
    assert isinstance(read, Invalid)
    with InProcessProxy(tmp_path) as in_process:
        answer = in_process.charge(in_process.issue(), period="2026-11", amount_cents=2900)
        assert (answer.status_code, error_of(answer)) == (403, "parameter_not_allowed")
        assert in_process.operations() == []


def test_a_session_that_expired_and_was_replayed_makes_no_second_charge(tmp_path: Path) -> None:
    tool = find_tool(ToolName.CHARGE, allow_reference=False)
    assert tool is not None
    arguments = read_arguments(tool, BILL)
    assert isinstance(arguments, ChargeArguments)
    with InProcessProxy(tmp_path) as in_process:
        mine = billing(in_process, in_process.issue())
        first = mine.charge(arguments, CallContext(agent_id="biller", session_id="s-1"))
        # Past the session's life, past Stripe's memory of keys, and after a restart of ours.
        for number, seconds in enumerate((3_600, 2 * 86_400, 40 * 86_400), start=2):
            in_process.turn_clock(seconds)
            in_process.restart()
            again = billing(in_process, in_process.issue()).charge(
                arguments, CallContext(agent_id="biller", session_id=f"s-{number}")
            )
            assert (again.charge_id, again.already_charged) == (first.charge_id, True)
        assert len(in_process.charges()) == 1


def test_two_regions_on_one_store_make_one_charge(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as east:
        key = east.issue(daily={"usd": 2900})
        east.fault("drop_after")
        assert east.charge(key, period="2026-11").status_code == 504
        with another(east) as west:
            made = west.charge(key, period="2026-11")
            assert made.status_code == 200
            assert east.charge(key, period="2026-11").json()["id"] == made.json()["id"]
            other = west.charge(key, customer="cus_B2", period="2026-11")
            assert error_of(other) == "spend_cap_exceeded"
        assert len(east.charges()) == 1
        assert broken_invariants(east) == []


@pytest.mark.parametrize("lost", [True, False])
def test_two_regions_with_a_store_each_never_charge_twice(tmp_path: Path, lost: bool) -> None:
    with InProcessProxy(tmp_path) as east:
        made = east.charge(east.issue(), period="2026-11")
        assert made.status_code == 200
        apart = {"KEYBRAKE_DATABASE_URL": f"sqlite:///{tmp_path}/west.db"}
        with another(east, **apart) as west:
            key = west.issue()
            if lost:
                east.fault("drop_before")
                west.charge(key, period="2026-11")
            # The derived key is the same everywhere, and Stripe holds the other region's bytes.
            refused = west.charge(key, period="2026-11")
            assert (refused.status_code, error_of(refused)) == (504, "outcome_unknown")
            west.recover()
            # What the other region made bears this bill's key: it is this bill.
            assert west.charge(key, period="2026-11").json()["id"] == made.json()["id"]
        assert len(east.charges()) == 1
