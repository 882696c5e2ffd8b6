"""Arguments: strict, complete, and refused without showing what came."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.agent.arguments import Invalid, read_arguments, read_texts
from kb_mcp.agent.catalogue import TOOLS, ChargeArguments, ToolName, find_tool
from kb_mcp.agent.strict_json import has_repeated_names
from kb_mcp.idempotency import idempotency_key

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
        ({"description": ""}, "description"),
        ({"description": "x" * 351}, "description"),
    ],
)
def test_a_bad_value_is_refused_with_what_to_send(changed: dict[str, Any], about: str) -> None:
    refused = read_arguments(CHARGE, {**BILL, **changed})

    assert isinstance(refused, Invalid)
    assert about in refused.message


@pytest.mark.parametrize("missing", list(BILL))
def test_a_missing_argument_is_named(missing: str) -> None:
    refused = read_arguments(CHARGE, {k: v for k, v in BILL.items() if k != missing})

    assert isinstance(refused, Invalid)
    assert f"{missing} is missing" in refused.message


def test_an_unknown_argument_is_refused_and_neither_name_nor_value_is_repeated() -> None:
    refused = read_arguments(CHARGE, {**BILL, "secret_name": "secret_value"})

    assert isinstance(refused, Invalid)
    assert "unknown" in refused.message
    assert "secret" not in refused.message


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
        ({"charge_id": "ch_1", "customer_id": "cus_A", "billing_period": "2026-06"}, False),
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
    ("text", "repeated"),
    [
        ('{"a": 1, "a": 1}', True),
        ('{"a": {"b": [{"c": 1, "c": 2}]}}', True),
        ('{"a": 1, "b": {"a": 1}}', False),
        ('{"a": 1, "\\u0061": 2}', True),
        ("not json", False),
        ("[" * 100_000, False),
    ],
)
def test_repeated_names_are_found_wherever_they_stand(text: str, repeated: bool) -> None:
    assert has_repeated_names(text) is repeated
