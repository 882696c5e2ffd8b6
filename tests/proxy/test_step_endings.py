"""What ends a step proves, where a step before it may still arrive at Stripe."""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import urlencode

import pytest

from kb_mcp.proxy.conclude import Ending, conclude
from kb_mcp.proxy.continuing import as_step, step_fingerprint
from kb_mcp.proxy.decide import decide
from kb_mcp.proxy.decisions import Decision, Look, Proceed
from kb_mcp.proxy.ledger import AttemptOutcome, AuditDraft, LineageId, Operation, OperationId
from kb_mcp.proxy.policy import CapRules, Policy
from kb_mcp.proxy.proofs import Made, Proof, prove_object
from kb_mcp.proxy.resolve import Found
from kb_mcp.proxy.routes import ENDPOINTS
from kb_mcp.proxy.surface import Reading, parse_form, read_request
from kb_mcp.proxy.windows import windows_of
from tests.proxy.room import FORM_TYPE, LOST, MINUTE, NEVER_SENT, REJECTED, Room, declined, told

CREATE = "POST /v1/payment_intents"
FIRST = OperationId("op_1")
POLICY = Policy.model_validate(
    {"role": "collector", "allow": (CREATE,), "caps": CapRules(daily={"usd": 9000})}
)


def shown(status: str, amount: int = 2900, **fields: object) -> Made:
    body = {"id": "pi_1", "object": "payment_intent", "status": status, "amount": amount, **fields}
    made = prove_object(body, ENDPOINTS[CREATE])
    assert made is not None
    return made


class Till(Room):
    """A room with one authorised intent, `pi_1`, of 29.00."""

    def __init__(self, status: str = "requires_capture") -> None:
        super().__init__(policy=POLICY)
        self.make(status)

    def make(self, status: str) -> None:
        intent = self.intend(period="2026-11")
        reading = replace(intent.reading, route=ENDPOINTS[CREATE], path="/v1/payment_intents")
        go = decide(self.standing, replace(intent, reading=reading))
        self.standing.apply(go.changes)
        self.end(go, shown(status))

    @property
    def operation(self) -> Operation:
        return self.standing.operations[FIRST]

    def held(self) -> int:
        """Return what every window of the operation holds in reserve: they agree."""
        places = windows_of(self.operation).money()
        (held,) = {self.standing.window(place).reserved for place in places}
        assert held == (0 if self.operation.final else self.operation.held)
        return held

    def step(self, verb: str, lineage: str = "one", **form: object) -> Decision:
        path = f"/v1/payment_intents/pi_1/{verb}".rstrip("/")
        parsed = parse_form(urlencode(form).encode(), FORM_TYPE, b"", "POST")
        reading = read_request("POST", path, parsed, None)  # type: ignore[arg-type] # a refusal fails below
        assert isinstance(reading, Reading), reading
        made = self.operation
        step = as_step(reading, made)
        assert isinstance(step, Reading), step
        assert step.money is not None
        intent = replace(
            self.intend(),
            reading=step,
            money=step.money,
            lineage_id=LineageId(lineage),
            name=made.name,
            named_by=made.named_by,
            upstream_name=made.upstream_name,
            fingerprint=step_fingerprint(step, made),
            continues=made,
        )
        decision = decide(self.standing, intent)
        self.standing.apply(decision.changes)
        return decision

    def after(self, decision: Decision, proof: Proof) -> tuple[str, int]:
        """Return the state and what is held once the step was answered."""
        operation = self.end(decision, proof)
        return operation.state.value, self.held()

    def look(self, proof: Made) -> tuple[str, int]:
        """Return the state and what is held once recovery has read the intent."""
        self.read(FIRST, Found(self.operation.attempt, proof))
        return self.operation.state.value, self.held()


RAISE = "increment_authorization"
CASES: list[tuple[str, str, dict[str, int], Proof, str, int]] = [
    # what is sent, how it is answered, the state and what is held then
    ("confirmed", "confirm", {}, shown("processing"), "succeeded", 2900),
    ("declined", "confirm", {}, declined("pi_1"), "failed", 0),
    ("captured", "capture", {}, shown("succeeded", amount_received=2900), "succeeded", 0),
    ("lost", "capture", {}, LOST, "succeeded", 2900),
    ("canceled", "cancel", {}, shown("canceled"), "failed", 0),
    ("cancel rejected", "cancel", {}, REJECTED, "succeeded", 2900),
    ("raised", RAISE, {"amount": 4000}, shown("requires_capture", 4000), "succeeded", 4000),
    ("raise lost", RAISE, {"amount": 4000}, LOST, "succeeded", 4000),
    ("raise rejected", RAISE, {"amount": 4000}, REJECTED, "succeeded", 2900),
    ("raise never sent", RAISE, {"amount": 4000}, NEVER_SENT, "succeeded", 2900),
    ("raise declined", RAISE, {"amount": 4000}, declined(), "succeeded", 2900),
    ("lowered", "", {"amount": 900}, shown("requires_confirmation", 900), "succeeded", 900),
]


