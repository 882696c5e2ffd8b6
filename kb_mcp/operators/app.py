"""The operators' listener: admin API, metrics and dashboard as one ASGI application.

Floor: operators; built in wiring, which puts the host check around it.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.operators.api import Acts, AdminApi
from kb_mcp.operators.dashboard.actions import Actions
from kb_mcp.operators.dashboard.app import Dashboard
from kb_mcp.operators.dashboard.live_audit import Live
from kb_mcp.operators.dashboard.pages import Pages
from kb_mcp.operators.metrics import Metrics, Readings, no_workers
from kb_mcp.operators.reports.invariants import Verifying
from kb_mcp.operators.reports.views import Fullest, Views
from kb_mcp.operators.requests import ANSWERED, InputError, input_error
from kb_mcp.operators.sign_in import Access, Operators, Sessions, Throttle
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.meters import Meters
from kb_mcp.proxy.stores.reads import StoreReads

_MACHINES = ("/admin/", "/metrics")
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        b"img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    # Not no-referrer: browsers would then send `Origin: null` with our own forms.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a serving process lends its operators: the way to Stripe, and what it has measured.

    `stopping` says that the process ends, so that no stream holds it up.
    """

    acts: StripeActs | None = None
    verifying: Verifying | None = None
    meters: Meters | None = None
    workers: Callable[[], Awaitable[Readings]] = no_workers
    stopping: Callable[[], bool] = lambda: False


def create_admin(  # noqa: PLR0913 an application is built from many parts
    *,
    ledger: Ledger,
    records: StoreReads,
    token: Callable[[], str | None],
    now_ms: Callable[[], int],
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    public_url: str | None = None,
    operators: Callable[[], Mapping[str, str]] = dict,
    bench: Bench | None = None,
) -> ASGIApp:
    """Return the operators' application.

    `token` yields the first operator's token, `operators` SHA-256 hashes of further tokens by
    name; `now_ms` is the store's clock; `public_url` is KEYBRAKE_PUBLIC_URL.
    Raises: LedgerUnavailableError.
    """
    people, given = Operators(token, operators), bench or Bench()
    access = Access(people, Throttle(now_ms), public_url)
    views = Views(ledger=ledger, records=records, now_ms=now_ms)
    acts = Acts(views, random_bytes, given.acts)
    metrics = Metrics(Fullest(views), access, given.meters, given.workers)
    metrics.begin()
    sessions = Sessions(people, random_bytes, now_ms)
    dashboard = Dashboard(
        access=access,
        sessions=sessions,
        noted=Throttle(now_ms),
        pages=Pages(Fullest(views), given.verifying),
        actions=Actions(acts, given.verifying),
        live=Live(views, sessions, given.stopping),
    )
    routes = [
        *AdminApi(acts, access).routes(),
        Route("/metrics", metrics.serve, methods=["GET"]),
        *dashboard.routes(),
    ]

    def answer(request: Request, error: Exception) -> Response:
        found = input_error(error)
        if not request.url.path.startswith(_MACHINES):
            return dashboard.error_page(found)
        return _error(found)

    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(ANSWERED, answer))
    # A slash too many is a path of its own: redirects would lose a body.
    app.router.redirect_slashes = False
    return _Headers(app)


class _Headers:
    """Puts the headers that no answer may lack on every answer, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]}
                more = [*_HEADERS, (b"cache-control", b"no-store")]
                added = [pair for pair in more if pair[0] not in names]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, with_headers)


def _error(error: InputError) -> Response:
    """Write `error` in Stripe's error shape."""
    kind = "rate_limit_error" if error.status == 429 else "invalid_request_error"
    body = {
        "type": "api_error" if error.status >= 500 else kind,
        "code": error.code,
        "message": error.message,
        **({} if error.param is None else {"param": error.param}),
    }
    headers = {"www-authenticate": 'Bearer realm="kb-mcp operators"'} if error.status == 401 else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return JSONResponse({"error": body}, error.status, headers)
