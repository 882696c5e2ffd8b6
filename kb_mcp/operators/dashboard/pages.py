"""The dashboard's pages: what an operator looks at.

Floor: operators, below the dashboard, above views. Every list is bounded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from kb_mcp.instants import day_of, rfc3339
from kb_mcp.operators.actions.keys import TEXT_MAX
from kb_mcp.operators.alerts import raised
from kb_mcp.operators.dashboard.charts import (
    Plot,
    bar,
    bars_of_today,
    label_of,
    plot,
    spend_plots,
)
from kb_mcp.operators.dashboard.render import page
from kb_mcp.operators.dashboard.story import tell
from kb_mcp.operators.reports.invariants import Verifying
from kb_mcp.operators.reports.stopped import Figures, stopped_figures
from kb_mcp.operators.reports.views import Fullest, Views, key_status
from kb_mcp.operators.requests import (
    AUDIT_FILTERS,
    OPERATION_FILTERS,
    InputError,
    operation_filters,
    read_limit,
    read_query,
)
from kb_mcp.operators.sign_in import Note, Session
from kb_mcp.proxy.access.policy_files import load_policy
from kb_mcp.proxy.access.roles import ROLES, describe
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.records import State
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


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of somebody who is logged in."""

    request: Request
    session_id: str
    session: Session
    note: Note | None = None


class FormError(InputError):
    """A form for a new key or grant that is not valid: it is shown again, with a line a reason."""

    def __init__(self, errors: Sequence[str], param: str | None, form: Mapping[str, str]) -> None:
        """Take the reasons, the field, and the form as it was filled in."""
        super().__init__(400, "parameter_invalid", "; ".join(errors), param)
        self.errors = tuple(errors)
        self.form = form


