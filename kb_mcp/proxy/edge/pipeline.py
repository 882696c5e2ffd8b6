"""The pipeline: from a request to a command, a read, or a refusal; each check in its order.

Floor: below the edge, above the governor. key (401) -> size, path, method, body form -> allowlist,
headers, parameters, values -> rate (429) -> the operation, which is the governor's. What is
refused before a key is known is counted: a row for each would let anybody fill the disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from kb_mcp.instants import day_of, how_many
from kb_mcp.money import UNTOLD_CURRENCY, Money
from kb_mcp.proxy.access.authenticate import Admitted, admit, presented_token
from kb_mcp.proxy.access.authorize import (
    Rates,
    authorize,
    check_hours,
    check_period,
    may_touch,
    needs_customer,
)
from kb_mcp.proxy.access.grants import check_scopes
from kb_mcp.proxy.access.issuers import Issuers
from kb_mcp.proxy.access.policy import Policy
from kb_mcp.proxy.access.tokens import refuse_dead_key
from kb_mcp.proxy.answers import Reads
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.errors.refusals import Code, Refusal, clock_disputed, refuse
from kb_mcp.proxy.governor import Governor, note_refusal
from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.ledger.port import Ledger, note
from kb_mcp.proxy.ledger.records import AuditDraft, KeyId, NamedBy, Operation, OperationId
from kb_mcp.proxy.read_first import AsItStands, ChargeReads
from kb_mcp.proxy.rules.command import Command, Prepared
from kb_mcp.proxy.rules.follow_ups import as_step, find_made, step_fingerprint
from kb_mcp.proxy.rules.operation_names import Name, caller_keys, name_of, older_caller_keys
from kb_mcp.proxy.stripe.endpoints import Moves, find_route
from kb_mcp.proxy.stripe.forms import canonical_path, parse_form
from kb_mcp.proxy.stripe.interpret import Reading, fingerprint, read_request
from kb_mcp.proxy.stripe.messages import Reply, Request, refused

BodyReader = Callable[[], Awaitable[bytes | Refusal]]
_ID_MAX = 128
SAID = "said:"
UNTOLD = Money(0, UNTOLD_CURRENCY)
_NOT_ITS_OWN = refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason="the customer is not among its own")
NAMED_MAX: Final = 100
SUBJECT_MAX: Final = 512  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPipeline:
    """Receives every request on the Stripe surface. `new_id` makes random ids.

    `follow` asks the sandbox, or Stripe where the time is not certain, before anything depends on
    the `clock`.
    `keys_secret` keys the hashes of callers' keys.
    """

    ledger: Ledger
    governor: Governor
    reads: Reads
    charges: ChargeReads
    clock: StoreClock
    new_id: Callable[[str], str]
    keys_secret: bytes
    owner: str
    lease_ms: int
    follow: Callable[[], Awaitable[None]]
    issuers: Issuers | None = None
    rates: Rates = field(default_factory=Rates)
    refusal_counts: RefusalCounts = field(default_factory=lambda: RefusalCounts())  # noqa: PLW0108 defined below

    async def admit(self, token: str | None) -> Admitted | Refusal:
        """Return whose `token` is, or why nobody may act by it. Raises: LedgerUnavailableError."""
        await self.follow()
        admitted = await admit(self.ledger, token, self.clock.now, self.issuers)
        if isinstance(admitted, Refusal):
            self.turn_away(admitted)
        return admitted

    def turn_away(self, refusal: Refusal, key_id: str | None = None) -> Reply:
        """Refuse and count it, without an audit row: a stolen key must not fill the disk."""
        self.refusal_counts.count(refusal.code, refusal.subject, refusal.key_id or key_id)
        return refused(refusal)

    async def serve(
        self, request: Request, read_body: BodyReader, known: Admitted | None = None
    ) -> Reply:
        """Answer one request, whose key is `known` where it was looked up for it already.

        Raises: LedgerUnavailableError, with nothing sent.
        """
        admitted = known or await self.admit(presented_token(request))
        if isinstance(admitted, Refusal):
            return refused(admitted)
        at, key = self.clock.times(), admitted.key
        dead = _by_every_clock(at, lambda now: refuse_dead_key(key, now))
        if dead is not None:
            return self.turn_away(dead)
        body = await read_body()
        reading = body if isinstance(body, Refusal) else _understand(at, admitted, request, body)
        over = self.rate(admitted)
        refusal = reading if isinstance(reading, Refusal) else over
        if over is not None:
            return self.turn_away(refusal or over, key.id)
        asked = _Asked(admitted, request, self.audit_base(admitted, request))
        if isinstance(reading, Refusal):
            return await note_refusal(self.ledger, asked.row, reading)
        if reading.route.moves is Moves.READS:
            return await self.reads.read(admitted, reading, asked.version, asked.row)
        match await self._ask(asked, reading):
            case Refusal() as refusal:
                return await note_refusal(self.ledger, asked.row, refusal)
            case Command() as command:
                return await self.governor.govern(admitted, command)
            case reply:
                return reply

    async def _ask(self, asked: _Asked, reading: Reading) -> Command | Refusal | Reply:
        """Return the command that a write asks for; a reply where there is nothing left to do."""
        if reading.route.moves is Moves.READ_FIRST:
            return await self._read_first(asked, reading)
        made = await find_made(self.ledger, reading)
        if made is not None:
            return await self._continue(asked, reading, made)
        touched = await self._touch(asked.admitted, reading)
        return touched or self._intend(asked, reading)

    def audit_base(self, admitted: Admitted, request: Request) -> AuditDraft:
        """Return the audit facts that every row of `request` shares; client text is cleaned."""
        agent = request.header("keybrake-agent") or admitted.key.agent
        session = request.header("keybrake-session")
        return AuditDraft(
            kind="decision",
            key_id=admitted.key.id,
            role=admitted.key.role,
            agent_id=None if agent is None else clean_text(agent, _ID_MAX),
            session_id=None if session is None else clean_text(session, _ID_MAX),
            method=clean_text(request.method, 16),
            path=clean_text(request.raw_path.decode("ascii", "replace"), _ID_MAX),
            request_id=request.request_id,
            subject=subject_of(admitted, request),
        )

    def rate(self, admitted: Admitted) -> Refusal | None:
        """Take one request of the key's rate, or say that there is none left."""
        lineage, rate = admitted.key.lineage_id, admitted.policy.rate
        wait = self.rates.retry_after(lineage, rate, self.governor.boottime_ms())
        return None if wait is None else refuse(Code.RATE_LIMITED, facts={"retry_after": wait})

    async def _touch(self, admitted: Admitted, reading: Reading) -> Refusal | None:
        """Return why the key may not touch the customer, where the request alone does not tell.

        Whose object a step goes on with, or a refund gives back, the request does not say.
        """
        policy, customer, route = admitted.policy, reading.customer, reading.route
        untold = route.belongs_to is not None or route.moves is Moves.READ_FIRST
        if not (untold or needs_customer(policy, customer)):
            return None
        return None if await self.may_touch(policy, customer) else _NOT_ITS_OWN

    async def may_touch(self, policy: Policy, customer: str | None) -> bool:
        """Say whether a key with `policy` may touch `customer`, by its metadata if need be."""
        looked_up = customer if needs_customer(policy, customer) else None
        metadata = None if looked_up is None else await self.reads.customer_metadata(looked_up)
        return may_touch(policy, customer, metadata)

    async def _continue(
        self, asked: _Asked, reading: Reading, made: Operation
    ) -> Command | Refusal:
        """Return the command of a step on the object that `made` has made."""
        step = as_step(reading, made)
        if isinstance(step, Refusal):
            return step
        name = Name(made.name, made.named_by, made.upstream_name)
        touched = await self._touch(asked.admitted, step)
        if touched is not None or step.money is None:
            return touched or refuse(Code.AMOUNT_NOT_METERED)
        command = self._command(asked, step, step.money, name)
        return replace(command, fingerprint=step_fingerprint(step, made), continues=made)

    async def _read_first(self, asked: _Asked, reading: Reading) -> Command | Refusal | Reply:
        """Return the command of a refund, or of an invoice's payment, bound to what Stripe says.

        The invoice itself is the answer where nothing is left to do.
        """
        policy, touch = asked.admitted.policy, partial(self._touch, asked.admitted)
        read: Prepared | AsItStands | Refusal
        if reading.route.standing is not None:
            read = await self.governor.invoices.prepare(reading, touch)
        elif policy.capped and not any(policy.refund_caps.tables()):
            # A policy that caps what is charged, and says nothing of refunds, caps no refund.
            read = refuse(Code.AMOUNT_NOT_METERED)
        else:
            read = await self.charges.prepare(policy, reading, touch)
        if isinstance(read, Prepared):
            name = Name(read.name, NamedBy.CONTENT, read.name)
            return read.as_read(self._command(asked, read.reading, read.money, name))
        if isinstance(read, Refusal):
            return read
        row = replace(
            asked.row,
            kind="read",
            decision="forward",
            stripe_status=200,
            object_id=reading.of,
            customer_id=read.customer,
        )
        await note(self.ledger, row)
        return read.reply

    def _intend(self, asked: _Asked, reading: Reading) -> Command | Refusal:
        policy = asked.admitted.policy
        money = reading.money
        if money is None:
            if policy.capped:
                # Caps cannot hold what the request does not tell, whatever the allowlist grants.
                # The account's ceiling refuses it too, where the decision reads that.
                return refuse(Code.AMOUNT_NOT_METERED)
            money = UNTOLD
        name = name_of(policy, reading)
        if isinstance(name, Refusal):
            return name
        command = self._command(asked, reading, money, name)
        if name.named_by is not NamedBy.BODY:
            return command
        # Content or a key of the caller's own name the bill; else the key that an SDK made up says
        # which of its occurrences is meant.
        keys, older = caller_keys(self.keys_secret, reading), older_caller_keys(reading)
        return replace(command, caller_keys=keys, older_caller_keys=older)

    def _command(self, asked: _Asked, reading: Reading, money: Money, name: Name) -> Command:
        admitted = asked.admitted
        return Command(
            reading=reading,
            money=money,
            policy=admitted.policy,
            key_id=KeyId(admitted.key.id),
            lineage_id=admitted.key.lineage_id,
            grant_id=None if admitted.grant is None else admitted.grant.id,
            name=name.text,
            named_by=name.named_by,
            upstream_name=name.upstream_name,
            fingerprint=fingerprint(_as_named(asked.request, reading)),
            stripe_version=asked.version,
            older_names=name.older,
            fresh_id=OperationId(self.new_id("op")),
            fresh_approval_id=self.new_id("apr"),
            owner=self.owner,
            lease_ms=self.lease_ms,
            request=asked.row,
        )


