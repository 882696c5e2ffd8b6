"""The door for Bedrock's Converse API: tool uses in, one tool result each out.

Floor: wing A, a door. Pure framing. Messages are Converse's own JSON. An error result always has
content: an empty one is a 400 that poisons the history.
Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kb_mcp.agent.arguments import Invalid
from kb_mcp.agent.bedrock import (
    JSON,
    answer_api,
    answer_function,
    body_text,
    http_status,
    response_state,
)
from kb_mcp.agent.bodies import body_of, is_error
from kb_mcp.agent.calls import Answer, CallContext, Caller
from kb_mcp.agent.converse_stream import BrokenInput, Json, Message
from kb_mcp.agent.converse_stream import as_map as _map

# A tool use is whole under these. Some models end their turn beside it, and every framework runs
# it. Any other reason cut the answer off or found it malformed.
_RUNS: Final = frozenset({None, "tool_use", "end_turn", "stop_sequence"})
_HALF: Final = Invalid(
    ("The tool use came broken off, malformed or with a name twice. Ask for it again.",)
)


def answer_message(
    message: Json, caller: Caller, context: CallContext, stop_reason: str | None = None
) -> Message | None:
    """Run the tool uses of an assistant's message and return the user message that answers them.

    Nothing runs on an answer that was cut off, blocked or malformed. None when there is nothing to
    answer. Uses that ran on a server (`server_tool_use`) were answered there.
    """
    runs = stop_reason in _RUNS
    content = message.get("content")
    results = [
        _result(use, caller, context) if runs else _framed(use, _HALF)
        for block in (content if isinstance(content, list) else ())
        if (use := _use_of(block)) is not None
    ]
    return {"role": "user", "content": results} if results else None


def answer_returned_control(
    return_control: Json, caller: Caller, context: CallContext
) -> list[Message]:
    """Run the invocations of an agent that returns control; one result each, in order."""
    inputs = return_control.get("invocationInputs")
    return [
        _returned(_map(entry), caller, context)
        for entry in (inputs if isinstance(inputs, list) else ())
    ]


def _result(use: Json, caller: Caller, context: CallContext) -> Message:
    arguments = use.get("input")
    name = use.get("name")
    if not isinstance(arguments, Mapping) or not isinstance(name, str):
        return _framed(use, _HALF)
    if isinstance(arguments, BrokenInput):
        return _framed(use, _HALF)
    return _framed(use, caller(name, arguments, context))


def _framed(use: Json, answer: Answer) -> Message:
    return {
        "toolResult": {
            "toolUseId": use.get("toolUseId"),
            "content": [{"json": body_of(answer)}],
            "status": "error" if is_error(answer) else "success",
        }
    }


def _returned(entry: Json, caller: Caller, context: CallContext) -> Message:
    api = _map(entry.get("apiInvocationInput"))
    if api:
        answer = answer_api(api, caller, context)
        echo = {name: api[name] for name in ("actionGroup", "apiPath", "httpMethod") if name in api}
        body = {JSON: {"body": body_text(answer)}}
        result = {**echo, "httpStatusCode": http_status(answer), "responseBody": body}
        return {"apiResult": _with_state(result, answer)}
    function = _map(entry.get("functionInvocationInput"))
    answer = answer_function(function, caller, context)
    echo = {name: function[name] for name in ("actionGroup", "function") if name in function}
    body = {"TEXT": {"body": body_text(answer)}}
    return {"functionResult": _with_state({**echo, "responseBody": body}, answer)}


def _with_state(result: Message, answer: Answer) -> Message:
    state = response_state(answer)
    return result if state is None else {**result, "responseState": state}


def _use_of(block: object) -> Json | None:
    use = _map(_map(block).get("toolUse"))
    return use if use and use.get("type") != "server_tool_use" else None
