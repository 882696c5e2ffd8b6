"""What is a trace, and what is not: the grammar of W3C trace context."""

from __future__ import annotations

from typing import Any

import pytest

from kb_mcp.traces import Trace, read_trace

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("carrier", "headers"),
    [
        ({"traceparent": PARENT}, {"traceparent": PARENT}),
        (
            {"traceparent": PARENT, "tracestate": "a=1,b=2", "baggage": "x=1"},
            {"traceparent": PARENT, "tracestate": "a=1,b=2"},
        ),
        ({"traceparent": "cc" + PARENT[2:]}, {"traceparent": "cc" + PARENT[2:]}),
        ({"traceparent": PARENT, "tracestate": "a=1\r\nCookie: x"}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "tracestate": "x" * 513}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "tracestate": " "}, {"traceparent": PARENT}),
        (
            {"traceparent": PARENT, "tracestate": "\t a=1, b=2 "},
            {"traceparent": PARENT, "tracestate": "a=1, b=2"},
        ),
        ({"traceparent": PARENT, "tracestate": 7}, {"traceparent": PARENT}),
    ],
    ids=[
        "alone",
        "with a state",
        "a later version",
        "a header in it",
        "too long",
        "a blank",
        "blanks around it",
        "a number",
    ],
)
def test_a_trace_is_handed_on_as_it_came(carrier: dict[str, Any], headers: dict[str, str]) -> None:
    trace = read_trace(carrier)

    assert isinstance(trace, Trace)
    assert trace.headers() == headers


@pytest.mark.parametrize(
    "parent",
    [
        *(None, 7, True, b"x", [PARENT], "", " ", "nonsense", PARENT.upper(), PARENT[:-1]),
        *(PARENT + "0", PARENT + "\n", " " + PARENT, PARENT + "-00", "ff" + PARENT[2:]),
        *(
            "00-" + "0" * 32 + PARENT[35:],
            PARENT[:36] + "0" * 16 + "-01",
            PARENT.replace("a", "\N{GREEK SMALL LETTER ALPHA}"),
        ),
        PARENT.replace("7", "\N{ARABIC-INDIC DIGIT SEVEN}"),
    ],
    ids=repr,
)
def test_what_has_another_form_is_none(parent: object) -> None:
    assert read_trace({"traceparent": parent, "tracestate": "a=1"}) is None
    assert read_trace({"tracestate": "a=1"}) is None
