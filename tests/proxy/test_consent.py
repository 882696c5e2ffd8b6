"""Over the wire, on both stores: what an operator was shown is charged, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kb_mcp.operators.actions.keys import revoke_key
from kb_mcp.operators.actions.operations import decide_approval
from kb_mcp.operators.reports.views import approval_record
from kb_mcp.proxy.access.policy import CapRules, ParameterRule, Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.ledger.records import Approval, Changes, KeyId, Lineage, Refs, VaultKey
from tests.in_process_proxy import InProcessProxy, Issued, error_of
from tests.proxy.stores.conftest import database, server

__all__ = ["database", "server"]

INTENTS = "/v1/payment_intents"


@pytest.fixture(params=["sqlite", "postgres"])
def in_process(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InProcessProxy]:
    if request.param == "postgres":
        monkeypatch.setattr(InProcessProxy, "store", request.getfixturevalue("database").environ)
    with InProcessProxy(tmp_path) as built:
        built.begin_day()
        yield built


def asking(in_process: InProcessProxy, role: str = "billing", **above: int) -> Issued:
    return in_process.issue(built_in(role).model_copy(update={"approval_above": above}))


def approvals(in_process: InProcessProxy) -> list[Approval]:
    """Return every approval, oldest first."""
    return list(in_process.run(in_process.proxy.store.records.approvals()))[::-1]


def decide(in_process: InProcessProxy, approval: Approval, verdict: str = "approved") -> None:
    in_process.run(decide_approval(in_process.proxy.store.ledger, approval.id, verdict, "ann"))  # type: ignore[arg-type] # one of two


@pytest.mark.parametrize(
    "other",
    [{"amount": 9_999_900}, {"currency": "kwd", "amount": 99_999_990}, {"currency": "jpy"}],
)
def test_an_approval_under_a_callers_key_charges_what_was_shown(
    in_process: InProcessProxy, other: dict[str, Any]
) -> None:
    key = asking(in_process, usd=25_000, kwd=0, jpy=0)
    shown: dict[str, Any] = {"amount": 30_000, "key_header": "june"}
    assert error_of(in_process.charge(key, **shown)) == "approval_required"
    assert error_of(in_process.charge(key, **(shown | other))) == "approval_required"
    first, second = approvals(in_process)
    decide(in_process, first)
    assert error_of(in_process.charge(key, **(shown | other))) == "approval_required"
    assert in_process.charge(key, **shown).status_code == 200
    assert [(each["amount"], each["currency"]) for each in in_process.charges()] == [
        (30_000, "usd")
    ]
    record = approval_record(second, in_process.proxy.store.clock.now(0))
    wanted = {"amount": 30_000, "currency": "usd", **other}
    assert (record["amount"], record["currency"]) == (wanted["amount"], wanted["currency"])
    told = next(row for row in in_process.audit() if row["decision"] == "approve")
    assert (told["amount"], told["currency"], told["customer_id"], told["key_id"]) == (
        30_000, "usd", "cus_A1", key.id,
    )  # fmt: skip


def test_a_looked_up_card_that_changed_since_needs_another_approval(
    in_process: InProcessProxy,
) -> None:
    key = asking(in_process, "billing-payment-intents", usd=1000)
    form = {"confirm": "true", "off_session": "true", "looked_up": True, "period": "2026-11"}
    first = in_process.charge(key, INTENTS, payment_method="pm_card_visa", **form)
    assert error_of(first) == "approval_required"
    decide(in_process, approvals(in_process)[0])
    other = in_process.charge(key, INTENTS, payment_method="pm_card_mastercard", **form)
    assert error_of(other) == "approval_required"
    assert [each.payment_method for each in approvals(in_process)] == [
        "pm_card_visa", "pm_card_mastercard",
    ]  # fmt: skip
    made = in_process.charge(key, INTENTS, payment_method="pm_card_visa", **form)
    assert made.json()["payment_method"] == "pm_card_visa"
    # What is paid is paid, whatever card a later call looks up.
    again = in_process.charge(key, INTENTS, payment_method="pm_card_mastercard", **form)
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (made.json()["id"], "true")


def test_two_keys_that_ask_for_one_bill_orphan_nothing_and_charge_once(
    in_process: InProcessProxy,
) -> None:
    one, two = asking(in_process, usd=1000), asking(in_process, usd=1000)
    for key in (one, two):
        assert error_of(in_process.charge(key, period="2026-11")) == "approval_required"
    for approval in approvals(in_process):
        decide(in_process, approval)
    made = in_process.charge(one, period="2026-11")
    assert (made.status_code, "idempotent-replayed" in made.headers) == (200, False)
    assert in_process.charge(two, period="2026-11").headers["idempotent-replayed"] == "true"
    assert len(in_process.charges()) == 1
    assert [each.state for each in approvals(in_process)] == ["used", "approved"]


def test_approvals_that_expired_undecided_lock_nobody_out(in_process: InProcessProxy) -> None:
    key = asking(in_process, usd=1000)
    for number in range(21):
        in_process.charge(key, customer=f"cus_N{number}", period="2026-11")
    assert len(approvals(in_process)) == 20
    in_process.turn_clock(25 * 3600)
    late = in_process.charge(key, customer="cus_N20", period="2026-11")
    assert error_of(late) == "approval_required"
    asked = approvals(in_process)[-1]
    assert late.json()["error"]["keybrake"]["approval"] == asked.id
    decide(in_process, asked)
    assert in_process.charge(key, customer="cus_N20", period="2026-11").status_code == 200


@pytest.mark.parametrize("currency", ["eur", "kwd", "jpy"])
def test_an_approval_limit_refuses_the_currencies_that_it_does_not_name(
    in_process: InProcessProxy, currency: str
) -> None:
    key = asking(in_process, usd=5000)
    for form in ({"period": "2026-11"}, {"key_header": "june"}, {}):
        refused = in_process.charge(key, currency=currency, amount=6_000_000, **form)
        assert error_of(refused) == "currency_not_allowed"
    assert in_process.charges() == []


def test_what_a_revoked_key_lost_is_not_charged_by_one_that_may_spend_less(
    in_process: InProcessProxy,
) -> None:
    runaway = in_process.issue()
    narrow = in_process.issue(
        built_in("billing").model_copy(
            update={"caps": CapRules(per_charge={"usd": 1000}), "approval_above": {"usd": 500}}
        )
    )
    in_process.fault("drop_before")
    lost = in_process.charge(runaway, amount=290_000, period="2026-11")
    assert error_of(lost) == "outcome_unknown"
    ledger, records = in_process.proxy.store.ledger, in_process.proxy.store.records
    in_process.run(revoke_key(ledger, records, runaway.id, "ran away", "ann", 0))  # type: ignore[arg-type] # its id
    refused = in_process.charge(narrow, amount=290_000, period="2026-11")
    assert (refused.status_code, error_of(refused)) == (504, "outcome_unknown")
    in_process.turn_clock(700)
    in_process.recover()
    assert in_process.operations()[0].state.value == "voided"
    assert (
        error_of(in_process.charge(narrow, amount=290_000, period="2026-11")) == "approval_required"
    )
    assert in_process.charges() == []


def test_a_ceiling_that_is_set_while_it_serves_holds_for_the_next_charge(
    in_process: InProcessProxy,
) -> None:
    key = in_process.issue()
    assert in_process.charge(key, period="2026-10", amount=5000).status_code == 200
    admin = in_process.proxy.store.open_store_admin()
    admin.set_facts({"ceilings": '{"usd": 6000}'})
    admin.close()
    assert error_of(in_process.charge(key, period="2026-11", amount=1001)) == "spend_cap_exceeded"
    refused = in_process.charge(key, period="2026-11", amount=100, currency="eur")
    assert error_of(refused) == "currency_not_allowed"
    assert in_process.charge(key, period="2026-11", amount=1000).status_code == 200


class FreezesBeforeTheSend:
    """A ledger in which an operator freezes the key once its charge is reserved."""

    def __init__(self, ledger: Any) -> None:
        self.ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

    async def find_key(self, key_id: KeyId) -> tuple[VaultKey, Lineage] | None:
        found: tuple[VaultKey, Lineage] | None = await self.ledger.find_key(key_id)
        assert found is not None
        frozen = Lineage(found[1].id, 1, "an operator said so")
        await self.ledger.transact(lambda _: Refs(), lambda _: (None, Changes(lineages=(frozen,))))
        return await self.ledger.find_key(key_id)  # type: ignore[no-any-return] # as above


def test_a_key_that_freezes_after_the_reservation_sends_nothing(tmp_path: Path) -> None:
    with InProcessProxy(tmp_path) as in_process:
        key = in_process.issue()
        app = in_process.proxy.app
        governor = app.pipeline.governor
        between = dataclasses.replace(governor, ledger=FreezesBeforeTheSend(governor.ledger))
        app.pipeline = dataclasses.replace(app.pipeline, governor=between)
        refused = in_process.charge(key, period="2026-11")
        assert (refused.status_code, error_of(refused)) == (403, "vault_key_frozen")
        assert in_process.charges() == []
        operation = in_process.operations()[0]
        assert (operation.state.value, operation.held) == ("failed", 0)


COLLECTOR = Policy(
    role="collector",
    allow=(
        "POST /v1/payment_intents",
        *(f"POST /v1/payment_intents/*/{step}" for step in ("confirm", "capture", "cancel")),
    ),
    parameters={"POST /v1/payment_intents": ParameterRule(allowed=("capture_method",))},
    max_attempts=9,
)


def step(in_process: InProcessProxy, key: Issued, intent: str, verb: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key.token}"}
    return in_process.client.post(f"{INTENTS}/{intent}/{verb}", headers=headers)


def freeze(in_process: InProcessProxy, key: Issued) -> None:
    found = in_process.run(in_process.proxy.store.ledger.find_key(KeyId(key.id)))
    assert found is not None
    frozen = (Lineage(found[1].id, 1, "an operator said so"),)
    ledger = in_process.proxy.store.ledger
    in_process.run(ledger.transact(lambda _: Refs(), lambda _: (None, Changes(lineages=frozen))))


def test_a_frozen_key_confirms_captures_and_sends_again_nothing_and_may_cancel(
    in_process: InProcessProxy,
) -> None:
    key = in_process.issue(COLLECTOR)
    form: dict[str, Any] = {"payment_method": "pm_card_visa"}
    waiting = in_process.charge(key, INTENTS, amount=9000, period="2026-10", **form).json()["id"]
    form |= {"confirm": "true", "off_session": "true"}
    manual = form | {"capture_method": "manual"}
    authorised = in_process.charge(key, INTENTS, amount=8000, period="2026-09", **manual)
    paid = in_process.charge(key, INTENTS, amount=6000, period="2026-08", **form)
    in_process.fault("drop_before", match="POST /v1/payment_intents")
    lost = in_process.charge(key, INTENTS, amount=7000, period="2026-11", **form)
    assert error_of(lost) == "outcome_unknown"
    freeze(in_process, key)
    assert error_of(step(in_process, key, waiting, "confirm")) == "vault_key_frozen"
    assert error_of(step(in_process, key, authorised.json()["id"], "capture")) == "vault_key_frozen"
    again = in_process.charge(key, INTENTS, amount=7000, period="2026-11", **form)
    assert (again.status_code, error_of(again)) == (504, "outcome_unknown")
    replayed = in_process.charge(key, INTENTS, amount=6000, period="2026-08", **form)
    assert replayed.json()["id"] == paid.json()["id"]
    assert step(in_process, key, waiting, "cancel").json()["status"] == "canceled"
    assert [each["amount"] for each in in_process.charges() if each["captured"]] == [6000]


def test_a_narrow_key_neither_confirms_nor_captures_what_another_has_made(
    in_process: InProcessProxy,
) -> None:
    maker = in_process.issue(COLLECTOR)
    narrow = in_process.issue(
        COLLECTOR.model_copy(
            update={"caps": CapRules(per_charge={"usd": 1000}), "approval_above": {"usd": 500}}
        )
    )
    form = {"payment_method": "pm_card_visa", "period": "2026-11", "amount": 290_000}
    intent = in_process.charge(maker, INTENTS, **form).json()["id"]
    assert error_of(step(in_process, narrow, intent, "confirm")) == "approval_required"
    decide(in_process, approvals(in_process)[0])
    # An operator's leave lifts the threshold, not the cap.
    assert error_of(step(in_process, narrow, intent, "confirm")) == "spend_cap_exceeded"
    assert error_of(step(in_process, narrow, intent, "cancel")) == "spend_cap_exceeded"
    assert in_process.charges() == []
    assert step(in_process, maker, intent, "confirm").json()["status"] == "succeeded"


def test_a_narrow_key_does_not_capture_another_keys_charge(in_process: InProcessProxy) -> None:
    endpoints = ("POST /v1/charges", "POST /v1/charges/*/capture")
    rules = {"POST /v1/charges": ParameterRule(allowed=("capture",))}
    wide = Policy(role="collector", allow=endpoints, parameters=rules)
    narrow = wide.model_copy(update={"caps": CapRules(daily={"usd": 1000})})
    maker, other = in_process.issue(wide), in_process.issue(narrow)
    made = in_process.charge(maker, period="2026-11", amount=290_000, capture="false").json()["id"]
    headers = {"Authorization": f"Bearer {other.token}"}
    for form in ({}, {"amount": "100"}):
        refused = in_process.client.post(f"/v1/charges/{made}/capture", headers=headers, data=form)
        assert error_of(refused) == "spend_cap_exceeded"
    assert [each["captured"] for each in in_process.charges()] == [False]


def test_a_charge_that_failed_is_not_captured_and_holds_nothing(in_process: InProcessProxy) -> None:
    endpoints = ("POST /v1/charges", "POST /v1/charges/*/capture")
    rules = {"POST /v1/charges": ParameterRule(allowed=("capture",))}
    key = in_process.issue(Policy(role="collector", allow=endpoints, parameters=rules))
    bill = {"customer": "cus_Declined", "period": "2026-11", "capture": "false"}
    declined = in_process.charge(key, **bill)
    failed = in_process.operations()[0]
    assert (error_of(declined), failed.state.value) == ("card_declined", "failed")
    in_process.turn_clock(16 * 60)  # the bill itself may be tried again by now
    headers = {"Authorization": f"Bearer {key.token}"}
    for _ in range(2):
        captured = in_process.client.post(
            f"/v1/charges/{failed.object_id}/capture", headers=headers
        )
        assert (captured.status_code, error_of(captured)) == (400, "charge_not_capturable")
    after = in_process.operations()[0]
    assert (after.state.value, after.held) == ("failed", 0)
    in_process.recover()
    assert in_process.operations()[0] == after


def test_an_authorisation_that_was_let_go_of_is_not_told_as_captured(
    in_process: InProcessProxy,
) -> None:
    endpoints = ("POST /v1/charges", "POST /v1/charges/*/capture", "POST /v1/charges/*")
    rules = {"POST /v1/charges": ParameterRule(allowed=("capture",))}
    key = in_process.issue(Policy(role="collector", allow=endpoints, parameters=rules))
    made = in_process.charge(key, period="2026-11", capture="false").json()["id"]
    stripe = {"Authorization": "Bearer rk_test_sandbox"}
    in_process.stripe.post("/v1/refunds", data={"charge": made}, headers=stripe)
    in_process.turn_clock(61)
    in_process.recover()
    assert in_process.operations()[0].state.value == "failed"
    headers = {"Authorization": f"Bearer {key.token}"}
    captured = in_process.client.post(f"/v1/charges/{made}/capture", headers=headers)
    assert (captured.status_code, error_of(captured)) == (400, "charge_not_capturable")
    described = in_process.client.post(
        f"/v1/charges/{made}", data={"description": "let go"}, headers=headers
    )
    assert (described.status_code, described.json()["description"]) == (200, "let go")
    operation = in_process.operations()[0]
    assert (operation.state.value, operation.held) == ("failed", 0)


def test_a_declined_charge_that_waits_for_an_approval_is_not_captured(
    in_process: InProcessProxy,
) -> None:
    base = {"role": "c", "allow": ("POST /v1/charges", "POST /v1/charges/*/capture")}
    free = in_process.issue(Policy.model_validate(base))
    asks = in_process.issue(Policy.model_validate({**base, "approval_above": {"usd": 1000}}))
    bill = {"customer": "cus_Declined", "period": "2026-11"}
    in_process.charge(free, **bill)
    charge = in_process.operations()[0].object_id
    in_process.turn_clock(16 * 60)
    assert error_of(in_process.charge(asks, **bill)) == "approval_required"
    for key in (free, asks):
        headers = {"Authorization": f"Bearer {key.token}"}
        captured = in_process.client.post(f"/v1/charges/{charge}/capture", headers=headers)
        assert captured.status_code in {400, 403}
    assert len(in_process.run(in_process.proxy.store.records.approvals())) == 1
    operation = in_process.operations()[0]
    assert (operation.state.value, operation.held) == ("awaiting_approval", 0)


def test_the_audit_says_what_refused_and_whose_dead_key_asked(in_process: InProcessProxy) -> None:
    key = in_process.issue(built_in("billing").model_copy(update={
        "caps": CapRules(per_charge={"usd": 2000}, daily={"usd": 2500}),
        "approval_above": {"usd": 1900},
    }))  # fmt: skip
    assert error_of(in_process.charge(key, period="2026-11", amount=1950)) == "approval_required"
    in_process.charge(key, period="2026-10", amount=1500)
    in_process.charge(key, period="2026-09", amount=1500)
    decided = [row for row in in_process.audit(key=key.id) if row["kind"] == "decision"]
    waits, _, over = decided
    assert waits["operation_id"] == in_process.operations()[-1].id
    assert (over["code"], over["note"]) == (
        "spend_cap_exceeded", "per key and day: 1000 of 2500 left",
    )  # fmt: skip
    store = in_process.proxy.store
    in_process.run(revoke_key(store.ledger, store.records, KeyId(key.id), None, "test", 0))
    in_process.charge(key, period="2026-08", amount=1500)
    in_process.run(in_process.proxy.app.pipeline.refusal_counts.flush(store.ledger))
    assert in_process.audit(key=key.id, code="vault_key_revoked")[-1]["note"] == "1 request"