@dataclass(frozen=True, slots=True)
class Pages:
    """Answers GET requests of the dashboard."""

    fullest: Fullest
    verifying: Verifying | None = None

    @property
    def views(self) -> Views:
        """What is looked at."""
        return self.fullest.views

    def table(self) -> dict[str, Callable[[Visit], Awaitable[Response]]]:
        """Return the pages by path."""
        return {
            "/": self.overview,
            "/approvals": self.approvals,
            "/operations": self.operations,
            "/operations/{id}": self.operation,
            "/refunds": self.refunds,
            "/keys": self.keys,
            "/keys/{id}": self.key,
            "/grants": self.grants,
            "/alerts": self.alerts,
            "/audit": self.audit,
        }

    async def overview(self, visit: Visit) -> Response:
        """Show what was not moved, what needs a person, spend against caps, and the audit."""
        views, records, now = self.views, self.views.records, self.views.now_ms()
        rows = views.audit(TAIL_MAX)
        shown = await bars_of_today(self.fullest)
        figures = await stopped_figures(records, day_of(now))
        needs: dict[str, Any] = {
            "gap": (await records.facts()).get(GAP),
            "unknown": await views.operations(NEEDS_MAX, state=State.UNKNOWN.value),
            "approvals": await views.approvals(NEEDS_MAX, "pending"),
            "frozen": await views.key_page(NEEDS_MAX, status="frozen"),
            "uncapped": shown.uncapped,
            "alerts": self._raised(NEWS_MS)[:ALERTS_SHOWN],
        }
        verified = self._verified()
        return self._page(
            visit,
            "overview",
            figures=figures,
            needs=needs,
            nothing=not any(needs.values()) and not (verified and verified["breaks"]),
            bars=shown.bars,
            labels=await self._labels(
                [*rows, *needs["unknown"], *needs["approvals"]],
                shown.labels,
                (each.key_id for each in figures.by_key),
            ),
            keys_in_all=None if shown.whole else sum((await views.key_counts()).values()),
            more_frozen=len(needs["frozen"]) == NEEDS_MAX,
            tail=rows,
            plots=await self._plots(figures),
            codes=figures.codes[:CODES_MAX],
            verified=verified,
        )

    async def approvals(self, visit: Visit) -> Response:
        """Show what waits for a person, and what was decided before."""
        found = await self.views.approvals(NEEDS_MAX)
        waiting = await self.views.approvals(NEEDS_MAX, "pending")
        return self._page(
            visit,
            "approvals",
            waiting=waiting,
            decided=[row for row in found if row["state"] != "pending"],
            labels=await self._labels([*found, *waiting]),
        )

    async def grants(self, visit: Visit, wrong: FormError | None = None) -> Response:
        """Show which identities stand for which keys, and the form for another grant.

        `wrong` is a form that was not taken.
        """
        read_query(visit.request, ())
        standing = await self.views.grants()
        return self._page(
            visit,
            "grants",
            found=standing,
            labels=await self._labels(standing),
            **_not_taken(wrong),
        )

    async def alerts(self, visit: Visit) -> Response:
        """Show what was raised in the last 30 days."""
        read_query(visit.request, ())
        found = self._raised(ALERTS_MS)
        labels = await self._labels(found)
        return self._page(visit, "alerts", found=found, labels=labels)

    async def keys(self, visit: Visit, wrong: FormError | None = None) -> Response:
        """Show a page of keys, newest first, and the forms for a new one.

        They are searched by what they are called and by status; `wrong` is a form that was not
        taken. Raises: InputError, LedgerUnavailableError.
        """
        given = read_query(visit.request, ("q", "status", "after"))
        cleaned = {name: clean_text(value, TEXT_MAX).strip() for name, value in given.items()}
        query = {name: value for name, value in cleaned.items() if value}
        wanted = {"text" if name == "q" else name: value for name, value in query.items()}
        found = await self.views.key_page(KEYS_MAX + 1, **wanted)
        newest = {name: value for name, value in query.items() if name != "after"}
        last = found[KEYS_MAX - 1]["id"] if len(found) > KEYS_MAX else None
        return self._page(
            visit,
            "keys",
            query=query,
            counts=await self.views.key_counts(),
            keys=found[:KEYS_MAX],
            newest=_keys_path(newest) if "after" in query else None,
            older=None if last is None else _keys_path({**query, "after": last}),
            roles=list(ROLES),
            labels={},
            **_not_taken(wrong),
        )

    async def key(self, visit: Visit) -> Response:
        """Show one key, what it may do, what it did, and how to stop it."""
        key_id = visit.request.path_params["id"]
        found = await self.views.key(key_id)
        today = day_of(self.views.now_ms())
        return self._page(
            visit,
            "keys",
            "key.html",
            key={**found, "status": key_status(found, rfc3339(self.views.now_ms()))},
            words=describe(load_policy(found["policy"])),
            bars=[bar(row) for row in await self.views.spend_of(today, key_id)],
            labels={key_id: found["label"] or found["agent"] or key_id},
            rows=self.views.audit(TAIL_MAX, key=key_id),
        )

    async def operations(self, visit: Visit) -> Response:
        """Show operations, searched by customer, period, charge and state."""
        query = read_query(visit.request, (*OPERATION_FILTERS, "agent", "session", "limit"))
        filters = operation_filters(query)
        if query.get("agent") or query.get("session"):
            found = await self.views.operations_by(
                query.get("agent"), query.get("session"), read_limit(query), filters
            )
        else:
            found = await self.views.operations(read_limit(query), **filters)
        return await self._listed(visit, "operations", query, found)

    async def refunds(self, visit: Visit) -> Response:
        """Show refunds, searched by customer, charge and state."""
        query = read_query(visit.request, ("customer", "charge", "state", "limit"))
        filters = operation_filters(query)
        found = await self.views.operations(read_limit(query), kind="refund", **filters)
        return await self._listed(visit, "refunds", query, found)

    async def _listed(
        self, visit: Visit, section: str, query: Mapping[str, str], found: list[Record]
    ) -> Response:
        return self._page(
            visit,
            section,
            "operations.html",
            query=query,
            found=found,
            states=[state.value for state in State],
            labels=await self._labels(found),
        )

    async def operation(self, visit: Visit) -> Response:
        """Show one operation: its story, its attempts, and its audit rows."""
        operation_id = visit.request.path_params["id"]
        found = await self.views.operation(operation_id)
        trail = self.views.audit(TIMELINE_MAX, operation=operation_id)[::-1]
        refunds: list[Record] = []
        if found["kind"] != "refund" and found["charge_id"] is not None:
            of = await self.views.operations(NEEDS_MAX, charge_id=found["charge_id"])
            refunds = [each for each in of if each["kind"] == "refund"]
        asked = await self.views.approvals(NEEDS_MAX, operation_id=operation_id)
        labels = await self._labels([found, *trail, *asked, *refunds])
        return self._page(
            visit,
            "refunds" if found["kind"] == "refund" else "operations",
            "operation.html",
            operation=found,
            approvals=[each for each in asked if each["state"] == "pending"],
            refunds=refunds,
            story=tell(found, trail, labels, refunds=refunds),
            cut=len(trail) == TIMELINE_MAX,
            trail=trail,
            labels=labels,
        )

    async def audit(self, visit: Visit) -> Response:
        """Show the audit, newest first."""
        query = read_query(visit.request, (*AUDIT_FILTERS, "limit"))
        filters = {name: query.get(name) for name in AUDIT_FILTERS}
        rows = self.views.audit(read_limit(query), **filters)
        labels, verified = await self._labels(rows), self._verified()
        return self._page(visit, "audit", query=query, rows=rows, labels=labels, verified=verified)

    def _raised(self, within_ms: int) -> list[Record]:
        found = raised(self.views, rfc3339(self.views.now_ms() - within_ms), KEYS_MAX)
        return sorted(found, key=lambda row: str(row["time"]), reverse=True)[:KEYS_MAX]

    async def _plots(self, figures: Figures) -> list[Plot]:
        today = day_of(self.views.now_ms())
        days = [(today - timedelta(days=back)).isoformat() for back in range(DAYS - 1, -1, -1)]
        spend = spend_plots(days, await self.views.spent_by_day(days))
        return [*spend[:SPEND_PLOTS_MAX], plot("Stopped calls by day", figures.days)]

    async def _labels(
        self,
        rows: Iterable[Record],
        known: Mapping[str, str] | None = None,
        ids: Iterable[str] = (),
    ) -> dict[str, str]:
        """Return what people call the keys of `rows` and `ids`, by id, beside those `known`."""
        found = dict(known or {})
        wanted = {*ids, *(row["key_id"] for row in rows)} - found.keys() - {None}
        if wanted:
            keys = await self.views.records.keys_by_id(sorted(wanted))
            found |= {key.id: label_of(key) for key, _ in keys}
        return found

    def _verified(self) -> Record | None:
        if self.verifying is None:
            return None
        last = self.verifying.last
        if last is None:
            return {"at": None, "rows": 0, "breaks": []}
        return {"at": rfc3339(last.at), "rows": last.outcome.rows, "breaks": last.outcome.breaks}

    def _page(
        self, visit: Visit, section: str, template: str | None = None, **values: Any
    ) -> Response:
        return page(
            template or f"{section}.html",
            section=section,
            operator=visit.session.operator,
            csrf=visit.session.csrf,
            note=visit.note,
            mode=self.views.ledger.settings.mode,
            now_ms=self.views.now_ms(),
            **values,
        )


def _not_taken(wrong: FormError | None) -> dict[str, Any]:
    """Return what a page shows of a form that was not taken, and the page's status."""
    if wrong is None:
        return {"wrong": None, "form": {}}
    return {"wrong": wrong, "form": wrong.form, "status": wrong.status}


def _keys_path(query: Mapping[str, str]) -> str:
    return f"/keys?{urlencode(query)}" if query else "/keys"
