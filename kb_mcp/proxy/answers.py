"""Answers: what the caller is told, of a send once the ledger knows what happened, or of a read.

Floor: below the governor. Stripe's status and body as they came, or our refusal; a replay from the
ledger carries `Idempotent-Replayed`, whether the first caller or a joined one asks. A read moves no
money: what goes upstream is rebuilt from the parsed request, and the answer is checked against the
customers that a key may touch before it is forwarded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import assert_never

from msgspec.structs import replace

from kb_mcp.proxy.access.authenticate import Admitted
from kb_mcp.proxy.access.authorize import may_touch, needs_customer, owners_of
from kb_mcp.proxy.errors.refusals import (
    Code,
    Fact,
    Refusal,
    refuse,
    scrub_error,
    strip_client_secret,
)
from kb_mcp.proxy.ledger.port import Ledger, note
from kb_mcp.proxy.ledger.records import Attempt, AttemptOutcome, AuditDraft, Operation, State
from kb_mcp.proxy.stripe import evidence
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.interpret import Reading
from kb_mcp.proxy.stripe.messages import Answered, NotSent, Reply, UpstreamAnswer, refused
from kb_mcp.proxy.stripe.reader import WAITED_FOR_MS, StripeReads

# Why nothing left us, where a code says so; anything else is an unreachable Stripe.
_NEVER_SENT = {
    code.value: code
    for code in (
        Code.VAULT_KEY_REVOKED,
        Code.VAULT_KEY_FROZEN,
        Code.IDENTITY_NOT_GRANTED,
        Code.LEDGER_UNAVAILABLE,
        Code.AMOUNT_CHANGED,
        Code.UPSTREAM_REJECTED_KEY,
    )
}
_WORDS = {
    Code.VAULT_KEY_FROZEN: "an operator must look",
    Code.AMOUNT_CHANGED: "it is not what was reserved any more",
}
FAILED_BEFORE = "The payment failed before. Its details were erased."
_SETTLED_NO = frozenset({AttemptOutcome.REJECTED, AttemptOutcome.NOT_SENT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Writes replies; `stripe` is read where a stored answer was dropped.

    `livemode` is the store's: whether its money is real.
    """

    stripe: StripeReads
    livemode: bool = False

    def first(
        self, operation: Operation, attempt: Attempt, proof: evidence.Proof, answer: UpstreamAnswer
    ) -> Reply:
        """Answer the caller who sent: `operation` and `attempt` are as the conclusion left them."""
        decided = attempt.outcome in _SETTLED_NO
        match proof:
            case evidence.Made() if operation.answer is not None and _read_since(operation, proof):
                # Somebody has read since how it ended; an answer that lay in the line is older.
                return _stored(operation)
            case evidence.Made() if operation.object_id == proof.object_id:
                return _passed(operation, attempt, proof.body, answer)
            case evidence.Declined():
                return _passed(operation, attempt, proof.body, answer)
            case evidence.Rejected(ours=True) if decided:
                return _refused(Code.UPSTREAM_REJECTED_KEY, operation)
            case evidence.NeverBegan(status=None) if decided:
                code = _NEVER_SENT.get(proof.code, Code.UPSTREAM_UNREACHABLE)
                return _refused(code, operation, answer)
            case evidence.Rejected() | evidence.NeverBegan() if decided:
                return _passed(operation, attempt, proof.body, answer)
            case evidence.Made() | evidence.Rejected() | evidence.NeverBegan() | evidence.Nothing():
                return _refused(Code.OUTCOME_UNKNOWN, operation)
            case _:
                assert_never(proof)

    async def replay(self, operation: Operation) -> Reply:
        """Answer from the ledger, or by reading the object where the stored answer is gone.

        What cannot be read now is told as the ledger has it: a paid bill is never told as failed.
        """
        if operation.answer is not None and operation.answer_status is not None:
            return _stored(operation)
        made = None
        if operation.object_id is not None:
            route = ENDPOINTS[operation.route]
            made = await self.stripe.made(route, operation.object_id, WAITED_FOR_MS)
        shown = None if made is None else Reply(made.status, strip_client_secret(made.body))
        return _again(shown or as_recorded(operation, livemode=self.livemode), operation)


def as_recorded(operation: Operation, *, livemode: bool) -> Reply:
    """Return an operation in the shape of its object, as far as the ledger has it."""
    if operation.state is State.FAILED:
        error = {"type": "card_error", "code": operation.code, "message": FAILED_BEFORE}
        return Reply(402, json.dumps({"error": error}).encode())
    named = {"billing_period": operation.period, "reference": operation.reference}
    final, moved = operation.final, ENDPOINTS[operation.route].lifecycle.moved
    fields: dict[str, object] = {
        "id": operation.object_id,
        "object": ENDPOINTS[operation.route].object_type,
        "amount": operation.amount,
        "currency": operation.currency,
        "customer": operation.customer,
        "status": operation.stripe_status or ("succeeded" if final else "pending"),
        "created": operation.created_at // 1000,
        "livemode": livemode,
        "metadata": {name: value for name, value in named.items() if value is not None},
    }
    if moved is not None:
        fields[moved] = operation.held if final else 0
    if ENDPOINTS[operation.route].lifecycle.unless is not None:
        fields["captured"] = final
    return Reply(200, json.dumps(fields).encode())


