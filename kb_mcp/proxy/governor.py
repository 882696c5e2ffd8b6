"""The governor: the one path of every request that moves money, from every door.

Floor: wing B, below the edge. admit -> decide -> reserve -> send -> conclude, and nothing goes
around it. Deciding and reserving are one transaction; no transaction is open across the network; a
caller that hangs up changes nothing, since the send and its conclusion run in a task of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, assert_never
from weakref import WeakValueDictionary

from msgspec.structs import replace

from kb_mcp.money import CURRENCIES
from kb_mcp.proxy.access.authenticate import Admitted
from kb_mcp.proxy.access.tokens import refuse_dead_key
from kb_mcp.proxy.answers import Answers
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.errors.refusals import Code, Refusal, refuse, scrub_error
from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.ledger.counts import Stopped
from kb_mcp.proxy.ledger.port import Ledger, LedgerUnavailableError, Step, note
from kb_mcp.proxy.ledger.records import Attempt, AuditDraft, Changes, Operation, OperationId, Refs
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_of, windows_then
from kb_mcp.proxy.meters import Meters
from kb_mcp.proxy.read_first import InvoiceReads, with_payment
from kb_mcp.proxy.rules.command import (
    Command,
    Decision,
    Join,
    Look,
    Proceed,
    ReadAgain,
    Refuse,
    Replay,
)
from kb_mcp.proxy.rules.decide import decide
from kb_mcp.proxy.rules.follow_ups import CANCEL
from kb_mcp.proxy.rules.operation_names import tally_of
from kb_mcp.proxy.rules.outcomes.conclude import conclude
from kb_mcp.proxy.stripe.endpoints import Route
from kb_mcp.proxy.stripe.evidence import CANCELED, Ending, Made, Nothing, Proof, parse_object, prove
from kb_mcp.proxy.stripe.messages import (
    SEND_WITHIN_MS,
    Answered,
    NotSent,
    Reply,
    Upstream,
    UpstreamAnswer,
    UpstreamRequest,
    refused,
)

T = TypeVar("T")
JOIN_WAIT_MS = 10_000
REQUEST_ID_MAX = 128
READS_MAX = 5  # of one request: each follows another refund of the same charge
POLL_MS = 100  # what processes tell each other goes through the store, which tells nobody of it
INTENTS = "POST /v1/payment_intents"
PAID = "succeeded"
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class SendGate:
    """Why nothing is sent, as far as this process knows.

    `heads_behind`: the store does not reach its exported heads. `unwalked`: no walk of Stripe's
    lists was whole since this process started. `gap`: the store lacks objects that it made.
    """

    heads_behind: bool = False
    unwalked: bool = False
    gap: bool = False

    @property
    def closed(self) -> bool:
        """Say whether nothing may be sent."""
        return self.heads_behind or self.unwalked or self.gap


@dataclass(frozen=True, slots=True, kw_only=True)
class Governor:
    """Wing B's core: one per process. `boottime_ms` counts suspended time.

    `gate` says that the store may lack records: nothing is sent then. `look` reads the object of
    one operation, as recovery does; `look_at_refund` whether what was given back of it still is;
    `read_again` what a command depends on; `invoices` an invoice, before and after its payment.
    """

    ledger: Ledger
    upstream: Upstream
    clock: StoreClock
    answers: Answers
    waiters: Waiters
    boottime_ms: Callable[[], int]
    upstream_key: str
    look: Callable[[OperationId], Awaitable[Operation | None]]
    look_at_refund: Callable[[OperationId], Awaitable[None]]
    read_again: Callable[[Command], Awaitable[Command | Refusal]]
    invoices: InvoiceReads
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    gate: SendGate = field(default_factory=SendGate)
    meters: Meters = field(default_factory=Meters)

    async def govern(self, admitted: Admitted, command: Command) -> Reply:
        """Carry out `command` at most once and answer as Stripe would.

        Raises: LedgerUnavailableError, with nothing sent.
        """
        if self.gate.closed:
            return refused(refuse(Code.LEDGER_BEHIND))
        give_up_at, looked, reads = self.boottime_ms() + JOIN_WAIT_MS, False, 0
        while True:
            # A send counts its time from here: suspended after the commit, it must not be late.
            deadline_ms = self.boottime_ms() + SEND_WITHIN_MS
            decision = await self._transact(command.refs, _decider(command))
            match decision:
                case Refuse(refusal=refusal, operation=operation):
                    named = None if operation is None else operation.id
                    return refused(refusal, Keybrake_Operation=named)
                case Replay(operation=operation):
                    # What was not final when it was last read is read again.
                    known = None if operation.final else await self.look(operation.id)
                    return await self.answers.replay(known or operation)
                case Proceed():
                    work = self._lead(admitted, command, decision, deadline_ms)
                    return await self._detached(work)
                case Join(operation=operation):
                    then = await self._join(operation, command, give_up_at)
                case Look(operation=operation):
                    then = _unread(operation) if looked else await self._look_at(operation, command)
                    looked = True
                case ReadAgain():
                    reads += 1
                    then = _in_use() if reads > READS_MAX else await self._read(command)
                case _:
                    assert_never(decision)
            if isinstance(then, Reply):
                return then
            command = then

    async def _join(
        self, operation: Operation, command: Command, give_up_at: int
    ) -> Command | Reply:
        """Wait for whoever sends `operation` now."""
        left_ms = give_up_at - self.boottime_ms()
        if left_ms <= 0:
            return _in_use(operation=operation.id)
        await self.waiters.wait(operation.id, left_ms)
        return replace(command, joined=True)

    async def _look_at(self, operation: Operation, command: Command) -> Command:
        await (self.look_at_refund if operation.refunded else self.look)(operation.id)
        return command

    async def _transact(self, refs: Callable[[int], Refs], step: Step[T]) -> T:
        """Run `step` in a transaction, and measure how long it took until it was durable."""
        begun = self.boottime_ms()
        self.meters.waiting += 1
        try:
            return await self.ledger.transact(refs, step)
        finally:
            self.meters.waiting -= 1
            self.meters.ledger.observe(self.boottime_ms() - begun)

    async def _read(self, command: Command) -> Command | Reply:
        """Read again what `command` depends on; a refusal leaves its audit row."""
        read = await self.read_again(command)
        if isinstance(read, Refusal):
            return await note_refusal(self.ledger, command.request, read)
        return read

    async def _lead(
        self, admitted: Admitted, command: Command, go: Proceed, deadline_ms: int
    ) -> Reply:
        """Send what was reserved and conclude by what the answer proves."""
        begun = self.boottime_ms()
        answer = await self._send(admitted, command, go, deadline_ms)
        if isinstance(answer, Answered):
            self.clock.observe(answer.headers.get("date"), self.boottime_ms() - begun)
            if answer.status >= 400:
                answer = replace(answer, body=scrub_error(answer.body, self.upstream_key))
        proof = _prove(answer, command.reading.route)
        if isinstance(proof, Made) and go.operation.pays_invoice:
            proof = await with_payment(self.invoices.stripe, proof)
        try:
            operation, attempt = await self._conclude(command, go, proof, answer)
        except LedgerUnavailableError:
            # Stripe has answered, the ledger has not: the reservation stays, recovery will read.
            return refused(refuse(Code.OUTCOME_UNKNOWN, facts={"operation": go.operation.id}))
        finally:
            self.waiters.wake(go.operation.id)
        return self.answers.first(operation, attempt, proof, answer)

    async def _send(
        self, admitted: Admitted, command: Command, go: Proceed, deadline_ms: int
    ) -> UpstreamAnswer:
        """Check key and grant once more, directly before the send; then send, once."""
        # What Stripe is asked first comes before the key is checked, which is to be the last.
        if command.invoice is not None:
            changed = await self.invoices.changed(command, go.operation)
            if changed is not None:
                return changed
        instead = await self._cancel_earlier(go, deadline_ms)
        if instead is not None:
            return instead
        grant = admitted.grant
        try:
            found = await self.ledger.find_key(admitted.key.id)
            granted = grant is None or any(
                each.id == grant.id for each in await self.ledger.find_grants(grant.issuer)
            )
        except LedgerUnavailableError:
            return NotSent("ledger_unavailable")
        if found is None or refuse_dead_key(found[0], self.clock.now(0)) is not None:
            return NotSent("vault_key_revoked")
        if not granted:
            return NotSent("identity_not_granted")
        attempt = go.attempt
        if found[1].frozen_at is not None and not attempt.path.endswith(CANCEL):
            return NotSent("vault_key_frozen")
        request = UpstreamRequest(
            method=go.operation.route.split(" ")[0],
            path=attempt.path,
            body=attempt.body,
            stripe_version=attempt.stripe_version,
            idempotency_key=attempt.upstream_key,
        )
        begun = self.boottime_ms()
        answer = await self.upstream.send(request, deadline_ms=deadline_ms)
        self.meters.sent(answer, self.boottime_ms() - begun)
        return answer

    async def _cancel_earlier(self, go: Proceed, deadline_ms: int) -> Answered | NotSent | None:
        """Cancel the intent that a failed attempt left; return None where another may be sent.

        It can still be confirmed by whoever holds its secret: a new one beside it could charge
        twice. Else it is what to conclude by: Stripe's answer where that intent was paid meanwhile,
        whoever confirmed it, or NotSent where it may still be. Cancelling moves no money.
        """
        intent = go.operation.object_id
        if go.operation.route != INTENTS or intent is None or go.operation.continued_by(go.attempt):
            return None
        path = f"/v1/payment_intents/{intent}"
        # Without a key: an error that Stripe kept under one would stand for a day.
        request = UpstreamRequest("POST", f"{path}/cancel", b"")
        canceled = await self.upstream.send(request, deadline_ms=deadline_ms)
        if _status(canceled, intent) == CANCELED:
            return None
        # It may have been canceled before, by somebody else: then Stripe refuses to do it again.
        within_ms = deadline_ms - self.boottime_ms()
        answer = await self.answers.stripe.fetch(path, within_ms)
        status = _status(answer, intent)
        if isinstance(answer, Answered) and status == PAID:
            return answer
        return None if status == CANCELED else NotSent("earlier_intent_open")

    async def _conclude(
        self, command: Command, go: Proceed, proof: Proof, answer: UpstreamAnswer
    ) -> tuple[Operation, Attempt]:
        request = command.request
        if isinstance(answer, Answered):
            told = answer.headers.get("request-id")
            request_id = None if told is None else clean_text(told, REQUEST_ID_MAX)
            request = replace(request, request_id=request_id)
        ending = Ending(
            operation_id=go.operation.id,
            attempt=go.attempt.number,
            token=go.operation.lease_token,
            proof=proof,
            daily_declines=command.policy.daily_declines,
            request=request,
        )

        def step(snapshot: Snapshot) -> tuple[tuple[Operation, Attempt], Changes]:
            operation, changes = conclude(snapshot, ending)
            return (operation, changes.attempts[0] if changes.attempts else go.attempt), changes

        return await self._transact(lambda now: ending_refs(go.operation, proof, now), step)

    async def _detached(self, work: Coroutine[Any, Any, Reply]) -> Reply:
        """Run `work` to its end even if the caller goes away."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return await asyncio.shield(task)


