"""Charges, refunds, customers and lists behave as Stripe's do."""

from __future__ import annotations

import pytest

from tests.sandbox.driver import CHARGE, START_MS, Driver


def test_a_charge_takes_the_amount_from_the_customers_card(sandbox: Driver) -> None:
    charge = sandbox.charge(description="Subscription 2026-06").json()
    assert charge["status"] == "succeeded"
    assert (charge["amount"], charge["amount_captured"], charge["currency"]) == (2900, 2900, "usd")
    assert charge["customer"] == "cus_Abc123"
    assert charge["description"] == "Subscription 2026-06"
    assert charge["created"] == START_MS // 1000
    assert charge["livemode"] is False
    customer = sandbox.get("/v1/customers/cus_Abc123")
    assert charge["payment_method"] == customer["invoice_settings"]["default_payment_method"]
    assert sandbox.get(f"/v1/charges/{charge['id']}") == charge


def test_metadata_comes_back_as_it_was_sent(sandbox: Driver) -> None:
    charge = sandbox.charge(**{"metadata[billing_period]": "2026-06", "metadata[a b]": "x=&y"})
    assert charge.json()["metadata"] == {"billing_period": "2026-06", "a b": "x=&y"}


def test_a_declined_card_leaves_a_failed_charge(sandbox: Driver) -> None:
    response = sandbox.charge(customer="cus_Declined1")
    error = response.json()["error"]
    assert response.status_code == 402
    assert (error["type"], error["code"]) == ("card_error", "card_declined")
    assert error["message"] == "Your card was declined."
    [failed] = sandbox.get("/v1/charges?customer=cus_Declined1")["data"]
    assert (failed["id"], failed["status"], failed["paid"]) == (error["charge"], "failed", False)
    assert failed["amount_captured"] == 0


@pytest.mark.parametrize(
    ("changes", "code", "param", "message"),
    [
        ({"amount": "49"}, "amount_too_small", "amount", "Amount must be at least $0.50 usd"),
        (
            {"amount": "100000000"},
            "amount_too_large",
            "amount",
            "Amount must be no more than $999,999.99 usd",
        ),
        (
            {"amount": "0"},
            "parameter_invalid_integer",
            "amount",
            "This value must be greater than or equal to 1.",
        ),
        ({"amount": "-5"}, "parameter_invalid_integer", "amount", None),
        ({"amount": "29.00"}, "parameter_invalid_integer", "amount", "Invalid integer: 29.00"),
        ({"amount": "9" * 30}, "parameter_invalid_integer", "amount", None),
        ({"amount": ""}, "parameter_invalid_empty", "amount", None),
        ({"amount": "40", "currency": "jpy"}, "amount_too_small", "amount", None),
        ({"amount": "1005", "currency": "kwd"}, "parameter_invalid_integer", "amount", None),
        ({"amount": "1050", "currency": "isk"}, "parameter_invalid_integer", "amount", None),
        ({"currency": "xxx"}, None, "currency", None),
        (
            {"customer": "cus_Missing1"},
            "resource_missing",
            "customer",
            "No such customer: 'cus_Missing1'",
        ),
        ({"customer": "nobody"}, "resource_missing", "customer", "No such customer: 'nobody'"),
        (
            {"idempotency_key": "k"},
            "parameter_unknown",
            "idempotency_key",
            "Received unknown parameter: idempotency_key",
        ),
        ({"payment_method": "pm_card_visa"}, "parameter_unknown", "payment_method", None),
        ({"capture": "maybe"}, None, "capture", "Invalid boolean: maybe"),
        ({"metadata": "text"}, None, "metadata", None),
        ({f"metadata[{'k' * 41}]": "v"}, None, "metadata", None),
        ({"metadata[k]": "v" * 501}, None, "metadata", None),
        ({f"metadata[k{n}]": "v" for n in range(51)}, None, "metadata", None),
        ({"metadata[a][b]": "v"}, None, "metadata", None),
        ({"expand[]": "nonsense"}, None, "expand", None),
    ],
)
def test_a_bad_charge_is_refused_and_nothing_is_charged(
    sandbox: Driver, changes: dict[str, str], code: str | None, param: str, message: str | None
) -> None:
    response = sandbox.charge(**changes)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert (error.get("code"), error["param"]) == (code, param)
    assert message in {None, error["message"]}
    assert sandbox.state()["charges"] == []


