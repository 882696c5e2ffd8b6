"""Answers: what the caller is told, once the ledger knows what happened.

Floor: below the governor. Stripe's status and body as they came, or our refusal; a replay from the
ledger carries `Idempotent-Replayed`, whether the first caller or a joined one asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.errors.scrub import scrub_error, strip_client_secret
from kb_mcp.proxy.ledger.records import Attempt, AttemptOutcome, Operation
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.evidence import Declined, Made, NeverBegan, Nothing, Proof, Rejected
from kb_mcp.proxy.stripe.messages import Reply, refused
from kb_mcp.proxy.stripe.sends import Answered, Upstream, UpstreamAnswer, UpstreamRequest

# Why nothing left us, to the refusal that says so; anything else is an unreachable Stripe.
_NEVER_SENT = {
    "vault_key_revoked": Code.VAULT_KEY_REVOKED,
    "vault_key_frozen": Code.VAULT_KEY_FROZEN,
    "ledger_unavailable": Code.LEDGER_UNAVAILABLE,
}
_WORDS = {Code.VAULT_KEY_FROZEN: {"reason": "an operator must look"}}
_SETTLED_NO = frozenset({AttemptOutcome.REJECTED, AttemptOutcome.NOT_SENT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Writes replies; `upstream` is read where a stored answer was dropped."""

    upstream: Upstream
    upstream_key: str
    boottime_ms: Callable[[], int]
    read_within_ms: int

    def first(
        self, operation: Operation, attempt: Attempt, proof: Proof, answer: UpstreamAnswer
    ) -> Reply:
        """Answer the caller who sent: `operation` and `attempt` are as the conclusion left them."""
        decided = attempt.outcome in _SETTLED_NO
        match proof:
            case Made(verdict="pending") if operation.final and operation.answer is not None:
                # Somebody has read since how it ended; an answer that lay in the line is older.
                return _stored(operation)
            case Made() if operation.object_id == proof.object_id:
                return _passed(operation, attempt, strip_client_secret(proof.body), answer)
            case Declined():
                return _passed(operation, attempt, proof.body, answer)
            case Rejected() if decided and proof.ours:
                return _refused(Code.UPSTREAM_REJECTED_KEY, operation)
            case Rejected() if decided:
                return _passed(operation, attempt, proof.body, answer)
            case NeverBegan(status=None) if decided:
                return _refused(_NEVER_SENT.get(proof.code, Code.UPSTREAM_UNREACHABLE), operation)
            case NeverBegan() if decided:
                return _passed(operation, attempt, proof.body, answer)
            case Made() | Rejected() | NeverBegan() | Nothing():
                return _refused(Code.OUTCOME_UNKNOWN, operation)
            case _:
                assert_never(proof)

    async def replay(self, operation: Operation) -> Reply:
        """Answer from the ledger, or by reading the object where the stored answer is gone."""
        if operation.answer is not None and operation.answer_status is not None:
            return _stored(operation)
        return _again(await self._read(operation), operation)

    async def _read(self, operation: Operation) -> Reply:
        template = ENDPOINTS[operation.route].template
        request = UpstreamRequest(
            method="GET",
            path=f"{template}/{operation.object_id}",
            body=None,
            stripe_version=None,
            idempotency_key=None,
        )
        deadline_ms = self.boottime_ms() + self.read_within_ms
        answer = await self.upstream.send(request, deadline_ms=deadline_ms)
        if not isinstance(answer, Answered):
            return _refused(Code.UPSTREAM_UNREACHABLE, operation)
        if answer.status >= 400:
            return Reply(answer.status, scrub_error(answer.body, self.upstream_key))
        return Reply(answer.status, strip_client_secret(answer.body))


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
    headers: dict[str, str] = {}
    status = 502
    if isinstance(answer, Answered):
        status = answer.status
        passed = ("request-id", "idempotent-replayed", "stripe-should-retry", "stripe-version")
        headers = {name: answer.headers[name] for name in passed if name in answer.headers}
    reply = Reply(status, body, headers)
    return reply.with_headers(Keybrake_Operation=operation.id, Keybrake_Attempt=str(attempt.number))


def _refused(code: Code, operation: Operation) -> Reply:
    facts: dict[str, Fact] = {"operation": operation.id, "state": operation.state.value}
    refusal: Refusal = refuse(code, facts=facts, **_WORDS.get(code, {}))
    return refused(
        refusal, Keybrake_Operation=operation.id, Keybrake_Attempt=str(operation.attempt)
    )
