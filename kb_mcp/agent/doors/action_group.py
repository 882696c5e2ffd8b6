"""The door for Bedrock action groups, in API form and in function form.

Floor: wing A, a door. Pure framing: event in, response out; the outcome table is in bedrock.
"""

from __future__ import annotations

from collections.abc import Mapping

from kb_mcp.agent.bedrock import (
    JSON,
    answer_api,
    answer_function,
    body_text,
    http_status,
    response_state,
)
from kb_mcp.agent.calls import CallContext, Caller, read_subject
from kb_mcp.traces import Trace, read_trace

Event = Mapping[str, object]
Response = dict[str, object]

VERSION = "1.0"


def is_action_group_event(event: Event) -> bool:
    """Say whether `event` is one, rather than the bare arguments of a Gateway target."""
    return "actionGroup" in event and ("apiPath" in event or "function" in event)


def answer_action_group(event: Event, caller: Caller) -> Response:
    """Answer one event, echoing what names the action exactly as it came."""
    context = _context(event)
    group = event.get("actionGroup")
    if "apiPath" in event:
        answer = answer_api(event, caller, context)
        return _framed(
            {
                "actionGroup": group,
                "apiPath": event.get("apiPath"),
                "httpMethod": event.get("httpMethod"),
                "httpStatusCode": http_status(answer),
                "responseBody": {JSON: {"body": body_text(answer)}},
            }
        )
    answer = answer_function(event, caller, context)
    inner: Response = {"responseBody": {"TEXT": {"body": body_text(answer)}}}
    state = response_state(answer)
    if state is not None:
        inner["responseState"] = state
    return _framed(
        {"actionGroup": group, "function": event.get("function"), "functionResponse": inner}
    )


def _framed(response: Response) -> Response:
    return {"messageVersion": VERSION, "response": response}


def _context(event: Event) -> CallContext:
    agent = event.get("agent")
    names = (agent.get("id"), agent.get("alias")) if isinstance(agent, Mapping) else ()
    agent_id = "/".join(name for name in names if isinstance(name, str))
    session = event.get("sessionId")
    # An application says for whom it is where its other session facts are; a turn's own come first.
    subject = read_subject(event.get("promptSessionAttributes"), event.get("sessionAttributes"))
    return CallContext(
        agent_id or None, session if isinstance(session, str) else None, _trace(event), subject
    )


def _trace(event: Event) -> Trace | None:
    # Bedrock has no field for it: an application puts it where its other session facts are.
    for name in ("promptSessionAttributes", "sessionAttributes"):
        attributes = event.get(name)
        if isinstance(attributes, Mapping):
            trace = read_trace(attributes)
            if trace is not None:
                return trace
    return None