def _prove(answer: UpstreamAnswer, route: Route) -> Proof:
    """Return what `answer` proves; what cannot be read proves nothing, whatever went wrong."""
    try:
        return prove(answer, route)
    except Exception:  # noqa: BLE001 it was sent: the operation is unknown, and its lease goes back
        _log.exception("an answer of Stripe cannot be read")
        return Nothing("unreadable", answer.status if isinstance(answer, Answered) else None)


def ending_refs(operation: Operation, proof: Proof, now: int) -> Refs:
    """Return the rows that concluding `operation` by `proof` depends on."""
    told = proof.facts.get("currency") if isinstance(proof, Made) else None
    known = isinstance(told, str) and told in CURRENCIES
    shown = replace(operation, currency=told) if known else operation
    windows = (windows_of(operation), windows_then(operation, now), windows_of(shown))
    return Refs(
        operations=frozenset({operation.id}),
        lineages=frozenset({operation.lineage_id}),
        windows=frozenset(key for each in windows for key in each.all()),
        tallies=frozenset({tally_of(operation)}),
        objects=proof.names if isinstance(proof, Made) else frozenset(),
    )


async def note_refusal(ledger: Ledger, base: AuditDraft, refusal: Refusal) -> Reply:
    """Refuse, and leave the audit row of it. Raises: LedgerUnavailableError."""
    code, param = refusal.code.value, refusal.param
    row = replace(base, kind="refusal", decision="refuse", code=code, note=param)
    await note(ledger, row, stopped=(Stopped.unread(row),))
    return refused(refusal)


