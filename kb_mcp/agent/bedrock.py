"""Bedrock's ways of asking for a tool and of being told its outcome; shared by two doors.

Floor: wing A, above bodies; below the action-group and Converse doors. Pure framing.
Source: docs.aws.amazon.com/bedrock/latest/userguide/agents-lambda.html. A body's arguments come
in requestBody.content, not in parameters; every value is text; either part may be absent or null.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Literal, assert_never

from kb_mcp.agent.arguments import Invalid, read_texts
from kb_mcp.agent.bodies import body_of, is_unknown
from kb_mcp.agent.calls import (
    Answer,
    Answered,
    CallContext,
    Caller,
    NotOffered,
    RateLimited,
    Unavailable,
)
from kb_mcp.agent.catalogue import JSON, TOOLS, Tool

__all__ = ["JSON", "answer_api", "answer_function", "body_text", "http_status", "response_state"]

Pairs = Iterator[tuple[object, object]]


def answer_api(request: Mapping[str, object], caller: Caller, context: CallContext) -> Answer:
    """Call the tool of `apiPath` and `httpMethod` with the body's and the query's arguments."""
    path, method = request.get("apiPath"), request.get("httpMethod")
    tool = next(
        (tool for tool in TOOLS.values() if (tool.http_path, tool.http_method) == (path, method)),
        None,
    )
    if tool is None:
        return NotOffered()
    content = _map(_map(request.get("requestBody")).get("content"))
    parts = (*(_map(part).get("properties") for part in content.values()),)
    return _answer(tool, caller, context, *parts, request.get("parameters"))


def answer_function(request: Mapping[str, object], caller: Caller, context: CallContext) -> Answer:
    """Call the tool called `function`."""
    name = request.get("function")
    tool = next((tool for tool in TOOLS.values() if tool.name == name), None)
    if tool is None:
        return NotOffered()
    return _answer(tool, caller, context, request.get("parameters"))


def http_status(answer: Answer) -> int:
    """Return the status of the API form: a model may reason about anything below 500."""
    match answer:
        case Answered():
            return 202 if is_unknown(answer) else 200
        case Invalid():
            return 400
        case NotOffered():
            return 404
        case RateLimited():
            return 429
        case Unavailable():
            return 503
        case _:
            assert_never(answer)


def response_state(answer: Answer) -> Literal["REPROMPT", "FAILURE"] | None:
    """Return the state of the function form: invalid input, an outage, or none."""
    match answer:
        case Invalid():
            return "REPROMPT"
        case Unavailable():
            return "FAILURE"
        case Answered() | NotOffered() | RateLimited():
            return None
        case _:
            assert_never(answer)


def body_text(answer: Answer) -> str:
    """Return the body as ASCII JSON."""
    return json.dumps(body_of(answer), separators=(",", ":"))


def _answer(tool: Tool, caller: Caller, context: CallContext, *parts: object) -> Answer:
    texts = read_texts(tool, *(_pairs(part) for part in parts))
    return texts if isinstance(texts, Invalid) else caller(tool.name, texts, context)


def _pairs(part: object) -> Pairs:
    for entry in part if isinstance(part, list) else ():
        yield _map(entry).get("name"), _map(entry).get("value")


def _map(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
