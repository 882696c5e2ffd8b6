"""The one reader of Stripe: an object, a page, or every page of a list. It never posts.

Floor: wing B, above the sends. What could not be read says so; it is never taken for absence. Every
answer tells the time; it is asked for once after a start, and while the clocks disagree.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.ledger.records import Operation
from kb_mcp.proxy.stripe.endpoints import Route
from kb_mcp.proxy.stripe.evidence import Made, parse_object, prove_object
from kb_mcp.proxy.stripe.messages import Answered, Upstream, UpstreamAnswer, UpstreamRequest

READ_WITHIN_MS = 10_000
WAITED_FOR_MS = 5_000  # a caller waits for it
PAGE = 100
PAGES_MAX = 20_000
ASK_EVERY_MS = 1_000
_INTENTS = "POST /v1/payment_intents"
_WAITING = frozenset({"pending", "requires_action"})


@dataclass(frozen=True, slots=True)
class Missing:
    """Stripe says that there is no such object."""


@dataclass(frozen=True, slots=True)
class Unread:
    """Nothing is known; `why` is for a person, `status` is Stripe's where it answered.

    `type` is that of Stripe's error, where it told one.
    """

    why: str
    status: int | None = None
    type: str | None = None


_NO_LIST = Unread("Stripe's answer is no list")


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of a list, each of its items with an id; whether `more` follow."""

    items: list[Mapping[str, Any]]
    more: bool


@dataclass(frozen=True, slots=True)
class StripeReads:
    """Reads over `upstream`; `boottime_ms` counts suspended time."""

    upstream: Upstream
    clock: StoreClock
    boottime_ms: Callable[[], int]

    async def fetch(
        self, path: str, within_ms: int = READ_WITHIN_MS, version: str | None = None
    ) -> UpstreamAnswer:
        """Return Stripe's answer as it came; `path` holds the query."""
        request = UpstreamRequest("GET", path, stripe_version=version)
        begun = self.boottime_ms()
        answer = await self.upstream.send(request, deadline_ms=begun + within_ms)
        if isinstance(answer, Answered):
            self.clock.observe(answer.headers.get("date"), self.boottime_ms() - begun)
        return answer

    async def get(
        self, path: str, within_ms: int = READ_WITHIN_MS
    ) -> Mapping[str, Any] | Missing | Unread:
        """Read one object, or what else there is at `path`."""
        answer = await self.fetch(path, within_ms)
        if not isinstance(answer, Answered):
            return Unread(f"Stripe cannot be reached ({answer.reason})")
        if answer.status == 404:
            return Missing()
        if answer.status != 200:
            error = (parse_object(answer.body) or {}).get("error")
            told = error.get("type") if isinstance(error, dict) else None
            return Unread(f"Stripe answered {answer.status}", answer.status, told)
        body = parse_object(answer.body)
        return Unread("Stripe's answer is no JSON object") if body is None else body

    async def body(self, path: str, within_ms: int = READ_WITHIN_MS) -> Mapping[str, Any] | None:
        """Return the object at `path`, or None where it cannot be read, for whatever reason."""
        found = await self.get(path, within_ms)
        return None if isinstance(found, Missing | Unread) else found

    async def made(
        self, route: Route, object_id: str, within_ms: int = READ_WITHIN_MS
    ) -> Made | None:
        """Return what the object that `route` made proves as Stripe shows it now.

        None where it cannot be read, for whatever reason.
        """
        answer = await self.fetch(route.path_of(object_id), within_ms)
        if not isinstance(answer, Answered) or answer.status != 200:
            return None
        made = prove_object(parse_object(answer.body) or {}, route, answer.body)
        return made if made is not None and made.object_id == object_id else None

    async def walk(
        self,
        path: str,
        since_ms: int,
        seen: Callable[[int], None] = lambda _: None,
        *,
        may_lack: bool = False,
        **filters: str,
    ) -> list[Mapping[str, Any]] | Unread:
        """Read every page of the list at `path`, newest first, of what was made since then.

        `filters` are the list's own parameters; `since_ms` 0 asks for all of it. `seen` hears after
        each page how many there are so far. With `may_lack`, a list that Stripe does not have is
        empty: stand-ins lack endpoints. What rests on absence must not ask so.
        """
        pages = Pages(self, path, filters, since_ms)
        items: list[Mapping[str, Any]] = []
        for _ in range(PAGES_MAX):
            page = await pages.next()
            if isinstance(page, Missing):
                return items if may_lack else _NO_LIST
            if isinstance(page, Unread):
                return page
            items += page.items
            seen(len(items))
            if not page.more:
                return items
        return Unread("Stripe's list does not end")