class _Asked(Struct, frozen=True):
    """A request and whose it is; `row` holds the audit facts that every row of it shares."""

    admitted: Admitted
    request: Request
    row: AuditDraft

    @property
    def version(self) -> str | None:
        """The API version to ask for: the policy's pin, else what the client's SDK wants."""
        return self.admitted.policy.headers.stripe_version or self.request.header("stripe-version")


def _understand(
    at: tuple[int, int], admitted: Admitted, request: Request, body: bytes
) -> Reading | Refusal:
    """Read what `request` asks for, checked against the policy, at the times `at`."""
    path = canonical_path(request.raw_path)
    if isinstance(path, Refusal):
        return path
    route = find_route(request.method, path)
    if isinstance(route, Refusal):
        return route
    repeated = request.repeated()
    if repeated is not None:
        return refuse(Code.PARAMETER_DUPLICATE, param=repeated)
    form = parse_form(body, request.header("content-type"), request.query, request.method)
    if isinstance(form, Refusal):
        return form
    policy = admitted.policy
    refusal = (
        check_scopes(admitted.scopes, route.endpoint)
        or _by_every_clock(at, lambda now: check_hours(policy, now))
        or authorize(policy, route, path, dict(request.headers), form)
    )
    if refusal is not None:
        return refusal
    reading = read_request(request.method, path, form, request.header("idempotency-key"))
    if isinstance(reading, Refusal):
        return reading
    period = reading.period
    return _by_every_clock(at, lambda now: check_period(policy, period, day_of(now))) or reading


