"""The tools against a whole proxy: charge, give back, ask again, look it up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import Answered, call_tool
from kb_mcp.agent.catalogue import ToolName
from kb_mcp.agent.client.line import CallContext, InProcessLine
from kb_mcp.operators.actions.keys import revoke_key
from kb_mcp.operators.actions.operations import By, Reopening, reopen
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.ledger.records import KeyId, Operation
from tests.in_process_proxy import InProcessProxy, Issued
from tests.months import lately

BILL = {"customer_id": "cus_A1", "amount_cents": 2900, "billing_period": lately("2026-11")}


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[InProcessProxy]:
    with InProcessProxy(tmp_path) as built:
        built.begin_day()
        yield built


def tools(in_process: InProcessProxy, refunds: Issued) -> Billing:
    keys = {
        ToolName.CHARGE: in_process.issue("billing").token,
        ToolName.CHARGE_STATUS: in_process.issue("audit").token,
        ToolName.REFUND: refunds.token,
    }
    return Billing(keys, InProcessLine(in_process.agents, in_process.loop))


def call(billing: Billing, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = call_tool(billing, tool, arguments, CallContext("owl", "night"))
    assert isinstance(answer, Answered), answer
    return answer.result.model_dump(mode="json", exclude_none=True)


def test_a_refund_is_made_once_and_the_look_up_tells_it(in_process: InProcessProxy) -> None:
    billing = tools(in_process, in_process.issue("refunds"))
    charge = call(billing, "charge", **BILL)["charge_id"]
    first = call(billing, "refund", charge_id=charge, amount_cents=900, reason="duplicate")
    again = call(billing, "refund", charge_id=charge, amount_cents=900)
    other = call(billing, "refund", charge_id=charge, amount_cents=100)
    assert (first["status"], first["already_refunded"]) == ("succeeded", False)
    assert (again["refund_id"], again["already_refunded"]) == (first["refund_id"], True)
    assert (other["status"], other["code"]) == ("refused", "already_refunded")
    assert other["refund_id"] == first["refund_id"]
    status = call(billing, "charge_status", charge_id=charge)
    assert status["amount_refunded"] == 900
    (shown,) = status["refunds"]
    assert (shown["refund_id"], shown["amount_cents"]) == (first["refund_id"], 900)
    by_bill = call(
        billing, "charge_status", customer_id="cus_A1", billing_period=BILL["billing_period"]
    )
    assert by_bill["refunds"] == status["refunds"]
    billing.close()


def test_the_rest_of_a_charge_is_refunded_once_an_operator_reopened_its_refund(
    in_process: InProcessProxy,
) -> None:
    policy = built_in("refunds").model_copy(
        update={"allow_reference": True, "max_refunds_per_charge": 3}
    )
    billing = tools(in_process, in_process.issue(policy))
    charge = call(billing, "charge", **BILL)["charge_id"]
    part = call(billing, "refund", charge_id=charge, amount_cents=900)
    told = call(billing, "refund", charge_id=charge)
    assert (told["refund_id"], told["amount_cents"]) == (part["refund_id"], 900)
    assert "must first be allowed by an operator" in told["next_step"]
    # More refunds than one need a reference each, which the tool does not have.
    assert call(billing, "refund", charge_id=charge, amount_cents=2000)["code"] == (
        "already_refunded"
    )
    (operation,) = (each for each in in_process.operations() if each.kind == "refund")
    ledger = in_process.proxy.store.ledger
    again = reopen(ledger, operation, By("mira", "all of it"), Reopening(), refunded=False)
    assert isinstance(in_process.run(again), Operation)
    rest = call(billing, "refund", charge_id=charge)
    assert (rest["status"], rest["amount_cents"]) == ("succeeded", 2000)
    billing.close()


def test_a_lost_refund_is_told_as_unknown_until_it_is_found(in_process: InProcessProxy) -> None:
    billing = tools(in_process, in_process.issue("refunds"))
    charge = call(billing, "charge", **BILL)["charge_id"]
    in_process.fault("drop_before", "POST /v1/refunds")
    lost = call(billing, "refund", charge_id=charge)
    assert (lost["status"], lost["code"]) == ("unknown", "outcome_unknown")
    (shown,) = call(billing, "charge_status", charge_id=charge)["refunds"]
    assert (shown["status"], shown["amount_cents"]) == ("unknown", 2900)
    made = call(billing, "refund", charge_id=charge)
    assert made["status"] == "succeeded"
    (shown,) = call(billing, "charge_status", charge_id=charge)["refunds"]
    assert (shown["refund_id"], shown["status"]) == (made["refund_id"], "succeeded")
    billing.close()


def test_what_others_refunded_is_told_too(in_process: InProcessProxy) -> None:
    billing = tools(in_process, in_process.issue("refunds"))
    charge = call(billing, "charge", **BILL)["charge_id"]
    stripe = {"Authorization": "Bearer rk_test_sandbox"}
    form = {"charge": charge, "amount": "2900"}
    by_hand = in_process.stripe.post("/v1/refunds", data=form, headers=stripe).json()["id"]
    refused = call(billing, "refund", charge_id=charge)
    assert (refused["code"], refused["already_refunded"], refused["amount_left"]) == (
        "already_refunded",
        True,
        0,
    )
    assert call(billing, "charge_status", charge_id=charge)["refunds"][0]["refund_id"] == by_hand
    billing.close()


def test_a_key_of_other_customers_sees_no_refund(in_process: InProcessProxy) -> None:
    billing = tools(in_process, in_process.issue("refunds"))
    charge = call(billing, "charge", **BILL)["charge_id"]
    call(billing, "refund", charge_id=charge, amount_cents=900)
    for customer, seen in (("cus_A1", True), ("cus_B2", False)):
        fields = {
            "role": "reader",
            "allow": ["GET /v1/charges/*"],
            "customers": {"ids": [customer]},
        }
        key = in_process.issue(Policy.model_validate(fields, strict=False))
        answer = in_process.get(key, f"/keybrake/v1/operations?charge_id={charge}")
        assert ("refunds" in answer.json(), bool(answer.json()["data"])) == (seen, seen)
    billing.close()


@pytest.mark.parametrize("how", ["revoked", "frozen"])
def test_a_dead_key_refunds_nothing(in_process: InProcessProxy, how: str) -> None:
    caps = {"refund_caps": {"daily": {"usd": 10_000}}, "daily_declines": 1}
    policy = built_in("billing-with-refunds").model_dump(mode="json", by_alias=True) | caps
    key = in_process.issue(Policy.model_validate(policy, strict=False))
    charge = in_process.charge(key, period="2026-11").json()["id"]
    if how == "frozen":
        in_process.charge(key, customer="cus_Declined1", period="2026-11")
    else:
        store = in_process.proxy.store
        in_process.run(revoke_key(store.ledger, store.records, KeyId(key.id), "t", "t", 0))
    refused = in_process.refund(key, charge)
    assert refused.json()["error"]["code"] == f"vault_key_{how}"
    assert in_process.refunds() == []
