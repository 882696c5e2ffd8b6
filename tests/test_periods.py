"""Billing periods: the grammar, overlap and the window."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.periods import (
    GRAMMAR,
    PeriodError,
    overlap,
    parse_period,
    period_from_description,
    within_window,
)

DAYS = st.dates(min_value=date(2000, 1, 1), max_value=date(2099, 12, 31))


@pytest.mark.parametrize(
    ("text", "label", "start", "end"),
    [
        ("2026", "2026", "2026-01-01", "2026-12-31"),
        ("2026-Q2", "2026-Q2", "2026-04-01", "2026-06-30"),
        ("2026-Q4", "2026-Q4", "2026-10-01", "2026-12-31"),
        ("2026-06", "2026-06", "2026-06-01", "2026-06-30"),
        ("2026-12", "2026-12", "2026-12-01", "2026-12-31"),
        ("2028-02", "2028-02", "2028-02-01", "2028-02-29"),
        ("2026-6", "2026-06", "2026-06-01", "2026-06-30"),
        ("June 2026", "2026-06", "2026-06-01", "2026-06-30"),
        ("2026-W23", "2026-W23", "2026-06-01", "2026-06-07"),
        ("2026-W53", "2026-W53", "2026-12-28", "2027-01-03"),
        ("2026-06-15", "2026-06-15", "2026-06-15", "2026-06-15"),
        ("2026-06-15/2026-07-14", "2026-06-15/2026-07-14", "2026-06-15", "2026-07-14"),
        ("2026-06-01/2026-06-30", "2026-06", "2026-06-01", "2026-06-30"),
        ("2026-04-01/2026-06-30", "2026-Q2", "2026-04-01", "2026-06-30"),
        ("2026-01-01/2026-12-31", "2026", "2026-01-01", "2026-12-31"),
        ("2026-06-01/2026-06-07", "2026-W23", "2026-06-01", "2026-06-07"),
        ("2026-12-28/2027-01-03", "2026-W53", "2026-12-28", "2027-01-03"),
        ("2026-06-15/2026-06-15", "2026-06-15", "2026-06-15", "2026-06-15"),
        ("2026-05-01/2026-07-31", "2026-05-01/2026-07-31", "2026-05-01", "2026-07-31"),
        ("2024-02-29/2025-02-28", "2024-02-29/2025-02-28", "2024-02-29", "2025-02-28"),
    ],
)
def test_a_period_has_one_label_however_it_is_written(
    text: str, label: str, start: str, end: str
) -> None:
    period = parse_period(text)
    assert (period.label, period.start.isoformat(), period.end.isoformat()) == (label, start, end)
    assert parse_period(label) == period


@pytest.mark.parametrize(
    "text",
    ["", "June", "june 2026", "Jun 2026", "2026-13", "2026-00", "2026-0", "26-06", "2026-q2",
     "2026-Q0", "2026-Q5", "2026-W00", "2026-W54", "2025-W53", "2026-06-31", "2026-6-15",
     "2026/06", "2026-06/2026-07", "2026-07-14/2026-06-15", "2026-06-15/", "/2026-06-15",
     "2024-01-01/2025-01-01", "2026-06-01/2026-06-30/2026-07-01", " 2026-06", "2026-06 ",
     "2026-06\n",
     "\uff12\uff10\uff12\uff16-06", "1999-06", "2100-01", "June  2026", "month of 2026-06"],
)  # fmt: skip
def test_anything_else_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(PeriodError) as caught:
        parse_period(text)
    assert str(caught.value) == GRAMMAR


@given(DAYS, st.integers(min_value=0, max_value=365))
def test_equal_spans_get_equal_labels_and_labels_are_read_back(start: date, length: int) -> None:
    end = min(start + timedelta(days=length), date(2099, 12, 31))
    period = parse_period(f"{start.isoformat()}/{end.isoformat()}")
    assert (period.start, period.end) == (start, end)
    assert parse_period(period.label) == period


@given(st.text(max_size=24))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        period = parse_period(text)
    except PeriodError:
        return
    assert period.start <= period.end


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("2026-06", "2026-06", True),
        ("2026-06", "2026-Q2", True),
        ("2026-06", "2026", True),
        ("2026-06", "2026-07", False),
        ("2026-06-15/2026-07-15", "2026-07-15/2026-08-15", False),
        ("2026-06-15/2026-07-15", "2026-07-14/2026-08-15", True),
        # Only ranges of seven days or more, one after the other, share a day.
        ("2026-06-15/2026-06-21", "2026-06-21/2026-06-27", True),  # the first is a week's name
        ("2026-06-16/2026-06-22", "2026-06-22/2026-06-28", True),  # the second is
        ("2026-06-16/2026-06-22", "2026-06-22/2026-06-29", False),
        ("2026-06-16/2026-06-21", "2026-06-21/2026-07-21", True),
        ("2026-06-16/2026-06-17", "2026-06-17/2026-06-18", True),
        ("2026-06-16/2026-06-30", "2026-06-30", True),
        ("2026-06", "2026-06-30/2026-07-30", True),
        ("2026-08", "2026-W36", True),  # the 31st of August 2026 is a Monday
        ("2026", "2026-12-31/2027-12-30", True),
        # Leap days, and weeks of two years.
        ("2028-01-31/2028-02-29", "2028-02-29/2028-03-31", False),
        ("2027-01-31/2027-02-28", "2027-02-28/2027-03-31", False),
        ("2028-02-29", "2028-02", True),
        ("2026-W53", "2026", True),
        ("2026-W53", "2027", True),
        ("2026-W53", "2027-W01", False),
        ("2026-W53", "2027-01-03/2027-01-20", True),
        ("2026-Q4", "2027-Q1", False),
        ("2026-Q4", "2026-W53", True),
        ("2026-Q4", "2026", True),
        ("2026-06-15", "2026-06-15", True),
        ("2026-06-15", "2026-06-16", False),
        ("2026-06-01", "2026-06", True),
        ("2026-06-30", "2026-06", True),
        ("2026-W23", "2026-06", True),
        ("2026-W27", "2026-06", True),
        ("2026-W28", "2026-06", False),
    ],
)
def test_periods_overlap_when_they_bill_the_same_days(
    one: str, other: str, *, expected: bool
) -> None:
    assert overlap(parse_period(one), parse_period(other)) is expected
    assert overlap(parse_period(other), parse_period(one)) is expected


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Subscription 2026-06", "2026-06"),
        ("Subscription June 2026", "2026-06"),
        ("Subscription 2026-06-15/2026-07-14", "2026-06-15/2026-07-14"),
        ("subscription 2026-06", None),
        ("Subscription: 2026-06", None),
        ("Subscription  2026-06", None),
        ("Subscription 2026-06 (Pro)", None),
        ("Subscription", None),
        ("Subscription ", None),
        ("My Subscription 2026-06", None),
        ("", None),
    ],
)
def test_only_the_exact_description_tells_a_period(text: str, label: str | None) -> None:
    period = period_from_description(text)
    assert (period.label if period else None) == label


@pytest.mark.parametrize(
    ("text", "today", "expected"),
    [
        ("2026-11", "2026-11-24", True),
        ("2026-12", "2026-11-01", True),
        ("2027-01", "2026-11-30", False),
        ("2025-11", "2026-11-30", True),
        ("2025-10", "2026-11-01", False),
        ("2026", "2026-01-02", True),
        ("2027", "2026-12-31", True),
        ("2027", "2026-11-30", False),
        ("2025", "2026-12-31", True),
        ("2025", "2027-01-01", False),
        ("2027-W01", "2026-12-01", True),
        ("2031-01", "2026-11-24", False),
        ("2001", "2026-11-24", False),
    ],
)
def test_a_period_may_be_billed_within_its_window_of_months(
    text: str, today: str, *, expected: bool
) -> None:
    assert within_window(parse_period(text), date.fromisoformat(today), 12, 1) is expected
