"""Names: content beats a key, a key is scoped by customer, an SDK's key names nothing."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.errors.refusals import Refusal
from kb_mcp.proxy.ledger.records import NamedBy
from kb_mcp.proxy.rules.operation_names import (
    Name,
    caller_keys,
    later_name,
    name_of,
    tally_key,
    tally_of,
)
from tests.proxy.rules.one_key import BILLING, OneKey, made

SDK_KEY = str(uuid.UUID(int=7, version=4))


def named(header: str | None = None, idempotency: str = "content", **fields: Any) -> Any:
    """Return the name of a bill, or the code of the refusal."""
    one_key = OneKey()
    reading = one_key.intend(header, **fields).reading
    name = name_of(BILLING.model_copy(update={"idempotency": idempotency}), reading)
    return name.code.value if isinstance(name, Refusal) else name


def test_content_beats_whatever_key_the_caller_sends() -> None:
    plain = named(period="2026-11")
    assert (plain.named_by, plain.text) == (NamedBy.CONTENT, plain.upstream_name)
    assert named("mine", period="2026-11") == named(SDK_KEY, period="2026-11") == plain
    # As a description, in other words, it is the same month.
    assert named(description="Subscription November 2026") == plain


@pytest.mark.parametrize(
    "other",
    [
        {"customer": "cus_B2"}, {"amount": 2901}, {"currency": "eur"}, {"period": "2026-12"},
        {"metadata[reference]": "seat-2"},
    ],
)  # fmt: skip
def test_each_part_of_a_bill_makes_another_name(other: dict[str, Any]) -> None:
    fields = {"period": "2026-11"}
    assert named(**fields).text != named(**(fields | other)).text


def test_an_explicit_key_names_per_customer_and_a_body_names_itself() -> None:
    june = named("june")
    assert june.named_by is NamedBy.EXPLICIT
    assert june != named("june", customer="cus_B2")
    assert june == named("june", amount=3000)
    body = named()
    assert body.named_by is NamedBy.BODY
    assert body == named(SDK_KEY)
    assert body.text != named(amount=3000).text
    assert body.upstream_name != body.text


def test_a_strict_key_must_say_everything_and_a_caller_must_name_it() -> None:
    assert named(idempotency="strict") == "idempotency_key_required"
    assert named("june", idempotency="strict") == "idempotency_key_required"
    assert named(idempotency="strict", period="2026-11") == named(period="2026-11")
    assert named(idempotency="caller") == "idempotency_key_required"
    mine = named("june", idempotency="caller", period="2026-11")
    assert (mine.named_by, mine.text) == (NamedBy.CALLER, mine.upstream_name)
    # Nobody can squat on a derived or an explicit name.
    assert mine.text not in {named("june").text, named(period="2026-11").text}
    derived = named(period="2026-11").text
    assert named(derived, idempotency="caller").text != derived


def test_a_later_generation_has_an_upstream_key_of_its_own() -> None:
    one_key = OneKey()
    operation = one_key.end(one_key.ask(period="2026-11"), made("ch_1"))
    first = later_name(operation)
    assert first == f"{operation.upstream_name}-r1"
    second = replace(operation, generation=1, upstream_name=first)
    assert later_name(second) == f"{operation.upstream_name}-r2"
    one_key = OneKey()
    body = one_key.end(one_key.ask(), made("ch_1"))
    occurrence = later_name(body)
    assert occurrence not in {body.upstream_name, f"{body.upstream_name}-r1"}
    assert later_name(replace(body, generation=1)) not in {occurrence, body.upstream_name}
    assert later_name(replace(body, refunded_at=1)) == f"{body.upstream_name}-r1"


def test_declines_are_counted_per_period_whatever_the_amount() -> None:
    one_key = OneKey()
    one = one_key.intend(period="2026-11")
    two = one_key.intend(period="2026-11", amount=3900, currency="eur")
    three = one_key.intend(period="2026-11", **{"metadata[reference]": "seat-2"})
    assert one.tally == two.tally == "cus_A1|2026-11|"
    assert three.tally == "cus_A1|2026-11|seat-2"
    plain = one_key.intend("june")
    assert plain.tally == tally_key(plain.reading, plain.name) == f"name|{plain.name}"
    for fields in ({"period": "2026-11"}, {"period": "2026-11", "metadata[reference]": "s"}, {}):
        another = OneKey()
        command = another.intend(**fields)
        another.ask(**fields)
        (operation,) = another.snapshot.operations.values()
        assert tally_of(operation) == command.tally


def kept(header: str | None, secret: bytes = b"secret", **fields: Any) -> tuple[str, ...]:
    return caller_keys(secret, OneKey().intend(header, **fields).reading)


def test_only_a_key_that_an_sdk_made_up_is_kept_as_sixteen_bytes_of_a_keyed_hash() -> None:
    assert kept(None) == kept("june") == ()
    (key,) = kept(SDK_KEY)
    assert len(bytes.fromhex(key)) == 16
    other = str(uuid.UUID(int=8, version=4))
    keys = {key, *kept(other), *kept(SDK_KEY, b"other"), *kept(SDK_KEY, customer="cus_B2")}
    assert len(keys) == 4
    assert kept(SDK_KEY, amount=3000) == (key,)
    assert kept(SDK_KEY, idempotency_key=other) == (key, *kept(other))
    assert kept(SDK_KEY, idempotency_key="june") == (key,)


def test_a_key_in_the_body_names_where_the_header_is_the_sdks_own() -> None:
    june = named("june", idempotency="caller")
    assert named(SDK_KEY, idempotency="caller", idempotency_key="june") == june
    assert named(SDK_KEY, idempotency_key="june") == named("june")


def test_the_body_that_is_sent_bears_its_three_marks() -> None:
    one_key = OneKey()
    go = one_key.ask(period="2026-11")
    attempt = go.attempt  # type: ignore[union-attr]  # it proceeds, or fails here
    body = attempt.body.decode()
    for mark, value in (
        ("keybrake_operation", "op_1"),
        ("keybrake_attempt", attempt.upstream_key),
        ("keybrake_key", "one"),
    ):
        assert f"metadata%5B{mark}%5D={value}" in body or f"metadata[{mark}]={value}" in body
    assert isinstance(name_of(one_key.policy, one_key.intend(period="2026-11").reading), Name)
