"""Money: amounts, caps and how they are written."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.money import (
    CURRENCIES,
    MAX_AMOUNT,
    MAX_CAP,
    THREE_DECIMAL,
    WHOLE_UNITS_ONLY,
    ZERO_DECIMAL,
    Money,
    MoneyError,
    check_amount,
    check_cap,
    format_money,
    parse_amount,
    parse_cap,
)


@pytest.mark.parametrize(
    ("amount", "currency"),
    [(1, "usd"), (MAX_AMOUNT, "usd"), (500, "jpy"), (100, "isk"), (1500, "kwd"), (7, "mga")],
)
def test_an_amount_that_can_be_charged_passes(amount: int, currency: str) -> None:
    check_amount(amount, currency)


@pytest.mark.parametrize(
    ("amount", "currency", "hint"),
    [
        (0, "usd", "positive"),
        (-1, "usd", "positive"),
        (MAX_AMOUNT + 1, "usd", "exceed"),
        (10**12, "usd", "exceed"),
        (101, "isk", "end in 00"),
        (101, "ugx", "end in 00"),
        (1501, "kwd", "end in 0"),
        (100, "USD", "lower-case"),
        (100, "xxx", "Stripe supports"),
        (100, "", "Stripe supports"),
        (True, "usd", "integer"),
        (cast("int", "2900"), "usd", "integer"),
        (cast("int", 2900.0), "usd", "integer"),
    ],
)
def test_an_amount_that_cannot_be_meant_is_refused_with_what_to_send(
    amount: int, currency: str, hint: str
) -> None:
    with pytest.raises(MoneyError, match=hint):
        check_amount(amount, currency)


@pytest.mark.parametrize(
    "text",
    ["", "29.00", "2900.0", "-1", "+1", "01", "1e3", " 1", "1\n", "NaN", "1_000",
     "\uff12\uff19\uff10\uff10", "٣",
     "9" * 13],
)  # fmt: skip
def test_only_plain_ascii_digits_are_an_amount(text: str) -> None:
    with pytest.raises(MoneyError):
        parse_amount(text)


@given(st.integers(min_value=0, max_value=MAX_AMOUNT))
def test_every_amount_that_is_written_plainly_is_read(amount: int) -> None:
    assert parse_amount(str(amount)) == amount


@pytest.mark.parametrize(
    ("text", "money"),
    [
        ("10000.00usd", Money(1_000_000, "usd")),
        ("10000usd", Money(1_000_000, "usd")),
        ("10000 USD", Money(1_000_000, "usd")),
        ("5000jpy", Money(5000, "jpy")),
        ("1.500kwd", Money(1500, "kwd")),
        ("0.01usd", Money(1, "usd")),
    ],
)
def test_a_cap_is_read_in_major_units(text: str, money: Money) -> None:
    assert parse_cap(text) == money


@pytest.mark.parametrize(
    "text",
    ["", "usd", "100", "100.0usd", "100.000usd", "50.0jpy", "0usd", "-1usd", "1,000usd", "1e3usd",
     "100zzz", "100.00usd ", "9999999999999999usd", "\uff11\uff10\uff10usd"],
)  # fmt: skip
def test_a_cap_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(MoneyError):
        parse_cap(text)


def test_a_cap_may_be_as_high_as_there_are_caps_and_no_higher() -> None:
    check_cap(MAX_CAP, "usd")
    with pytest.raises(MoneyError, match="between 1 and"):
        check_cap(MAX_CAP + 1, "usd")


@pytest.mark.parametrize(
    ("money", "text"),
    [
        (Money(2900, "usd"), "29.00 USD"),
        (Money(5, "usd"), "0.05 USD"),
        (Money(0, "usd"), "0.00 USD"),
        (Money(-250, "eur"), "-2.50 EUR"),
        (Money(500, "jpy"), "500 JPY"),
        (Money(1500, "kwd"), "1.500 KWD"),
        (Money(10_000, "isk"), "100.00 ISK"),
        (Money(12, "zzz"), "12 ZZZ"),
    ],
)
def test_money_is_written_for_people(money: Money, text: str) -> None:
    assert format_money(money) == text


@given(
    st.integers(min_value=1, max_value=MAX_AMOUNT),
    st.sampled_from(sorted(set(CURRENCIES))),
)
def test_what_is_written_is_read_back_as_a_cap(amount: int, currency: str) -> None:
    assert parse_cap(format_money(Money(amount, currency))) == Money(amount, currency)


def test_the_special_currencies_are_those_that_stripe_lists() -> None:
    assert len(ZERO_DECIMAL) == 15
    assert {CURRENCIES[currency] for currency in ZERO_DECIMAL} == {0}
    assert {CURRENCIES[currency] for currency in THREE_DECIMAL} == {3}
    # Sent times a hundred although they have no decimals; MGA is zero-decimal although it has.
    assert {CURRENCIES[currency] for currency in WHOLE_UNITS_ONLY} == {2}
    assert CURRENCIES["mga"] == 0
