"""Whose vault key a bearer token is, asked of the proxy anew on every request.

Floor: wing A, above billing; below the MCP door. Nothing is cached: a key that is revoked is
refused on the next request. What cannot be looked up is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from kb_mcp.agent.billing import Billing, granted_tools
from kb_mcp.agent.outcomes import ProxyUnavailableError
from kb_mcp.agent.sdk import Lost
from kb_mcp.traces import Trace


@dataclass(frozen=True, slots=True)
class Known:
    """A key that is good now; `billing` holds it for the tools that it grants."""

    billing: Billing


@dataclass(frozen=True, slots=True)
class NotAKey:
    """Unknown, expired or revoked; `message` says which."""

    message: str


@dataclass(frozen=True, slots=True)
class LookupFailed:
    """Nobody can say now; `status` is the HTTP status that says so."""

    status: int


Bearer = Known | NotAKey | LookupFailed


def look_up(line: Billing, token: str, trace: Trace | None = None) -> Bearer:
    """Ask the proxy on `line` what `token` may do. Never raises for what the proxy answers."""
    try:
        reply = line.sdk.describe_key(token, {} if trace is None else trace.headers())
    except ProxyUnavailableError:
        return LookupFailed(503)
    if isinstance(reply, Lost):
        return LookupFailed(503)
    if reply.status == 401:
        return NotAKey(reply.text("message") or "The vault key is not accepted.")
    tools = granted_tools(reply, line.charge_api)
    if tools is None:
        return LookupFailed(429 if reply.status == 429 else 503)
    return Known(line.with_keys(dict.fromkeys(tools, token)))
