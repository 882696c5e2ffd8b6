"""Refusals: one code, one status, one sentence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.proxy.errors.refusals import WORDING, Code, Fact, error_body, quoted, refuse
from tests.proxy.requests import fields_of

CODES = pytest.mark.parametrize("code", list(Code))

# The contract's table, written down once more: code, status and type are public.
CONTRACT = {
    (401, "invalid_request_error"): "vault_key_missing vault_key_unknown vault_key_expired "
    "vault_key_revoked",
    (403, "invalid_request_error"): "vault_key_not_authorized vault_key_frozen "
    "too_many_unresolved attempts_exhausted parameter_not_allowed header_not_allowed "
    "spend_cap_exceeded charge_count_exceeded currency_not_allowed amount_not_metered "
    "approval_required identity_not_granted identity_ambiguous tool_not_granted "
    "refund_cap_exceeded refund_count_exceeded",
    (400, "invalid_request_error"): "parameter_unknown parameter_invalid parameter_duplicate "
    "parameter_missing body_invalid path_invalid period_out_of_window idempotency_key_required "
    "period_already_charged duplicate_suspected charge_not_refundable charge_disputed "
    "already_refunded refund_exceeds_charge amount_changed",
    (400, "idempotency_error"): "idempotency_key_reused",
    (409, "invalid_request_error"): "idempotency_key_in_use",
    (404, "invalid_request_error"): "path_unknown",
    (405, "invalid_request_error"): "method_not_allowed",
    (413, "invalid_request_error"): "body_too_large",
    (429, "rate_limit_error"): "rate_limited",
    (502, "api_error"): "upstream_unreachable upstream_rejected_key",
    (503, "api_error"): "ledger_unavailable ledger_behind issuer_unreachable draining overloaded",
    (504, "api_error"): "outcome_unknown",
}


def test_the_table_is_the_contract() -> None:
    table = {(code.value, code.status, code.type) for code in WORDING}
    contract = {
        (code, status, kind) for (status, kind), codes in CONTRACT.items() for code in codes.split()
    }
    assert table == contract
    assert set(WORDING) == set(Code)


@CODES
def test_only_what_cannot_hurt_says_retry(code: Code) -> None:
    harmless = code is Code.IDEMPOTENCY_KEY_IN_USE or code.status == 503
    assert code.should_retry == ("true" if harmless else "false")


@CODES
def test_a_sentence_says_what_to_do_and_never_suggests_a_reference(code: Code) -> None:
    sentence, doc = WORDING[code]
    assert "reference" not in sentence
    assert sentence[0].isupper() or sentence[0] == "{"
    assert 20 < len(sentence) < 300
    assert doc.endswith(".")


@CODES
def test_every_refusal_is_written_in_stripes_shape(code: Code) -> None:
    fields = dict.fromkeys(fields_of(code), "x")
    refusal = refuse(code, param="amount", facts={"operation": "op_1", "left": 1}, **fields)
    body = json.loads(error_body(refusal))
    assert body["error"] == {
        "type": code.type,
        "code": code.value,
        "message": refusal.message,
        "param": "amount",
        "keybrake": {"operation": "op_1", "left": 1},
    }
    assert "{" not in refusal.message
    assert refusal.status == code.status


def test_a_refusal_without_a_parameter_has_no_param() -> None:
    assert "param" not in json.loads(error_body(refuse(Code.DRAINING)))["error"]


def test_amounts_in_facts_are_written_as_money_and_stay_integers_for_programs() -> None:
    facts: dict[str, Fact] = {"window": "daily", "cap": 500_000, "left": 100, "currency": "usd"}
    refusal = refuse(Code.SPEND_CAP_EXCEEDED, facts=facts, then="ask an operator")
    assert "(daily): the cap is 5000.00 USD and 1.00 USD is left" in refusal.message
    assert refusal.facts["left"] == 100


@pytest.mark.parametrize("code", [Code.PERIOD_ALREADY_CHARGED, Code.DUPLICATE_SUSPECTED])
def test_the_charge_that_exists_is_named(code: Code) -> None:
    assert "ch_1" in refuse(code, facts={"charge_id": "ch_1"}).message
    assert "not known yet" in refuse(code, facts={"charge_id": None}).message


def test_a_sentence_that_lacks_a_field_is_a_broken_world() -> None:
    with pytest.raises(KeyError, match="window"):
        refuse(Code.SPEND_CAP_EXCEEDED, facts={"cap": 1, "left": 1})


@given(st.text(max_size=500))
def test_client_text_is_bounded_and_escaped(text: str) -> None:
    refusal = refuse(Code.PARAMETER_INVALID, param=text, reason=text)
    assert len(refusal.message) < 4000
    assert all(" " <= character <= "~" for character in refusal.message + (refusal.param or ""))
    assert json.loads(error_body(refusal))["error"]["param"] == refusal.param


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amount", "amount"),
        ("\x1b[31m", "\\u{1b}[31m"),
        ("\u202egnp", "\\u{202e}gnp"),
        ("a" * 65, "a" * 64 + "..."),
        ("a" * 64, "a" * 64),
        ("{param}", "{param}"),
    ],
)
def test_quoting_leaves_printable_text_alone(text: str, shown: str) -> None:
    assert quoted(text) == shown
