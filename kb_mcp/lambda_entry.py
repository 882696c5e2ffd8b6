"""The AWS Lambda handler: Bedrock action groups and AgentCore Gateway targets.

Floor: the top, a public face over two doors of wing A. Does not import `mcp`: a cold start pays
for what it needs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from kb_mcp.agent import wording
from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import Caller, Unavailable, call_tool
from kb_mcp.agent.doors import bedrock
from kb_mcp.environment import SettingsError
from kb_mcp.serving.process_setup import uncollected
from kb_mcp.settings import Settings
from kb_mcp.wiring.agent import connect_billing

logger = logging.getLogger(__name__)


def handler(
    event: Mapping[str, Any] | None,
    context: object,
    *,
    settings: Settings | None = None,
    billing: Billing | None = None,
) -> dict[str, Any]:
    """Answer one event. Never raises: an exception would be shown to the model as it is.

    `billing` replaces what the environment says, `settings` the environment itself.
    """
    event = event if isinstance(event, Mapping) else {}
    caller = _caller(settings) if billing is None else partial(call_tool, billing)
    if bedrock.is_action_group_event(event):
        return bedrock.answer_action_group(event, caller)
    return bedrock.answer_gateway(event, bedrock.gateway_names(context), caller)


def _caller(settings: Settings | None) -> Caller:
    try:
        with _lock:
            billing = _connect() if settings is None else connect_billing(settings)
        return partial(call_tool, billing)
    except Exception as error:  # noqa: BLE001 - a door must answer; nothing was sent yet
        # SettingsError names the variable and never its value; of others, only the kind is safe.
        shown = str(error) if isinstance(error, SettingsError) else type(error).__name__
        logger.error("The tools are not connected: %s", shown)  # noqa: TRY400 - no frames, no keys
        return lambda _name, _raw, _context: Unavailable(wording.UNAVAILABLE)


_lock = threading.Lock()


@cache
def _connect() -> Billing:
    """Return the one connection of an execution environment, made at its first event."""
    with uncollected():
        import httpx  # noqa: F401 - with what a charge needs, which is loaded late everywhere else

        return connect_billing()
