"""MCP over streamable HTTP: who asks is settled anew on every request, before anything is read.

Floor: wing A, part of the MCP door. Order: Host and Origin, the bearer's key, method, size,
repeated names; then an ordinary tool call is answered at once, and the SDK answers the rest. A key
that cannot be looked up is refused. There are no sessions: the id that a client of the handshake
era is given is a label for the audit, so that any worker or host serves the next request.
Source: modelcontextprotocol.io/specification/2025-11-25/basic/transports, Session Management.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Final

from mcp.server.transport_security import (
    RequestBodyLimitMiddleware,
    TransportSecurityMiddleware,
    TransportSecuritySettings,
)
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import NotOffered, call_tool_on_loop
from kb_mcp.agent.doors.mcp.bearer import (
    Bearer,
    Identify,
    Known,
    Refused,
    Resource,
    look_up,
    refuse_bearer,
    refuse_scope,
    refuse_unnamed,
)
from kb_mcp.agent.doors.mcp.messages import Json, NoMessage, read_message
from kb_mcp.agent.doors.mcp.server import (
    CALL,
    context_of,
    create_server,
    read_call,
    write_result,
)
from kb_mcp.agent.doors.mcp.server import Request as McpRequest

PATH: Final = "/mcp"
BODY_BYTES_MAX: Final = 4 * 1024 * 1024
_SESSION: Final = b"mcp-session-id"
_FOUND: Final = "kb_mcp.bearer"
_PORT: Final = re.compile(r":[^\]]*$")  # of an address in brackets, what follows them
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


class HttpDoor:
    """An ASGI app. Run its lifespan, or enter `running()` where another app hosts it."""

    def __init__(
        self,
        billing: Billing,
        new_session_id: Callable[[], str],
        *,
        identify: Identify,
        allowed_hosts: Iterable[str] = (),
        resource: Resource | None = None,
    ) -> None:
        """Serve `/mcp` for `allowed_hosts` and loopback, on the event loop of the proxy.

        `billing` leads to the proxy; its own keys are not used: each bearer brings one.
        `new_session_id` makes what nobody can guess, in visible ASCII. `identify` says whose a
        bearer is, so that a tool call needs no request for it. `resource` is what this server is
        to OAuth clients.
        """
        self._billing = billing
        self._new_session_id = new_session_id
        self._identify = identify
        self._resource = resource
        security = _security(allowed_hosts)
        self._doorman = TransportSecurityMiddleware(security)
        server = create_server(_billing_of)
        self._sdk = server.streamable_http_app(
            streamable_http_path=PATH,
            stateless_http=True,
            json_response=True,
            max_request_body_size=BODY_BYTES_MAX,
            transport_security=security,
        )
        self._manager = server.session_manager
        self._checked = RequestBodyLimitMiddleware(self._serve, BODY_BYTES_MAX)

    def running(self) -> AbstractAsyncContextManager[None]:
        """Return the context in which requests are served; it can be entered once."""
        return self._manager.run()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http":
            await self._sdk(scope, receive, send)
            return
        # RFC 9110 5.5: blanks around a value are no part of it, and not every server drops them.
        headers = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
        # `/mcp/` is the same place. A redirect would name it by plain http behind TLS.
        scope = {**scope, "headers": headers, "path": PATH, "raw_path": PATH.encode()}
        request = Request(scope, receive)
        refusal = await self._doorman.validate_request(request) or await self._admit(request)
        if refusal is None and request.method != "POST":
            # Nothing is ever pushed and no session is kept: no stream to open, nothing to end.
            refusal = Response(status_code=405, headers={"Allow": "POST"})
        if refusal is None:
            await self._checked(scope, receive, send)
        else:
            await refusal(scope, receive, send)

    async def _admit(self, request: Request) -> Response | None:
        token = _bearer(request)
        if token is None:
            presented = bool(request.headers.getlist("authorization"))
            return refuse_unnamed(self._resource, presented=presented)
        return self._let_in(request, await self._identify(token))

    def _let_in(self, request: Request, found: Bearer) -> Response | None:
        if isinstance(found, Refused):
            return refuse_bearer(found, self._resource)
        request.scope[_FOUND] = found
        return None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        read = read_message(body)
        if isinstance(read, NoMessage):
            await JSONResponse(read.document(), status_code=400)(scope, receive, send)
            return
        answer = await self._answer(request, read)
        if answer is not None:
            await answer(scope, receive, send)
            return
        unlabelled = all(name != _SESSION for name, _ in scope["headers"])
        if read.get("method") == "initialize" and unlabelled:
            send = _labelled(send, self._new_session_id())
        await self._sdk(scope, _again(body, receive), send)

    async def _answer(self, request: Request, message: Json) -> Response | None:
        """Answer an ordinary tool call, or who may not ask; None where the SDK has to answer.

        A call asks the proxy itself. For all else the proxy is asked whose the key is: a request of
        its own, counted and in the audit.
        """
        if message.get("method") != CALL:
            token, context = _bearer(request) or "", context_of(request.headers)
            return self._let_in(request, await look_up(self._billing, token, context))
        found: Known = request.scope[_FOUND]
        name = (message.get("params") or {}).get("name")
        if isinstance(name, str) and name in found.beyond:
            return refuse_scope(self._resource, name)
        call = read_call(request, message)
        if call is None:
            return None
        answer = await call_tool_on_loop(found.billing, call.name, call.arguments, call.context)
        # Of a tool that is not offered nothing was asked yet: the SDK says so.
        return None if isinstance(answer, NotOffered) else write_result(call, answer)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields `body`, and then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _labelled(send: Send, session_id: str) -> Send:
    """Return `send`, which puts `session_id` into an answer of success."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            headers = [*message.get("headers", ()), (_SESSION, session_id.encode("ascii"))]
            message = {**message, "headers": headers}
        await send(message)

    return sending


def _billing_of(request: McpRequest) -> Billing:
    http = request.request
    if not isinstance(http, Request):
        raise TypeError("a request without its HTTP request has no key")
    found: Known = http.scope[_FOUND]
    return found.billing


def _bearer(request: Request) -> str | None:
    values = request.headers.getlist("authorization")
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token.isascii() and token else None


def _security(allowed_hosts: Iterable[str]) -> TransportSecuritySettings:
    # Never off: a server on a public address is exactly what rebinding looks for.
    hosts = [*_LOOPBACK, *allowed_hosts]
    named = [*hosts, *(f"{host}:*" for host in hosts if not _PORT.search(host))]
    origins = [f"{scheme}://{name}" for name in named for scheme in ("http", "https")]
    return TransportSecuritySettings(allowed_hosts=named, allowed_origins=origins)