@dataclass(slots=True)
class Pages:
    """The list at `path`, page by page, of what was made since then (0: of all).

    `after` is the object that the last page ended on: from there on the next one is read. A list
    that would not get further says so where its next page is asked for.
    """

    reads: StripeReads
    path: str
    filters: Mapping[str, str]
    since_ms: int = 0
    after: str | None = None
    _ends: set[str] = field(default_factory=set, init=False)
    _stuck: Unread | None = field(default=None, init=False)

    async def next(self) -> Listed | Missing | Unread:
        """Read one page; Missing where Stripe does not have the list."""
        found = self._stuck or await self._read()
        if isinstance(found, Missing) and self.after is not None:
            # Stand-ins lack endpoints; but after a first page it is the page that is missing.
            return Unread("Stripe's page is gone", 404)
        if isinstance(found, Missing | Unread):
            return found
        items, more = found.get("data"), found.get("has_more")
        if not isinstance(items, list) or not isinstance(more, bool):
            return _NO_LIST
        if not all(isinstance(each, dict) and isinstance(each.get("id"), str) for each in items):
            return _NO_LIST
        if more:
            self._turn(items[-1]["id"] if items else None)
        return Listed([each for each in items if made_since(each, self.since_ms)], more)

    async def _read(self) -> Mapping[str, Any] | Missing | Unread:
        """Read what stands there; without the filter by time where a stand-in may not know it.

        Such a page holds older objects too, which are left out.
        """
        query = {"limit": str(PAGE), **self.filters}
        if self.after is not None:
            query["starting_after"] = self.after
        if self.since_ms > 0:
            filtered = query | {"created[gte]": str(self.since_ms // 1000)}
            found = await self.reads.get(f"{self.path}?{urlencode(filtered)}")
            if not isinstance(found, Unread) or not _is_not_understood(found):
                return found
        return await self.reads.get(f"{self.path}?{urlencode(query)}")

    def _turn(self, last: str | None) -> None:
        """Go on after `last`; a list that ends on one of its ends again goes round in a circle."""
        if last is None or last in self._ends:
            self._stuck = Unread(
                f"Stripe's list {'breaks off' if last is None else 'repeats itself'}"
            )
            return
        self._ends.add(last)
        self.after = last


def made_since(item: Mapping[str, Any], since_ms: int) -> bool:
    """Say whether `item` was made since then, in Stripe's whole seconds; or does not say when."""
    created = item.get("created")
    return not isinstance(created, int) or created >= since_ms // 1000


def _is_not_understood(answer: Unread) -> bool:
    """Say whether the query may be what is refused; Stripe's own failures are `api_error`."""
    return answer.status in {400, 500, 501} and answer.type != "api_error"


@dataclass(slots=True)
class TimeReader:
    """Asks once after a start, and again while the clocks disagree; at most once a second."""

    reads: StripeReads
    _asked_at: int | None = field(default=None, init=False)
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def settle(self) -> None:
        """Ask for the time unless it is certain; wait for the answer a few seconds at most."""
        if not self.reads.clock.unsure:
            return
        asked_at = self._asked_at
        async with self._asking:
            # Whoever came while another one asked has waited for the same answer.
            now = self.reads.boottime_ms()
            lately = self._asked_at is not None and now < self._asked_at + ASK_EVERY_MS
            if self.reads.clock.unsure and not lately and self._asked_at == asked_at:
                self._asked_at = now
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WAITED_FOR_MS / 1000):
                        await self.reads.fetch("/v1/charges?limit=1", WAITED_FOR_MS)


@dataclass(frozen=True, slots=True)
class GivenBack:
    """Whether all of a charge was given back, and the refund that still waits, if any."""

    whole: bool
    waiting: str | None = None


async def read_refund(reads: StripeReads, operation: Operation) -> GivenBack | Missing | Unread:
    """Read what was given back of the charge that `operation` made."""
    path = f"/v1/charges/{operation.object_id}"
    if operation.route == _INTENTS:
        path = f"/v1/payment_intents/{operation.object_id}?expand[]=latest_charge"
    seen = await reads.get(path)
    if isinstance(seen, Missing | Unread):
        return seen
    charge = seen.get("latest_charge") if operation.route == _INTENTS else seen
    if not isinstance(charge, Mapping) or not isinstance(charge.get("id"), str):
        return GivenBack(whole=False)
    refunds = await reads.walk("/v1/refunds", 0, charge=charge["id"])
    return refunds if isinstance(refunds, Unread) else judge_refunds(charge, refunds)


def judge_refunds(charge: Mapping[str, Any], refunds: Sequence[Mapping[str, Any]]) -> GivenBack:
    """Say what `refunds` have given back of `charge`; amounts are minor units of one currency."""
    waiting = next((each for each in refunds if each.get("status") in _WAITING), None)
    if waiting is not None:
        return GivenBack(whole=False, waiting=f"{waiting.get('id')} ({waiting.get('status')})")
    given = sum(
        each["amount"]
        for each in refunds
        if each.get("status") == "succeeded" and type(each.get("amount")) is int
    )
    taken = charge.get("amount_captured")
    taken = taken if type(taken) is int else charge.get("amount")
    whole = charge.get("refunded") is True and type(taken) is int and 0 < taken <= given
    return GivenBack(whole=whole)
