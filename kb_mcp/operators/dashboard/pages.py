"""The dashboard's pages: what an operator looks at.

Floor: operators, below the dashboard, above views. Every list is bounded. Templates draw what
stands here: bars of spend against cap by their widths, plots over time as inline SVG, in whole
units.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import urlencode

from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response

from kb_mcp.instants import day_of, rfc3339
from kb_mcp.operators import requests
from kb_mcp.operators.actions.keys import TEXT_MAX
from kb_mcp.operators.alerts import raised
from kb_mcp.operators.dashboard.forms import Wrong
from kb_mcp.operators.dashboard.render import page, tell
from kb_mcp.operators.reports.invariants import Verifying
from kb_mcp.operators.reports.stopped import Figures, stopped_figures
from kb_mcp.operators.reports.views import Fullest, Views, key_status
from kb_mcp.operators.sign_in import Session
from kb_mcp.proxy.access.authenticate import policy_of
from kb_mcp.proxy.access.policy import load_policy, missing_caps
from kb_mcp.proxy.access.roles import ROLES, describe
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.edge.records import Record, Spend
from kb_mcp.proxy.ledger.records import KeyId, State
from kb_mcp.proxy.ledger.snapshot import GAP

NEEDS_MAX = 50
TAIL_MAX = 30
KEYS_MAX = 100
ALERTS_SHOWN = 5
NEWS_MS = 24 * 3_600_000
ALERTS_MS = 30 * 24 * 3_600_000
TIMELINE_MAX = 200
DAYS = 30
SPEND_PLOTS_MAX = 3
CODES_MAX = 5
# More bars than this are for nobody to read; the keys page leads to the others.
BARS_MAX = 100
CHOSEN_FOR_MS = 60_000
BAR_WIDTH = 1000
HEIGHT = 120
STEP = 20
Query = Mapping[str, str]
Values = dict[str, Any]
Show = Callable[[Query], Awaitable[Values]]


@dataclass(frozen=True, slots=True)
class Pages:
    """What pages show, as the values of their templates, for a query or the `id` in a path."""

    views: Views
    fullest: Fullest
    verifying: Verifying

    def table(self) -> dict[str, tuple[str, Show, Sequence[str] | None]]:
        """Return the pages by path: template, values, and what a query may say (None: anything)."""
        searched = (*requests.OPERATION_FILTERS, "agent", "session", "limit")
        refunds = ("customer", "charge", "state", "limit")
        return {
            "/": ("overview", self.overview, None),
            "/approvals": ("approvals", self.approvals, None),
            "/operations": ("operations", self.operations, searched),
            "/operations/{id}": ("operation", self.operation, None),
            "/refunds": ("operations", partial(self.operations, kind="refund"), refunds),
            "/keys": ("keys", self.keys, ("q", "status", "after")),
            "/keys/{id}": ("key", self.key, None),
            "/grants": ("grants", self.grants, ()),
            "/alerts": ("alerts", self.alerts, ()),
            "/audit": ("audit", self.audit, (*requests.AUDIT_FILTERS, "limit")),
        }

    async def page(
        self, path: str, request: Request, session: Session, wrong: Wrong | None = None
    ) -> Response:
        """Return the page at `path`, with the session's note, or the form that was not taken.

        Raises: InputError, LedgerUnavailableError.
        """
        template, show, names = self.table()[path]
        note, session.note = session.note, None
        query = request.path_params if names is None else requests.read_query(request, names)
        values = {"section": path.split("/")[1] or "overview", **await show(query)}
        return page(
            f"{template}.html",
            200 if wrong is None else 400,
            operator=session.operator,
            csrf=session.csrf,
            note=note,
            wrong=wrong,
            form={} if wrong is None else wrong.form,
            mode=self.views.ledger.settings.mode,
            now_ms=self.views.now_ms(),
            **values,
        )

    async def overview(self, _query: Query) -> Values:
        """Show what was not moved, what needs a person, spend against caps, and the audit."""
        views, records = self.views, self.views.records
        rows = views.audit(TAIL_MAX)
        bars, uncapped, whole = await self._bars()
        figures = await stopped_figures(records, day_of(views.now_ms()))
        needs: Values = {
            "gap": (await records.facts()).get(GAP),
            "breaks": self.verifying.last and self.verifying.last.breaks,
            "unknown": await views.operations(NEEDS_MAX, state=State.UNKNOWN.value),
            "approvals": await views.approvals(NEEDS_MAX, "pending"),
            "frozen": await views.key_page(NEEDS_MAX, status="frozen"),
            "uncapped": uncapped,
            "alerts": self._raised(NEWS_MS)[:ALERTS_SHOWN],
        }
        named = [*rows, *bars, *needs["unknown"], *needs["approvals"]]
        ids = (*uncapped, *(each.key_id for each in figures.by_key))
        return {
            "figures": figures,
            "needs": needs,
            "nothing": not any(needs.values()),
            "bars": bars,
            "labels": await self._labels(named, ids),
            "keys_in_all": None if whole else sum((await views.key_counts()).values()),
            "more_frozen": len(needs["frozen"]) == NEEDS_MAX,
            "tail": rows,
            "plots": await self._plots(figures),
            "codes": figures.codes[:CODES_MAX],
        }

    async def approvals(self, _query: Query) -> Values:
        """Show what waits for a person, and what was decided before."""
        found = await self.views.approvals(NEEDS_MAX)
        waiting = await self.views.approvals(NEEDS_MAX, "pending")
        return {
            "waiting": waiting,
            "decided": [row for row in found if row["state"] != "pending"],
            "labels": await self._labels([*found, *waiting]),
        }

    async def grants(self, _query: Query) -> Values:
        """Show which identities stand for which keys, and the form for another grant."""
        found = await self.views.grants()
        return {"found": found, "labels": await self._labels(found)}

    async def alerts(self, _query: Query) -> Values:
        """Show what was raised in the last 30 days."""
        found = self._raised(ALERTS_MS)
        return {"found": found, "labels": await self._labels(found)}

    async def keys(self, given: Query) -> Values:
        """Show keys, newest first, searched by name and status, and the forms for a new one."""
        cleaned = {name: clean_text(value, TEXT_MAX).strip() for name, value in given.items()}
        query = {name: value for name, value in cleaned.items() if value}
        wanted = {"text" if name == "q" else name: value for name, value in query.items()}
        found = await self.views.key_page(KEYS_MAX + 1, **wanted)
        newest = {name: value for name, value in query.items() if name != "after"}
        older = query | {"after": found[KEYS_MAX - 1]["id"]} if len(found) > KEYS_MAX else None
        return {
            "query": query,
            "counts": await self.views.key_counts(),
            "keys": found[:KEYS_MAX],
            "newest": _keys_path(newest) if "after" in query else None,
            "older": older and _keys_path(older),
            "roles": list(ROLES),
            "labels": {},
        }

    async def key(self, query: Query) -> Values:
        """Show one key, what it may do, what it did, and how to stop it."""
        key_id, now = query["id"], self.views.now_ms()
        found = await self.views.key(key_id)
        return {
            "key": {**found, "status": key_status(found, rfc3339(now))},
            "words": describe(load_policy(found["policy"])),
            "bars": [bar(row) for row in await self.views.spend_of(day_of(now), key_id)],
            "labels": await self._labels((), [key_id]),
            "rows": self.views.audit(TAIL_MAX, key=key_id),
        }

    async def operations(self, query: Query, kind: str | None = None) -> Values:
        """Show operations, of one kind or all, searched by whom they are for and who asked."""
        filters = requests.operation_filters(query) | {"agent": query.get("agent"), "kind": kind}
        limit, session = requests.read_limit(query), query.get("session")
        found = await self.views.operations(limit, session=session, **filters)
        labels = await self._labels(found)
        return {"query": query, "found": found, "states": [*State], "labels": labels}

    async def operation(self, query: Query) -> Values:
        """Show one operation: its story, its attempts, and its audit rows."""
        operation_id = query["id"]
        found = await self.views.operation(operation_id)
        trail = self.views.audit(TIMELINE_MAX, operation=operation_id)[::-1]
        refunds: list[Record] = []
        if found["kind"] != "refund" and found["charge_id"] is not None:
            of = await self.views.operations(NEEDS_MAX, charge_id=found["charge_id"])
            refunds = [each for each in of if each["kind"] == "refund"]
        asked = await self.views.approvals(NEEDS_MAX, operation_id=operation_id)
        labels = await self._labels([found, *trail, *asked, *refunds])
        return {
            "section": "refunds" if found["kind"] == "refund" else "operations",
            "operation": found,
            "approvals": [each for each in asked if each["state"] == "pending"],
            "refunds": refunds,
            "story": tell(found, trail, labels, refunds),
            "cut": len(trail) == TIMELINE_MAX,
            "trail": trail,
            "labels": labels,
        }

    async def audit(self, query: Query) -> Values:
        """Show the audit, newest first."""
        filters = {name: query.get(name) for name in requests.AUDIT_FILTERS}
        rows = self.views.audit(requests.read_limit(query), **filters)
        labels = await self._labels(rows)
        return {"query": query, "rows": rows, "labels": labels, "verifying": self.verifying}

    async def _bars(self) -> tuple[list[Record], list[KeyId], bool]:
        """Return the bars of the account, and of the keys that serve or hold something.

        Where there are no more than BARS_MAX they stand by their keys' age, else by how full they
        are. Then come those of these keys that serve, and may move money without a cap over time,
        and whether these bars are all that there are.
        """
        rows, spend = await self.fullest.today(BARS_MAX, CHOSEN_FOR_MS)
        keys = [key for key, _ in await self.views.records.keys_by_id(self.fullest.keys)]
        for key in keys:
            each, found = spend[key.id]
            rows += [row for row in found if each.serves or row.settled or row.reserved]
        whole = len(keys) < BARS_MAX and len(rows) <= BARS_MAX
        if len(rows) > BARS_MAX:
            rows = sorted(rows, key=_used, reverse=True)[:BARS_MAX]
        serving = {key.id: policy_of(key.policy) for key in keys if spend[key.id][0].serves}
        bars = [bar(row) | {"stoppable": row.key_id in serving} for row in rows]
        return bars, [key_id for key_id, policy in serving.items() if missing_caps(policy)], whole

    def _raised(self, within_ms: int) -> list[Record]:
        found = raised(self.views, rfc3339(self.views.now_ms() - within_ms), KEYS_MAX)
        return sorted(found, key=lambda row: str(row["time"]), reverse=True)[:KEYS_MAX]

    async def _plots(self, figures: Figures) -> list[Record]:
        today = day_of(self.views.now_ms())
        days = [(today - timedelta(days=back)).isoformat() for back in range(DAYS - 1, -1, -1)]
        spend = [
            plot("Spend by day", [(day, held.get(day, 0)) for day in days], currency)
            for currency, held in sorted((await self.views.spent_by_day(days)).items())
        ]
        return [*spend[:SPEND_PLOTS_MAX], plot("Stopped calls by day", figures.days)]

    async def _labels(self, rows: Iterable[Record], ids: Iterable[str] = ()) -> dict[str, str]:
        return await self.views.labels([*ids, *(row["key_id"] for row in rows)])


def _keys_path(query: Query) -> str:
    return f"/keys?{urlencode(query)}" if query else "/keys"


def bar(row: Spend) -> Record:
    """Return a row of spend with the widths of its bar, out of BAR_WIDTH."""
    cap, settled, reserved, percent = row.cap, 0, 0, None
    if cap:
        settled = min(row.settled * BAR_WIDTH // cap, BAR_WIDTH)
        reserved = min(row.reserved * BAR_WIDTH // cap, BAR_WIDTH - settled)
        percent = (row.settled + row.reserved) * 100 // cap
    widths = {"settled_width": settled, "reserved_width": reserved, "percent": percent}
    return asdict(row) | widths


def _used(row: Spend) -> tuple[bool, int, int]:
    spent = row.settled + row.reserved
    return row.scope.startswith("account"), spent * 1000 // row.cap if row.cap else 0, spent


def plot(title: str, points: Sequence[tuple[str, int]], currency: str | None = None) -> Record:
    """Return a chart of labels and values that are not negative; without `currency`, of counts."""
    values = [value for _, value in points]
    most, bars = max(values, default=0), []
    for place, (label, value) in enumerate(points):
        # What is there shows, however small beside the rest.
        height = max(value * HEIGHT // most, 2) if value else 0
        at = {"x": place * STEP + 3, "y": HEIGHT - height, "height": height}
        bars.append({**at, "label": label, "value": value})
    sums = {"total": sum(values), "most": most, "width": len(points) * STEP}
    return {"title": title, "currency": currency, "bars": bars, **sums}