def _in_use(**facts: str) -> Reply:
    return refused(refuse(Code.IDEMPOTENCY_KEY_IN_USE, facts=facts))


def _unread(operation: Operation) -> Reply:
    """Say that nothing is sent, since `operation` could not be read first."""
    code = Code.UPSTREAM_UNREACHABLE if operation.refunded else Code.OUTCOME_UNKNOWN
    return refused(refuse(code, facts={"operation": operation.id}))


def _decider(command: Command) -> Callable[[Snapshot], tuple[Decision, Changes]]:
    def step(snapshot: Snapshot) -> tuple[Decision, Changes]:
        if snapshot.halted:
            return Refuse(refuse(Code.LEDGER_BEHIND)), Changes()
        decision = decide(snapshot, command)
        return decision, decision.changes

    return step


class Waiters:
    """Who waits for which operation in this process: they are woken as soon as it has an outcome.

    Those of another process look again every POLL_MS.
    """

    def __init__(self) -> None:
        """Start with nobody waiting."""
        # An event is held by those who wait for it: with the last of them it goes.
        self._waiting = WeakValueDictionary[OperationId, asyncio.Event]()

    async def wait(self, operation_id: OperationId, left_ms: int) -> None:
        """Return when the operation may have an outcome, at most POLL_MS or `left_ms` later."""
        event = self._waiting.setdefault(operation_id, asyncio.Event())
        with suppress(TimeoutError):
            async with asyncio.timeout(min(POLL_MS, left_ms) / 1000):
                await event.wait()

    def wake(self, operation_id: OperationId) -> None:
        """Wake everybody who waits for `operation_id`."""
        event = self._waiting.pop(operation_id, None)
        if event is not None:
            event.set()


def _status(answer: object, intent: str) -> str | None:
    if not isinstance(answer, Answered) or answer.status != 200:
        return None
    shown = parse_object(answer.body) or {}
    status = shown.get("status") if shown.get("id") == intent else None
    return status if isinstance(status, str) else None
