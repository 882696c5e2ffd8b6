"""Steps in any order, with faults and lost time between them: what is held is what may be taken."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.in_process_proxy import InProcessProxy
from tests.proxy.rules.follow_ups.test_follow_ups import INTENTS, OneIntent
from tests.scenarios.acts import broken_invariants, day_windows

CAP = 5000
STEPS: dict[str, dict[str, Any]] = {
    "confirm": {},
    "confirm_other": {"payment_method": "pm_card_mastercard"},
    "capture": {},
    "capture_part": {"amount_to_capture": 1200},
    "increment_authorization": {"amount": 4200},
    "increment_far": {"amount": 5001},
    "update_up": {"amount": 3600},
    "update_down": {"amount": 700},
    "cancel": {},
}
FAULTS = ("", "", "", "drop_before", "drop_after", "500_before", "500_after", "429", "402")
MADE: tuple[dict[str, str], ...] = (
    {},
    {"confirm": "true"},
    {"capture_method": "manual"},
    {"customer": "cus_Declined"},
)
ACTS = st.lists(
    st.tuples(st.sampled_from([*STEPS, "wait", "long", "recover"]), st.sampled_from(FAULTS)),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MADE), ACTS)
def test_whatever_is_done_to_an_intent_the_windows_are_what_stripe_has(
    form: dict[str, str], acts: list[tuple[str, str]]
) -> None:
    with tempfile.TemporaryDirectory() as folder, InProcessProxy(Path(folder)) as in_process:
        one_intent = OneIntent(in_process)
        made = one_intent.intend(**form)
        if made.status_code == 200:
            for act, fault in acts:
                take(one_intent, made.json()["id"], act, fault)
                for reserved, settled in day_windows(in_process).values():
                    assert reserved + settled <= CAP
        at_rest(one_intent)


def take(one_intent: OneIntent, command: str, act: str, fault: str) -> None:
    """Take one step, or let time pass; whatever the answer is, it is one of ours or Stripe's."""
    if act in {"wait", "long"}:
        one_intent.in_process.turn_clock(60 if act == "wait" else 1000)
    elif act == "recover":
        one_intent.in_process.recover()
    else:
        if fault:
            one_intent.in_process.fault(fault, match="POST /v1/payment_intents/*")
        path = f"{INTENTS}/{command}"
        verb = {"capture_part": "capture", "increment_far": "increment_authorization"}
        verb |= {"confirm_other": "confirm"}
        if not act.startswith("update"):
            path += f"/{verb.get(act, act)}"
        answer = one_intent.step(path, **STEPS[act])
        assert answer.status_code in {200, 400, 402, 403, 409, 429, 504}, answer.text


def at_rest(one_intent: OneIntent) -> None:
    """Let grace pass and recovery read; then the ledger holds what Stripe has, to the cent."""
    for _ in range(3):
        one_intent.in_process.turn_clock(700)
        one_intent.in_process.recover()
    newest: dict[str, Any] = one_intent.commands()[0]
    operation = one_intent.in_process.operations()[0]
    assert operation.object_id == newest["id"]
    expected = {
        "succeeded": ("succeeded", True, newest["amount_received"]),
        "canceled": ("failed", True, 0),
    }
    alive = ("succeeded", False, newest["amount"])
    if newest["status"] == "requires_payment_method" and newest["last_payment_error"]:
        alive = ("failed", True, 0)
    found = (operation.state.value, operation.final, operation.held)
    assert found == expected.get(newest["status"], alive), newest["status"]
    assert broken_invariants(one_intent.in_process) == []
