"""Stripe as the simulation knows it: a small model that shares nothing with the product.

Idempotency to the letter: a key is looked at once execution begins, answers 409 while it runs,
is replayed for 24 hours, and is forgotten then. Requests may be lost on either leg, or arrive
late; what has left is not recalled by a crash of whoever sent it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from random import Random  # noqa: TID251 seeded by the world
from urllib.parse import parse_qs

from kb_mcp.proxy.stripe.messages import Answered, Lost, NotSent, UpstreamAnswer, UpstreamRequest
from tests.faults.account import GONE, Account, Charge, Refund, error
from tests.faults.dates import Dates
from tests.faults.loop import SimulatedLoop

SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
KEY_LASTS_MS = 24 * HOUR
TIMEOUT_MS = 25_000

# How a POST fares on the way: (what happens, weight while faults are on).
FATES = (
    ("arrives", 60),
    ("no_connection", 4),
    ("lost_before", 7),
    ("lost_after", 9),
    ("late", 9),
    ("very_late", 1),
    ("slow", 8),
    ("rate_limited", 4),
    ("rejected", 2),
    ("key_refused", 1),
    ("error_before", 4),
)
LOSING = (*FATES, ("lost_before", 50), ("very_late", 12))
"""A bad line: half of what is sent never arrives, or hours later."""

# What Stripe makes of a request that it begins.
_OUTCOMES = (("paid", 66), ("declined", 14), ("pending", 8), ("error", 6), ("error_after", 3))
_REFUND_OUTCOMES = (
    ("paid", 60),
    ("pending", 14),
    ("requires_action", 4),
    ("failed", 4),
    ("error", 6),
    ("error_after", 4),
)
_CAPTURE_OUTCOMES = (("paid", 70), ("error", 6), ("error_after", 6))
REFUNDS, CAPTURE = "/v1/refunds", "/capture"
WAITING = frozenset({"pending", "requires_action"})


@dataclass(slots=True)
class Stored:
    """What Stripe keeps under an idempotency key; without an answer it is still running."""

    path: str
    body: bytes
    began_ms: int
    status: int | None = None
    answer: bytes = b""


@dataclass(slots=True, kw_only=True)
class SimulatedStripe:
    """The account. `faulty` off means that everything arrives and works at once."""

    loop: SimulatedLoop
    chance: Random
    began_ms: int
    log: Callable[[str], None]
    faulty: bool = True
    fates: tuple[tuple[str, int], ...] = FATES
    account: Account = field(default_factory=Account)
    keys: dict[str, Stored] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    overtaken: set[str] = field(default_factory=set)  # keys of requests later than grace
    first_sent_ms: dict[str, int] = field(default_factory=dict)
    dates: Dates

    @property
    def now_ms(self) -> int:
        return self.began_ms + self.loop.now_ms

    @property
    def charges(self) -> list[Charge]:
        return self.account.charges

    async def exchange(self, request: UpstreamRequest, call: int | None) -> UpstreamAnswer:
        """Carry `request` there and its answer back, or lose either."""
        if request.method == "GET":
            return await self._read(request)
        fate = self._draw(self.fates) if self.faulty else "arrives"
        self.log(f"  send {request.idempotency_key} by call {call}: {fate}")
        await self.loop.pause(self._latency())
        if fate == "no_connection":
            return NotSent("upstream_unreachable")
        reply: asyncio.Future[Answered] = self.loop.create_future()
        if fate == "lost_before":
            return await self._never(reply)
        delay = self._delay(fate, request.idempotency_key or "")
        if fate == "very_late":
            self.overtaken.add(request.idempotency_key or "")
        self.loop.call_later(delay / 1000, self._arrive, request, call, fate, reply)
        answer = await self._wait(reply)
        await self.loop.pause(self._latency())
        return Lost("connection_broke") if fate == "lost_after" else answer

    def date(self) -> str | None:
        """Return the time as the header of an answer tells it, rightly once nothing fails."""
        if self.faulty:
            return self.dates.told(self.loop.now_ms, self.now_ms)
        return formatdate(self.now_ms // 1000, usegmt=True)

    def settle_pending(self) -> None:
        """Decide what is still pending now."""
        for charge in self.charges:
            self._finish(charge)
            if charge.authorised:  # nobody has captured it in time
                charge.status = "lapsed"
        for refund in self.account.refunds:
            self._end_refund(refund)

    def _draw(self, weighted: tuple[tuple[str, int], ...]) -> str:
        names, weights = zip(*weighted, strict=True)
        drawn: str = self.chance.choices(names, weights)[0]
        return drawn

    def _latency(self) -> int:
        return self.chance.choice((0, 1, 5, 40)) if self.faulty else 1

    def _delay(self, fate: str, key: str) -> int:
        first_ms = self.first_sent_ms.setdefault(key, self.now_ms)
        if fate == "late":  # after the sender gave up, within what the law calls grace
            return TIMEOUT_MS + self.chance.randrange(1, 500 * SECOND)
        if fate == "very_late":  # later than grace: a void may be overtaken
            # Nobody who has sent it can keep a request from charging that comes once Stripe has
            # forgotten its key: all of this rests on none lying in the line for so long.
            forgotten_ms = first_ms + KEY_LASTS_MS - SECOND - self.now_ms
            return min(self.chance.randrange(11 * MINUTE, 20 * HOUR), forgotten_ms)
        return self._latency()

    async def _never(self, reply: asyncio.Future[Answered]) -> UpstreamAnswer:
        if self.chance.random() < 0.5:
            return Lost("connection_broke")
        return await self._wait(reply)

    async def _wait(self, reply: asyncio.Future[Answered]) -> UpstreamAnswer:
        try:
            async with asyncio.timeout(TIMEOUT_MS / 1000):
                return await asyncio.shield(reply)
        except TimeoutError:
            return Lost("timeout")

    def _arrive(
        self, request: UpstreamRequest, call: int | None, fate: str, reply: asyncio.Future[Answered]
    ) -> None:
        early = {"rate_limited": 429, "rejected": 400, "key_refused": 401, "error_before": 500}
        if fate in early:
            self._answer(reply, early[fate], error("api_error", fate))
            return
        key, body = request.idempotency_key or "", request.body or b""
        stored = self.keys.get(key)
        if stored is not None and self.now_ms >= stored.began_ms + KEY_LASTS_MS:
            stored = None
        if stored is not None:
            self._repeat(stored, key, request.path, body, reply)
            return
        self.keys[key] = entry = Stored(request.path, body, self.now_ms)
        takes = self.chance.randrange(1, 60 * SECOND) if fate == "slow" else self._latency()
        self.loop.call_later(takes / 1000, self._execute, entry, call, reply)

    def _repeat(
        self, stored: Stored, key: str, path: str, body: bytes, reply: asyncio.Future[Answered]
    ) -> None:
        if (stored.path, stored.body) != (path, body):
            self.wrong.append(f"the key {key} came with other parameters")
            self._answer(reply, 400, error("idempotency_error", "idempotency_key_reused"))
        elif stored.status is None:
            in_use = error("invalid_request_error", "idempotency_key_in_use")
            self._answer(reply, 409, in_use)
        else:
            self._answer(reply, stored.status, stored.answer, replayed=True)

    def _execute(self, entry: Stored, call: int | None, reply: asyncio.Future[Answered]) -> None:
        refunds, captures = entry.path == REFUNDS, entry.path.endswith(CAPTURE)
        outcomes = _REFUND_OUTCOMES if refunds else _CAPTURE_OUTCOMES if captures else _OUTCOMES
        outcome = self._draw(outcomes) if self.faulty else "paid"
        fields = {name: values[0] for name, values in parse_qs(entry.body.decode()).items()}
        if outcome == "error":
            entry.status, entry.answer = 500, error("api_error", "internal")
            self._answer(reply, entry.status, entry.answer)
            return
        made: Charge | Refund | str
        if refunds:
            made = self._give_back(outcome, fields, call)
        elif captures:
            made = self.account.capture(entry.path.split("/")[3], fields, call)
            self.log(f"  Stripe captures {made if isinstance(made, str) else made.shown()}")
        else:
            made = self._charge(outcome, fields, call)
        if isinstance(made, str):
            entry.status, entry.answer = 400, error("invalid_request_error", made)
            if self.chance.random() < 0.5:  # refused before it began, so that no key keeps it
                self.keys = {key: each for key, each in self.keys.items() if each is not entry}
        elif outcome == "declined":
            entry.status, entry.answer = 402, error("card_error", "card_declined", made.id)
        elif outcome == "error_after":
            entry.status, entry.answer = 500, error("api_error", "internal")
        else:
            entry.status, entry.answer = 200, json.dumps(made.shown()).encode()
        self._answer(reply, entry.status, entry.answer)

    def _charge(self, outcome: str, fields: dict[str, str], call: int | None) -> Charge:
        statuses = {"declined": "failed", "pending": "pending"}
        status = statuses.get(outcome, "succeeded")
        charge = self.account.charge(fields, status, self.now_ms, call)
        self.log(f"  Stripe made {charge.id}, {charge.status}, for {charge.attempt}")
        if outcome == "pending":
            later = self.chance.randrange(2 * MINUTE, 10 * HOUR)
            self.loop.call_later(later / 1000, self._finish, charge)
        return charge

    def _finish(self, charge: Charge) -> None:
        if charge.status == "pending":
            charge.status = self.chance.choice(("succeeded", "succeeded", "failed"))
            self.log(f"  Stripe: {charge.id} is {charge.status} now")

    def _give_back(self, outcome: str, fields: dict[str, str], call: int | None) -> Refund | str:
        status = outcome if outcome in WAITING or outcome in GONE else "succeeded"
        made = self.account.refund(fields, status, self.now_ms, call)
        if isinstance(made, str):
            self.log(f"  Stripe refuses a refund: {made}")
            return made
        charge, mark = made.charge.id, made.attempt
        self.log(f"  Stripe made {made.id} of {made.amount} of {charge}, {status}, for {mark}")
        if status in WAITING:
            later = self.chance.randrange(2 * MINUTE, 10 * HOUR)
            self.loop.call_later(later / 1000, self._end_refund, made)
        return made

    def _end_refund(self, refund: Refund) -> None:
        if refund.status in WAITING:
            ends = ("succeeded", "succeeded", "failed", "canceled")
            self.end_refund(refund, self.chance.choice(ends))

    def end_refund(self, refund: Refund, status: str) -> None:
        """Let `refund` be `status` now: at last, or since its money came back."""
        refund.status = status
        refund.ended_ms = None if refund.stands else self.now_ms
        self.log(f"  Stripe: {refund.id} is {status} now")

    def give_back_by_hand(self, charge: Charge, amount: int | None = None) -> Refund | str:
        """Give `amount` of `charge` back, or what is left, as people do at Stripe's own page."""
        fields = {"charge": charge.id} | ({} if amount is None else {"amount": str(amount)})
        made = self.account.refund(fields, "succeeded", self.now_ms, None)
        told = made if isinstance(made, str) else f"{made.id} of {made.amount}"
        self.log(f"  by hand: refund of {charge.id}: {told}")
        return made

    def _answer(
        self,
        reply: asyncio.Future[Answered],
        status: int,
        body: bytes,
        *,
        replayed: bool = False,
    ) -> None:
        if reply.done():
            return
        date = self.date()
        headers = {} if date is None else {"date": date}
        if replayed:
            headers["idempotent-replayed"] = "true"
        reply.set_result(Answered(status, body, headers))

    async def _read(self, request: UpstreamRequest) -> UpstreamAnswer:
        await self.loop.pause(self._latency())
        if self.faulty and self.chance.random() < 0.08:
            return Lost("connection_broke")
        if self.faulty and self.chance.random() < 0.05:
            status, body = self.chance.choice((429, 500)), error("api_error", "internal")
        else:
            status, body = self.account.look_up(request.path)
        reply: asyncio.Future[Answered] = self.loop.create_future()
        self._answer(reply, status, body)
        answer = await reply
        await self.loop.pause(self._latency())
        return answer
