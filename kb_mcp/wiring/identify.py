"""Joining the MCP door to the proxy in the same process: whose a bearer token is.

Floor: wiring. The door has to know before it reads a request. Asked here it is one look at the
store, where a request of the door's own would be counted, written to the audit, and answered. What
was found goes with the call, which need not look again.
"""

from __future__ import annotations

from dataclasses import replace

from kb_mcp.agent.bearer import Bearer, Identify, Known, LookupFailed, refused_bearer
from kb_mcp.agent.billing import Billing
from kb_mcp.agent.catalogue import tools_granted
from kb_mcp.agent.in_process import InProcessLine
from kb_mcp.proxy.access.grants import check_scopes
from kb_mcp.proxy.edge.app import ADMITTED
from kb_mcp.proxy.edge.pipeline import RequestPipeline
from kb_mcp.proxy.errors.refusals import Refusal
from kb_mcp.proxy.ledger.port import LedgerUnavailableError


def identifying(pipeline: RequestPipeline, line: Billing) -> Identify:
    """Return what says whose a bearer is: by `pipeline`, for calls over `line`."""

    async def identify(token: str) -> Bearer:
        try:
            admitted = await pipeline.admit(token)
        except LedgerUnavailableError:
            return LookupFailed(503)
        if isinstance(admitted, Refusal):
            return refused_bearer(admitted.status, admitted.code.value, admitted.message)
        allow = frozenset(admitted.policy.allow)
        reached = frozenset(
            entry for entry in allow if check_scopes(admitted.scopes, entry) is None
        )
        tools = tools_granted(reached, line.charge_api)
        beyond = tools_granted(allow, line.charge_api) - tools
        keys, kinds = dict.fromkeys(tools, token), tuple(admitted.policy.period_kinds or ())
        own = line.line
        if isinstance(own, InProcessLine):
            live = admitted.key.mode == "live"
            own = replace(own, extensions={ADMITTED: admitted}, livemode=live)
        return Known(line.with_keys(keys, kinds, own), beyond)

    return identify
