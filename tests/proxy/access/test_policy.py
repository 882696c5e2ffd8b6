"""Policies: the record, its files, the built-in roles in plain words."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.instants import format_duration, parse_duration
from kb_mcp.proxy.access.policy import (
    MAX_DURATION_MS,
    Policy,
    PolicyError,
    Syntax,
    dump_policy,
    load_policy,
    parse_policy,
)
from kb_mcp.proxy.access.roles import ROLES, built_in, describe

EVERYTHING = """
version = 1
role = "dunning"
allow = ["POST /v1/charges", "GET /v1/charges/*"]
daily_charges = 50
daily_declines = 5
daily_refunds = 4
rate = "60/min"
idempotency = "strict"
duplicate_window = "24h"
allow_reference = true
period_kinds = ["month", "quarter"]
overlaps = "allow"
decline_retry_after = "90s"
max_attempts = 2
max_unresolved = 3
expires_at = 2026-12-31T23:59:59Z

[parameters."POST /v1/charges"]
allowed = ["source", "expand[]"]
required = ["metadata[billing_period]"]
fixed = {capture = "true"}
forbidden = ["receipt_email"]

[headers]
dropped = ["stripe-account"]
stripe_version = "2026-10-28.endive"

[customers]
ids = ["cus_A"]
prefix = "cus_B"
metadata = {tier = "agent"}

[caps]
per_charge = {usd = 50000, eur = 40000}
daily = {usd = 1000000, eur = 900000}

[hours]
days = ["mon", "fri"]
start = "08:00"
end = "18:00"

[period_window]
back = 2
ahead = 0

