"""What a vault key grants, from what the proxy says of it.

Floor: wing A, above the catalogue and outcomes; below billing. Pure.
"""

from __future__ import annotations

from kb_mcp.agent.catalogue import ChargeApi, ToolName, tools_granted
from kb_mcp.agent.outcomes import Reply, as_map


def granted_tools(reply: Reply, charge_api: ChargeApi) -> frozenset[ToolName] | None:
    """Return the tools that a key grants, from what the proxy says of it; None if it says none."""
    allow = as_map(reply.fields.get("policy")).get("allow")
    if reply.is_error or not isinstance(allow, list):
        return None
    return tools_granted(frozenset(entry for entry in allow if isinstance(entry, str)), charge_api)


def granted_period_kinds(reply: Reply) -> tuple[str, ...]:
    """Return the kinds of period that a key may bill, from what the proxy says of it."""
    kinds = as_map(reply.fields.get("policy")).get("period_kinds")
    if reply.is_error or not isinstance(kinds, list):
        return ()
    return tuple(kind for kind in kinds if isinstance(kind, str))
