"""The door for Bedrock's Converse API: tool uses in, one tool result each out.

Floor: wing A, a door. Pure framing. Messages are Converse's own JSON. An error result always has
content: an empty one is a 400 that poisons the history.
Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from kb_mcp.agent.arguments import Invalid, has_repeated_names
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

Message = dict[str, object]
Json = Mapping[str, object]

_RUNS: Final = "tool_use"
_HALF: Final = Invalid(("The tool use came broken off or malformed. Ask for it again.",))
_REPEATED: Final = Invalid(("An argument was sent twice. Send it once.",))


def answer_message(
    message: Json, caller: Caller, context: CallContext, stop_reason: str | None = None
) -> Message | None:
    """Run the tool uses of an assistant's message and return the user message that answers them.

    Nothing runs unless the model stopped in order to use tools. None when there is nothing to
    answer. Uses that ran on a server (`server_tool_use`) were answered there.
    """
    runs = stop_reason is None or stop_reason == _RUNS
    content = message.get("content")
    results = [
        _result(use, caller, context) if runs else _framed(use, _HALF)
        for block in (content if isinstance(content, list) else ())
        if (use := _use_of(block)) is not None
    ]
    return {"role": "user", "content": results} if results else None


def read_stream(events: Iterable[Json]) -> tuple[Message, str]:
    """Assemble a ConverseStream into the assistant's message and its stop reason.

    A tool use whose input is no whole JSON object keeps it as text: nothing runs on that.
    """
    blocks: dict[int, Message] = {}
    inputs: dict[int, str] = {}
    stop_reason = "stream_ended"
    for event in events:
        start, delta = _map(event.get("contentBlockStart")), _map(event.get("contentBlockDelta"))
        if start:
            blocks[_index(start)] = dict(_map(start.get("start")))
        if delta:
            index, part = _index(delta), _map(delta.get("delta"))
            _append(blocks.setdefault(index, {}), part)
            inputs[index] = inputs.get(index, "") + _text(_map(part.get("toolUse")), "input")
        stop_reason = str(_map(event.get("messageStop")).get("stopReason", stop_reason))
    for index, block in blocks.items():
        if "toolUse" in block:
            block["toolUse"] = {**_map(block["toolUse"]), "input": _read(inputs.get(index, ""))}
    content = [blocks[index] for index in sorted(blocks) if blocks[index]]
    return {"role": "assistant", "content": content}, stop_reason


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
        # Of a stream: text that is no JSON object, kept as it came.
        repeated = isinstance(arguments, str) and has_repeated_names(arguments)
        return _framed(use, _REPEATED if repeated else _HALF)
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


def _append(block: Message, delta: Json) -> None:
    if "text" in delta:
        block["text"] = _text(block, "text") + _text(delta, "text")
    thought = _map(delta.get("reasoningContent"))
    if thought:
        # A model wants its signed thoughts back, or rejects the history.
        so_far = _map(_map(block.get("reasoningContent")).get("reasoningText"))
        whole = {
            name: _text(so_far, name) + _text(thought, name)
            for name in ("text", "signature")
            if name in so_far or name in thought
        }
        block["reasoningContent"] = {"reasoningText": whole}


def _read(text: str) -> Json | str:
    try:
        value = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) and not has_repeated_names(text) else text


def _text(part: Json, name: str) -> str:
    value = part.get(name)
    return value if isinstance(value, str) else ""


def _index(part: Json) -> int:
    index = part.get("contentBlockIndex")
    return index if isinstance(index, int) else 0


def _map(value: object) -> Json:
    return value if isinstance(value, Mapping) else {}
