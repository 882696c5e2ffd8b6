"""Puts a ConverseStream together into a message that the Converse API takes back.

Floor: wing A, below the Converse door. Pure. The assembled message goes into the history of the
next request, and one block that the service refuses there ends the conversation after the charge
was made. So a block that the service would refuse is left out, and every other one is kept.
Source: docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ContentBlockDelta.html and
API_runtime_ContentBlock.html; the service refuses blank text and an input that is no object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from kb_mcp.agent.strict_json import read_json

Message = dict[str, object]
Json = Mapping[str, object]

ENDED: Final = "stream_ended"
"""The stop reason of a stream that broke off: nothing runs on it."""

_UNKNOWN_TO_BOTOCORE: Final = "SDK_UNKNOWN_MEMBER"
_EMPTY: Final[Message] = {"text": "(no content)"}  # a message without a block is refused, too


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


def as_map(value: object) -> Json:
    """Return `value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


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
