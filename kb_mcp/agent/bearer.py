"""Whose vault key a bearer token is, asked of the proxy anew on every request.

Floor: wing A, above billing; below the MCP door. Nothing is cached: a key that is revoked is
refused on the next request. What cannot be looked up is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import CallContext
from kb_mcp.agent.catalogue import ToolName
from kb_mcp.agent.keys import granted_period_kinds, granted_tools
from kb_mcp.agent.line import Lost
from kb_mcp.agent.outcomes import ProxyUnavailableError


@dataclass(frozen=True, slots=True)
class Known:
    """A key that is good now; `billing` holds it for the tools that it grants.

    `beyond` are tools that it would grant, were they not beyond the scopes of a token.
    """

    billing: Billing
    beyond: frozenset[ToolName] = frozenset()


@dataclass(frozen=True, slots=True)
class NotAKey:
    """Unknown, expired or revoked; `message` says which."""

    message: str


@dataclass(frozen=True, slots=True)
class Denied:
    """A genuine token that gives no vault key, with the proxy's code and its words."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class LookupFailed:
    """Nobody can say now; `status` is the HTTP status that says so."""

    status: int


Bearer = Known | NotAKey | Denied | LookupFailed
Identify = Callable[[str], Awaitable[Bearer]]
"""Says whose a bearer token is, without a request to the proxy and without its audit row."""


def refused_bearer(status: int, code: str | None, message: str | None) -> Bearer:
    """Return what a refusal of the proxy says of a bearer."""
    if status == HTTPStatus.UNAUTHORIZED:
        return NotAKey(message or "The vault key is not accepted.")
    if status == HTTPStatus.FORBIDDEN:
        return Denied(code or "vault_key_not_authorized", message or "The token is not let in.")
    limited = status == HTTPStatus.TOO_MANY_REQUESTS
    return LookupFailed(status if limited else HTTPStatus.SERVICE_UNAVAILABLE)


async def look_up(line: Billing, token: str, context: CallContext) -> Bearer:
    """Ask the proxy on `line` what `token` may do. Never raises for what the proxy answers."""
    try:
        reply = await line.line.describe_key(token, context.headers())
    except ProxyUnavailableError:
        return LookupFailed(503)
    if isinstance(reply, Lost):
        return LookupFailed(503)
    if reply.status in {401, 403}:
        return refused_bearer(reply.status, reply.text("code"), reply.text("message"))
    tools = granted_tools(reply, line.charge_api)
    if tools is None:
        return refused_bearer(reply.status, None, None)
    keys = dict.fromkeys(tools, token)
    return Known(line.with_keys(keys, granted_period_kinds(reply)))