@pytest.mark.parametrize("missing", ["amount", "currency"])
def test_a_missing_parameter_is_named(sandbox: Driver, missing: str) -> None:
    sent = {name: value for name, value in CHARGE.items() if name != missing}
    error = sandbox.post("/v1/charges", sent).json()["error"]
    assert (error["code"], error["param"]) == ("parameter_missing", missing)
    assert error["message"] == f"Missing required param: {missing}."


def test_limits_themselves_are_within_the_limits(sandbox: Driver) -> None:
    labels = {f"metadata[{'k' * 38}{n:02d}]": "v" * 500 for n in range(50)}
    charge = sandbox.charge(amount="99999999", **labels)
    assert charge.status_code == 200
    assert len(charge.json()["metadata"]) == 50
    assert sandbox.charge(amount="50").status_code == 200


def test_a_body_that_is_no_form_is_refused(sandbox: Driver) -> None:
    response = sandbox.post("/v1/charges", json={"amount": 2900, "currency": "usd"})
    assert response.status_code == 400
    assert "application/x-www-form-urlencoded" in response.json()["error"]["message"]
    assert sandbox.state()["charges"] == []


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/charges/ch_none", 404), ("/v1/customers/cus_Missing1", 404), ("/v1/nowhere", 404)],
)
def test_what_is_not_there_is_not_found(sandbox: Driver, path: str, status: int) -> None:
    response = sandbox.send("GET", path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_an_authorised_charge_is_captured_once_and_no_more_than_authorised(
    sandbox: Driver,
) -> None:
    charge = sandbox.charge(capture="false").json()
    assert (charge["captured"], charge["amount_captured"]) == (False, 0)
    url = f"/v1/charges/{charge['id']}/capture"
    assert sandbox.post(url, {"amount": "2901"}).status_code == 400
    captured = sandbox.post(url, {"amount": "2000"}).json()
    assert (captured["captured"], captured["amount_captured"]) == (True, 2000)
    assert captured["amount_refunded"] == 900
    assert sandbox.post(url).json()["error"]["code"] == "charge_already_captured"


def test_a_list_is_newest_first_and_pages_both_ways(sandbox: Driver) -> None:
    ids = [sandbox.charge(amount=str(1000 + n)).json()["id"] for n in range(5)][::-1]
    sandbox.charge(customer="cus_Other")
    mine = "/v1/charges?customer=cus_Abc123"
    first = sandbox.get(f"{mine}&limit=2")
    assert ([c["id"] for c in first["data"]], first["has_more"]) == (ids[:2], True)
    last = sandbox.get(f"{mine}&limit=3&starting_after={ids[1]}")
    assert ([c["id"] for c in last["data"]], last["has_more"]) == (ids[2:], False)
    back = sandbox.get(f"{mine}&limit=2&ending_before={ids[3]}")
    assert ([c["id"] for c in back["data"]], back["has_more"]) == (ids[1:3], True)
    assert sandbox.get("/v1/charges")["data"][0]["customer"] == "cus_Other"


@pytest.mark.parametrize(
    ("bound", "expected"),
    [("gte", [2, 1]), ("gt", [2]), ("lte", [1, 0]), ("lt", [0]), (None, [1])],
)
def test_a_list_is_bounded_by_creation_time(
    sandbox: Driver, bound: str | None, expected: list[int]
) -> None:
    ids = []
    for _ in range(3):
        ids.append(sandbox.charge().json()["id"])
        sandbox.advance(100)
    name = "created" if bound is None else f"created[{bound}]"
    found = sandbox.get(f"/v1/charges?{name}={START_MS // 1000 + 100}")["data"]
    assert [charge["id"] for charge in found] == [ids[n] for n in expected]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "starting_after=ch_none", "created[near]=5", "status=paid"],
)
def test_a_bad_list_query_is_refused(sandbox: Driver, query: str) -> None:
    assert sandbox.send("GET", f"/v1/charges?{query}").status_code == 400


