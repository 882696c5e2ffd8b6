"""The dashboard: logging in, and what stands between a browser and its pages and actions.

Floor: operators, beside the admin API. Plain forms and links: a page works without scripts. The one
script there is comes from its own file, and the policy forbids every other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from kb_mcp.operators.actions.operations import note as commit_row
from kb_mcp.operators.dashboard.actions import Actions, Done, Fields
from kb_mcp.operators.dashboard.live_audit import Live
from kb_mcp.operators.dashboard.pages import FormError, Pages, Visit
from kb_mcp.operators.dashboard.render import STATIC, page, static
from kb_mcp.operators.requests import InputError, read_form, read_query
from kb_mcp.operators.sign_in import Access, Sessions, Throttle, same_text
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.ledger.records import AuditDraft

SESSION_COOKIE = "keybrake_session"
LOGIN_COOKIE = "keybrake_login"
PLAIN_HTTP = (
    "The dashboard is not shown over plain http off this machine. Put https in front of it and "
    "set KEYBRAKE_PUBLIC_URL to that address, or open it by way of an SSH tunnel."
)
_CROSS_SITE = "This form was sent from another site. Nothing was done."
_STALE = "This form is out of date. Nothing was done; go back, reload the page and try again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """Serves `/` and what hangs below it."""

    access: Access
    sessions: Sessions
    # Failed logins leave rows, but never so many that a stranger could fill the disk.
    noted: Throttle
    pages: Pages
    actions: Actions
    live: Live

    def routes(self) -> list[Route]:
        """Return the dashboard's routes."""
        shown = self.pages.table().items()
        done = self.actions.table().items()
        return [
            *(Route(f"/static/{name}", partial(_static, name), methods=["GET"]) for name in STATIC),
            Route("/login", self.login_form, methods=["GET"]),
            Route("/login", self.login, methods=["POST"]),
            Route("/logout", self._acting(self._log_out), methods=["POST"]),
            Route("/audit/stream", self.stream, methods=["GET"]),
            *(Route(path, self._showing(answer), methods=["GET"]) for path, answer in shown),
            *(Route(path, self._acting(act), methods=["POST"]) for path, act in done),
        ]

    def error_page(self, error: InputError) -> Response:
        """Return the page that says what went wrong."""
        return page("error.html", error.status, error=error)

    async def login_form(self, request: Request) -> Response:
        """Show the form that asks for an operator's token."""
        self._check_transport(request)
        self.access.check_configured()
        ended = "ended" in read_query(request, ("ended",))
        return self._login_page(request, "Your session is over. Log in again." if ended else None)

    async def login(self, request: Request) -> Response:
        """Begin a session for whoever presents an operator's token."""
        self._check_transport(request)
        _check_site(request)
        self.access.check_configured()
        fields = await read_form(request)
        if not same_text(fields.get("csrf", ""), request.cookies.get(LOGIN_COOKIE, "")):
            raise InputError(403, "form_stale", _STALE)
        token = fields.get("token", "").strip()
        operator = self.access.guess(request, token)
        if operator is None:
            if not self.noted.wait_s(""):
                self.noted.fail("")
                peer = request.client.host if request.client else None
                await self._note("login_failed", None, peer)
            return self._login_page(request, "This is no operator's token.", 401)
        await self._note("login", operator)
        response = RedirectResponse("/", 303)
        self._set_cookie(request, response, SESSION_COOKIE, self.sessions.begin(operator, token))
        response.delete_cookie(LOGIN_COOKIE)
        return response

    async def stream(self, request: Request) -> Response:
        """Follow the audit; without a session the stream ends before it begins."""
        visit = self._visit(request)
        # 204 tells a browser's EventSource not to come back.
        return Response(status_code=204) if visit is None else self.live.follow(visit.session_id)

    async def _log_out(self, visit: Visit, _fields: Fields) -> Done | None:
        await self._note("logout", visit.session.operator)
        self.sessions.end(visit.session_id)
        return None

    def _showing(
        self, answer: Callable[[Visit], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            visit = self._visit(request)
            if visit is None:
                return _to_login(request)
            note = self.sessions.take(visit.session_id)
            return await answer(replace(visit, note=note))

        return endpoint

    def _acting(
        self, act: Callable[[Visit, Fields], Awaitable[Done | None]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            visit = self._visit(request)
            _check_site(request)
            if visit is None:
                return _to_login(request)
            fields = await read_form(request)
            if not same_text(fields.get("csrf", ""), visit.session.csrf):
                raise InputError(403, "form_stale", _STALE)
            try:
                done = await act(visit, fields)
            except FormError as error:
                shown = (
                    self.pages.grants if visit.request.url.path == "/grants" else self.pages.keys
                )
                return await shown(visit, error)
            if done is None:
                return _to_login(request)
            self.sessions.leave(visit.session_id, done.note)
            return RedirectResponse(done.path, 303)

        return endpoint

    def _visit(self, request: Request) -> Visit | None:
        self._check_transport(request)
        session_id = request.cookies.get(SESSION_COOKIE, "")
        session = self.sessions.find(session_id)
        return None if session is None else Visit(request, session_id, session)

    def _check_transport(self, request: Request) -> None:
        if not self.access.https and not self.access.host_is_loopback(request):
            raise InputError(403, "https_required", PLAIN_HTTP)

    def _login_page(self, request: Request, said: str | None, status: int = 200) -> Response:
        csrf = self.sessions.fresh()
        response = page("login.html", status, csrf=csrf, said=said)
        self._set_cookie(request, response, LOGIN_COOKIE, csrf)
        return response

    def _set_cookie(self, request: Request, response: Response, name: str, value: str) -> None:
        # Over loopback there is no https, and a browser would not send a secure cookie back.
        secure = self.access.https and not self.access.host_is_loopback(request)
        response.set_cookie(name, value, httponly=True, samesite="strict", secure=secure)

    async def _note(self, decision: str, operator: str | None, peer: str | None = None) -> None:
        note = None if peer is None else f"from {clean_text(peer, 64)}"
        row = AuditDraft(kind="admin", decision=decision, agent_id=operator, note=note)
        await commit_row(self.pages.views.ledger, row)


async def _static(name: str, _request: Request) -> Response:
    return static(name)


def _check_site(request: Request) -> None:
    # Browsers say where a form comes from; another port of this machine is another site's page.
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise InputError(403, "origin_not_allowed", _CROSS_SITE)


def _to_login(request: Request) -> Response:
    ended = SESSION_COOKIE in request.cookies
    response = RedirectResponse("/login?ended=1" if ended else "/login", 303)
    if ended:
        response.delete_cookie(SESSION_COOKIE)
    return response
