"""What ends a step proves, where a step before it may still arrive at Stripe."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import AttemptOutcome, AuditDraft, LineageId
from kb_mcp.proxy.ledger.windows import windows_of
from kb_mcp.proxy.rules.command import Look, Proceed
from kb_mcp.proxy.rules.decide import decide
from kb_mcp.proxy.rules.outcomes.conclude import conclude
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.evidence import Ending, Made, Proof
from tests.proxy.rules.one_intent import CREATE, FIRST, OneIntent, shown
from tests.proxy.rules.one_key import LOST, MINUTE, NEVER_SENT, REJECTED, declined, told

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
    one_intent = OneIntent()
    assert one_intent.after(one_intent.step(verb, "one", **form), proof) == (state, held)


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
    one_intent = OneIntent()
    one_intent.after(one_intent.step(RAISE, amount=4000), LOST)
    assert one_intent.look(shown("requires_capture")) == ("succeeded", 4000)
    assert one_intent.after(one_intent.step(verb), proof) == ("succeeded", 4000)
    one_intent.pass_time(one_intent.snapshot.settings.recovery_grace_ms + 1)
    assert one_intent.look(shown("requires_capture")) == ("succeeded", 2900)


def test_an_intent_that_is_done_or_canceled_ends_the_wait_for_a_lost_step() -> None:
    for proof, left in (
        (shown("canceled"), ("failed", 0)),
        (shown("succeeded", amount_received=2900), ("succeeded", 0)),
    ):
        one_intent = OneIntent()
        one_intent.after(one_intent.step(RAISE, amount=4000), LOST)
        assert one_intent.look(proof) == left
        assert one_intent.snapshot.attempts[FIRST, 2].outcome is AttemptOutcome.SUCCEEDED


def test_after_a_lost_step_nothing_is_sent_before_a_reading() -> None:
    one_intent = OneIntent()
    one_intent.after(one_intent.step("capture"), LOST)
    assert isinstance(one_intent.step("cancel"), Look)
    assert isinstance(one_intent.step("capture"), Look)
    one_intent.look(shown("requires_capture"))
    again = one_intent.step("capture")
    assert isinstance(again, Proceed)
    assert (again.attempt.number, again.attempt.sends) == (2, 2)


def test_a_step_that_is_under_way_is_joined_and_no_other_is_sent() -> None:
    one_intent = OneIntent()
    one_intent.step("capture")
    assert told(one_intent.step("capture")) == "join"
    assert told(one_intent.step("cancel")) == "idempotency_key_in_use"


def test_a_rejected_resend_of_a_lost_step_proves_nothing() -> None:
    one_intent = OneIntent()
    one_intent.after(one_intent.step(RAISE, amount=4000), LOST)
    one_intent.look(shown("requires_capture"))
    assert one_intent.after(one_intent.step(RAISE, amount=4000), REJECTED) == ("succeeded", 4000)


def test_a_late_answer_never_makes_a_settled_intent_pending_again() -> None:
    one_intent = OneIntent()
    slow = one_intent.step("", description="Seats")
    one_intent.pass_time(2 * MINUTE)
    one_intent.look(shown("requires_capture"))
    one_intent.after(one_intent.step("capture"), shown("succeeded", amount_received=2900))
    assert one_intent.after(slow, shown("requires_capture")) == ("succeeded", 0)
    assert one_intent.operation.final


def test_a_late_answer_of_the_create_leaves_the_step_under_way_alone() -> None:
    one_intent = OneIntent()
    one_intent.step("capture")
    leased = one_intent.operation
    ending = Ending(
        operation_id=FIRST,
        attempt=1,
        token=1,
        proof=shown("requires_confirmation"),
        daily_declines=20,
        request=AuditDraft(kind="outcome"),
    )
    after, changes = conclude(one_intent.snapshot, ending)
    assert (after, changes.windows) == (leased, ())
    assert told(one_intent.step("cancel")) == "idempotency_key_in_use"


def test_a_failed_intent_holds_its_amount_anew_and_gives_it_back() -> None:
    one_intent = OneIntent("requires_confirmation")
    assert one_intent.after(one_intent.step("confirm"), declined("pi_1")) == ("failed", 0)
    one_intent.pass_time(16 * MINUTE)
    assert one_intent.after(one_intent.step("confirm"), REJECTED) == ("failed", 0)
    assert one_intent.operation.code == "card_declined"
    again = one_intent.step("confirm", payment_method="pm_card_visa")
    assert isinstance(again, Proceed)
    assert one_intent.held() == 2900


def test_a_repeated_create_waits_for_a_step_that_may_revive_its_bill() -> None:
    one_intent = OneIntent("requires_confirmation")
    one_intent.after(one_intent.step("confirm"), declined("pi_1"))
    one_intent.pass_time(16 * MINUTE)
    command = one_intent.intend(period="2026-11")
    reading = replace(command.reading, route=ENDPOINTS[CREATE], path="/v1/payment_intents")
    create = replace(command, reading=reading, fingerprint=one_intent.operation.fingerprint)
    revived = one_intent.step("confirm", payment_method="pm_card_visa")
    assert told(decide(one_intent.snapshot, create)) == "join"
    one_intent.end(revived, LOST)
    assert told(decide(one_intent.snapshot, create)) == "outcome_unknown"


def test_more_taken_than_held_is_the_truth_and_flagged() -> None:
    one_intent = OneIntent()
    one_intent.after(one_intent.step("capture"), shown("succeeded", 3100, amount_received=3100))
    assert (one_intent.operation.held, one_intent.operation.overshoot) == (3100, True)


def test_a_raise_beyond_what_the_request_may_hold_is_refused_whole() -> None:
    one_intent = OneIntent()
    assert told(one_intent.step(RAISE, amount=9001)) == "spend_cap_exceeded"
    assert one_intent.held() == 2900


def test_an_ending_of_another_holder_of_the_lease_only_closes_its_own_step() -> None:
    one_intent = OneIntent()
    go = one_intent.step("cancel")
    assert isinstance(go, Proceed)
    ending = Ending(
        operation_id=FIRST,
        attempt=go.attempt.number,
        token=go.operation.lease_token - 1,
        proof=shown("canceled"),
        daily_declines=20,
        request=AuditDraft(kind="outcome"),
    )
    after, changes = conclude(one_intent.snapshot, ending)
    assert (after.state.value, changes.operations) == ("succeeded", ())
    assert json.loads(shown("canceled").body)["id"] == after.object_id


def test_a_raise_that_was_answered_is_told_whole() -> None:
    one_intent = OneIntent()
    proof = shown("requires_capture", 4000)
    one_intent.after(one_intent.step(RAISE, amount=4000), proof)
    after, step = one_intent.operation, one_intent.snapshot.attempts[FIRST, 2]
    assert (after.amount, after.stripe_status, after.code) == (4000, "requires_capture", None)
    assert (after.answer_status, after.answer) == (200, proof.body)
    assert (after.lease_owner, after.next_read_at) == (None, one_intent.snapshot.now + MINUTE)
    assert (step.outcome, step.status, step.open_sends) == (AttemptOutcome.SUCCEEDED, 200, 0)


@pytest.mark.parametrize(
    ("proof", "outcome"),
    [(REJECTED, AttemptOutcome.REJECTED), (NEVER_SENT, AttemptOutcome.NOT_SENT)],
)
def test_a_step_that_did_nothing_says_so_and_the_intent_is_read_again(
    proof: Proof, outcome: AttemptOutcome
) -> None:
    one_intent = OneIntent()
    one_intent.after(one_intent.step(RAISE, amount=4000), proof)
    step = one_intent.snapshot.attempts[FIRST, 2]
    assert (step.outcome, step.open_sends, step.status) == (outcome, 0, proof.status)
    assert one_intent.operation.next_read_at == one_intent.snapshot.now + MINUTE
    assert one_intent.operation.lease_owner is None


def test_a_lost_raise_is_given_back_only_once_it_can_land_no_more() -> None:
    for late, skewed, left, outcome in (
        (0, False, 4000, AttemptOutcome.OPEN),
        (1, True, 4000, AttemptOutcome.OPEN),
        (1, False, 2900, AttemptOutcome.VOIDED),
    ):
        one_intent = OneIntent()
        one_intent.after(one_intent.step(RAISE, amount=4000), LOST)
        one_intent.pass_time(one_intent.snapshot.settings.recovery_grace_ms + late)
        one_intent.snapshot.skewed = skewed
        assert one_intent.look(shown("requires_capture")) == ("succeeded", left)
        assert one_intent.snapshot.attempts[FIRST, 2].outcome is outcome


def failed(declines: int = 20) -> OneIntent:
    one_intent = OneIntent("requires_confirmation")
    one_intent.policy = one_intent.policy.model_copy(update={"daily_declines": declines})
    assert one_intent.after(one_intent.step("confirm"), declined("pi_1")) == ("failed", 0)
    return one_intent


@pytest.mark.parametrize(
    "proof",
    [
        shown("requires_capture"),
        shown("requires_payment_method", last_payment_error={"code": "x"}),
        shown("canceled"),
    ],
)
def test_an_intent_that_had_failed_holds_nothing_whatever_a_cancel_shows(proof: Made) -> None:
    one_intent = failed()
    go = one_intent.step("cancel")
    assert told(go) == "proceed as K-s3"
    assert one_intent.after(go, proof) == ("failed", 0)
    assert one_intent.operation.lease_owner is None
    assert one_intent.snapshot.attempts[FIRST, 3].outcome is AttemptOutcome.SUCCEEDED
    counts = one_intent.snapshot.window(windows_of(one_intent.operation).counts)
    assert counts.declines == 1


def test_an_intent_whose_confirmation_failed_is_told_whole() -> None:
    one_intent = OneIntent("requires_confirmation")
    proof = shown("requires_payment_method", last_payment_error={"code": "card_declined"})
    assert one_intent.after(one_intent.step("confirm"), proof) == ("failed", 0)
    after = one_intent.operation
    assert after.final
    assert (after.stripe_status, after.code) == (proof.stripe_status, proof.stripe_status)
    assert (after.answer_status, after.answer) == (200, proof.body)
    assert one_intent.snapshot.window(windows_of(after).counts).declines == 1


def test_a_declined_confirmation_is_told_whole() -> None:
    after = failed().operation
    assert after.final
    assert (after.stripe_status, after.code) == ("failed", "card_declined")
    assert (after.answer_status, after.answer) == (402, b"{}")


@pytest.mark.parametrize(
    "proof",
    [declined("pi_1"), shown("requires_payment_method", last_payment_error={"code": "x"})],
)
def test_the_last_decline_that_a_day_allows_freezes_the_key(proof: Proof) -> None:
    for allowed, frozen in ((1, True), (2, False)):
        one_intent = OneIntent("requires_confirmation")
        one_intent.policy = one_intent.policy.model_copy(update={"daily_declines": allowed})
        one_intent.after(one_intent.step("confirm"), proof)
        lineage = one_intent.snapshot.lineage(LineageId("one"))
        assert (lineage.frozen_at is not None) is frozen


def test_a_declined_raise_counts_and_is_read_at_once() -> None:
    one_intent = OneIntent()
    assert one_intent.after(one_intent.step(RAISE, amount=4000), declined("pi_1")) == (
        "succeeded",
        2900,
    )
    assert one_intent.operation.next_read_at == one_intent.snapshot.now
    assert one_intent.snapshot.window(windows_of(one_intent.operation).counts).declines == 1


def test_a_canceled_intent_counts_as_no_decline() -> None:
    one_intent = OneIntent()
    one_intent.after(one_intent.step("cancel"), shown("canceled"))
    assert (one_intent.operation.stripe_status, one_intent.operation.code) == (
        "canceled",
        "canceled",
    )
    assert one_intent.snapshot.window(windows_of(one_intent.operation).counts).declines == 0


def test_what_is_captured_in_part_is_what_is_spent() -> None:
    one_intent = OneIntent()
    proof = shown("succeeded", amount_received=1000)
    assert one_intent.after(one_intent.step("capture", amount_to_capture=1000), proof) == (
        "succeeded",
        0,
    )
    after = one_intent.operation
    assert (after.held, after.amount, after.overshoot) == (1000, 2900, False)
    places = windows_of(after).money()
    assert {one_intent.snapshot.window(place).settled for place in places} == {1000}


def test_a_capture_after_a_raise_is_of_the_new_total() -> None:
    one_intent = OneIntent()
    one_intent.after(one_intent.step(RAISE, amount=4000), LOST)
    one_intent.look(shown("requires_capture", 4000))
    proof = shown("succeeded", 4000, amount_received=4000)
    assert one_intent.after(one_intent.step("capture"), proof) == ("succeeded", 0)
    after = one_intent.operation
    assert (after.held, after.amount, after.overshoot) == (4000, 4000, False)
