"""What goes on with an object whose bill failed: it sends and holds what it is about, no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kb_mcp.operators.actions.operations import decide_approval
from kb_mcp.proxy.access.policy import CapRules, ParameterRule, Policy
from tests.in_process_proxy import Issued, error_of
from tests.misbehaving import MisledProxy, say
from tests.scenarios.acts import broken_invariants, day_windows

INTENTS = "/v1/payment_intents"
DECLINED = {
    "confirm": "true",
    "off_session": "true",
    "payment_method": "pm_card_chargeDeclined",
}
VISA = {"payment_method": "pm_card_visa"}
RETRY_S = 16 * 60
STEPS = Policy(
    role="steps",
    allow=(
        "POST /v1/charges",
        "POST /v1/charges/*",
        "POST /v1/payment_intents",
        "POST /v1/payment_intents/*",
        "POST /v1/payment_intents/*/cancel",
        "POST /v1/payment_intents/*/confirm",
    ),
    parameters={"POST /v1/payment_intents": ParameterRule(allowed=("capture_method",))},
)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[MisledProxy]:
    with MisledProxy(tmp_path) as built:
        built.begin_day()
        yield built


def issue(proxy: MisledProxy, **changes: Any) -> Issued:
    return proxy.issue(STEPS.model_copy(update=changes))


def intend(proxy: MisledProxy, key: Issued, **form: Any) -> httpx.Response:
    return proxy.charge(key, INTENTS, **{**DECLINED, "period": "2026-11", **form})


def step(proxy: MisledProxy, key: Issued, path: str, **form: str) -> httpx.Response:
    return proxy.client.post(path, data=form, headers={"Authorization": f"Bearer {key.token}"})


def left_behind(proxy: MisledProxy, key: Issued, **form: Any) -> str:
    """Return the path of an intent that was declined long enough ago for another attempt."""
    assert intend(proxy, key, **form).status_code == 402
    proxy.turn_clock(RETRY_S)
    return f"{INTENTS}/{proxy.operations()[0].object_id}"


def posted(proxy: MisledProxy) -> list[str]:
    return [line for line in proxy.rogue.asked if line.startswith("POST")]


def test_an_unsent_confirm_is_not_sent_in_place_of_the_bill(proxy: MisledProxy) -> None:
    key = issue(proxy)
    intent = left_behind(proxy, key)
    proxy.fault("429", match=f"POST {intent}/confirm")
    assert step(proxy, key, f"{intent}/confirm", **VISA).status_code == 429
    proxy.rogue.asked.clear()
    assert intend(proxy, key).status_code == 402
    assert posted(proxy) == [f"POST {intent}/cancel", f"POST {INTENTS}"]
    operation = proxy.operations()[0]
    assert (operation.state.value, operation.held, proxy.charges()) == ("failed", 0, [])


def test_an_unsent_update_is_not_sent_in_place_of_a_charge(proxy: MisledProxy) -> None:
    key = issue(proxy)
    bill = {"customer": "cus_Declined", "period": "2026-11"}
    proxy.charge(key, **bill)
    proxy.turn_clock(RETRY_S)
    charge = f"/v1/charges/{proxy.operations()[0].object_id}"
    proxy.fault("429", match=f"POST {charge}")
    assert step(proxy, key, charge, description="tried").status_code == 429
    proxy.rogue.asked.clear()
    assert proxy.charge(key, **bill).status_code == 402
    assert posted(proxy) == ["POST /v1/charges"]
    operation = proxy.operations()[0]
    assert (operation.state.value, operation.held) == ("failed", 0)


def test_a_confirm_holds_what_a_failed_intent_was_raised_to(proxy: MisledProxy) -> None:
    key = issue(proxy, caps=CapRules(daily={"usd": 5000}))
    intent = left_behind(proxy, key)
    assert step(proxy, key, intent, amount="5000").json()["amount"] == 5000
    proxy.turn_clock(RETRY_S)
    assert intend(proxy, key, customer="cus_B2", amount=2000, **VISA).status_code == 200
    assert error_of(step(proxy, key, f"{intent}/confirm", **VISA)) == "spend_cap_exceeded"
    assert [each["amount"] for each in proxy.charges()] == [2000]
    proxy.turn_clock(24 * 3600)
    assert step(proxy, key, f"{intent}/confirm", **VISA).json()["amount"] == 5000
    assert sorted(day_windows(proxy).values()) == [(0, 2000), (0, 5000)]
    assert not any(each.overshoot for each in proxy.operations())


def test_the_intent_of_a_larger_bill_is_not_confirmed_for_a_smaller_one(proxy: MisledProxy) -> None:
    wide = issue(proxy, idempotency="caller")
    narrow = issue(proxy, idempotency="caller", caps=CapRules(per_charge={"usd": 5000}))
    named = {"key_header": "june", "period": None}
    intent = left_behind(proxy, wide, amount=9000, **named)
    proxy.rogue.hear(f"POST {intent}/cancel", say(500), 1)
    proxy.rogue.hear(f"GET {intent}", say(500), 1)
    assert error_of(intend(proxy, narrow, amount=2900, **named)) == "upstream_unreachable"
    proxy.rogue.asked.clear()
    refused = step(proxy, narrow, f"{intent}/confirm", **VISA)
    assert (error_of(refused), posted(proxy)) == ("idempotency_key_reused", [])


def test_an_approval_of_a_smaller_bill_does_not_pay_a_larger_intent(proxy: MisledProxy) -> None:
    wide = issue(proxy, idempotency="caller")
    asks = issue(proxy, idempotency="caller", approval_above={"usd": 1000})
    named = {"key_header": "june", "period": None}
    intent = left_behind(proxy, wide, amount=9000, **named)
    asked = intend(proxy, asks, amount=2900, **named)
    assert error_of(asked) == "approval_required"
    ledger, approval = proxy.proxy.store.ledger, asked.json()["error"]["keybrake"]["approval"]
    proxy.run(decide_approval(ledger, approval, "approved", "ann"))
    refused = step(proxy, asks, f"{intent}/confirm", **VISA)
    assert (error_of(refused), proxy.charges()) == ("idempotency_key_reused", [])
    paid = intend(proxy, asks, amount=2900, **named, **VISA)
    assert error_of(paid) == "approval_required"  # of another card than was shown
    assert step(proxy, asks, f"{intent}/cancel").json()["status"] == "canceled"


def test_the_intent_of_one_period_does_not_pay_another(proxy: MisledProxy) -> None:
    key = issue(proxy, idempotency="caller")
    intent = left_behind(proxy, key, key_header="bill", period="2026-10")
    proxy.rogue.hear(f"POST {intent}/cancel", say(500), 1)
    proxy.rogue.hear(f"GET {intent}", say(500), 1)
    unsent = intend(proxy, key, key_header="bill", period="2026-11")
    assert error_of(unsent) == "upstream_unreachable"
    refused = step(proxy, key, f"{intent}/confirm", **VISA)
    assert (error_of(refused), proxy.charges()) == ("idempotency_key_reused", [])


def test_a_new_attempt_after_an_authorisation_was_let_go_of_breaks_no_invariant(
    proxy: MisledProxy,
) -> None:
    key = issue(proxy)
    form = {"capture_method": "manual", **VISA}
    made = intend(proxy, key, **form).json()["id"]
    assert step(proxy, key, f"{INTENTS}/{made}/cancel").json()["status"] == "canceled"
    assert intend(proxy, key, **form).json()["id"] != made
    assert broken_invariants(proxy) == []


def test_an_answer_about_another_intent_does_not_end_the_earlier_one(proxy: MisledProxy) -> None:
    key = issue(proxy)
    intent = left_behind(proxy, key)
    other = {"id": "pi_Other", "object": "payment_intent", "amount": 2900, "status": "canceled"}
    proxy.rogue.hear(f"POST {intent}/cancel", say(200, other))
    proxy.rogue.hear(f"GET {intent}", say(200, {**other, "status": "succeeded"}))
    assert error_of(intend(proxy, key, **VISA)) == "upstream_unreachable"
    operation = proxy.operations()[0]
    assert (operation.state.value, operation.held, proxy.charges()) == ("failed", 0, [])
