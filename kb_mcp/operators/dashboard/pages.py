"""The dashboard's pages: what an operator looks at.

Floor: operators, below the dashboard, above views. Every list is bounded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from kb_mcp.instants import day_of, rfc3339
from kb_mcp.operators.actions.keys import TEXT_MAX
from kb_mcp.operators.api.admin import unknown_key
from kb_mcp.operators.dashboard.bars import Bars
from kb_mcp.operators.dashboard.history import History
from kb_mcp.operators.dashboard.key_forms import FormError
from kb_mcp.operators.dashboard.plots import Plot, plot, spend_plots
from kb_mcp.operators.dashboard.render import bar, page
from kb_mcp.operators.reports.audit_state import Verifying
from kb_mcp.operators.reports.views import Views, key_status
from kb_mcp.operators.requests import InputError, read_limit, read_query
from kb_mcp.operators.sign_in.sessions import Note, Session
from kb_mcp.proxy.access.policy_files import load_policy
from kb_mcp.proxy.access.roles import ROLES, describe
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.records import State

NEEDS_MAX = 50
TAIL_MAX = 30
REFUSALS_MAX = 20
KEYS_MAX = 100
# Refusals are looked for among this many newest rows: the audit may hold millions.
LOOK_BACK_MAX = 300
TIMELINE_MAX = 200
DAYS = 30
SPEND_PLOTS_MAX = 3
CODES_MAX = 5


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of somebody who is logged in."""

    request: Request
    session_id: str
    session: Session
    note: Note | None = None


