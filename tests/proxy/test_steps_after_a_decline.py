"""What goes on with an object whose bill failed: it sends and holds what it is about, no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kb_mcp.proxy.access.policy import ParameterRule, Policy
from tests.in_process_proxy import Issued, error_of
from tests.misbehaving import MisledProxy, say

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


def test_an_answer_about_another_intent_does_not_end_the_earlier_one(proxy: MisledProxy) -> None:
    key = issue(proxy)
    intent = left_behind(proxy, key)
    other = {"id": "pi_Other", "object": "payment_intent", "amount": 2900, "status": "canceled"}
    proxy.rogue.hear(f"POST {intent}/cancel", say(200, other))
    proxy.rogue.hear(f"GET {intent}", say(200, {**other, "status": "succeeded"}))
    assert error_of(intend(proxy, key, **VISA)) == "upstream_unreachable"
    operation = proxy.operations()[0]
    assert (operation.state.value, operation.held, proxy.charges()) == ("failed", 0, [])
