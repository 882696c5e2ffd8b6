"""Whose vault key a bearer token is, and what is answered to those who are not let in.

Floor: wing A, part of the MCP door over HTTP. The proxy is asked anew on every request, and nothing
is cached: a key that is revoked is refused on the next one. What cannot be looked up is refused.
Source: RFC 6750, 3 (challenges), RFC 9728 (metadata of a protected resource),
modelcontextprotocol.io/specification (2026-07-28), Authorization.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Scope

from kb_mcp.agent import wording
from kb_mcp.agent.billing import Billing, grants
from kb_mcp.agent.catalogue import TOOLS, ToolName
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.outcomes import ProxyUnavailableError

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
SCOPES: Final = tuple(str(name) for name in TOOLS)


@dataclass(frozen=True, slots=True)
class Known:
    """A key that is good now; `billing` holds it for the tools that it grants.

    `beyond` are tools that it would grant, were they not beyond the scopes of a token.
    """

    billing: Billing
    beyond: frozenset[ToolName] = frozenset()


@dataclass(frozen=True, slots=True)
class Refused:
    """Not let in, with what the proxy says.

    401: no key, or not a good one; 403: a genuine token that gives no vault key; any other
    status: nobody can say now.
    """

    status: int
    code: str | None = None
    message: str | None = None


Bearer = Known | Refused
Identify = Callable[[str], Awaitable[Bearer]]
"""Says whose a bearer token is, without a request to the proxy and without its audit row."""


async def look_up(billing: Billing, token: str, context: CallContext) -> Bearer:
    """Ask the proxy of `billing` what `token` may do. Never raises for what the proxy answers."""
    try:
        reply = await billing.line.describe_key(token, context.headers())
    except ProxyUnavailableError:
        return Refused(503)
    granted = grants(reply, billing.charge_api)
    if granted is None:
        return Refused(reply.status, reply.text("code"), reply.text("message"))
    tools, kinds = granted
    return Known(billing.with_keys(dict.fromkeys(tools, token), kinds))


@dataclass(frozen=True, slots=True)
class Resource:
    """This server as an OAuth resource: its identifier, and who issues tokens for it."""

    identifier: str
    issuers: tuple[str, ...]

    @property
    def metadata_url(self) -> str:
        """The address of the metadata: beside the resource, on the same host."""
        parts = urlsplit(self.identifier)
        return f"{parts.scheme}://{parts.netloc}{WELL_KNOWN}{parts.path.rstrip('/')}"

    def serves(self, path: str) -> bool:
        """Say whether the metadata stands at `path`."""
        return path in {WELL_KNOWN, f"{WELL_KNOWN}/mcp", urlsplit(self.metadata_url).path}

    def metadata(self) -> dict[str, Any]:
        """Return the metadata."""
        return {
            "resource": self.identifier,
            "authorization_servers": list(self.issuers),
            "bearer_methods_supported": ["header"],
            "scopes_supported": list(SCOPES),
            "resource_name": "kb-mcp billing",
        }


def describe(resource: Resource, scope: Scope) -> Response:
    """Answer a request for the metadata."""
    if scope["method"] not in {"GET", "HEAD"}:
        return Response(status_code=405, headers={"Allow": "GET, HEAD"})
    return JSONResponse(resource.metadata(), headers={"Cache-Control": "public, max-age=300"})


def refuse_unnamed(resource: Resource | None, *, presented: bool) -> Response:
    """Answer a request without a bearer; `presented` says that there was some other header."""
    if presented:
        message = "The request must hold one Authorization header: Bearer TOKEN."
        return _challenge(401, resource, message, error="invalid_request")
    # RFC 6750, 3.1: no error code where no credentials came.
    else_token = "" if resource is None else ", or a token of an issuer that the metadata names,"
    return _challenge(401, resource, f"A vault key{else_token} is needed as bearer token.")


def refuse_bearer(found: Refused, resource: Resource | None) -> Response:
    """Answer a request whose bearer is not let in."""
    if found.status == HTTPStatus.UNAUTHORIZED:
        message = found.message or "The vault key is not accepted."
        return _challenge(401, resource, message, error="invalid_token")
    if found.status == HTTPStatus.FORBIDDEN:
        body = {
            "error": "access_denied",
            "error_description": found.message or "The token is not let in.",
            "code": found.code or "vault_key_not_authorized",
        }
        return JSONResponse(body, status_code=403)
    limited = found.status == HTTPStatus.TOO_MANY_REQUESTS
    status = found.status if limited else HTTPStatus.SERVICE_UNAVAILABLE
    return PlainTextResponse(wording.UNAVAILABLE, status, headers={"Retry-After": "1"})


def refuse_scope(resource: Resource | None, tool: str) -> Response:
    """Answer a call of a tool that the token's scopes do not reach."""
    message = f"The scopes of this token do not reach that: it needs the scope {tool}."
    return _challenge(
        403, resource, message, error="insufficient_scope", scope=tool, code="tool_not_granted"
    )


def _challenge(
    status: int,
    resource: Resource | None,
    message: str,
    *,
    error: str | None = None,
    scope: str | None = None,
    code: str | None = None,
) -> Response:
    given = {
        "realm": "kb-mcp",
        "error": error,
        "scope": scope,
        "resource_metadata": None if resource is None else resource.metadata_url,
    }
    named = ", ".join(f'{name}="{value}"' for name, value in given.items() if value is not None)
    body = {"error": error or "unauthorized", "error_description": message}
    body |= {} if code is None else {"code": code}
    return JSONResponse(body, status, headers={"WWW-Authenticate": f"Bearer {named}"})
