"""A stream becomes a message that Converse takes back in the history, whatever came."""

from __future__ import annotations

import json
import re
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.agent.doors.bedrock import read_stream

MODEL = botocore.session.get_session().get_service_model("bedrock-runtime")
Event = dict[str, Any]


def start(index: int, **member: Any) -> Event:
    return {"contentBlockStart": {"contentBlockIndex": index, "start": member}}


def delta(index: int, **member: Any) -> Event:
    return {"contentBlockDelta": {"contentBlockIndex": index, "delta": member}}


def thought(index: int, **member: Any) -> Event:
    return delta(index, reasoningContent=member)


def tool_use(index: int, *parts: str, **more: Any) -> list[Event]:
    begun = start(index, toolUse={"toolUseId": "t1", "name": "charge", **more})
    return [begun, *(delta(index, toolUse={"input": part}) for part in parts)]


def faults(value: Any, shape: Any) -> list[str]:
    """Walk `value` for what botocore declares and does not check: patterns, lengths, enums."""
    found = []
    if shape.type_name == "structure" and not shape.is_document_type:
        found += [f for k, v in value.items() for f in faults(v, shape.members[k])]
    elif shape.type_name == "list":
        found += [f for each in value for f in faults(each, shape.member)]
    elif shape.type_name == "string":
        rules = shape.metadata
        if "pattern" in rules and not re.fullmatch(rules["pattern"], value):
            found.append(f"{value!r} does not match {rules['pattern']}")
        if not rules.get("min", 0) <= len(value) <= rules.get("max", len(value)):
            found.append(f"{value!r} has a wrong length")
        if rules.get("enum") and value not in rules["enum"]:
            found.append(f"{value!r} is none of {rules['enum']}")
    return found


def refused_for(message: Any) -> str:
    """Say why Converse would refuse `message`; empty where it takes it."""
    report = ParamValidator().validate(message, MODEL.shape_for("Message"))
    if report.has_errors():
        return str(report.generate_report())
    problems = faults(message, MODEL.shape_for("Message"))
    if not message["content"]:
        problems.append("the content is empty")
    for block in message["content"]:
        if not block.get("text", "-").strip():
            problems.append("a text is blank")
        if "toolUse" in block:
            if not isinstance(block["toolUse"]["input"], dict):
                problems.append("an input is no object")
            json.dumps(block["toolUse"]["input"], allow_nan=False, ensure_ascii=False).encode()
    return ", ".join(problems)


def content_of(*events: Event) -> list[Any]:
    message: Any = read_stream([{"messageStart": {"role": "assistant"}}, *events])[0]
    assert refused_for(message) == ""
    content: list[Any] = message["content"]
    return content


def test_a_redacted_thought_is_kept_as_it_came() -> None:
    assert content_of(
        thought(0, redactedContent=b"\x00se"), thought(0, redactedContent=b"cret"), *tool_use(1)
    ) == [
        {"reasoningContent": {"redactedContent": b"\x00secret"}},
        {"toolUse": {"toolUseId": "t1", "name": "charge", "input": {}}},
    ]


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        ([{"text": "I "}, {"text": "think"}, {"signature": "s1"}], {"text": "I think"}),
        ([{"signature": "s1"}], {"text": ""}),
        ([{"text": ""}, {"signature": "s"}, {"signature": "1"}], {"text": ""}),
    ],
)
def test_a_signed_thought_keeps_its_signature(
    pieces: list[dict[str, str]], whole: dict[str, str]
) -> None:
    events = (thought(0, **piece) for piece in pieces)

    assert content_of(*events, delta(1, text="Done.")) == [
        {"reasoningContent": {"reasoningText": {**whole, "signature": "s1"}}},
        {"text": "Done."},
    ]


def test_a_thought_that_is_both_open_and_redacted_is_two_blocks() -> None:
    assert content_of(thought(0, text="hm"), thought(0, redactedContent=b"x")) == [
        {"reasoningContent": {"reasoningText": {"text": "hm"}}},
        {"reasoningContent": {"redactedContent": b"x"}},
    ]


@pytest.mark.parametrize("blank", ["", " ", "\n\n", "\u00a0"])
def test_a_blank_text_before_a_tool_use_is_left_out(blank: str) -> None:
    content = content_of(delta(0, text=blank), *tool_use(1, '{"a"', ": 1}"))

    assert content == [{"toolUse": {"toolUseId": "t1", "name": "charge", "input": {"a": 1}}}]


