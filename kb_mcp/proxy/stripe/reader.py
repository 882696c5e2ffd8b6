"""The one reader of Stripe: an object, a page, or every page of a list. It never posts.

Floor: wing B, above the sends. What could not be read says so; it is never taken for absence. Every
answer tells the time; it is asked for once after a start, and while the clocks disagree.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.ledger.records import Operation
from kb_mcp.proxy.stripe.json_objects import next_cursor, parse_object
from kb_mcp.proxy.stripe.messages import Answered, Upstream, UpstreamAnswer, UpstreamRequest

READ_WITHIN_MS = 10_000
WAITED_FOR_MS = 5_000  # a caller waits for it
PAGE = 100
PAGES_MAX = 20_000
ASK_EVERY_MS = 1_000
_INTENTS = "POST /v1/payment_intents"
_WAITING = frozenset({"pending", "requires_action"})


@dataclass(frozen=True, slots=True)
class Found:
    """What Stripe shows."""

    body: Mapping[str, Any]


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


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of a list; `more` follow, None where it does not say."""

    items: list[Mapping[str, Any]]
    more: bool | None


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

    async def get(self, path: str, within_ms: int = READ_WITHIN_MS) -> Found | Missing | Unread:
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
        return Unread("Stripe's answer is no JSON object") if body is None else Found(body)

    async def body(self, path: str, within_ms: int = READ_WITHIN_MS) -> Mapping[str, Any] | None:
        """Return the object at `path`, or None where it cannot be read, for whatever reason."""
        found = await self.get(path, within_ms)
        return found.body if isinstance(found, Found) else None

    async def page(
        self, path: str, query: Mapping[str, str], since_ms: int = 0
    ) -> Listed | Missing | Unread:
        """Read one page of the list at `path`, of what was made since then (0: of all).

        A stand-in may not know the filter by time. The page is then read without it, and holds
        older objects too: `made_since` leaves them out.
        """
        if since_ms > 0:
            filtered = dict(query) | {"created[gte]": str(since_ms // 1000)}
            answer = await self.get(f"{path}?{urlencode(filtered)}")
            if not isinstance(answer, Unread) or not _is_not_understood(answer):
                return _listed(answer)
        return _listed(await self.get(f"{path}?{urlencode(query)}"))

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
        query = {"limit": str(PAGE)} | filters
        items: list[Mapping[str, Any]] = []
        seen_last: set[str] = set()
        for _ in range(PAGES_MAX):
            page = await self.page(path, query, since_ms)
            if isinstance(page, Unread):
                return page
            if isinstance(page, Missing) and may_lack and "starting_after" not in query:
                return items
            if isinstance(page, Missing):
                return Unread("Stripe's answer is no list")
            items += [each for each in page.items if made_since(each, since_ms)]
            seen(len(items))
            if page.more is False:
                return items
            cursor = next_cursor(page.items, seen_last)
            if cursor is None:
                return Unread("Stripe's list breaks off")
            query["starting_after"] = cursor
        return Unread("Stripe's list does not end")


def made_since(item: Mapping[str, Any], since_ms: int) -> bool:
    """Say whether `item` was made since then, in Stripe's whole seconds; or does not say when."""
    created = item.get("created")
    return not isinstance(created, int) or created >= since_ms // 1000


def _is_not_understood(answer: Unread) -> bool:
    """Say whether the query may be what is refused; Stripe's own failures are `api_error`."""
    return answer.status in {400, 500, 501} and answer.type != "api_error"


def _listed(page: Found | Missing | Unread) -> Listed | Missing | Unread:
    if not isinstance(page, Found):
        return page
    items, more = page.body.get("data"), page.body.get("has_more")
    if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
        return Unread("Stripe's answer is no list")
    return Listed(items, more if isinstance(more, bool) else None)


class TimeReader:
    """Asks once after a start, and again while the clocks disagree; at most once a second."""

    def __init__(self, reads: StripeReads) -> None:
        """Ask by `reads`, for its clock."""
        self.reads = reads
        self._asked_at: int | None = None
        self._asking = asyncio.Lock()

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
    if not isinstance(seen, Found):
        return seen
    charge = seen.body.get("latest_charge") if operation.route == _INTENTS else seen.body
    if not isinstance(charge, Mapping) or not isinstance(charge.get("id"), str):
        return GivenBack(whole=False)
    listed = await reads.get(f"/v1/refunds?charge={charge['id']}&limit=100")
    if not isinstance(listed, Found):
        return listed if isinstance(listed, Unread) else Unread("Stripe's answer is no list")
    refunds = listed.body.get("data")
    if not isinstance(refunds, list) or listed.body.get("has_more") is not False:
        return Unread("Stripe's list of its refunds is not whole")
    return judge_refunds(charge, [each for each in refunds if isinstance(each, Mapping)])


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
