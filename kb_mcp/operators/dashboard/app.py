"""The dashboard: logging in, and what stands between a browser and its pages and actions.

Floor: operators, beside the admin API. Plain forms and links: a page works without scripts. The one
script there is comes from its own file, and the policy forbids every other. The live audit sends
new rows as server-sent events for as long as a session lasts. It is bounded: so many streams, so
many rows a turn, so long a stream; a browser that is cut off comes back by itself. Following does
not keep an idle session alive.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from kb_mcp.instants import how_many
from kb_mcp.operators.actions.operations import admin_row
from kb_mcp.operators.api import Acts
from kb_mcp.operators.dashboard.forms import FORMS, REFUSED, wrong_form
from kb_mcp.operators.dashboard.pages import Pages
from kb_mcp.operators.dashboard.render import STATIC, page, static, written
from kb_mcp.operators.requests import InputError, read_form, read_query
from kb_mcp.operators.sign_in import Access, Note, Session, Sessions, Throttle, same_text
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.port import note as commit_row

SESSION_COOKIE = "keybrake_session"
LOGIN_COOKIE = "keybrake_login"
PLAIN_HTTP = (
    "The dashboard is not shown over plain http off this machine. Put https in front of it and "
    "set KEYBRAKE_PUBLIC_URL to that address, or open it by way of an SSH tunnel."
)
EVERY_S = 1
TURNS_MAX = 900
ROWS_MAX = 100
STREAMS_MAX = 20
_CROSS_SITE = "This form was sent from another site. Nothing was done."
_STALE = "This form is out of date. Nothing was done; go back, reload the page and try again."
_TEXT_MAX = 200
_SHOWN = "id time kind decision code customer_id operation_id key_id agent_id method path note"
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(slots=True, kw_only=True)
class Dashboard:
    """Serves `/` and what hangs below it; `stopping` says that the process ends."""

    access: Access
    sessions: Sessions
    # Failed logins leave rows, but never so many that a stranger could fill the disk.
    noted: Throttle
    pages: Pages
    acts: Acts
    stopping: Callable[[], bool]
    streams: int = 0

    def routes(self) -> list[Route]:
        """Return the dashboard's routes."""
        reached: dict[str, Endpoint] = {
            **{f"/static/{name}": partial(static, name) for name in STATIC},
            "/login": self.login_form,
            "/audit/stream": self.stream,
            **{path: self._behind(partial(self.pages.page, path)) for path in self.pages.table()},
        }
        sent: dict[str, Endpoint] = {
            "/login": self.login,
            "/logout": self._behind(self._log_out),
            "/audit/verify": self._behind(self._verify),
            **{path: self._behind(partial(self._act, path)) for path in FORMS},
        }
        return [
            Route(path, answer, methods=[method])
            for method, table in (("GET", reached), ("POST", sent))
            for path, answer in table.items()
        ]

    async def login_form(self, request: Request) -> Response:
        """Show the form that asks for an operator's token."""
        self._check(request)
        self.access.check_configured()
        ended = "ended" in read_query(request, ("ended",))
        return self._login_page(request, "Your session is over. Log in again." if ended else None)

    async def login(self, request: Request) -> Response:
        """Begin a session for whoever presents an operator's token."""
        self._check(request)
        self.access.check_configured()
        fields = await _read_form(request, request.cookies.get(LOGIN_COOKIE, ""))
        token = fields.get("token", "").strip()
        operator = self.access.guess(request, token)
        if operator is None:
            if not self.noted.wait_s(""):
                self.noted.fail("")
                peer = request.client and f"from {clean_text(request.client.host, 64)}"
                await self._note("login_failed", None, peer)
            return self._login_page(request, "This is no operator's token.", 401)
        await self._note("login", operator)
        response = RedirectResponse("/", 303)
        self._set_cookie(request, response, SESSION_COOKIE, self.sessions.begin(operator, token))
        response.delete_cookie(LOGIN_COOKIE)
        return response

    async def stream(self, request: Request) -> Response:
        """Follow the audit from here on; without a session the stream ends before it begins."""
        self._check(request)
        session = self._session(request)
        if session is None:
            return Response(status_code=204)  # tells a browser's EventSource not to come back
        if self.streams >= STREAMS_MAX:
            return Response(status_code=503, headers={"retry-after": "30"})
        return StreamingResponse(self._events(session), media_type="text/event-stream")

    async def _events(self, session: Session) -> AsyncIterator[str]:
        self.streams += 1
        views, records = self.pages.views, self.pages.views.records
        try:
            last: Any = records.newest_row()
            yield "retry: 3000\n\n"
            for _ in range(TURNS_MAX):
                await asyncio.sleep(EVERY_S)
                if self.stopping() or not self.sessions.holds(session):
                    return
                try:
                    rows = list(records.audit(limit=ROWS_MAX, after_row=last))
                    labels = await views.labels(row["key_id"] for row in rows)
                except LedgerUnavailableError:
                    continue
                if not rows:
                    # A comment: it finds out that the browser has gone.
                    yield ":\n\n"
                for row in rows:
                    last = row["row"]
                    yield f"data: {event(row, labels)}\n\n"
        finally:
            self.streams -= 1

    def _behind(self, answer: Callable[[Request, Session], Awaitable[Response]]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            self._check(request)
            session = self._session(request)
            return _to_login(request) if session is None else await answer(request, session)

        return endpoint

    async def _act(self, path: str, request: Request, session: Session) -> Response:
        form, fields = FORMS[path], await _read_form(request, session.csrf)
        named = request.path_params.get("id", "")
        try:
            record = await self.acts.do(path, named, form.said(fields), session.operator)
        except REFUSED as error:
            if path not in self.pages.table():  # no page of its own to show it again on
                raise
            return await self.pages.page(path, request, session, wrong_form(error, fields))
        session.note = form.note(record)
        return RedirectResponse(form.path.format_map(record), 303)

    async def _verify(self, request: Request, session: Session) -> Response:
        await _read_form(request, session.csrf)
        outcome = await self.pages.verifying.run()
        found = "NOT every chain holds" if outcome.breaks else "every chain holds"
        compared = f"{outcome.heads} of {len(outcome.ends)} were held against an exported head"
        text = f"{how_many(outcome.rows, 'row')} walked: {found}; {compared}."
        await self._note("verify", session.operator, text)
        session.note = Note(text)
        return RedirectResponse("/audit", 303)

    async def _log_out(self, request: Request, session: Session) -> Response:
        await _read_form(request, session.csrf)
        await self._note("logout", session.operator)
        self.sessions.end(session)
        return _to_login(request)

    def _session(self, request: Request) -> Session | None:
        return self.sessions.find(request.cookies.get(SESSION_COOKIE, ""))

    def _check(self, request: Request) -> None:
        if not self.access.https and not self.access.host_is_loopback(request):
            raise InputError(403, "https_required", PLAIN_HTTP)
        # Browsers say where a form comes from; another port of this machine is another site's page.
        site = request.headers.get("sec-fetch-site", "same-origin")
        if request.method == "POST" and site not in {"same-origin", "none"}:
            raise InputError(403, "origin_not_allowed", _CROSS_SITE)

    def _login_page(self, request: Request, said: str | None, status: int = 200) -> Response:
        csrf = self.sessions.fresh()
        response = page("login.html", status, csrf=csrf, said=said)
        self._set_cookie(request, response, LOGIN_COOKIE, csrf)
        return response

    def _set_cookie(self, request: Request, response: Response, name: str, value: str) -> None:
        # Over loopback there is no https, and a browser would not send a secure cookie back.
        secure = self.access.https and not self.access.host_is_loopback(request)
        response.set_cookie(name, value, httponly=True, samesite="strict", secure=secure)

    async def _note(self, decision: str, operator: str | None, text: str | None = None) -> None:
        await commit_row(self.pages.views.ledger, admin_row(operator, decision, text))


def event(row: Record, labels: Mapping[str, str]) -> str:
    """Return a row as ASCII JSON on one line, texts cleaned; `labels` are what keys are called."""
    told = {name: row[name] for name in _SHOWN.split()} | {"key": labels.get(row["key_id"])}
    shown = {
        name: None if value is None else clean_text(str(value), _TEXT_MAX)
        for name, value in told.items()
    }
    if row["amount"] is not None:
        shown["amount"] = written(row["amount"], row["currency"])
    return json.dumps(shown, separators=(",", ":"))


async def _read_form(request: Request, csrf: str) -> Mapping[str, str]:
    """Return the fields of a form that was sent with the token `csrf`. Raises: InputError."""
    fields = await read_form(request)
    if not same_text(fields.get("csrf", ""), csrf):
        raise InputError(403, "form_stale", _STALE)
    return fields


def _to_login(request: Request) -> Response:
    ended = SESSION_COOKIE in request.cookies
    response = RedirectResponse("/login?ended=1" if ended else "/login", 303)
    if ended:
        response.delete_cookie(SESSION_COOKIE)
    return response
