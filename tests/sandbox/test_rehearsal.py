"""What people rehearse with: Stripe's test cards, customers' lives, and a search that is late."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from kb_mcp.sandbox.listing import LAG_SECONDS
from tests.sandbox.driver import CHARGE, Driver

INTENTS = "/v1/payment_intents"
ON_SESSION = CHARGE | {"confirm": "true"}
OFF_SESSION = ON_SESSION | {"off_session": "true"}
DECLINED = [
    ("chargeDeclined", "card_declined", "generic_decline"),
    ("visa_chargeDeclined", "card_declined", "generic_decline"),
    ("chargeCustomerFail", "card_declined", "generic_decline"),
    ("chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
    ("visa_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
    ("visa_chargeDeclinedLostCard", "card_declined", "lost_card"),
    ("visa_chargeDeclinedStolenCard", "card_declined", "stolen_card"),
    ("chargeDeclinedVelocityLimitExceeded", "card_declined", "card_velocity_exceeded"),
    ("radarBlock", "card_declined", "fraudulent"),
    ("chargeDeclinedExpiredCard", "expired_card", None),
    ("chargeDeclinedIncorrectCvc", "incorrect_cvc", "incorrect_cvc"),
    ("chargeDeclinedProcessingError", "processing_error", "processing_error"),
]


@pytest.mark.parametrize(("card", "code", "decline_code"), DECLINED)
def test_a_declined_test_card_has_its_own_codes(
    sandbox: Driver, card: str, code: str, decline_code: str | None
) -> None:
    answer = sandbox.post(INTENTS, OFF_SESSION | {"payment_method": f"pm_card_{card}"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (402, code)
    assert error.get("decline_code") == decline_code
    assert error["payment_intent"]["last_payment_error"]["code"] == code
    [charge] = sandbox.get("/v1/charges")["data"]
    assert (charge["status"], charge["failure_code"]) == ("failed", code)
    token = sandbox.charge(source=f"tok_{card}").json()["error"]
    assert (token["code"], token.get("decline_code")) == (code, decline_code)


@pytest.mark.parametrize(
    "card",
    ["authenticationRequired", "threeDSecureRequired", "threeDSecure2Required"],
)
def test_a_card_that_needs_the_customer_is_never_charged_without(
    sandbox: Driver, card: str
) -> None:
    method = {"payment_method": f"pm_card_{card}"}
    waiting = sandbox.post(INTENTS, ON_SESSION | method).json()
    assert (waiting["status"], waiting["amount_received"]) == ("requires_action", 0)
    for alone in (OFF_SESSION, ON_SESSION | {"error_on_requires_action": "true"}):
        refused = sandbox.post(INTENTS, alone | method)
        assert refused.status_code == 402
        assert refused.json()["error"]["code"] == "authentication_required"
    assert sandbox.charge(source=f"tok_{card}").status_code == 402
    assert [each["status"] for each in sandbox.get("/v1/charges")["data"]] == ["failed"] * 3


def test_a_card_that_was_saved_with_the_customer_is_charged_without(sandbox: Driver) -> None:
    card = "pm_card_authenticationRequiredOnSetup"
    assert sandbox.post(INTENTS, OFF_SESSION | {"payment_method": card}).status_code == 402
    saved = sandbox.post(f"/v1/payment_methods/{card}/attach", {"customer": "cus_Abc123"}).json()
    method = {"payment_method": saved["id"]}
    assert sandbox.post(INTENTS, OFF_SESSION | method).json()["status"] == "succeeded"
    assert sandbox.post(INTENTS, ON_SESSION | method).json()["status"] == "requires_action"


@pytest.mark.parametrize(
    ("card", "brand", "last4"),
    [
        ("visa", "visa", "4242"),
        ("amex", "amex", "8431"),
        ("mastercard_debit", "mastercard", "8210"),
        ("somethingNew", "visa", "4242"),
    ],
)
def test_every_customer_gets_a_copy_of_a_test_card(
    sandbox: Driver, card: str, brand: str, last4: str
) -> None:
    url = f"/v1/payment_methods/pm_card_{card}/attach"
    first, second = (sandbox.post(url, {"customer": f"cus_{each}"}).json() for each in "ab")
    assert first["id"] != second["id"]
    assert (first["customer"], second["customer"]) == ("cus_a", "cus_b")
    assert (first["card"]["brand"], first["card"]["last4"]) == (brand, last4)
    made = sandbox.post("/v1/customers", {"payment_method": f"pm_card_{card}"}).json()
    assert made["invoice_settings"]["default_payment_method"] not in {first["id"], second["id"]}
    charge = sandbox.charge(customer=made["id"]).json()
    assert charge["payment_method_details"]["card"]["last4"] == last4


def test_a_copy_keeps_how_its_bank_answers(sandbox: Driver) -> None:
    url = "/v1/payment_methods/pm_card_chargeCustomerFail/attach"
    saved = sandbox.post(url, {"customer": "cus_Abc123"}).json()["id"]
    default = {"invoice_settings[default_payment_method]": saved}
    assert sandbox.post("/v1/customers/cus_Abc123", default).status_code == 200
    assert sandbox.charge().json()["error"]["decline_code"] == "generic_decline"


@pytest.mark.parametrize("path", ["/v1/payment_methods/{}/attach", "/v1/customers"])
def test_a_bank_may_refuse_even_to_save_a_card(sandbox: Driver, path: str) -> None:
    card = "pm_card_chargeDeclinedInsufficientFunds"
    sent = {"payment_method": card} if "{" not in path else {"customer": "cus_Abc123"}
    answer = sandbox.post(path.format(card), sent)
    assert answer.status_code == 402
    assert answer.json()["error"]["decline_code"] == "insufficient_funds"


def test_a_payment_method_belongs_to_one_customer_until_it_is_taken_off(sandbox: Driver) -> None:
    url = "/v1/payment_methods/pm_Own1"
    assert sandbox.post(f"{url}/attach", {"customer": "cus_a"}).json()["customer"] == "cus_a"
    assert sandbox.post(f"{url}/attach", {"customer": "cus_a"}).status_code == 200
    assert sandbox.post(f"{url}/attach", {"customer": "cus_b"}).status_code == 400
    default = {"invoice_settings[default_payment_method]": "pm_Own1"}
    assert sandbox.post("/v1/customers/cus_b", default).status_code == 400
    assert sandbox.post("/v1/customers/cus_a", default).status_code == 200
    assert sandbox.post(f"{url}/detach").json()["customer"] is None
    assert sandbox.post(f"{url}/detach").status_code == 400
    customer = sandbox.get("/v1/customers/cus_a")
    assert customer["invoice_settings"]["default_payment_method"] is None
    assert sandbox.charge(customer="cus_a").status_code == 400
    assert sandbox.post(f"{url}x/detach").status_code == 404


def test_a_customer_is_updated_in_what_was_sent_alone(sandbox: Driver) -> None:
    sandbox.post("/v1/customers/cus_a", {"email": "a@example.com", "metadata[plan]": "pro"})
    changed = sandbox.post(
        "/v1/customers/cus_a",
        {"name": "Ann", "metadata[seats]": "3", "address[city]": "Bonn", "balance": "-500"},
    ).json()
    assert (changed["email"], changed["name"]) == ("a@example.com", "Ann")
    assert changed["metadata"] == {"plan": "pro", "seats": "3"}
    assert (changed["address"], changed["balance"]) == ({"city": "Bonn"}, -500)
    cleared = sandbox.post("/v1/customers/cus_a", {"email": "", "metadata": ""}).json()
    assert (cleared["email"], cleared["metadata"]) == (None, {})


def test_a_deleted_customer_is_gone_for_good(sandbox: Driver) -> None:
    sandbox.charge()
    gone = {"id": "cus_Abc123", "object": "customer", "deleted": True}
    assert sandbox.send("DELETE", "/v1/customers/cus_Abc123").json() == gone
    assert sandbox.get("/v1/customers/cus_Abc123") == gone
    assert sandbox.get("/v1/customers")["data"] == []
    assert sandbox.charge().json()["error"]["code"] == "resource_missing"
    assert sandbox.post(INTENTS, OFF_SESSION | {"payment_method": "pm_x"}).status_code == 400
    for method, path in (("POST", ""), ("DELETE", ""), ("GET", "/payment_methods")):
        assert sandbox.send(method, f"/v1/customers/cus_Abc123{path}").status_code == 404
    # What was charged stays, under the customer's id.
    assert len(sandbox.get("/v1/charges?customer=cus_Abc123")["data"]) == 1


def search(sandbox: Driver, query: str, more: str = "") -> Any:
    return sandbox.get(f"/v1/charges/search?query={quote(query)}{more}")


def test_a_charge_is_listed_at_once_and_found_late(sandbox: Driver) -> None:
    charge = sandbox.charge().json()
    query = 'customer:"cus_Abc123"'
    assert [each["id"] for each in sandbox.get("/v1/charges")["data"]] == [charge["id"]]
    assert search(sandbox, query)["data"] == []
    sandbox.advance(LAG_SECONDS)
    page = search(sandbox, query)
    assert [each["id"] for each in page["data"]] == [charge["id"]]
    assert (page["object"], page["url"]) == ("search_result", "/v1/charges/search")
    assert (page["has_more"], page["next_page"]) == (False, None)


@pytest.mark.parametrize(
    ("query", "amounts"),
    [
        ("amount:2900", [2900]),
        ("amount>2900", [3100, 3000]),
        ("amount>=2900 AND amount<3100", [3000, 2900]),
        ('status:"succeeded"', [3100, 3000, 2900]),
        ('-status:"succeeded"', []),
        ("metadata['period']:'2026-06'", [3000]),
        ('metadata["period"]:null', [3100]),
        ('-metadata["period"]:null', [3000, 2900]),
        ('metadata["period"]~"2026"', [3000, 2900]),
        ('amount:2900 OR customer:"cus_B"', [3100, 2900]),
        ('currency:"usd" created>0', [3100, 3000, 2900]),
    ],
)
def test_a_query_selects(sandbox: Driver, query: str, amounts: list[int]) -> None:
    sandbox.charge(**{"metadata[period]": "2026-05"})
    sandbox.charge(amount="3000", **{"metadata[period]": "2026-06"})
    sandbox.charge(amount="3100", customer="cus_B")
    sandbox.advance(LAG_SECONDS)
    assert [each["amount"] for each in search(sandbox, query)["data"]] == amounts


@pytest.mark.parametrize(
    "query",
    [
        *("", "customer", "customer:", "(((", 'a:"1" AND', "amount>1 AND amount>2 OR amount>3"),
        *('nothing:"x"', 'amount:"x"', 'customer>"a"', 'metadata:"x"', "amount~1"),
    ],
)
def test_a_query_that_cannot_be_read_is_refused(sandbox: Driver, query: str) -> None:
    assert search(sandbox, query)["error"]["param"] == "query"


def test_a_search_is_paged_and_expanded(sandbox: Driver) -> None:
    for amount in ("2900", "3000", "3100"):
        sandbox.charge(amount=amount)
    sandbox.advance(LAG_SECONDS)
    first = search(sandbox, "amount>0", "&limit=2&expand[]=data.customer")
    assert first["data"][0]["customer"]["id"] == "cus_Abc123"
    assert first["has_more"] is True
    rest = search(sandbox, "amount>0", f"&limit=2&page={first['next_page']}")
    assert [each["amount"] for each in rest["data"]] == [2900]
    found = sandbox.get(f"{INTENTS}/search?query={quote('amount>0')}")
    assert found["url"] == f"{INTENTS}/search"
