"""What a request means: money, customer, period, key."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_mcp.money import Money
from kb_mcp.proxy.errors.refusals import Code, Refusal
from kb_mcp.proxy.stripe.forms import Form
from kb_mcp.proxy.stripe.interpret import Reading, fingerprint, read_request

CHARGE = Form(
    {
        "amount": "2900",
        "currency": "usd",
        "customer": "cus_Abc123",
        "metadata[billing_period]": "2026-06",
    }
)
UUID = str(uuid.UUID(int=0xABCDEF, version=4))


def charge(
    values: dict[str, str] | None = None, *, key: str | None = None, without: str = ""
) -> Reading:
    """Read a charge with other values."""
    form = CHARGE.with_(values or {}).without(without)
    reading = read_request("POST", "/v1/charges", form, key)
    assert isinstance(reading, Reading), reading
    return reading


def refused(
    values: dict[str, str], *, key: str | None = None, without: str = ""
) -> tuple[Code, str | None]:
    """Return code and parameter that a charge is refused with."""
    form = CHARGE.with_(values).without(without)
    refusal = read_request("POST", "/v1/charges", form, key)
    assert isinstance(refusal, Refusal), refusal
    # Each says what to send instead.
    assert not refusal.message.endswith(("it was not granted", "None", "None."))
    return refusal.code, refusal.param


def test_a_charge_is_read_whole() -> None:
    reading = charge({"metadata[reference]": "seat 2", "source": "card_1"}, key="june")
    assert reading.money == Money(2900, "usd")
    assert (reading.customer, reading.payment_method) == ("cus_Abc123", "card_1")
    assert reading.period is not None
    assert (reading.period.label, reading.reference) == ("2026-06", "seat 2")
    assert (reading.explicit_key, reading.sent_key) == ("june", "june")
    assert (reading.path, reading.route.endpoint) == ("/v1/charges", "POST /v1/charges")
    assert reading.object_id is None


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"amount": "0"}, "amount"),
        ({"amount": "-1"}, "amount"),
        ({"amount": "1000000000000"}, "amount"),
        ({"amount": "29.00"}, "amount"),
        ({"amount": "2900.0"}, "amount"),
        ({"amount": "\uff12\uff19\uff10\uff10"}, "amount"),
        ({"amount": "NaN"}, "amount"),
        ({"amount": ""}, "amount"),
        ({"amount": " 2900"}, "amount"),
        ({"amount": "500.5", "currency": "jpy"}, "amount"),
        ({"amount": "101", "currency": "isk"}, "amount"),
        ({"amount": "101", "currency": "kwd"}, "amount"),
        ({"currency": "dollars"}, "currency"),
        ({"currency": ""}, "currency"),
        ({"currency": "u\u017fd"}, "currency"),
        # The sign of the kelvin, which is a k in lower case.
        ({"currency": "no\u212a"}, "currency"),
        ({"customer": "cus_"}, "customer"),
        ({"customer": "acct_1"}, "customer"),
        ({"customer": "cus_1/../x"}, "customer"),
        ({"customer": "cus_" + "a" * 65}, "customer"),
        ({"customer": ""}, "customer"),
        ({"source": "4242 4242 4242 4242"}, "source"),
        ({"payment_method": "pm/1"}, "payment_method"),
        ({"transfer_data[destination]": "acct 1"}, "transfer_data[destination]"),
        ({"metadata[billing_period]": "2026-13"}, "metadata[billing_period]"),
        ({"metadata[billing_period]": "June"}, "metadata[billing_period]"),
        ({"metadata[billing_period]": ""}, "metadata[billing_period]"),
        ({"description": "Subscription 2026-07"}, "metadata[billing_period]"),
        ({"metadata[reference]": ""}, "metadata[reference]"),
        ({"metadata[reference]": "\u00e9"}, "metadata[reference]"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "a" * 256}, "idempotency_key"),
        ({"idempotency_key": "a\nb"}, "idempotency_key"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(values: dict[str, str], param: str) -> None:
    assert refused(values) == (Code.PARAMETER_INVALID, param)


@pytest.mark.parametrize("param", ["amount", "currency"])
def test_a_charge_must_tell_amount_and_currency(param: str) -> None:
    assert refused({}, without=param) == (Code.PARAMETER_MISSING, param)


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"source": "card_1", "payment_method": "pm_1"}, "source"),
        (
            {"destination": "acct_1", "transfer_data[destination]": "acct_1"},
            "transfer_data[destination]",
        ),
    ],
)
def test_two_names_for_one_thing_are_refused(values: dict[str, str], param: str) -> None:
    assert refused(values) == (Code.PARAMETER_DUPLICATE, param)


def test_both_cases_of_a_currency_are_one_bill() -> None:
    reading = charge({"currency": "USD"})
    assert reading.money == Money(2900, "usd")
    assert reading.form["currency"] == "usd"
    assert fingerprint(reading) == fingerprint(charge())


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({}, None),
        ({"description": "Subscription 2026-06"}, "2026-06"),
        ({"description": "Subscription June 2026"}, "2026-06"),
        ({"description": "Subscription for June"}, None),
        ({"metadata[billing_period]": "2026-6"}, "2026-06"),
        (
            {"metadata[billing_period]": "June 2026", "description": "Subscription 2026-06"},
            "2026-06",
        ),
        ({"metadata[billing_period]": "2026-06", "description": "Thanks"}, "2026-06"),
    ],
)
def test_the_period_is_read_from_metadata_or_else_from_the_description(
    values: dict[str, str], label: str | None
) -> None:
    form = CHARGE.without("metadata[billing_period]").with_(values)
    reading = read_request("POST", "/v1/charges", form)
    assert isinstance(reading, Reading)
    assert (reading.period.label if reading.period else None) == label


@pytest.mark.parametrize(
    ("header", "lifted", "explicit", "sent"),
    [
        (None, None, None, None),
        ("june", None, "june", "june"),
        (UUID, None, None, UUID),
        (f"stripe-node-retry-{UUID}", None, None, f"stripe-node-retry-{UUID}"),
        (None, "june", "june", "june"),
        (UUID, "june", "june", UUID),
        ("june", "june", "june", "june"),
        ("june", UUID, "june", "june"),
        (UUID, UUID.replace("c", "d"), None, UUID),
        (None, UUID, None, UUID),
    ],
)
def test_a_key_is_lifted_from_the_body_and_one_an_sdk_made_up_names_nothing(
    header: str | None, lifted: str | None, explicit: str | None, sent: str | None
) -> None:
    reading = charge({"idempotency_key": lifted} if lifted else {}, key=header)
    assert (reading.explicit_key, reading.sent_key) == (explicit, sent)
    assert "idempotency_key" not in reading.form


@pytest.mark.parametrize("name", ["Billing_Period", "billingPeriod", "billing-period"])
def test_a_period_under_another_name_is_refused_and_not_ignored(name: str) -> None:
    field = f"metadata[{name}]"
    bill = "metadata[billing_period]"
    assert refused({field: "2026-06"}, without=bill) == (Code.PARAMETER_INVALID, field)
    assert charge({field: "x"}).period is not None


def test_two_keys_that_disagree_are_refused() -> None:
    answer = refused({"idempotency_key": "june"}, key="july")
    assert answer == (Code.PARAMETER_INVALID, "idempotency_key")
    assert refused({}, key="a" * 256) == (Code.PARAMETER_INVALID, "Idempotency-Key")


MOVES_MONEY = {
    "amount": "2901",
    "currency": "eur",
    "customer": "cus_B",
    "payment_method": "pm_2",
    "source": "card_2",
    "destination": "acct_2",
    "metadata[billing_period]": "2026-07",
    "metadata[reference]": "two",
}
WORDING = {
    "description": "again, please",
    "statement_descriptor": "ACME",
    "receipt_email": "who@example.com",
    "metadata[order]": "7",
    "idempotency_key": "other",
}


@pytest.mark.parametrize("name", MOVES_MONEY)
def test_the_fingerprint_covers_what_moves_money(name: str) -> None:
    assert fingerprint(charge({name: MOVES_MONEY[name]})) != fingerprint(charge())


@pytest.mark.parametrize("name", WORDING)
def test_the_fingerprint_leaves_out_wording(name: str) -> None:
    assert fingerprint(charge({name: WORDING[name]})) == fingerprint(charge())


def test_the_fingerprints_that_stores_hold_do_not_change() -> None:
    # After an upgrade that reads them otherwise, no retry would be known as one.
    assert fingerprint(charge()) == (
        "e5052802dfee29d3aff616650e918da7c44868dcdcd39929da1e89b2cf6f43e6"
    )


def test_the_fingerprint_covers_the_path() -> None:
    intent = read_request("POST", "/v1/payment_intents", CHARGE)
    assert isinstance(intent, Reading)
    assert fingerprint(intent) != fingerprint(charge())


@pytest.mark.parametrize("path", ["/v1/payment_intents", "/v1/payouts", "/v1/topups"])
def test_every_metered_endpoint_is_read_by_the_same_rules(path: str) -> None:
    good = read_request("POST", path, Form({"amount": "500", "currency": "jpy"}))
    assert isinstance(good, Reading)
    assert good.money == Money(500, "jpy")
    bad = read_request("POST", path, Form({"amount": "500.5", "currency": "jpy"}))
    assert isinstance(bad, Refusal)
    assert (bad.code, bad.param) == (Code.PARAMETER_INVALID, "amount")


def test_a_write_that_does_not_tell_how_much_carries_no_money() -> None:
    form = Form({"amount": "500", "currency": "usd"})
    reading = read_request("POST", "/v1/payment_intents/pi_1/increment_authorization", form)
    assert isinstance(reading, Reading)
    assert (reading.money, reading.object_id) == (None, "pi_1")
    assert fingerprint(reading) == fingerprint(reading)
    bad = read_request("POST", "/v1/charges/ch_1/capture", Form({"amount": "5.00"}))
    assert isinstance(bad, Refusal)
    assert (bad.code, bad.param) == (Code.PARAMETER_INVALID, "amount")


def test_a_total_that_cannot_be_meant_is_refused_by_its_name() -> None:
    path = "/v1/payment_intents/pi_1/capture"
    reading = read_request("POST", path, Form({"amount_to_capture": "500"}))
    assert isinstance(reading, Reading)
    assert reading.total == 500
    bad = read_request("POST", path, Form({"amount_to_capture": "5.00"}))
    assert isinstance(bad, Refusal)
    assert (bad.code, bad.param) == (Code.PARAMETER_INVALID, "amount_to_capture")
    assert "plain digits" in bad.message


@pytest.mark.parametrize(
    ("path", "query", "customer"),
    [
        ("/v1/charges", {"customer": "cus_A"}, "cus_A"),
        ("/v1/charges", {}, None),
        ("/v1/charges/ch_1", {}, None),
        ("/v1/customers/cus_A", {}, "cus_A"),
        ("/v1/customers/cus_A/payment_methods", {"type": "card"}, "cus_A"),
    ],
)
def test_a_read_carries_its_customer_and_no_money(
    path: str, query: dict[str, str], customer: str | None
) -> None:
    reading = read_request("GET", path, Form(query), "a key has no effect on a read")
    assert isinstance(reading, Reading)
    assert (reading.customer, reading.money, reading.explicit_key) == (customer, None, None)
    assert reading.form == Form(query)
    assert (reading.path, reading.route.method) == (path, "GET")


def test_a_read_for_no_customers_id_is_refused() -> None:
    refusal = read_request("GET", "/v1/charges", Form({"customer": "x"}))
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.param) == (Code.PARAMETER_INVALID, "customer")
    assert "a customer id like cus_" in refusal.message


def test_a_path_without_a_row_is_refused() -> None:
    refusal = read_request("POST", "/v1/nothing", CHARGE)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.PATH_UNKNOWN


@given(
    st.dictionaries(
        st.sampled_from([*CHARGE, *MOVES_MONEY, *WORDING]),
        st.text(max_size=12) | st.sampled_from([*MOVES_MONEY.values(), "2026-06", "usd", "1"]),
    ),
    st.none() | st.text(max_size=12),
)
def test_whatever_is_read_has_money_that_can_be_charged(
    values: dict[str, str], key: str | None
) -> None:
    reading = read_request("POST", "/v1/charges", CHARGE.with_(values), key)
    if isinstance(reading, Reading):
        assert reading.money is not None
        assert reading.money.amount > 0
        assert fingerprint(reading) == fingerprint(reading)
        # What goes upstream says what was read, and reads the same again.
        again = read_request("POST", "/v1/charges", reading.form, reading.explicit_key)
        assert isinstance(again, Reading)
        assert fingerprint(again) == fingerprint(reading)
