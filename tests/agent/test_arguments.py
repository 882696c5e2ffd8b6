"""Arguments: strict, complete, and refused without showing what came."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.agent.calls import Invalid, read_arguments, read_texts
from kb_mcp.agent.catalogue import TOOLS, ChargeArguments, ToolName, find_tool
from kb_mcp.idempotency import idempotency_key
from kb_mcp.strict_json import RepeatedNameError, read_json

CHARGE = TOOLS[ToolName.CHARGE]
STATUS = TOOLS[ToolName.CHARGE_STATUS]
BILL = {"customer_id": "cus_Abc123", "amount_cents": 2900, "billing_period": "2026-06"}


def key_of(arguments: ChargeArguments) -> str:
    return idempotency_key(
        arguments.customer_id,
        arguments.amount_cents,
        arguments.billing_period,
        arguments.currency,
        arguments.reference,
    )


def test_the_known_bill_gets_the_known_key() -> None:
    arguments = read_arguments(CHARGE, BILL)

    assert isinstance(arguments, ChargeArguments)
    assert key_of(arguments) == "38de2d05855909930dc2287649e68ba3"


@pytest.mark.parametrize("written", ["June 2026", "2026-6", "2026-06-01/2026-06-30"])
def test_periods_and_currencies_are_held_in_canonical_form(written: str) -> None:
    arguments = read_arguments(CHARGE, {**BILL, "billing_period": written, "currency": "USD"})

    assert isinstance(arguments, ChargeArguments)
    assert (arguments.billing_period, arguments.currency) == ("2026-06", "usd")


@pytest.mark.parametrize(
    ("changed", "about"),
    [
        ({"amount_cents": "2900"}, "amount_cents"),
        ({"amount_cents": 2900.0}, "amount_cents"),
        ({"amount_cents": True}, "amount_cents"),
        ({"amount_cents": 0}, "amount_cents"),
        ({"amount_cents": -2900}, "amount_cents"),
        ({"amount_cents": None}, "amount_cents"),
        ({"amount_cents": 10**15}, "must not exceed"),
        ({"amount_cents": 1501, "currency": "kwd"}, "must end in 0"),
        ({"customer_id": "Abc123"}, "customer_id"),
        ({"customer_id": "cus_Abc123\n"}, "customer_id"),
        ({"customer_id": "cus_Abc123:1"}, "customer_id"),
        ({"billing_period": "June"}, "A period is"),
        ({"billing_period": 2026}, "billing_period"),
        ({"currency": "doge"}, "currency"),
        ({"currency": "xxx"}, "currency"),
        ({"description": "two\nlines"}, "description"),
        ({"description": "x" * 351}, "description"),
    ],
)
def test_a_bad_value_is_refused_with_what_to_send(changed: dict[str, Any], about: str) -> None:
    refused = read_arguments(CHARGE, {**BILL, **changed})

    assert isinstance(refused, Invalid)
    assert about in refused.message


ABSENT = [None, "", "  ", "None", "null", "NULL", " none "]


@pytest.mark.parametrize("missing", list(BILL))
def test_a_missing_argument_is_named(missing: str) -> None:
    left_out = {k: v for k, v in BILL.items() if k != missing}

    for sent in (left_out, *({**BILL, missing: absent} for absent in ABSENT)):
        refused = read_arguments(CHARGE, sent)

        assert isinstance(refused, Invalid)
        assert f"{missing} is missing" in refused.message


@pytest.mark.parametrize("absent", ABSENT, ids=repr)
@pytest.mark.parametrize("name", ["currency", "description", "reference"])
def test_what_may_be_left_out_may_also_be_null_or_empty(name: str, absent: object) -> None:
    assert read_arguments(CHARGE, {**BILL, name: absent}) == read_arguments(CHARGE, BILL)


@pytest.mark.parametrize("absent", ABSENT, ids=repr)
def test_an_argument_that_speaks_by_its_absence_is_absent_as_null_alone(absent: object) -> None:
    tool = replace(CHARGE, said_by_absence=frozenset({"currency"}))

    read = read_arguments(tool, {**BILL, "currency": absent})

    assert isinstance(read, Invalid) is (absent is not None)


@pytest.mark.parametrize("absent", ABSENT, ids=repr)
def test_an_unknown_argument_is_refused_even_where_it_is_empty(absent: object) -> None:
    assert isinstance(read_arguments(CHARGE, {**BILL, "payment_method": absent}), Invalid)


@pytest.mark.parametrize(
    "text",
    [
        "29,00\u00a0€",
        "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian needs its ZWNJ
        "\U0001f469\u200d\U0001f4bb",
        "\u8acb\u6c42\u3000\u66f8",
        "Donau\u00addampf",
        "\u200f\u0634\u0647\u0631 6",
        "\U0001fae9\U000e0067",
        "\u0378\ue000\ufeff",
        "Nonesuch",
    ],
)
def test_a_description_may_be_written_in_any_script(text: str) -> None:
    read = read_arguments(CHARGE, {**BILL, "description": text})

    assert isinstance(read, ChargeArguments)
    assert read.description == text


@pytest.mark.parametrize(
    ("character", "name"),
    [
        ("\x00", "U+0000 (a control character)"),
        ("\t", "U+0009"),
        ("\x1b", "U+001B"),
        ("\x7f", "U+007F"),
        ("\x85", "U+0085"),
        ("\u2028", "U+2028 (LINE SEPARATOR)"),
        ("\u202e", "U+202E (RIGHT-TO-LEFT OVERRIDE)"),
        ("\u2066", "U+2066 (LEFT-TO-RIGHT ISOLATE)"),
    ],
)
def test_a_character_that_turns_a_text_around_is_named(character: str, name: str) -> None:
    refused = read_arguments(CHARGE, {**BILL, "description": f"Bill{character}2026"})

    assert isinstance(refused, Invalid)
    assert f"A description cannot hold {name}" in refused.message
    assert character not in refused.message


def test_an_unknown_argument_is_refused_and_neither_name_nor_value_is_repeated() -> None:
    refused = read_arguments(CHARGE, {**BILL, "secret_name": "secret_value"})

    assert isinstance(refused, Invalid)
    assert "unknown" in refused.message
    assert "secret" not in refused.message


@pytest.mark.parametrize("name", [*BILL, "currency", "description", "reference"])
def test_half_of_a_surrogate_pair_is_refused_in_every_text(name: str) -> None:
    refused = read_arguments(CHARGE, {**BILL, name: "2026-06\ud800"})

    assert isinstance(refused, Invalid)
    assert name in refused.message or "A period is" in refused.message


@given(value=st.text(alphabet="<>{}&%$#!", min_size=6, max_size=40))
def test_no_value_is_shown_in_an_error(value: str) -> None:
    for name in (*BILL, "currency"):
        refused = read_arguments(CHARGE, {**BILL, name: value})

        assert isinstance(refused, Invalid)
        assert value not in refused.message
        assert "pydantic" not in refused.message


def test_a_reference_is_an_unknown_argument_unless_it_is_switched_on() -> None:
    off, on = (find_tool("charge", allow_reference=allow) for allow in (False, True))
    assert off is not None
    assert on is not None
    with_reference = {**BILL, "reference": "order 7"}

    refused, read = read_arguments(off, with_reference), read_arguments(on, with_reference)

    assert isinstance(refused, Invalid)
    assert "reference" not in refused.message
    assert isinstance(read, ChargeArguments)
    assert read.reference == "order 7"


def test_an_old_argument_name_is_accepted_and_names_the_same_bill() -> None:
    renamed = replace(CHARGE, aliases={"amount": "amount_cents"})

    old = read_arguments(
        renamed, {**{k: BILL[k] for k in BILL if k != "amount_cents"}, "amount": 2900}
    )
    new = read_arguments(renamed, BILL)

    assert isinstance(old, ChargeArguments)
    assert old == new
    assert isinstance(new, ChargeArguments)
    assert key_of(old) == key_of(new)


def test_an_old_and_a_new_name_together_are_refused() -> None:
    renamed = replace(CHARGE, aliases={"amount": "amount_cents"})

    assert isinstance(read_arguments(renamed, {**BILL, "amount": 2900}), Invalid)


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        ({"charge_id": "ch_1"}, True),
        ({"charge_id": "pi_1"}, True),
        ({"customer_id": "cus_A", "billing_period": "2026-06"}, True),
        ({}, False),
        ({"customer_id": "cus_A"}, False),
        ({"billing_period": "2026-06"}, False),
        ({"charge_id": "ch_1", "customer_id": "cus_A"}, False),
        ({"charge_id": "ch_1", "billing_period": "2026-06"}, False),
        ({"charge_id": "ch_1", "customer_id": "cus_A", "billing_period": "2026-06"}, True),
        ({"charge_id": "ch_1", "customer_id": None, "billing_period": ""}, True),
        ({"charge_id": "None", "customer_id": "cus_A", "billing_period": "2026-06"}, True),
        ({"charge_id": None, "customer_id": "", "billing_period": " "}, False),
        ({"charge_id": "ch_1/../refunds"}, False),
        ({"charge_id": "cus_A"}, False),
    ],
)
def test_a_look_up_takes_one_way_to_look(given: dict[str, str], valid: bool) -> None:
    assert isinstance(read_arguments(STATUS, given), Invalid) is not valid


@pytest.mark.parametrize(
    "text", ["12.5", "1e3", "", "\uff11\uff12", "+1", "01", " 1", "1_0", "true", "0x1"]
)
def test_text_that_is_no_plain_integer_is_refused(text: str) -> None:
    raw = read_texts(CHARGE, [*BILL.items(), ("currency", "usd")][:1], [("amount_cents", text)])

    assert isinstance(raw, dict)
    assert isinstance(read_arguments(CHARGE, {**BILL, **raw}), Invalid)


def test_text_in_plain_digits_is_an_integer_and_other_text_stays_text() -> None:
    assert read_texts(CHARGE, [("amount_cents", "1200"), ("description", "1200")]) == {
        "amount_cents": 1200,
        "description": "1200",
    }


@pytest.mark.parametrize(
    ("parts", "valid"),
    [
        (([("customer_id", "cus_A")], [("customer_id", "cus_A")]), True),
        (([("customer_id", "cus_A")], [("customer_id", "cus_B")]), False),
        (([("amount_cents", "1")], [("amount_cents", 1)]), False),
        (([("customer_id", "cus_A"), ("customer_id", "cus_A")],), False),
        (([(None, "cus_A")],), False),
    ],
)
def test_a_name_may_stand_in_two_parts_only_with_one_value(
    parts: tuple[list[tuple[object, object]], ...], valid: bool
) -> None:
    assert isinstance(read_texts(CHARGE, *parts), Invalid) is not valid


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"a": 1, "a": 1}', RepeatedNameError),
        ('{"a": {"b": [{"c": 1, "c": 2}]}}', RepeatedNameError),
        ('{"a": 1, "\\u0061": 2}', RepeatedNameError),
        ("not json", ValueError),
        ("[" * 100_000, ValueError),
    ],
)
def test_what_two_readers_could_read_in_two_ways_is_refused(
    text: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        read_json(text)


def test_one_name_may_stand_in_two_objects() -> None:
    assert read_json('{"a": 1, "b": {"a": 1}}') == {"a": 1, "b": {"a": 1}}