@dataclass(frozen=True, slots=True)
class Pages:
    """Answers GET requests of the dashboard."""

    views: Views
    history: History
    bars: Bars
    verifying: Verifying | None = None

    def table(self) -> dict[str, Callable[[Visit], Awaitable[Response]]]:
        """Return the pages by path."""
        return {
            "/": self.overview,
            "/keys": self.keys,
            "/keys/{id}": self.key,
            "/operations": self.operations,
            "/operations/{id}": self.operation,
            "/audit": self.audit,
        }

    async def overview(self, visit: Visit) -> Response:
        """Show spend, what needs a person, refusals and the audit's tail."""
        rows = self.views.audit(LOOK_BACK_MAX)
        shown = await self.bars.today()
        frozen = await self.views.key_page(NEEDS_MAX, status="frozen")
        unknown = await self.views.operations(NEEDS_MAX, state=State.UNKNOWN.value)
        self.history.catch_up()
        return self._page(
            visit,
            "overview.html",
            "overview",
            bars=shown.bars,
            labels=shown.labels,
            keys_in_all=None if shown.whole else sum((await self.views.key_counts()).values()),
            unknown=unknown,
            approvals=await self.views.approvals(NEEDS_MAX, "pending"),
            frozen=frozen,
            more_frozen=len(frozen) == NEEDS_MAX,
            refusals=[row for row in rows if row["decision"] == "refuse"][:REFUSALS_MAX],
            tail=rows[:TAIL_MAX],
            plots=await self._plots(),
            history_whole=self.history.whole,
            codes=self.history.codes(CODES_MAX),
            verified=self._verified(),
        )

    async def keys(self, visit: Visit, wrong: FormError | None = None) -> Response:
        """Show a page of keys, newest first, and the forms for a new one.

        They are searched by what they are called and by status; `wrong` is a form that was not
        taken. Raises: InputError, LedgerUnavailableError.
        """
        query = read_query(visit.request, ("q", "status", "after"))
        cleaned = {name: clean_text(value, TEXT_MAX).strip() for name, value in query.items()}
        query = {name: value for name, value in cleaned.items() if value}
        found = await self.views.key_page(
            KEYS_MAX + 1,
            text=query.get("q"),
            status=query.get("status"),
            after=query.get("after"),
        )
        more = {**query, "after": found[KEYS_MAX - 1]["id"]} if len(found) > KEYS_MAX else None
        newest = {name: value for name, value in query.items() if name != "after"}
        return self._page(
            visit,
            "keys.html",
            "keys",
            status=200 if wrong is None else wrong.status,
            query=query,
            counts=await self.views.key_counts(),
            keys=found[:KEYS_MAX],
            newest=_keys_path(newest) if "after" in query else None,
            older=None if more is None else _keys_path(more),
            roles=list(ROLES),
            wrong=wrong,
            form={} if wrong is None else wrong.form,
        )

    async def key(self, visit: Visit) -> Response:
        """Show one key, what it may do, what it did, and how to stop it."""
        key_id = visit.request.path_params["id"]
        found = await self.views.key(key_id)
        if found is None:
            raise unknown_key()
        today = day_of(self.views.now_ms())
        return self._page(
            visit,
            "key.html",
            "keys",
            key={**found, "status": key_status(found, rfc3339(self.views.now_ms()))},
            words=describe(load_policy(found["policy"])),
            bars=[bar(row) for row in await self.views.spend_of(today, key_id)],
            labels={},
            rows=self.views.audit(TAIL_MAX, key=key_id),
        )

    async def operations(self, visit: Visit) -> Response:
        """Show operations, searched by customer, period, charge and state."""
        names = ("customer", "period", "charge", "agent", "session", "state", "limit")
        query = read_query(visit.request, names)
        filters = {
            "customer_id": query.get("customer"),
            "billing_period": query.get("period"),
            "charge_id": query.get("charge"),
            "state": query.get("state"),
        }
        if query.get("agent") or query.get("session"):
            found = await self.views.operations_by(
                query.get("agent"), query.get("session"), read_limit(query), filters
            )
        else:
            found = await self.views.operations(read_limit(query), **filters)
        states = [state.value for state in State]
        return self._page(
            visit, "operations.html", "operations", query=query, found=found, states=states
        )

    async def operation(self, visit: Visit) -> Response:
        """Show one operation: its attempts, and its audit trail oldest first."""
        operation_id = visit.request.path_params["id"]
        found = await self.views.operation(operation_id)
        if found is None:
            raise InputError(404, "operation_unknown", "There is no operation with this id.")
        approvals = await self.views.approvals(NEEDS_MAX, "pending", operation_id=operation_id)
        trail = self.views.audit(TIMELINE_MAX, operation=operation_id)[::-1]
        return self._page(
            visit, "operation.html", "operations", operation=found, approvals=approvals, trail=trail
        )

    async def audit(self, visit: Visit) -> Response:
        """Show the audit, newest first."""
        names = ("key", "customer", "code", "operation", "agent", "session", "subject")
        query = read_query(visit.request, (*names, "limit"))
        filters = {name: query.get(name) for name in names}
        rows = self.views.audit(read_limit(query), **filters)
        return self._page(
            visit, "audit.html", "audit", query=query, rows=rows, verified=self._verified()
        )

    async def _plots(self) -> list[Plot]:
        today = day_of(self.views.now_ms())
        days = [(today - timedelta(days=back)).isoformat() for back in range(DAYS - 1, -1, -1)]
        spend = spend_plots(days, await self.views.spent_by_day(days))
        refused = [(f"{hour[11:]}:00", count) for hour, count in self.history.refusals()]
        return [*spend[:SPEND_PLOTS_MAX], plot("Refusals by hour", refused)]

    def _verified(self) -> Record | None:
        if self.verifying is None:
            return None
        last = self.verifying.last
        if last is None:
            return {"at": None, "rows": 0, "breaks": []}
        breaks = last.outcome.breaks
        return {"at": rfc3339(last.at), "rows": last.outcome.rows, "breaks": breaks}

    def _page(self, visit: Visit, template: str, section: str, **values: Any) -> Response:
        return page(
            template,
            section=section,
            operator=visit.session.operator,
            csrf=visit.session.csrf,
            note=visit.note,
            mode=self.views.ledger.settings.mode,
            **values,
        )


def _keys_path(query: Mapping[str, str]) -> str:
    return f"/keys?{urlencode(query)}" if query else "/keys"
