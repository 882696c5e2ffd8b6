"""The operators' listener: admin API, metrics and dashboard as one ASGI application.

Floor: operators; built in wiring, which puts the host check around it.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.operators.api import Acts, admin_routes
from kb_mcp.operators.dashboard.app import Dashboard
from kb_mcp.operators.dashboard.pages import Pages
from kb_mcp.operators.dashboard.render import page
from kb_mcp.operators.metrics import Metrics, Readings
from kb_mcp.operators.reports.invariants import Verifying
from kb_mcp.operators.reports.views import Fullest, Views
from kb_mcp.operators.requests import ANSWERED, InputError, input_error
from kb_mcp.operators.sign_in import Access, Sessions, Throttle
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.meters import Meters
from kb_mcp.proxy.stores.reads import StoreReads

_MACHINES = ("/admin/", "/metrics")
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    # Not no-referrer: browsers would then send `Origin: null` with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def create_admin(  # noqa: PLR0913 an application is built from many parts
    *,
    ledger: Ledger,
    records: StoreReads,
    token: Callable[[], str | None],
    now_ms: Callable[[], int],
    public_url: str | None,
    operators: Callable[[], Mapping[str, str]],
    stripe: StripeActs,
    verifying: Verifying,
    meters: Meters,
    workers: Callable[[], Awaitable[Readings]],
    stopping: Callable[[], bool],
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> ASGIApp:
    """Return the operators' application.

    `token` yields the first operator's token, `operators` SHA-256 hashes of further tokens by
    name; `now_ms` is the store's clock; `public_url` is KEYBRAKE_PUBLIC_URL. The serving process
    lends the way to Stripe and what it has measured; `stopping` says that it ends, so that no
    stream holds it up. Raises: LedgerUnavailableError.
    """
    access = Access(token, operators, Throttle(now_ms), public_url)
    views = Views(ledger=ledger, records=records, now_ms=now_ms)
    acts = Acts(views, random_bytes, stripe)
    metrics = Metrics(Fullest(views), access, meters, workers)
    dashboard = Dashboard(
        access=access,
        sessions=Sessions(access, random_bytes, now_ms),
        noted=Throttle(now_ms),
        pages=Pages(views, Fullest(views), verifying),
        acts=acts,
        stopping=stopping,
    )
    routes = [
        *admin_routes(acts, access),
        Route("/metrics", metrics.serve, methods=["GET"]),
        *dashboard.routes(),
    ]

    def answer(request: Request, error: Exception) -> Response:
        found = input_error(error)
        if not request.url.path.startswith(_MACHINES):
            return page("error.html", found.status, error=found)
        return _error(found)

    app = Starlette(routes=routes, exception_handlers=dict.fromkeys(ANSWERED, answer))
    # A slash too many is a path of its own: redirects would lose a body.
    app.router.redirect_slashes = False
    return _with_headers(app)


def _with_headers(app: ASGIApp) -> ASGIApp:
    """Put the headers that no answer may lack on every answer of `app`, errors included."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await app(scope, receive, with_headers)

    return served


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
