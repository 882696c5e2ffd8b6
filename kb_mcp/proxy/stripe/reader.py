"""Reading Stripe for an operator: one object, or every page of a list. It never posts.

Floor: wing B, above the sends. What could not be read says so; it is never taken for absence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard
from urllib.parse import urlencode

from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.stripe.json_objects import next_cursor, parse_object
from kb_mcp.proxy.stripe.sends import Answered, Upstream, UpstreamRequest

READ_WITHIN_MS = 10_000
PAGE = 100
PAGES_MAX = 20_000


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


Page = Found | Missing | Unread


@dataclass(frozen=True, slots=True)
class StripeReads:
    """Reads over `upstream`; `boottime_ms` counts suspended time."""

    upstream: Upstream
    clock: StoreClock
    boottime_ms: Callable[[], int]

    async def get(self, path: str) -> Page:
        """Read one object or one page; `path` holds the query."""
        request = UpstreamRequest(
            method="GET", path=path, body=None, stripe_version=None, idempotency_key=None
        )
        begun = self.boottime_ms()
        answer = await self.upstream.send(request, deadline_ms=begun + READ_WITHIN_MS)
        if not isinstance(answer, Answered):
            return Unread(f"Stripe cannot be reached ({answer.reason})")
        self.clock.observe(answer.headers.get("date"), self.boottime_ms() - begun)
        if answer.status == 404:
            return Missing()
        if answer.status != 200:
            error = (parse_object(answer.body) or {}).get("error")
            told = error.get("type") if isinstance(error, dict) else None
            return Unread(f"Stripe answered {answer.status}", answer.status, told)
        body = parse_object(answer.body)
        return Unread("Stripe's answer is no JSON object") if body is None else Found(body)

    async def page(self, path: str, query: Mapping[str, str], since_ms: int) -> Page:
        """Read one page of the list at `path`, of what was made since then (0: of all).

        A stand-in may not know the filter by time. The page is then read without it, and holds
        older objects too: `made_since` leaves them out.
        """
        if since_ms > 0:
            filtered = dict(query) | {"created[gte]": str(since_ms // 1000)}
            answer = await self.get(f"{path}?{urlencode(filtered)}")
            if not isinstance(answer, Unread) or not _is_not_understood(answer):
                return answer
        return await self.get(f"{path}?{urlencode(query)}")

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
            data = page.body.get("data") if isinstance(page, Found) else None
            if not isinstance(page, Found) or not _is_list_of_objects(data):
                return Unread("Stripe's answer is no list")
            items += [each for each in data if made_since(each, since_ms)]
            seen(len(items))
            if page.body.get("has_more") is False:
                return items
            cursor = next_cursor(data, seen_last)
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


def _is_list_of_objects(data: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(data, list) and all(isinstance(each, dict) for each in data)