[approval_above]
usd = 20000
"""


def errors(**fields: Any) -> tuple[str, ...]:
    """Return why a policy with `fields` is refused."""
    data = {"role": "r", "allow": ["POST /v1/charges"], **fields}
    with pytest.raises(PolicyError) as caught:
        load_policy(data)
    return caught.value.errors


@pytest.mark.parametrize("rate", [60, "60", "60/min"], ids=repr)
def test_a_rate_is_read_in_every_way_that_its_message_names(rate: object) -> None:
    data = {"role": "r", "allow": ["POST /v1/charges"], "rate": rate}
    assert load_policy(data).rate == 60


def test_a_policy_file_is_read_in_every_field() -> None:
    policy = parse_policy(EVERYTHING, "toml")
    assert policy.rate == 60
    assert policy.duplicate_window_ms == 86_400_000
    assert policy.decline_retry_after_ms == 90_000
    assert policy.caps.daily == {"usd": 1_000_000, "eur": 900_000}
    assert policy.parameters["POST /v1/charges"].fixed == {"capture": "true"}
    assert policy.expires_at is not None
    assert policy.expires_at.isoformat() == "2026-12-31T23:59:59+00:00"
    assert policy.capped


def test_the_defaults_are_those_of_the_contract() -> None:
    policy = load_policy({"role": "r", "allow": ["POST /v1/charges"]})
    assert policy.duplicate_window_ms == 20 * 3_600_000
    assert policy.decline_retry_after_ms == 15 * 60_000
    assert (policy.period_window.back, policy.period_window.ahead) == (12, 1)
    assert (policy.max_attempts, policy.max_unresolved, policy.daily_declines) == (4, 20, 20)
    assert (policy.idempotency, policy.allow_reference, policy.rate) == ("content", False, 600)
    assert not policy.capped


@pytest.mark.parametrize("policy", [*ROLES.values(), parse_policy(EVERYTHING, "toml")])
def test_a_policy_is_stored_and_read_back_whole(policy: Policy) -> None:
    assert parse_policy(dump_policy(policy), "json") == policy
    assert Policy.model_validate_json(dump_policy(policy)) == policy


def test_the_stored_record_has_the_names_of_the_contract() -> None:
    names = set(json.loads(dump_policy(parse_policy(EVERYTHING, "toml"))))
    assert names == set(
        "version role allow parameters headers customers caps daily_charges daily_declines rate "
        "hours idempotency duplicate_window period_window period_kinds overlaps allow_reference "
        "decline_retry_after max_attempts max_unresolved approval_above expires_at refund_caps "
        "daily_refunds refund_approval_above refunds_of max_refunds_per_charge".split()
    )


@pytest.mark.parametrize(
    ("fields", "place", "reason"),
    [
        ({"allow": ["POST *"]}, "allow.0", "an entry is a method"),
        ({"allow": ["POST /v1/*"]}, "allow.0", "an entry is a method"),
        ({"allow": ["GET /v1/charges/ch_1"]}, "allow.0", "an entry is a method"),
        ({"allow": ["post /v1/charges"]}, "allow.0", "an entry is a method"),
        ({"allow": ["POST /v2/charges"]}, "allow.0", "an entry is a method"),
        ({"allow": []}, "allow", "at least 1"),
        ({"alow": []}, "alow", "there is no such field"),
        ({"caps": {"weekly": {"usd": 1}}}, "caps.weekly", "there is no such field"),
        ({"caps": {"daily": {"uzd": 100}}}, "caps.daily", "Stripe supports"),
        ({"caps": {"daily": {"USD": 100}}}, "caps.daily", "lower-case"),
        ({"caps": {"daily": {"usd": 0}}}, "caps.daily", "at least 1|between 1"),
        ({"caps": {"daily": {"usd": 1.5}}}, "caps.daily.usd", "integer"),
        ({"caps": {"daily": {"usd": "100"}}}, "caps.daily.usd", "integer"),
        ({"caps": {"daily": {"usd": True}}}, "caps.daily.usd", "integer"),
        ({"caps": {"daily": {"usd": 1}, "monthly": {"eur": 1}}}, "caps", "same currencies"),
        ({"approval_above": {"usd": -1}}, "approval_above", "negative"),
        ({"approval_above": {"zzz": 1}}, "approval_above", "Stripe supports"),
        ({"duplicate_window": "20"}, "duplicate_window", "a number and a unit"),
        ({"duplicate_window": 20}, "duplicate_window", "a number and a unit"),
        ({"duplicate_window": "-1h"}, "duplicate_window", "a number and a unit"),
        ({"duplicate_window": "32d"}, "duplicate_window", "31 days"),
        ({"duplicate_window_ms": 1}, "duplicate_window_ms", "no such field"),
        ({"rate": "fast"}, "rate", "a number a minute"),
        ({"rate": 0}, "rate", "greater than or equal to 1"),
        ({"daily_charges": 0}, "daily_charges", "greater than or equal to 1"),
        ({"max_attempts": 0}, "max_attempts", "greater than or equal to 1"),
        ({"idempotency": "none"}, "idempotency", "content"),
        ({"version": 2}, "version", "1"),
        ({"role": "Billing Team"}, "role", "match"),
        ({"allow_reference": "yes"}, "allow_reference", "boolean"),
        ({"overlaps": "yes"}, "overlaps", "'refuse' or 'allow'"),
        ({"period_kinds": []}, "period_kinds", "at least 1"),
        ({"period_kinds": "month"}, "period_kinds", "array"),
        ({"period_kinds": ["months"]}, "period_kinds.0", "'month'"),
        ({"period_kinds": ["month", "month"]}, "period_kinds", "once"),
        ({"period_window": {"back": -1}}, "period_window.back", "greater than or equal to 0"),
        ({"hours": {"start": "18:00", "end": "08:00"}}, "hours", "before end"),
        ({"hours": {"start": "8"}}, "hours.start", "time of day"),
        ({"hours": {"days": ["monday"]}}, "hours.days.0", "mon"),
        ({"customers": {"ids": ["A"]}}, "customers.ids.0", "match"),
        ({"customers": {"prefix": "c"}}, "customers.prefix", "match"),
        ({"headers": {"stripe_version": "latest"}}, "headers.stripe_version", "version"),
        ({"headers": {"dropped": ["Stripe-Account"]}}, "headers.dropped.0", "lower case"),
        ({"expires_at": "2026-12-31"}, "expires_at", "datetime|timezone"),
        ({"expires_at": "2026-12-31T00:00:00"}, "expires_at", "timezone"),
        ({"parameters": {"POST /v1/x": {}}}, "parameters.POST /v1/x", "an entry is a method"),
        ({"parameters": {"GET /v1/charges": {}}}, "policy", "not in allow"),
        (
            {"parameters": {"POST /v1/charges": {"allowed": ["Bad Name"]}}},
            "parameters.POST /v1/charges.allowed.0",
            "it must be a parameter",
        ),
        (
            {"parameters": {"POST /v1/charges": {"alowed": []}}},
            "parameters.POST /v1/charges.alowed",
            "no such field",
        ),
    ],
)
def test_a_bad_field_is_named_with_its_reason(
    fields: dict[str, Any], place: str, reason: str
) -> None:
    found = errors(**fields)
    assert len(found) == 1
    named, _, why = found[0].partition(": ")
    assert named == place
    assert any(part in why for part in reason.split("|")), why


def test_a_threshold_of_nothing_asks_for_an_approval_of_everything() -> None:
    policy = load_policy({"role": "r", "allow": ["POST /v1/charges"], "approval_above": {"usd": 0}})
    assert policy.approval_above == {"usd": 0}
    assert policy.capped


def test_errors_of_a_file_say_the_line() -> None:
    text = 'role = "r"\nallow = ["POST *"]\nrat = 3\n\n[caps]\ndaily = {uzd = 100}\n'
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "toml")
    lines = [error.rsplit(" ", 1)[1] for error in caught.value.errors]
    assert sorted(lines) == ["2)", "3)", "6)"]


@pytest.mark.parametrize(
    ("text", "syntax", "reason"),
    [
        ("role = \nrate = 1", "toml", "line 1"),
        ('role = "a"\nrole = "b"\n', "toml", "line 2"),
        ("{", "json", "line 1"),
        ('{"role": "a", "role": "b"}', "json", "'role' stands twice"),
        ('{"rate": NaN}', "json", "NaN is no JSON"),
        ("[]", "json", "policy"),
        ("null", "json", "policy"),
    ],
)
def test_a_file_that_is_no_policy_at_all_says_why(text: str, syntax: Syntax, reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        parse_policy(text, syntax)


@given(st.integers(min_value=0, max_value=MAX_DURATION_MS))
def test_a_duration_is_written_as_it_is_read(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds)) == milliseconds


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("15m", 900_000), ("24h", 86_400_000), ("2d", 172_800_000),
    ("1500ms", 1500), ("0s", 0)],
)  # fmt: skip
def test_a_duration_is_a_number_and_a_unit(text: str, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize(
    ("role", "allow"),
    [
        ("billing", ["POST /v1/charges"]),
        ("audit", ["GET /v1/charges/*"]),
        ("billing-with-status", ["POST /v1/charges", "GET /v1/charges/*"]),
        (
            "billing-payment-intents",
            ["POST /v1/payment_intents", "GET /v1/customers/*",
             "GET /v1/customers/*/payment_methods"],
        ),
        ("audit-payment-intents", ["GET /v1/payment_intents/*"]),
        (
            "billing-payment-intents-with-status",
            ["POST /v1/payment_intents", "GET /v1/payment_intents/*", "GET /v1/customers/*",
             "GET /v1/customers/*/payment_methods"],
        ),
    ],
)  # fmt: skip
def test_the_built_in_roles_grant_this_and_no_more(role: str, allow: list[str]) -> None:
    policy = built_in(role)
    assert list(policy.allow) == allow
    assert policy.rate == (1200 if role.startswith("audit") else 600)
    assert not policy.allow_reference


def test_a_role_that_there_is_not_says_which_there_are() -> None:
    with pytest.raises(KeyError, match="billing-with-status"):
        built_in("admin")


def test_a_policy_is_described_in_plain_words() -> None:
    text = "\n".join(describe(parse_policy(EVERYTHING, "toml")))
    for words in (
        "POST /v1/charges, GET /v1/charges/*",
        "may also carry source, expand[]",
        "must carry metadata[billing_period]",
        "carry capture only as true",
        "must not carry receipt_email",
        "headers are ignored: stripe-account",
        "version 2026-10-28.endive",
        "500.00 USD or 400.00 EUR a charge",
        "10000.00 USD or 9000.00 EUR a day",
        "50 charges a day",
        "Above 200.00 USD an operator must approve",
        "customers cus_A",
        "begins with cus_B",
        "tier as agent",
        "60 requests a minute",
        "08:00 to 18:00 UTC on mon, fri",
        "5 declines",
        "2026-12-31T23:59:59+00:00",
        "2 months back to 0 months ahead",
        "period are refused",
        "second bill",
        "after 90s at the earliest, 2 times",
    ):
        assert words in text
    assert "No spend cap of its own" in "\n".join(describe(built_in("billing")))
    for role in ("audit", "audit-payment-intents"):
        # It moves nothing: of caps, declines and bills there is nothing to say.
        assert len(describe(built_in(role))) == 2
    once = built_in("billing").model_copy(
        update={"daily_charges": 1, "rate": 1, "daily_declines": 1, "max_attempts": 1}
    )
    words = " ".join(describe(once))
    assert "1 charge a day" in words
    assert not re.search(r"\b1 [a-z]+s\b", words)
    caller = built_in("billing").model_copy(update={"idempotency": "caller"})
    assert "a new key charges again" in "\n".join(describe(caller))
