"""The AWS Lambda handler: Bedrock action groups and AgentCore Gateway targets.

Floor: the top, a public face over two doors of wing A. Does not import `mcp`: a cold start pays
for what it needs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kb_mcp.agent import wording
from kb_mcp.agent.calls import Answer, Biller, CallContext, Caller, Unavailable, caller_of
from kb_mcp.agent.doors.bedrock import answer_action_group, is_action_group_event
from kb_mcp.agent.doors.gateway import answer_gateway, gateway_names

if TYPE_CHECKING:
    from kb_mcp.settings import Settings

logger = logging.getLogger(__name__)


def handler(
    event: Mapping[str, Any] | None,
    context: object,
    *,
    settings: Settings | None = None,
    billing: Biller | None = None,
) -> dict[str, Any]:
    """Answer one event. Never raises: an exception would be shown to the model as it is.

    `billing` replaces what the environment says, `settings` the environment itself.
    """
    if settings is None and billing is None and _CONNECTION.begins():
        from kb_mcp.serving.process_setup import uncollected

        # The first event of an environment imports what a charge needs: httpx, the Stripe SDK.
        with uncollected():
            return _answer(event, context, None, None)
    return _answer(event, context, settings, billing)


def _answer(
    event: Mapping[str, Any] | None,
    context: object,
    settings: Settings | None,
    billing: Biller | None,
) -> dict[str, Any]:
    event = event if isinstance(event, Mapping) else {}
    caller = _caller(settings) if billing is None else caller_of(billing)
    if is_action_group_event(event):
        return answer_action_group(event, caller)
    return answer_gateway(event, gateway_names(context), caller)


class _Connection:
    """One Billing for an execution environment, made when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._billing: Biller | None = None
        self._new = True

    def begins(self) -> bool:
        """Say True the first time, and False from then on."""
        with self._lock:
            was, self._new = self._new, False
            return was

    def billing(self) -> Biller:
        with self._lock:
            if self._billing is None:
                self._billing = _connect(None)
            return self._billing


_CONNECTION = _Connection()


def _caller(settings: Settings | None) -> Caller:
    try:
        return caller_of(_CONNECTION.billing() if settings is None else _connect(settings))
    except Exception as error:  # noqa: BLE001 - a door must answer; nothing was sent yet
        # SettingsError names the variable and never its value; of others, only the kind is safe.
        shown = str(error) if type(error).__name__ == "SettingsError" else type(error).__name__
        logger.error("The tools are not connected: %s", shown)  # noqa: TRY400 - no frames, no keys
        return _out_of_order


def _out_of_order(_name: str, _raw: Mapping[str, object] | None, _context: CallContext) -> Answer:
    return Unavailable(wording.UNAVAILABLE)


def _connect(settings: Settings | None) -> Biller:
    from kb_mcp.settings import load_settings
    from kb_mcp.wiring.agent import connect_billing

    return connect_billing(load_settings() if settings is None else settings)
