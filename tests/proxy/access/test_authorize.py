"""What a policy grants, in the contract's order."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.periods import parse_period
from kb_mcp.proxy.access.authorize import (
    DEFAULT_PARAMETERS,
    authorize,
    check_hours,
    check_period,
    may_touch,
    needs_customer,
)
from kb_mcp.proxy.access.policy import load_policy
from kb_mcp.proxy.access.roles import ROLES, built_in
from kb_mcp.proxy.errors.refusals import Code, Refusal
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, ROUTES, Route, find_route
from kb_mcp.proxy.stripe.forms import Form

if TYPE_CHECKING:
    from kb_mcp.proxy.access.policy import Policy

BILL = {"amount": "2900", "currency": "usd", "customer": "cus_A"}
PLAIN = {"stripe-version": "2026-10-28.endive", "user-agent": "x", "idempotency-key": "k"}


def policy(**fields: Any) -> Policy:
    """Return a policy that may charge and read charges, with `fields`."""
    allow = ["POST /v1/charges", "GET /v1/charges/*", "GET /v1/charges", "GET /v1/customers/*"]
    return load_policy({"role": "r", "allow": allow, **fields})


def ask(
    granted: Policy,
    request: str = "POST /v1/charges",
    form: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[Code, str | None] | None:
    """Return code and parameter that `request` is refused with."""
    method, path = request.split(" ")
    route = find_route(method, path)
    assert not isinstance(route, Refusal)
    refusal = authorize(granted, route, path, headers or {}, Form(form or {}))
    return None if refusal is None else (refusal.code, refusal.param)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_role_reaches_what_is_on_its_allowlist_and_nothing_else(role: str, endpoint: str) -> None:
    route = ENDPOINTS[endpoint]
    refusal = authorize(built_in(role), route, route.template, {}, Form(BILL))
    denied = refusal is not None and refusal.code is Code.VAULT_KEY_NOT_AUTHORIZED
    assert denied is (endpoint not in built_in(role).allow)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"description": "Subscription 2026-06"},
        {"metadata[billing_period]": "2026-06", "metadata[order id]": "7"},
        {"receipt_email": "who@example.com"},
        {"statement_descriptor": "ACME", "statement_descriptor_suffix": "JUNE"},
        {"idempotency_key": "june"},
    ],
)
def test_what_a_bill_says_is_granted_to_billing(extra: dict[str, str]) -> None:
    assert ask(built_in("billing"), form=BILL | extra, headers=PLAIN) is None


@pytest.mark.parametrize(
    "name",
    [
        "application_fee_amount",
        "capture",
        "confirm",
        "destination",
        "destination[account]",
        "expand[0]",
        "metadata",
        "metadata[0][x]",
        "metadata[KEYBRAKE_operation]",
        "metadata[keybrake_attempt]",
        "metadata[keybrake_key]",
        "metadata[keybrake_operation]",
        "metadata[reference]",
        "on_behalf_of",
        "payment_method",
        "shipping[name]",
        "source",
        "source[number]",
        "transfer_data[amount]",
        "transfer_data[destination]",
        "transfer_group",
        "unheard_of",
    ],
)
def test_what_is_not_named_is_refused(name: str) -> None:
    answer = ask(built_in("billing"), form=BILL | {name: "1"})
    assert answer == (Code.PARAMETER_NOT_ALLOWED, name)


@pytest.mark.parametrize("missing", BILL)
def test_a_bill_must_say_whom_and_how_much(missing: str) -> None:
    form = {name: value for name, value in BILL.items() if name != missing}
    assert ask(built_in("billing"), form=form) == (Code.PARAMETER_MISSING, missing)


def test_a_payment_intent_as_the_tools_send_it_is_granted() -> None:
    form = BILL | {
        "payment_method": "pm_1",
        "off_session": "true",
        "confirm": "true",
        "error_on_requires_action": "true",
        "payment_method_types[0]": "card",
        "metadata[billing_period]": "2026-06",
    }
    role = built_in("billing-payment-intents")
    assert ask(role, "POST /v1/payment_intents", form) is None
    assert ask(role, "GET /v1/customers/cus_A") is None
    assert ask(role, "GET /v1/customers/cus_A/payment_methods", {"type": "card"}) is None
    assert ask(role, "POST /v1/payment_intents", form | {"capture_method": "manual"}) == (
        Code.PARAMETER_NOT_ALLOWED,
        "capture_method",
    )


RULES: dict[str, Any] = {
    "parameters": {
        "POST /v1/charges": {
            "allowed": ["expand[]", "shipping[*]", "capture"],
            "required": ["metadata[billing_period]"],
            "fixed": {"capture": "true", "transfer_group": "g"},
            "forbidden": ["receipt_email", "metadata[secret]"],
        }
    }
}
RULED = BILL | {"metadata[billing_period]": "2026-06"}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, None),
        ({"expand[0]": "customer", "expand[1]": "x"}, None),
        ({"shipping[name]": "x"}, None),
        ({"capture": "true", "transfer_group": "g"}, None),
        ({"metadata[other]": "x"}, None),
        ({"expand": "x"}, "expand"),
        ({"expand[a]": "x"}, "expand[a]"),
        ({"shipping[address][city]": "x"}, "shipping[address][city]"),
        ({"capture": "false"}, "capture"),
        ({"transfer_group": "h"}, "transfer_group"),
        ({"receipt_email": "x"}, "receipt_email"),
        ({"metadata[secret]": "x"}, "metadata[secret]"),
        ({"metadata[reference]": "x"}, "metadata[reference]"),
    ],
)
def test_parameter_rules_hold(extra: dict[str, str], expected: str | None) -> None:
    answer = ask(policy(**RULES), form=RULED | extra)
    assert answer == (None if expected is None else (Code.PARAMETER_NOT_ALLOWED, expected))


def test_a_required_parameter_must_be_there() -> None:
    assert ask(policy(**RULES), form=BILL) == (Code.PARAMETER_MISSING, "metadata[billing_period]")


def test_naming_the_mark_of_the_proxy_does_not_grant_it() -> None:
    rules = {"POST /v1/charges": {"allowed": ["metadata[keybrake_key]", "metadata[reference]"]}}
    granted = policy(parameters=rules)
    for name in rules["POST /v1/charges"]["allowed"]:
        assert ask(granted, form=BILL | {name: "x"}) == (Code.PARAMETER_NOT_ALLOWED, name)


def test_a_reference_is_granted_only_by_its_own_switch() -> None:
    form = BILL | {"metadata[reference]": "two"}
    assert ask(policy(allow_reference=True), form=form) is None
    assert ask(policy(), form=form) == (Code.PARAMETER_NOT_ALLOWED, "metadata[reference]")


def test_a_read_takes_no_parameters_unless_it_lists() -> None:
    assert ask(policy(), "GET /v1/charges/ch_1") is None
    assert ask(policy(), "GET /v1/charges/ch_1", {"expand[0]": "customer"}) == (
        Code.PARAMETER_NOT_ALLOWED,
        "expand[0]",
    )
    assert ask(policy(), "GET /v1/charges/ch_1", {"idempotency_key": "k"}) == (
        Code.PARAMETER_NOT_ALLOWED,
        "idempotency_key",
    )
    assert ask(policy(), "GET /v1/charges", {"customer": "cus_A", "created[gte]": "1"}) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"stripe-account": "acct_1"}, "stripe-account"),
        ({"stripe-context": "acct_1"}, "stripe-context"),
        ({"x-http-method-override": "GET"}, "x-http-method-override"),
        ({"x-http-method": "GET"}, "x-http-method"),
        ({"x-method-override": "GET"}, "x-method-override"),
        ({"stripe-version": "latest"}, "Stripe-Version"),
        ({"stripe-version": "2026-10-28.endive\r\nX: 1"}, "Stripe-Version"),
        ({"stripe-version": "2026-10-28"}, None),
        (PLAIN, None),
    ],
)
def test_headers_that_would_change_the_meaning_are_refused(
    headers: dict[str, str], expected: str | None
) -> None:
    answer = ask(policy(), form=BILL, headers=headers)
    assert answer == (None if expected is None else (Code.HEADER_NOT_ALLOWED, expected))


def test_a_policy_may_have_a_header_dropped_instead() -> None:
    lenient = policy(headers={"dropped": ["stripe-account"]})
    assert ask(lenient, form=BILL, headers={"stripe-account": "acct_1"}) is None
    assert ask(lenient, form=BILL, headers={"stripe-context": "x"}) is not None


def test_what_is_wrong_is_looked_for_in_the_contracts_order() -> None:
    granted = policy(
        parameters={"POST /v1/charges": {"required": ["description"], "fixed": {"amount": "1"}}}
    )
    headers = {"stripe-account": "acct_1"}
    strange = {"source": "x", "amount": "2"}
    plain = {"amount": "2", "description": "d"}
    assert ask(built_in("audit"), form=strange, headers=headers) == (
        Code.VAULT_KEY_NOT_AUTHORIZED,
        None,
    )
    assert ask(granted, form=strange, headers=headers) == (
        Code.HEADER_NOT_ALLOWED,
        "stripe-account",
    )
    assert ask(granted, form=strange) == (Code.PARAMETER_NOT_ALLOWED, "source")
    assert ask(granted, form={"amount": "2"}) == (Code.PARAMETER_MISSING, "description")
    assert ask(granted, form=plain) == (Code.PARAMETER_NOT_ALLOWED, "amount")


OWN = policy(customers={"ids": ["cus_A"], "prefix": "cus_B"})


@pytest.mark.parametrize(
    ("request_line", "form", "granted"),
    [
        ("POST /v1/charges", BILL, True),
        ("POST /v1/charges", BILL | {"customer": "cus_B7"}, True),
        ("POST /v1/charges", BILL | {"customer": "cus_C"}, False),
        ("POST /v1/charges", BILL | {"customer": "cus_AA"}, False),
        ("POST /v1/charges", {"amount": "1", "currency": "usd"}, False),
        ("GET /v1/charges", {"customer": "cus_A"}, True),
        ("GET /v1/charges", {"customer": "cus_C"}, False),
        ("GET /v1/charges", {}, False),
        # Whose it is, its answer tells: that is checked before it is forwarded.
        ("GET /v1/charges/ch_1", {}, True),
        ("GET /v1/customers/cus_A", {}, True),
        ("GET /v1/customers/cus_C", {}, False),
    ],
)
def test_a_key_touches_its_own_customers_only(
    request_line: str, form: dict[str, str], *, granted: bool
) -> None:
    answer = ask(OWN, request_line, form)
    assert answer == (None if granted else (Code.VAULT_KEY_NOT_AUTHORIZED, None))


@pytest.mark.parametrize(
    ("customer", "metadata", "granted"),
    [
        ("cus_A", None, True),
        ("cus_C", None, False),
        ("cus_C", {}, False),
        ("cus_C", {"tier": "agent"}, False),
        ("cus_C", {"tier": "agent", "region": "eu", "more": "x"}, True),
        (None, {"tier": "agent", "region": "eu"}, False),
        (None, None, False),
    ],
)
def test_a_metadata_rule_wants_all_its_pairs_looked_up(
    customer: str | None, metadata: dict[str, str] | None, *, granted: bool
) -> None:
    rules = {"ids": ["cus_A"], "metadata": {"tier": "agent", "region": "eu"}}
    assert may_touch(policy(customers=rules), customer, metadata) is granted


def test_a_look_up_is_needed_only_where_nothing_else_admits_the_customer() -> None:
    ruled = policy(customers={"ids": ["cus_A"], "metadata": {"tier": "agent"}})
    assert not needs_customer(ruled, "cus_A")
    assert needs_customer(ruled, "cus_C")
    assert needs_customer(ruled, None)
    assert not needs_customer(OWN, "cus_C")
    assert not needs_customer(policy(), "cus_C")
    assert may_touch(policy(), None)


def at(text: str) -> int:
    """Return milliseconds UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


