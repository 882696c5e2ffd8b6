"""Tools for loops over Bedrock's Converse API, and for agents that return control.

Floor: the top, a public face over wing A's Converse door.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from kb_mcp.agent.billing import Billing
from kb_mcp.agent.calls import call_tool
from kb_mcp.agent.catalogue import select_tools
from kb_mcp.agent.client.line import CallContext
from kb_mcp.agent.doors.bedrock import answer_message, answer_returned_control, read_stream
from kb_mcp.agent.export import tool_config
from kb_mcp.settings import Settings
from kb_mcp.traces import read_trace
from kb_mcp.wiring.agent import connect_billing

Json = dict[str, Any]  # Converse's own JSON, handed through


class ConverseTools:
    """The tools whose vault keys are set, for one conversation or many. Thread-safe."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        billing: Billing | None = None,
        session_id: str | None = None,
        subject: str | None = None,
    ) -> None:
        """Use `settings`, else those of the environment; `billing` replaces both.

        `session_id`, and `subject`, for whom the conversation is, go into the audit.
        Raises: SettingsError.
        """
        self._billing = connect_billing(settings) if billing is None else billing
        self._context = CallContext(agent_id="converse", session_id=session_id, subject=subject)

    def tool_config(self, profile: Literal["default", "strict"] = "default") -> Json:
        """Return the `toolConfig` of a Converse request; send it in every turn.

        `strict` asks for arguments that match the schema, for models that can (not Nova).
        Raises: ProxyUnavailableError, RateLimitedError, where KEYBRAKE_VAULT_KEY is the one key
        and the proxy does not say which tools it grants.
        """
        names, kinds = self._billing.wait(self._billing.offered())
        tools = select_tools(
            names, allow_reference=self._billing.allow_reference, period_kinds=kinds
        )
        return tool_config(tools, profile=profile)

    def handle(
        self,
        assistant_message: Mapping[str, Any],
        stop_reason: str | None = None,
        *,
        trace: Mapping[str, str] | None = None,
        subject: str | None = None,
    ) -> Json | None:
        """Run the tool uses of `assistant_message` and return the user message that answers.

        None when there is nothing to answer. Give `stop_reason` where you have it: nothing runs
        on an answer that was cut off, blocked or malformed. `trace` is W3C's `traceparent` and
        `tracestate` by name, as OpenTelemetry's `inject` writes them. `subject` is for whom this
        turn is, where that differs from the conversation's.
        """
        context = replace(
            self._context, trace=read_trace(trace or {}), subject=subject or self._context.subject
        )
        caller = partial(call_tool, self._billing)
        return answer_message(assistant_message, caller, context, stop_reason)

    def read_stream(self, events: Iterable[Mapping[str, Any]]) -> tuple[Json, str]:
        """Assemble a ConverseStream into the assistant's message and its stop reason.

        The message is one that Converse takes back, whatever came: append it to the history.
        """
        return read_stream(events)

    def handle_stream(
        self,
        events: Iterable[Mapping[str, Any]],
        *,
        trace: Mapping[str, str] | None = None,
        subject: str | None = None,
    ) -> Json | None:
        """Assemble a ConverseStream, run its tool uses and return the user message that answers.

        Where the history needs the assistant's message too, use `read_stream` and `handle`.
        """
        message, stop_reason = read_stream(events)
        return self.handle(message, stop_reason, trace=trace, subject=subject)


def answer_return_control(
    return_control: Mapping[str, Any],
    settings: Settings | None = None,
    *,
    billing: Billing | None = None,
    session_id: str | None = None,
    trace: Mapping[str, str] | None = None,
    subject: str | None = None,
) -> list[Json]:
    """Run the invocations of a `returnControl` event; return `returnControlInvocationResults`.

    `trace` and `subject` as in `ConverseTools.handle`.
    Raises: SettingsError.
    """
    billing = connect_billing(settings) if billing is None else billing
    context = CallContext("return-control", session_id, read_trace(trace or {}), subject)
    return answer_returned_control(return_control, partial(call_tool, billing), context)