def test_refunds_add_up_to_the_charge_and_no_further(sandbox: Driver) -> None:
    charge = sandbox.charge().json()
    part = sandbox.post("/v1/refunds", {"charge": charge["id"], "amount": "900"}).json()
    assert (part["amount"], part["status"], part["charge"]) == (900, "succeeded", charge["id"])
    url = f"/v1/charges/{charge['id']}"
    assert (sandbox.get(url)["amount_refunded"], sandbox.get(url)["refunded"]) == (900, False)
    assert (
        sandbox.post("/v1/refunds", {"charge": charge["id"], "amount": "2001"}).status_code == 400
    )
    rest = sandbox.post("/v1/refunds", {"charge": charge["id"]}).json()
    assert rest["amount"] == 2000
    assert (sandbox.get(url)["amount_refunded"], sandbox.get(url)["refunded"]) == (2900, True)
    again = sandbox.post("/v1/refunds", {"charge": charge["id"]})
    assert again.json()["error"]["code"] == "charge_already_refunded"
    listed = sandbox.get(f"/v1/refunds?charge={charge['id']}")["data"]
    assert [refund["id"] for refund in listed] == [rest["id"], part["id"]]
    assert sandbox.get(f"/v1/refunds/{part['id']}") == part


def test_a_created_customer_has_a_default_card(sandbox: Driver) -> None:
    customer = sandbox.post("/v1/customers", {"email": "a@example.com", "metadata[n]": "1"}).json()
    assert sandbox.get(f"/v1/customers/{customer['id']}") == customer
    cards = sandbox.get(f"/v1/customers/{customer['id']}/payment_methods")["data"]
    default = customer["invoice_settings"]["default_payment_method"]
    assert [card["id"] for card in cards] == [default]
    assert sandbox.get(f"/v1/payment_methods/{default}")["customer"] == customer["id"]
    assert sandbox.get(f"/v1/payment_methods?customer={customer['id']}&type=card")["data"] == cards
    assert sandbox.get("/v1/customers?email=a@example.com")["data"] == [customer]
    assert sandbox.get("/v1/customers?email=b@example.com")["data"] == []


@pytest.mark.parametrize("card", ["pm_Missing", "cus_Abc123", "pm_Abc123"])
def test_a_customer_is_not_created_with_a_card_that_is_none_or_anothers(
    sandbox: Driver, card: str
) -> None:
    known = sandbox.get("/v1/customers/cus_Abc123")
    assert sandbox.post("/v1/customers", {"payment_method": card}).status_code == 400
    assert sandbox.get("/v1/customers")["data"] == [known]
    assert sandbox.get("/v1/payment_methods/pm_Abc123")["customer"] == "cus_Abc123"


def test_expansion_puts_the_object_in_the_place_of_its_id(sandbox: Driver) -> None:
    charge = sandbox.post("/v1/charges", CHARGE | {"expand[]": "customer"}).json()
    assert charge["customer"]["object"] == "customer"
    listed = sandbox.get("/v1/charges?expand[]=data.customer")["data"]
    assert listed[0]["customer"]["id"] == "cus_Abc123"
    assert sandbox.get("/v1/charges")["data"][0]["customer"] == "cus_Abc123"


def test_the_account_is_always_the_same(sandbox: Driver) -> None:
    account = sandbox.get("/v1/account")
    sandbox.post("/_sandbox/reset")
    assert account["id"].startswith("acct_")
    assert sandbox.get("/v1/account")["id"] == account["id"]
