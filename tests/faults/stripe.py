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
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kb_mcp.proxy.stripe.sends import Answered, Lost, NotSent, UpstreamAnswer, UpstreamRequest
from tests.faults.dates import Dates
from tests.faults.loop import SimulatedLoop

SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
KEY_LASTS_MS = 24 * HOUR
TIMEOUT_MS = 25_000
PAGE_MAX = 3  # short pages, so that walks have several

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


@dataclass(slots=True)
class Charge:
    """An object at Stripe, and which call's send made it."""

    id: str
    fields: dict[str, str]
    status: str
    created_ms: int
    call: int | None
    refunded: bool = False

    @property
    def operation(self) -> str:
        return self.fields["metadata[keybrake_operation]"]

    @property
    def attempt(self) -> str:
        return self.fields["metadata[keybrake_attempt]"]

    def shown(self) -> dict[str, Any]:
        marks = {k[9:-1]: v for k, v in self.fields.items() if k.startswith("metadata[")}
        return {
            "id": self.id,
            "object": "charge",
            "amount": int(self.fields["amount"]),
            "currency": self.fields["currency"],
            "customer": self.fields.get("customer"),
            "status": self.status,
            "captured": True,
            "refunded": self.refunded,
            "amount_refunded": int(self.fields["amount"]) if self.refunded else 0,
            "created": self.created_ms // 1000,
            "metadata": marks,
        }


@dataclass(slots=True)
class Stored:
    """What Stripe keeps under an idempotency key; without an answer it is still running."""

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
    charges: list[Charge] = field(default_factory=list)
    keys: dict[str, Stored] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    overtaken: set[str] = field(default_factory=set)  # keys of requests later than grace
    first_sent_ms: dict[str, int] = field(default_factory=dict)
    dates: Dates

    @property
    def now_ms(self) -> int:
        return self.began_ms + self.loop.now_ms

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
            self._answer(reply, early[fate], _error("api_error", fate))
            return
        key, body = request.idempotency_key or "", request.body or b""
        stored = self.keys.get(key)
        if stored is not None and self.now_ms >= stored.began_ms + KEY_LASTS_MS:
            stored = None
        if stored is not None:
            self._repeat(stored, key, body, reply)
            return
        self.keys[key] = entry = Stored(body, self.now_ms)
        takes = self.chance.randrange(1, 60 * SECOND) if fate == "slow" else self._latency()
        self.loop.call_later(takes / 1000, self._execute, entry, call, reply)

    def _repeat(
        self, stored: Stored, key: str, body: bytes, reply: asyncio.Future[Answered]
    ) -> None:
        if stored.body != body:
            self.wrong.append(f"the key {key} came with other parameters")
            self._answer(reply, 400, _error("idempotency_error", "idempotency_key_reused"))
        elif stored.status is None:
            error = _error("invalid_request_error", "idempotency_key_in_use")
            self._answer(reply, 409, error)
        else:
            self._answer(reply, stored.status, stored.answer, replayed=True)

    def _execute(self, entry: Stored, call: int | None, reply: asyncio.Future[Answered]) -> None:
        outcome = self._draw(_OUTCOMES) if self.faulty else "paid"
        fields = {name: values[0] for name, values in parse_qs(entry.body.decode()).items()}
        if outcome == "error":
            entry.status, entry.answer = 500, _error("api_error", "internal")
            self._answer(reply, entry.status, entry.answer)
            return
        statuses = {"declined": "failed", "pending": "pending"}
        charge = Charge(
            id=f"ch_{len(self.charges) + 1}",
            fields=fields,
            status=statuses.get(outcome, "succeeded"),
            created_ms=self.now_ms,
            call=call,
        )
        self.charges.append(charge)
        self.log(f"  Stripe made {charge.id}, {charge.status}, for {charge.attempt}")
        if outcome == "declined":
            entry.status, entry.answer = 402, _error("card_error", "card_declined", charge.id)
        elif outcome == "error_after":
            entry.status, entry.answer = 500, _error("api_error", "internal")
        else:
            entry.status, entry.answer = 200, json.dumps(charge.shown()).encode()
        if outcome == "pending":
            later = self.chance.randrange(2 * MINUTE, 10 * HOUR)
            self.loop.call_later(later / 1000, self._finish, charge)
        self._answer(reply, entry.status, entry.answer)

    def _finish(self, charge: Charge) -> None:
        if charge.status == "pending":
            charge.status = self.chance.choice(("succeeded", "succeeded", "failed"))
            self.log(f"  Stripe: {charge.id} is {charge.status} now")

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
            status, body = self.chance.choice((429, 500)), _error("api_error", "internal")
        else:
            status, body = self._look_up(request.path)
        reply: asyncio.Future[Answered] = self.loop.create_future()
        self._answer(reply, status, body)
        answer = await reply
        await self.loop.pause(self._latency())
        return answer

    def _look_up(self, path: str) -> tuple[int, bytes]:
        parts = urlsplit(path)
        if parts.path != "/v1/charges":
            found = [each for each in self.charges if parts.path.endswith(f"/{each.id}")]
            if not found:
                return 404, _error("invalid_request_error", "resource_missing")
            return 200, json.dumps(found[0].shown()).encode()
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        listed = [
            each
            for each in reversed(self.charges)
            if each.created_ms // 1000 >= int(query.get("created[gte]", 0))
            and each.fields.get("customer") == query.get("customer", each.fields.get("customer"))
        ]
        after = query.get("starting_after")
        if after is not None:
            listed = listed[[each.id for each in listed].index(after) + 1 :]
        page = [each.shown() for each in listed[:PAGE_MAX]]
        more = len(listed) > PAGE_MAX
        return 200, json.dumps({"object": "list", "data": page, "has_more": more}).encode()


def _error(kind: str, code: str, charge: str | None = None) -> bytes:
    error = {"type": kind, "code": code, "message": code}
    if charge is not None:
        error["charge"] = charge
    return json.dumps({"error": error}).encode()
