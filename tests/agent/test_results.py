"""Results fit their schema and Bedrock's bound, whatever the proxy or Stripe answered.

A result that failed its schema would be an error after a charge, and an error invites a repeat.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kb_mcp.agent.calls import Answered, body_of
from kb_mcp.agent.catalogue import TOOLS, ChargeArguments
from kb_mcp.agent.doors.bedrock import body_text
from kb_mcp.agent.export import mcp_tools
from kb_mcp.agent.outcomes import (
    STATUSES,
    ProxyUnavailableError,
    RateLimitedError,
    Reply,
    charge_outcome,
)
from kb_mcp.agent.results import Result
from kb_mcp.agent.status import describe_charge, describe_operation, most_telling, not_readable

BILL = ChargeArguments(customer_id="cus_Abc123", amount_cents=2900, billing_period="2026-06")
BODY_BYTES_MAX = 25_000
SCHEMAS = {
    tool["name"]: Draft202012Validator(tool["outputSchema"])
    for tool in mcp_tools(tuple(TOOLS.values()))["tools"]
}
LONG = "\N{SNOWMAN}" * 30_000
NAMES = """
id object status amount amount_refunded currency customer created livemode description metadata
receipt_url disputed code message decline_code charge payment_intent keybrake param type operation
charge_id state customer_id billing_period created_at data already_charged idempotency_key
""".split()
scalars = (
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40)),
    st.sampled_from([LONG, *STATUSES, "usd", "xxx", "ch_1", "unknown", "awaiting_approval"]),
    st.sampled_from([10**30, -1, 2900]),
)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(scalars),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=6,
)
fields = st.dictionaries(st.sampled_from(NAMES), values)
headers = st.dictionaries(
    st.sampled_from(["idempotent-replayed", "keybrake-operation", "retry-after"]),
    st.sampled_from(["true", "", "op_1", LONG, "7"]),
)
replies = st.builds(
    Reply,
    status=st.sampled_from([200, 302, 400, 401, 402, 403, 404, 408, 409, 413, 429, 500, 502, 504]),
    fields=fields,
    headers=headers,
    is_error=st.booleans(),
    doubtful=st.booleans(),
    livemode=st.booleans(),
)


def hold(tool: str, result: Result) -> None:
    answer = Answered(result)
    body = body_of(answer)
    assert [error.message for error in SCHEMAS[tool].iter_errors(body)] == []
    assert len(body_text(answer)) < BODY_BYTES_MAX
    assert not any(isinstance(value, float) for value in body.values())


@given(replies)
def test_a_charge_has_a_result_that_fits(reply: Reply) -> None:
    try:
        result = charge_outcome(BILL, reply)
    except (ProxyUnavailableError, RateLimitedError):
        assert reply.is_error  # nothing was sent
        return

    hold("charge", result)
    assert result.idempotency_key == "38de2d05855909930dc2287649e68ba3"


@given(replies)
def test_a_look_up_has_a_result_that_fits(reply: Reply) -> None:
    hold("charge_status", describe_charge(reply))
    hold("charge_status", not_readable(reply))


@given(st.lists(fields, max_size=3) | values)
def test_an_operation_has_a_result_that_fits(operations: object) -> None:
    operation = most_telling(operations)

    if operation is not None:
        hold("charge_status", describe_operation(operation))