@pytest.mark.parametrize(
    ("now", "serves"),
    [
        ("2026-11-23T08:00:00", True),  # a Monday
        ("2026-11-23T17:59:59", True),
        ("2026-11-23T18:00:00", False),
        ("2026-11-23T07:59:59", False),
        ("2026-11-24T12:00:00", False),
        ("2026-11-27T12:00:00", True),
        ("1970-01-02T12:00:00", True),
    ],
)
def test_a_key_serves_in_its_hours(now: str, *, serves: bool) -> None:
    ruled = policy(hours={"days": ["mon", "fri"], "start": "08:00", "end": "18:00"})
    refusal = check_hours(ruled, at(now))
    assert (refusal is None) is serves
    assert refusal is None or refusal.code is Code.VAULT_KEY_NOT_AUTHORIZED
    assert check_hours(policy(), at(now)) is None


def test_hours_may_last_all_day() -> None:
    assert check_hours(policy(hours={}), at("2026-11-24T23:59:59")) is None


def test_a_period_outside_the_window_is_refused() -> None:
    today = date(2026, 11, 24)
    assert check_period(policy(), parse_period("2026-11"), today) is None
    assert check_period(policy(), None, today) is None
    assert check_period(policy(period_kinds=["month"]), None, today) is None
    refusal = check_period(policy(), parse_period("2031-01"), today)
    assert refusal is not None
    assert refusal.code is Code.PERIOD_OUT_OF_WINDOW
    assert refusal.facts == {"back_months": 12, "ahead_months": 1}
    assert check_period(policy(period_window={"back": 0}), parse_period("2026-10"), today)


def test_the_defaults_name_endpoints_that_exist() -> None:
    assert set(DEFAULT_PARAMETERS) <= set(ENDPOINTS)


@given(
    st.sampled_from(ROUTES),
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,12}(\[[a-z0-9_]{1,9}\])?", fullmatch=True)
        | st.sampled_from([*BILL, "metadata[a]", "metadata[keybrake_key]", "source", "expand[0]"]),
        st.text(max_size=3),
        max_size=5,
    ),
)
def test_nothing_passes_that_a_naive_list_would_refuse(route: Route, form: dict[str, str]) -> None:
    """A second, plainer reading of what billing may do; it shares no code with the first."""
    answer = authorize(built_in("billing"), route, route.template, {}, Form(form))
    if answer is not None:
        return
    assert (route.method, route.template) == ("POST", "/v1/charges")
    for name in form:
        if name.startswith("metadata["):
            assert "keybrake" not in name
            assert name != "metadata[reference]"
        else:
            assert name in {
                "amount",
                "currency",
                "customer",
                "description",
                "idempotency_key",
                "receipt_email",
                "statement_descriptor",
                "statement_descriptor_suffix",
            }