def _stored(operation: Operation) -> Reply:
    body = strip_client_secret(operation.answer or b"")
    return _again(Reply(operation.answer_status or 200, body), operation)


def _again(reply: Reply, operation: Operation) -> Reply:
    return reply.with_headers(
        Idempotent_Replayed="true" if reply.status < 500 else None,
        Keybrake_Operation=operation.id,
        Keybrake_Attempt=str(operation.attempt),
    )


def _passed(operation: Operation, attempt: Attempt, body: bytes, answer: UpstreamAnswer) -> Reply:
    reply = Reply(502, strip_client_secret(body))
    if isinstance(answer, Answered):
        kept = ("request-id", "idempotent-replayed", "stripe-should-retry", "stripe-version")
        reply = Reply(answer.status, reply.body, _kept(answer, *kept))
    return reply.with_headers(Keybrake_Operation=operation.id, Keybrake_Attempt=str(attempt.number))


def _kept(answer: Answered, *names: str) -> dict[str, str]:
    return {name: answer.headers[name] for name in names if name in answer.headers}


def _refused(code: Code, operation: Operation, answer: UpstreamAnswer | None = None) -> Reply:
    facts: dict[str, Fact] = {"operation": operation.id, "state": operation.state.value}
    facts |= answer.facts if isinstance(answer, NotSent) else {}
    refusal = refuse(code, facts=facts, reason=_WORDS.get(code))
    named = {"Keybrake_Operation": operation.id, "Keybrake_Attempt": str(operation.attempt)}
    return refused(refusal, **named)


def _read_since(operation: Operation, made: evidence.Made) -> bool:
    """Say whether the end of what `made` tells of is known by now, and is another."""
    came_back = operation.state is State.FAILED and operation.gives_back is not None
    return operation.final and (made.verdict == "pending" or came_back)


LOOKED_UP_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Forwards reads by `stripe`."""

    ledger: Ledger
    stripe: StripeReads
    upstream_key: str

    async def read(
        self, admitted: Admitted, reading: Reading, version: str | None, base: AuditDraft
    ) -> Reply:
        """Answer a read, and leave its audit row before the answer goes out."""
        started = self.stripe.boottime_ms()
        query = reading.form.encode().decode()
        path = f"{reading.path}?{query}" if query else reading.path
        answer = await self.stripe.fetch(path, WAITED_FOR_MS, version)
        answered = answer.status if isinstance(answer, Answered) else None
        shown = await self._shown(admitted, answer)
        row = replace(
            base,
            kind="read",
            code=shown.code.value if isinstance(shown, Refusal) else None,
            decision="failed" if answered is None else "forward",
            stripe_status=answered,
            object_id=reading.object_id,
            customer_id=reading.customer,
            duration_ms=self.stripe.boottime_ms() - started,
        )
        await note(self.ledger, row)
        return refused(shown) if isinstance(shown, Refusal) else shown

    async def customer_metadata(self, customer: str) -> dict[str, str] | None:
        """Return the metadata of `customer` as Stripe has it, or None where it cannot be had."""
        found = await self.stripe.body(f"/v1/customers/{customer}", WAITED_FOR_MS)
        metadata = None if found is None else found.get("metadata")
        return metadata if isinstance(metadata, dict) else None

    async def _shown(self, admitted: Admitted, answer: UpstreamAnswer) -> Reply | Refusal:
        if not isinstance(answer, Answered):
            # A read that got no answer changed nothing: it may simply be asked again.
            return refuse(Code.UPSTREAM_UNREACHABLE)
        headers = _kept(answer, "request-id", "stripe-version")
        if answer.status in {401, 403}:
            return refuse(Code.UPSTREAM_REJECTED_KEY)
        if answer.status >= 400:
            scrubbed = scrub_error(strip_client_secret(answer.body), self.upstream_key)
            return Reply(answer.status, scrubbed, headers)
        policy = admitted.policy
        owners = [] if policy.customers.any else owners_of(answer.body)
        asked = {
            each
            for customer, told in owners
            if told is None
            and (each := evidence.object_id(customer))
            and needs_customer(policy, each)
        }
        # More would be a search among customers, which such a key may not see anyway.
        looked_up = asked if len(asked) <= LOOKED_UP_MAX else set()
        known = {each: await self.customer_metadata(each) for each in sorted(looked_up)}
        if not all(may_touch(policy, each, told or known.get(each or "")) for each, told in owners):
            reason = "the customer is not among its own"
            return refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason=reason)
        return Reply(answer.status, strip_client_secret(answer.body), headers)
