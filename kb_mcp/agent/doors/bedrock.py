"""The doors for Bedrock: action groups, returned control, Converse, and AgentCore Gateway.

Floor: wing A, a door. Pure framing. Every value of an action group is text; a body's arguments come
in requestBody.content, not in parameters; either part may be absent or null. Messages are
Converse's own JSON, which go into the history of the next request: an empty error result, or one
block that the service refuses, ends the conversation after the charge was made. So an error result
always has content, and of a stream such a block is left out and every other one is kept.
Source: docs.aws.amazon.com/bedrock/latest/userguide/agents-lambda.html, and of the API reference
API_runtime_Converse.html, API_runtime_ContentBlock.html, API_runtime_ContentBlockDelta.html; the
service refuses blank text and an input that is no object. A Gateway target's event is the bare
arguments: docs.aws.amazon.com/bedrock-agentcore/latest/devguide/gateway-add-target-lambda.html.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from kb_mcp.agent import calls
from kb_mcp.agent.catalogue import JSON, TOOLS, find_tool
from kb_mcp.agent.client.line import CallContext, read_subject
from kb_mcp.agent.outcomes import as_list, as_map
from kb_mcp.strict_json import read_json
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


# What the API form says of an answer, where a model may reason about anything below 500, and the
# state that both forms tell.
_SAID: Final[Mapping[type[calls.Answer], tuple[int, str | None]]] = {
    calls.Invalid: (400, "REPROMPT"),
    calls.NotOffered: (404, None),
    calls.RateLimited: (429, None),
    calls.Unavailable: (503, "FAILURE"),
}


def body_text(answer: calls.Answer) -> str:
    """Return the body as ASCII JSON."""
    return json.dumps(calls.body_of(answer), separators=(",", ":"))


def is_action_group_event(event: Json) -> bool:
    """Say whether `event` is one, rather than the bare arguments of a Gateway target."""
    return "actionGroup" in event and ("apiPath" in event or "function" in event)


def answer_action_group(event: Json, caller: calls.Caller) -> Message:
    """Answer one event, echoing what names the action exactly as it came."""
    api = "apiPath" in event
    result, state = _run(event, caller, _context(event), api=api)
    response = {name: event.get(name) for name in (_API if api else _FUNCTION)}
    response |= result if api else {"functionResponse": result | state}
    return {"messageVersion": VERSION, "response": response}


def _run(
    request: Json, caller: calls.Caller, context: CallContext, *, api: bool
) -> tuple[Message, Message]:
    """Run the tool that is named, by path and method with `api`, else by `function`.

    Return status and body, of which the function form has no status; and the state to be told.
    """
    parts = [request.get("parameters")]
    if api:
        named = request.get("apiPath"), request.get("httpMethod")
        tools = (tool for tool in TOOLS.values() if (tool.http_path, tool.http_method) == named)
        tool = next(tools, None)
        content = as_map(as_map(request.get("requestBody")).get("content"))
        parts += [as_map(part).get("properties") for part in content.values()]
    else:
        tool = find_tool(request.get("function"), allow_reference=True)
    answer = calls.call_with_texts(caller, tool, context, *map(_pairs, parts))
    # A charge may be under way, so that the caller must not charge again.
    unknown = isinstance(answer, calls.Answered) and answer.result.status == "unknown"
    status, state = _SAID.get(type(answer), (202 if unknown else 200, None))
    body: Message = {"body": body_text(answer)}
    result: Message = {"httpStatusCode": status} if api else {}
    result["responseBody"] = {JSON if api else "TEXT": body}
    return result, {} if state is None else {"responseState": state}


def _pairs(part: object) -> Iterator[tuple[object, object]]:
    for entry in map(as_map, as_list(part)):
        yield entry.get("name"), entry.get("value")


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
        start = as_map(event.get("contentBlockStart"))
        delta = as_map(event.get("contentBlockDelta"))
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
    for piece in as_list(pieces):
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
_HALF: Final = calls.Invalid(
    "The tool use came broken off, malformed or with a name twice. Ask for it again."
)


def answer_message(
    message: Json, caller: calls.Caller, context: CallContext, stop_reason: str | None = None
) -> Message | None:
    """Run the tool uses of an assistant's message and return the user message that answers them.

    Nothing runs on an answer that was cut off, blocked or malformed. None when there is nothing to
    answer. Uses that ran on a server (`server_tool_use`) were answered there.
    """
    uses = (as_map(as_map(block).get("toolUse")) for block in as_list(message.get("content")))
    results = [
        _answer_use(use, caller, context, runs=stop_reason in _RUNS)
        for use in uses
        if use and use.get("type") != "server_tool_use"
    ]
    return {"role": "user", "content": results} if results else None


def answer_returned_control(
    return_control: Json, caller: calls.Caller, context: CallContext
) -> list[Message]:
    """Run the invocations of an agent that returns control; one result each, in order."""
    inputs = as_list(return_control.get("invocationInputs"))
    return [_returned(as_map(entry), caller, context) for entry in inputs]


def _answer_use(use: Json, caller: calls.Caller, context: CallContext, *, runs: bool) -> Message:
    arguments, name = use.get("input"), use.get("name")
    whole = isinstance(arguments, Mapping) and not isinstance(arguments, BrokenInput)
    answer: calls.Answer = _HALF
    if runs and whole and isinstance(name, str):
        answer = caller(name, as_map(arguments), context)
    return {
        "toolResult": {
            "toolUseId": use.get("toolUseId"),
            "content": [{"json": calls.body_of(answer)}],
            "status": "error" if calls.is_error(answer) else "success",
        }
    }


def _returned(entry: Json, caller: calls.Caller, context: CallContext) -> Message:
    api = as_map(entry.get("apiInvocationInput"))
    request = api or as_map(entry.get("functionInvocationInput"))
    result, state = _run(request, caller, context, api=bool(api))
    echo = {name: request[name] for name in (_API if api else _FUNCTION) if name in request}
    return {"apiResult" if api else "functionResult": echo | result | state}


def gateway_names(context: object) -> Json:
    """Return what the Gateway says beside the event, from a Lambda `context`."""
    return as_map(getattr(getattr(context, "client_context", None), "custom", None))


def answer_gateway(event: Json, names: Json, caller: calls.Caller) -> calls.Body:
    """Answer one invocation with the result object itself; its tool is `<target>___<tool>`."""
    full_name = names.get("bedrockAgentCoreToolName")
    name = full_name.rpartition("___")[2] if isinstance(full_name, str) else ""
    # A gateway hands on the request headers that its target allows (allowedRequestHeaders).
    headers = as_map(names.get("bedrockAgentCorePropagatedHeaders"))
    gateway = names.get("bedrockAgentCoreGatewayId")
    context = CallContext(
        gateway if isinstance(gateway, str) else None,
        trace=read_trace({str(name).lower(): value for name, value in headers.items()}),
        subject=read_subject(headers),
    )
    # Numbers arrive as JSON or, from some callers, as text.
    tool = find_tool(name, allow_reference=True)
    return calls.body_of(calls.call_with_texts(caller, tool, context, event.items()))
