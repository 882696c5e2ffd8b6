"""Names of billing acts."""

from __future__ import annotations

import hashlib
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.idempotency import (
    body_name,
    caller_name,
    caller_name_of_endpoint,
    explicit_name,
    idempotency_key,
    is_sdk_made_key,
    occurrence_key,
)

TEXT = st.text(max_size=40)


def test_the_published_value_holds() -> None:
    assert idempotency_key("cus_Abc123", 2900, "2026-06") == "38de2d05855909930dc2287649e68ba3"


@pytest.mark.parametrize(
    ("period", "currency", "reference", "seed"),
    [
        ("2026-6", "usd", None, "cus_A:2900:2026-06"),
        ("June 2026", "USD", None, "cus_A:2900:2026-06"),
        ("2026-06-01/2026-06-30", "usd", "", "cus_A:2900:2026-06"),
        ("2026-06", "eur", None, "cus_A:2900:2026-06:eur:"),
        ("2026-06", "EUR", "second seat", "cus_A:2900:2026-06:eur:second seat"),
        ("2026-06", "usd", "second seat", "cus_A:2900:2026-06:usd:second seat"),
    ],
)
def test_the_key_is_derived_from_normalised_values(
    period: str, currency: str, reference: str | None, seed: str
) -> None:
    expected = hashlib.sha256(seed.encode()).hexdigest()[:32]
    assert idempotency_key("cus_A", 2900, period, currency, reference) == expected


@pytest.mark.parametrize(
    ("customer", "amount", "period", "currency", "reference"),
    [
        ("", 2900, "2026-06", "usd", None),
        ("cus_", 2900, "2026-06", "usd", None),
        ("cus_A:1", 2900, "2026-06", "usd", None),
        (" cus_A", 2900, "2026-06", "usd", None),
        ("CUS_A", 2900, "2026-06", "usd", None),
        ("cus_A", 0, "2026-06", "usd", None),
        ("cus_A", True, "2026-06", "usd", None),
        ("cus_A", 101, "2026-06", "isk", None),
        ("cus_A", 2900, "June", "usd", None),
        ("cus_A", 2900, "2026-06", "dollars", None),
        ("cus_A", 2900, "2026-06", "usd", " x"),
        ("cus_A", 2900, "2026-06", "usd", "é"),
        ("cus_A", 2900, "2026-06", "usd", "x" * 101),
    ],
)
def test_a_value_that_cannot_be_meant_derives_no_key(
    customer: str, amount: int, period: str, currency: str, reference: str | None
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        idempotency_key(customer, amount, period, currency, reference)


@given(TEXT, TEXT, TEXT)
def test_every_name_is_32_hex_digits_of_a_domain_of_its_own(one: str, two: str, key: str) -> None:
    names = [
        explicit_name(one, two, key),
        caller_name(key),
        caller_name_of_endpoint(one, key),
        body_name(key.encode(), one),
        occurrence_key(one, 1),
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[0-9a-f]{32}", name) for name in names)


@given(TEXT, TEXT, TEXT, TEXT)
def test_parts_of_a_name_do_not_run_into_each_other(a: str, b: str, c: str, d: str) -> None:
    assert (explicit_name("e", a, b) == explicit_name("e", c, d)) is ((a, b) == (c, d))
    assert (caller_name_of_endpoint(a, b) == caller_name_of_endpoint(c, d)) is ((a, b) == (c, d))


def test_the_names_that_stores_hold_do_not_change() -> None:
    # An upgrade that names a bill otherwise would not find it, and charge it once more.
    assert explicit_name("POST /v1/charges", "cus_A", "june") == "5476d91b623be8a780347502bcf55bd0"
    assert explicit_name("POST /v1/charges", None, "june") == "057c46d65642901f555678ccaea607af"
    older = caller_name_of_endpoint("POST /v1/charges", "june")
    assert older == "dc02ef6f69e678a590c0164ce5e69b14"
    assert caller_name("june") == "b73347d3635319c8b2c01a0cb2bb05b1"
    assert body_name(b"amount=2900", "/v1/charges") == "ecab4a4340b62269d9afdc9858cb34f0"
    assert occurrence_key("0" * 32, 1) == "ff72b807be8d8bcb0c387a012c193465"


@given(TEXT, TEXT)
def test_a_key_names_another_act_at_another_endpoint(one: str, two: str) -> None:
    assert (explicit_name(one, "cus_A", "june") == explicit_name(two, "cus_A", "june")) is (
        one == two
    )
    assert (body_name(b"amount=1", one) == body_name(b"amount=1", two)) is (one == two)
    assert (occurrence_key(one, 1) == occurrence_key(two, 1)) is (one == two)


def test_a_key_that_is_no_text_at_all_is_a_name_all_the_same() -> None:
    assert caller_name("\ud800") != caller_name("\udfff")


def test_two_customers_keys_do_not_collide_and_occurrences_differ() -> None:
    assert explicit_name("e", "cus_A", "june") != explicit_name("e", "cus_B", "june")
    assert explicit_name("e", None, "june") == explicit_name("e", "", "june")
    assert len({occurrence_key("n", n) for n in range(10)}) == 10


@pytest.mark.parametrize(
    ("key", "made"),
    [
        (str(uuid.UUID(int=0xABCDEF, version=4)), True),
        (str(uuid.UUID(int=0xABCDEF, version=1)), True),
        (str(uuid.UUID(int=0xABCDEF, version=4)).upper(), True),
        (f"stripe-node-retry-{uuid.UUID(int=0xABCDEF, version=4)}", True),
        (f"stripe-retry-{uuid.UUID(int=0xABCDEF, version=4)}", False),
        (f"mine-{uuid.UUID(int=0xABCDEF, version=4)}", False),
        (f"{uuid.UUID(int=0xABCDEF, version=4)}\n", False),
        (uuid.UUID(int=0xABCDEF, version=4).hex, False),
        ("38de2d05855909930dc2287649e68ba3", False),
        ("june", False),
        ("", False),
    ],
)
def test_keys_that_an_sdk_made_up_are_known(key: str, *, made: bool) -> None:
    assert is_sdk_made_key(key) is made