@pytest.mark.parametrize(("_what", "verb", "form", "proof", "state", "held"), CASES)
def test_what_the_answer_to_a_step_leaves(
    _what: str, verb: str, form: dict[str, int], proof: Proof, state: str, held: int
) -> None:
    till = Till()
    assert till.after(till.step(verb, "one", **form), proof) == (state, held)


@pytest.mark.parametrize(
    ("verb", "proof"),
    [
        ("cancel", REJECTED),
        ("cancel", NEVER_SENT),
        ("confirm", declined("pi_1")),
        ("", shown("requires_capture")),
        ("", shown("requires_payment_method", last_payment_error={"code": "x"})),
    ],
)
def test_a_lost_raise_stays_held_beside_whatever_comes_after_it(verb: str, proof: Proof) -> None:
    till = Till()
    till.after(till.step(RAISE, amount=4000), LOST)
    assert till.look(shown("requires_capture")) == ("succeeded", 4000)
    assert till.after(till.step(verb), proof) == ("succeeded", 4000)
    till.pass_time(till.standing.settings.recovery_grace_ms + 1)
    assert till.look(shown("requires_capture")) == ("succeeded", 2900)


def test_an_intent_that_is_done_or_canceled_ends_the_wait_for_a_lost_step() -> None:
    for proof, left in (
        (shown("canceled"), ("failed", 0)),
        (shown("succeeded", amount_received=2900), ("succeeded", 0)),
    ):
        till = Till()
        till.after(till.step(RAISE, amount=4000), LOST)
        assert till.look(proof) == left
        assert till.standing.attempts[FIRST, 2].outcome is AttemptOutcome.SUCCEEDED


def test_after_a_lost_step_nothing_is_sent_before_a_reading() -> None:
    till = Till()
    till.after(till.step("capture"), LOST)
    assert isinstance(till.step("cancel"), Look)
    assert isinstance(till.step("capture"), Look)
    till.look(shown("requires_capture"))
    again = till.step("capture")
    assert isinstance(again, Proceed)
    assert (again.attempt.number, again.attempt.sends) == (2, 2)


def test_a_step_that_is_under_way_is_joined_and_no_other_is_sent() -> None:
    till = Till()
    till.step("capture")
    assert told(till.step("capture")) == "join"
    assert told(till.step("cancel")) == "idempotency_key_in_use"


def test_a_rejected_resend_of_a_lost_step_proves_nothing() -> None:
    till = Till()
    till.after(till.step(RAISE, amount=4000), LOST)
    till.look(shown("requires_capture"))
    assert till.after(till.step(RAISE, amount=4000), REJECTED) == ("succeeded", 4000)


def test_a_late_answer_never_makes_a_settled_intent_pending_again() -> None:
    till = Till()
    slow = till.step("", description="Seats")
    till.pass_time(2 * MINUTE)
    till.look(shown("requires_capture"))
    till.after(till.step("capture"), shown("succeeded", amount_received=2900))
    assert till.after(slow, shown("requires_capture")) == ("succeeded", 0)
    assert till.operation.final


def test_a_failed_intent_holds_its_amount_anew_and_gives_it_back() -> None:
    till = Till("requires_confirmation")
    assert till.after(till.step("confirm"), declined("pi_1")) == ("failed", 0)
    till.pass_time(16 * MINUTE)
    assert till.after(till.step("confirm"), REJECTED) == ("failed", 0)
    assert till.operation.code == "card_declined"
    again = till.step("confirm", payment_method="pm_card_visa")
    assert isinstance(again, Proceed)
    assert till.held() == 2900


def test_a_repeated_create_waits_for_a_step_that_may_revive_its_bill() -> None:
    till = Till("requires_confirmation")
    till.after(till.step("confirm"), declined("pi_1"))
    till.pass_time(16 * MINUTE)
    intent = till.intend(period="2026-11")
    reading = replace(intent.reading, route=ENDPOINTS[CREATE], path="/v1/payment_intents")
    create = replace(intent, reading=reading, fingerprint=till.operation.fingerprint)
    revived = till.step("confirm", payment_method="pm_card_visa")
    assert told(decide(till.standing, create)) == "join"
    till.end(revived, LOST)
    assert told(decide(till.standing, create)) == "outcome_unknown"


def test_more_taken_than_held_is_the_truth_and_flagged() -> None:
    till = Till()
    till.after(till.step("capture"), shown("succeeded", 3100, amount_received=3100))
    assert (till.operation.held, till.operation.overshoot) == (3100, True)


def test_a_raise_beyond_what_the_request_may_hold_is_refused_whole() -> None:
    till = Till()
    assert told(till.step(RAISE, amount=9001)) == "spend_cap_exceeded"
    assert till.held() == 2900


def test_an_ending_of_another_holder_of_the_lease_only_closes_its_own_step() -> None:
    till = Till()
    go = till.step("cancel")
    assert isinstance(go, Proceed)
    ending = Ending(
        operation_id=FIRST,
        attempt=go.attempt.number,
        token=go.operation.lease_token - 1,
        proof=shown("canceled"),
        daily_declines=20,
        request=AuditDraft(kind="outcome"),
    )
    after, changes = conclude(till.standing, ending)
    assert (after.state.value, changes.operations) == ("succeeded", ())
    assert json.loads(shown("canceled").body)["id"] == after.object_id
