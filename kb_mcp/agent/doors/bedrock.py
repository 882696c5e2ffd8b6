"""The doors for Bedrock: events of action groups, returned control, and messages of Converse.

Floor: wing A, a door. Pure framing. Every value of an action group is text; a body's arguments come
in requestBody.content, not in parameters; either part may be absent or null. Messages are
Converse's own JSON, which go into the history of the next request: an empty error result, or one
block that the service refuses, ends the conversation after the charge was made. So an error result
always has content, and of a stream such a block is left out and every other one is kept.
Source: docs.aws.amazon.com/bedrock/latest/userguide/agents-lambda.html, and of the API reference
API_runtime_Converse.html, API_runtime_ContentBlock.html, API_runtime_ContentBlockDelta.html; the
service refuses blank text and an input that is no object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, assert_never

from kb_mcp.agent.calls import (
    Answer,
    Answered,
    Caller,
    Invalid,
    NotOffered,
    RateLimited,
    Unavailable,
    body_of,
    is_error,
    is_unknown,
    read_texts,
)
from kb_mcp.agent.catalogue import JSON, TOOLS, Tool
from kb_mcp.agent.client.line import CallContext, read_subject
from kb_mcp.agent.outcomes import as_map
from kb_mcp.agent.strict_json import read_json
from kb_mcp.traces import read_trace

Json = Mapping[str, object]
Message = dict[str, object]

VERSION: Final = "1.0"
_API: Final = ("actionGroup", "apiPath", "httpMethod")  # what is echoed as it came
_FUNCTION: Final = ("actionGroup", "function")
ENDED: Final = "stream_ended"
"""The stop reason of a stream that broke off: nothing runs on it."""

_UNKNOWN_TO_BOTOCORE: Final = "SDK_UNKNOWN_MEMBER"
_EMPTY: Final[Message] = {"text": "(no content)"}  # a message without a block is refused, too


def _answer_api(request: Json, caller: Caller, context: CallContext) -> Answer:
    """Call the tool of `apiPath` and `httpMethod` with the body's and the query's arguments."""
    path, method = request.get("apiPath"), request.get("httpMethod")
    tool = next(
        (tool for tool in TOOLS.values() if (tool.http_path, tool.http_method) == (path, method)),
        None,
    )
    if tool is None:
        return NotOffered()
    content = as_map(as_map(request.get("requestBody")).get("content"))
    parts = (*(as_map(part).get("properties") for part in content.values()),)
    return _answer(tool, caller, context, *parts, request.get("parameters"))


def _answer_function(request: Json, caller: Caller, context: CallContext) -> Answer:
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


def _state(answer: Answer) -> Message:
    """Return the state of an answer: invalid input, an outage, or none."""
    match answer:
        case Invalid():
            return {"responseState": "REPROMPT"}
        case Unavailable():
            return {"responseState": "FAILURE"}
        case Answered() | NotOffered() | RateLimited():
            return {}
        case _:
            assert_never(answer)


def body_text(answer: Answer) -> str:
    """Return the body as ASCII JSON."""
    return json.dumps(body_of(answer), separators=(",", ":"))


def _answer(tool: Tool, caller: Caller, context: CallContext, *parts: object) -> Answer:
    texts = read_texts(tool, *(_pairs(part) for part in parts))
    return texts if isinstance(texts, Invalid) else caller(tool.name, texts, context)


def _pairs(part: object) -> Iterator[tuple[object, object]]:
    for entry in part if isinstance(part, list) else ():
        yield as_map(entry).get("name"), as_map(entry).get("value")


def is_action_group_event(event: Json) -> bool:
    """Say whether `event` is one, rather than the bare arguments of a Gateway target."""
    return "actionGroup" in event and ("apiPath" in event or "function" in event)


def answer_action_group(event: Json, caller: Caller) -> Message:
    """Answer one event, echoing what names the action exactly as it came."""
    context = _context(event)
    if "apiPath" in event:
        echo = {name: event.get(name) for name in _API}
        result, _ = _api_result(event, caller, context)
        return {"messageVersion": VERSION, "response": echo | result}
    echo = {name: event.get(name) for name in _FUNCTION}
    result, state = _function_result(event, caller, context)
    return {"messageVersion": VERSION, "response": {**echo, "functionResponse": result | state}}


def _api_result(request: Json, caller: Caller, context: CallContext) -> tuple[Message, Message]:
    """Run a tool in API form; return status and body, and the state where one is to be told."""
    answer = _answer_api(request, caller, context)
    body = {JSON: {"body": body_text(answer)}}
    return {"httpStatusCode": http_status(answer), "responseBody": body}, _state(answer)


def _function_result(
    request: Json, caller: Caller, context: CallContext
) -> tuple[Message, Message]:
    """Do the same in function form, which has no status."""
    answer = _answer_function(request, caller, context)
    return {"responseBody": {"TEXT": {"body": body_text(answer)}}}, _state(answer)


def _context(event: Json) -> CallContext:
    agent = as_map(event.get("agent"))
    names = (agent.get("id"), agent.get("alias"))
    agent_id = "/".join(name for name in names if isinstance(name, str))
    session = event.get("sessionId")
    # Bedrock has no field for trace and subject: an application puts them where its other session
    # facts are. A turn's own come first.
    told = as_map(event.get("promptSessionAttributes")), as_map(event.get("sessionAttributes"))
    traces = (trace for each in told if (trace := read_trace(each)) is not None)
    session_id = session if isinstance(session, str) else None
    return CallContext(agent_id or None, session_id, next(traces, None), read_subject(*told))


class BrokenInput(dict[str, object]):
    """`{}` in place of an input that was no whole JSON object: to Converse an object like any."""


def read_stream(events: Iterable[Json]) -> tuple[Message, str]:
    """Assemble the events of a ConverseStream into the assistant's message and its stop reason.

    A tool use whose input is no whole JSON object gets a BrokenInput, on which no tool runs.
    """
    starts: dict[int, Json] = {}
    deltas: dict[int, object] = {}
    stop_reason = ENDED
    for event in events:
        start, delta = (
            as_map(event.get("contentBlockStart")),
            as_map(event.get("contentBlockDelta")),
        )
        if start:
            starts[_index(start)] = as_map(start.get("start"))
        if delta:
            index = _index(delta)
            deltas[index] = _joined(deltas.get(index), _listed(as_map(delta.get("delta"))))
        stop_reason = str(as_map(event.get("messageStop")).get("stopReason", stop_reason))
    content = [
        block
        for index in sorted(starts.keys() | deltas.keys())
        for block in _blocks(starts.get(index, {}), as_map(deltas.get(index)))
    ]
    return {"role": "assistant", "content": content or [_EMPTY]}, stop_reason


def _listed(delta: Json) -> Json:
    """Return `delta` in the form in which several can be joined: citations come one by one."""
    return {"citation": [delta["citation"]]} if "citation" in delta else delta


def _joined(so_far: object, more: object) -> object:
    """Put a piece behind what came before it: text, bytes and lists grow, objects merge."""
    if isinstance(so_far, Mapping) and isinstance(more, Mapping):
        names = {**so_far, **more}
        return {
            name: _joined(so_far[name], more[name]) if name in so_far and name in more else value
            for name, value in names.items()
        }
    for kind in (str, bytes, list):
        if isinstance(so_far, kind) and isinstance(more, kind):
            return so_far + more  # type: ignore[operator]  # both are of the one kind
    return more


def _blocks(start: Json, delta: Json) -> Iterator[Message]:
    """Yield the content blocks of one index; none where the service would refuse it."""
    text = delta.get("text")
    if "toolUse" in start:
        read = _input(as_map(delta.get("toolUse")).get("input"))
        yield {"toolUse": {**as_map(start["toolUse"]), "input": read}}
    elif "toolResult" in start:
        content = _tool_result(delta.get("toolResult"))
        yield {"toolResult": {**as_map(start["toolResult"]), "content": content}}
    elif "citation" in delta:
        cited = {} if _is_blank(text) else {"content": [{"text": text}]}
        yield {"citationsContent": {**cited, "citations": delta["citation"]}}
    elif not _is_blank(text):
        yield {"text": text}
    yield from _reasoning(as_map(delta.get("reasoningContent")))
    image = {**as_map(start.get("image")), **as_map(delta.get("image"))}
    if image.get("format") and image.get("source"):
        yield {"image": image}
    for name, value in as_map(_joined(start, delta)).items():
        if name not in _ASSEMBLED:
            yield {name: value}


_ASSEMBLED: Final = frozenset(
    {
        *("text", "toolUse", "toolResult", "citation", "reasoningContent", "image"),
        _UNKNOWN_TO_BOTOCORE,
    }
)
_THOUGHTS: Final = frozenset({"text", "signature", "redactedContent", _UNKNOWN_TO_BOTOCORE})


def _reasoning(thought: Json) -> Iterator[Message]:
    # A model wants its signed or redacted thoughts back as they were, or rejects the history.
    text, signature = thought.get("text", ""), thought.get("signature")
    if signature or not _is_blank(text):
        signed = {"signature": signature} if signature else {}
        yield {"reasoningContent": {"reasoningText": {"text": text, **signed}}}
    if thought.get("redactedContent"):
        yield {"reasoningContent": {"redactedContent": thought["redactedContent"]}}
    for name, value in thought.items():
        if name not in _THOUGHTS:
            yield {"reasoningContent": {name: value}}


def _tool_result(pieces: object) -> list[object]:
    """Return the content of a tool that ran at the service; neighbouring texts are one text."""
    content: list[object] = []
    for piece in pieces if isinstance(pieces, list) else ():
        last = as_map(content[-1]) if content else {}
        if "text" in last and "text" in as_map(piece):
            content[-1] = _joined(last, piece)
        elif _UNKNOWN_TO_BOTOCORE not in as_map(piece):
            content.append(piece)
    return [block for block in content if not _is_blank(as_map(block).get("text", "-"))]


def _input(text: object) -> Json:
    try:
        value = read_json(text) if isinstance(text, str) and text.strip() else {}
    except ValueError:
        return BrokenInput()
    return value if isinstance(value, dict) else BrokenInput()


def _is_blank(text: object) -> bool:
    return not isinstance(text, str) or not text.strip()


def _index(part: Json) -> int:
    index = part.get("contentBlockIndex")
    return index if isinstance(index, int) else 0


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
        _answer_use(use, caller, context) if runs else _use_result(use, _HALF)
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
        _returned(as_map(entry), caller, context)
        for entry in (inputs if isinstance(inputs, list) else ())
    ]


def _answer_use(use: Json, caller: Caller, context: CallContext) -> Message:
    arguments = use.get("input")
    name = use.get("name")
    if not isinstance(arguments, Mapping) or not isinstance(name, str):
        return _use_result(use, _HALF)
    if isinstance(arguments, BrokenInput):
        return _use_result(use, _HALF)
    return _use_result(use, caller(name, arguments, context))


def _use_result(use: Json, answer: Answer) -> Message:
    return {
        "toolResult": {
            "toolUseId": use.get("toolUseId"),
            "content": [{"json": body_of(answer)}],
            "status": "error" if is_error(answer) else "success",
        }
    }


def _returned(entry: Json, caller: Caller, context: CallContext) -> Message:
    api = as_map(entry.get("apiInvocationInput"))
    if api:
        echo = {name: api[name] for name in _API if name in api}
        result, state = _api_result(api, caller, context)
        return {"apiResult": echo | result | state}
    function = as_map(entry.get("functionInvocationInput"))
    echo = {name: function[name] for name in _FUNCTION if name in function}
    result, state = _function_result(function, caller, context)
    return {"functionResult": echo | result | state}


def _use_of(block: object) -> Json | None:
    use = as_map(as_map(block).get("toolUse"))
    return use if use and use.get("type") != "server_tool_use" else None