def _by_every_clock(at: tuple[int, int], check: Callable[[int], Refusal | None]) -> Refusal | None:
    """Return what `check` says of the time, or that the clocks disagree and it matters."""
    now, latest = at
    refusal = check(now)
    if latest == now or (refusal is None) == (check(latest) is None):
        return refusal
    return clock_disputed()


def subject_of(admitted: Admitted, request: Request) -> str | None:
    """Return for whom `request` is: proven by a token, or marked as what the caller says."""
    if admitted.subject is not None:
        return clean_text(admitted.subject, SUBJECT_MAX)
    said = clean_text(request.header("keybrake-subject") or "", SUBJECT_MAX).strip()
    return f"{SAID}{said}" if said else None


def _as_named(request: Request, reading: Reading) -> Reading:
    """Leave out of the fingerprint what the tool looked up: a new card is not another bill."""
    if request.header("keybrake-looked-up") != "payment_method":
        return reading
    return replace(reading, payment_method=None)


@dataclass(slots=True)
class RefusalCounts:
    """Counts since the last flush, by code, subject and key; beyond NAMED_MAX by code alone."""

    _counts: Counter[tuple[str, str, str]] = field(default_factory=Counter, init=False)

    def count(self, code: str, subject: str | None = None, key_id: str | None = None) -> None:
        """Count one request refused with `code`, with whose token and key where they are known."""
        named = (str(code), clean_text(subject or "", SUBJECT_MAX), key_id or "")
        many = len(self._counts) >= NAMED_MAX and named not in self._counts
        self._counts[(named[0], "", "") if many else named] += 1

    async def flush(self, ledger: Ledger) -> None:
        """Write what was counted as audit rows. Raises: LedgerUnavailableError, counts kept."""
        if not self._counts:
            return
        taken, self._counts = self._counts, Counter()
        rows = tuple(
            AuditDraft(
                kind="noise",
                decision="refuse",
                code=code,
                subject=subject or None,
                key_id=key_id or None,
                note=how_many(count, "request"),
            )
            for (code, subject, key_id), count in sorted(taken.items())
        )
        try:
            await note(ledger, *rows)
        except Exception:
            self._counts.update(taken)
            raise