def test_blanks_inside_a_text_stay() -> None:
    assert content_of(delta(0, text="a"), delta(0, text=" \n"), delta(0, text="b")) == [
        {"text": "a \nb"}
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1',
        '{"a": 1, "a": 2}',
        "[1]",
        "null",
        "7",
        '{"a": NaN}',
        '{"a": "\\udfff"}',
        "{" * 9999,
    ],
)
def test_an_input_that_is_no_whole_object_becomes_an_empty_one(text: str) -> None:
    (block,) = content_of(*tool_use(0, text))

    assert block["toolUse"]["input"] == {}


def test_what_ran_at_the_service_is_kept_with_its_result() -> None:
    searched = start(1, toolResult={"toolUseId": "t1", "type": "web_search_result"})
    pieces = ([{"text": "fo"}], [{"text": "und"}, {"json": {"a": 1}}], [{"text": " "}])

    content = content_of(
        *tool_use(0, '{"query": "x"}', type="server_tool_use"),
        searched,
        *(delta(1, toolResult=piece) for piece in pieces),
    )

    assert [next(iter(block)) for block in content] == ["toolUse", "toolResult"]
    assert content[0]["toolUse"]["type"] == "server_tool_use"
    assert content[1]["toolResult"] == {
        "toolUseId": "t1",
        "type": "web_search_result",
        "content": [{"text": "found"}, {"json": {"a": 1}}],
    }


def test_citations_stand_beside_the_text_that_they_belong_to() -> None:
    first, second = {"title": "A", "location": {"web": {"url": "u"}}}, {"title": "B"}

    assert content_of(
        delta(0, text="Paid"), delta(0, citation=first), delta(0, citation=second)
    ) == [{"citationsContent": {"content": [{"text": "Paid"}], "citations": [first, second]}}]


def test_an_image_is_put_together_and_one_without_its_bytes_is_left_out() -> None:
    image = start(0, image={"format": "png"})

    whole = content_of(
        image,
        delta(0, image={"source": {"bytes": b"ab"}}),
        delta(0, image={"source": {"bytes": b"cd"}}),
    )
    broken = content_of(image, delta(0, image={"error": {"message": "no"}}), delta(1, text="x"))

    assert whole == [{"image": {"format": "png", "source": {"bytes": b"abcd"}}}]
    assert broken == [{"text": "x"}]


def test_a_member_that_only_the_service_knows_is_left_out() -> None:
    unknown = {"SDK_UNKNOWN_MEMBER": {"name": "later"}}

    assert content_of(
        start(0, **unknown), delta(1, **unknown), thought(2, **unknown), delta(3, text="x")
    ) == [{"text": "x"}]


def test_a_member_of_a_later_api_passes_unchanged() -> None:
    message, _ = read_stream([start(0, audio={"format": "mp3"}), delta(0, audio={"source": b"x"})])

    assert message["content"] == [{"audio": {"format": "mp3", "source": b"x"}}]


@pytest.mark.parametrize("events", [[], [delta(0, text=" ")], [{"messageStop": {}}]])
def test_an_answer_without_content_is_still_a_message(events: list[Event]) -> None:
    assert [list(block) for block in content_of(*events)] == [["text"]]


texts = st.sampled_from(["", " ", "a", '{"a": 1}', '{"a"', "\n", '{"a": 1, "a": 1}', "\\ud800"])
members = st.one_of(
    texts.map(lambda text: {"text": text}),
    texts.map(lambda text: {"toolUse": {"input": text}}),
    texts.map(lambda text: {"reasoningContent": {"text": text}}),
    texts.map(lambda text: {"reasoningContent": {"signature": text}}),
    st.binary(max_size=3).map(lambda raw: {"reasoningContent": {"redactedContent": raw}}),
    texts.map(lambda text: {"toolResult": [{"text": text}]}),
    texts.map(lambda text: {"citation": {"title": text}}),
    st.binary(max_size=3).map(lambda raw: {"image": {"source": {"bytes": raw}}}),
)
starts = st.sampled_from(
    [
        {"toolUse": {"toolUseId": "t1", "name": "charge"}},
        {"toolResult": {"toolUseId": "t1", "status": "success"}},
        {"image": {"format": "png"}},
    ]
)
indices = st.integers(0, 3)
event = st.one_of(
    st.builds(lambda index, member: start(index, **member), indices, starts),
    st.builds(lambda index, member: delta(index, **member), indices, members),
)


@given(st.lists(event, max_size=20))
def test_whatever_order_the_pieces_have_converse_takes_the_message(events: list[Event]) -> None:
    assert refused_for(read_stream(events)[0]) == ""
