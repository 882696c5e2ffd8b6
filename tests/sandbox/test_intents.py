"""PaymentIntents pass through Stripe's states."""

from __future__ import annotations

import pytest

from tests.sandbox.driver import Driver

INTENT = {
    "amount": "2900",
    "currency": "usd",
    "customer": "cus_Abc123",
    "payment_method": "pm_card_visa",
}
OFF_SESSION = INTENT | {"confirm": "true", "off_session": "true"}
URL = "/v1/payment_intents"


def test_an_off_session_intent_succeeds_with_a_charge(sandbox: Driver) -> None:
    intent = sandbox.post(URL, OFF_SESSION | {"metadata[n]": "1", "description": "June"}).json()
    assert (intent["status"], intent["amount_received"]) == ("succeeded", 2900)
    charge = sandbox.get(f"/v1/charges/{intent['latest_charge']}")
    assert (charge["payment_intent"], charge["amount"]) == (intent["id"], 2900)
    assert (charge["metadata"], charge["description"]) == ({"n": "1"}, "June")
    assert sandbox.get(f"{URL}/{intent['id']}") == intent
    assert sandbox.get(f"{URL}?customer=cus_Abc123")["data"] == [intent]
    assert sandbox.get(f"/v1/charges?payment_intent={intent['id']}")["data"] == [charge]
    assert sandbox.get(f"{URL}?customer=cus_Other")["data"] == []


def test_an_intent_waits_for_method_and_confirmation(sandbox: Driver) -> None:
    bare = {name: value for name, value in INTENT.items() if name != "payment_method"}
    intent = sandbox.post(URL, bare).json()
    url = f"{URL}/{intent['id']}"
    assert intent["status"] == "requires_payment_method"
    assert sandbox.post(f"{url}/confirm").status_code == 400
    assert sandbox.state()["charges"] == []
    changed = sandbox.post(url, {"payment_method": "pm_card_visa", "amount": "3000"}).json()
    assert (changed["status"], changed["amount"]) == ("requires_confirmation", 3000)
    confirmed = sandbox.post(f"{url}/confirm").json()
    assert (confirmed["status"], confirmed["amount_received"]) == ("succeeded", 3000)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"customer": "cus_Declined1"}, "card_declined"),
        ({"payment_method": "pm_card_chargeDeclined"}, "card_declined"),
        ({"payment_method": "pm_card_Authentication"}, "authentication_required"),
    ],
)
def test_a_failed_intent_asks_for_another_method(
    sandbox: Driver, changes: dict[str, str], code: str
) -> None:
    response = sandbox.post(URL, OFF_SESSION | changes)
    error = response.json()["error"]
    assert response.status_code == 402
    assert (error["type"], error["code"]) == ("card_error", code)
    intent = sandbox.get(f"{URL}/{error['payment_intent']['id']}")
    assert (intent["status"], intent["amount_received"]) == ("requires_payment_method", 0)
    assert intent["last_payment_error"]["code"] == code
    assert sandbox.get(f"/v1/charges/{error['charge']}")["status"] == "failed"
    again = sandbox.post(f"{URL}/{intent['id']}/confirm", {"payment_method": "pm_card_visa"})
    assert again.status_code == (402 if "customer" in changes else 200)


def test_authentication_on_session_requires_action(sandbox: Driver) -> None:
    sent = INTENT | {"confirm": "true", "payment_method": "pm_card_Authentication"}
    intent = sandbox.post(URL, sent).json()
    assert intent["status"] == "requires_action"
    assert sandbox.post(URL, sent | {"error_on_requires_action": "true"}).status_code == 402


def test_a_hold_is_raised_captured_in_part_and_then_final(sandbox: Driver) -> None:
    held = sandbox.post(URL, OFF_SESSION | {"capture_method": "manual"}).json()
    url = f"{URL}/{held['id']}"
    assert (held["status"], held["amount_capturable"]) == ("requires_capture", 2900)
    assert sandbox.post(f"{url}/increment_authorization", {"amount": "2900"}).status_code == 400
    raised = sandbox.post(f"{url}/increment_authorization", {"amount": "3500"}).json()
    assert (raised["amount"], raised["amount_capturable"]) == (3500, 3500)
    assert sandbox.post(f"{url}/capture", {"amount_to_capture": "3501"}).status_code == 400
    done = sandbox.post(f"{url}/capture", {"amount_to_capture": "3000"}).json()
    assert (done["status"], done["amount_received"]) == ("succeeded", 3000)
    charge = sandbox.get(f"/v1/charges/{done['latest_charge']}")
    assert (charge["amount_captured"], charge["amount_refunded"]) == (3000, 500)
    for act in ("capture", "cancel", "confirm"):
        error = sandbox.post(f"{url}/{act}").json()["error"]
        assert error["code"] == "payment_intent_unexpected_state"
        assert error["payment_intent"]["status"] == "succeeded"


def test_a_canceled_hold_gives_the_money_back(sandbox: Driver) -> None:
    held = sandbox.post(URL, OFF_SESSION | {"capture_method": "manual"}).json()
    sent = {"cancellation_reason": "abandoned"}
    canceled = sandbox.post(f"{URL}/{held['id']}/cancel", sent).json()
    assert (canceled["status"], canceled["cancellation_reason"]) == ("canceled", "abandoned")
    charge = sandbox.get(f"/v1/charges/{held['latest_charge']}")
    assert (charge["refunded"], charge["captured"]) == (True, False)
    assert sandbox.post(f"{URL}/{held['id']}/capture").status_code == 400


def test_a_charge_of_an_intent_is_captured_through_the_intent_only(sandbox: Driver) -> None:
    held = sandbox.post(URL, OFF_SESSION | {"capture_method": "manual"}).json()
    assert sandbox.post(f"/v1/charges/{held['latest_charge']}/capture").status_code == 400
    assert sandbox.get(f"{URL}/{held['id']}")["status"] == "requires_capture"


def test_an_intent_is_refunded_through_its_charge(sandbox: Driver) -> None:
    intent = sandbox.post(URL, OFF_SESSION).json()
    refund = sandbox.post("/v1/refunds", {"payment_intent": intent["id"]}).json()
    assert (refund["charge"], refund["amount"]) == (intent["latest_charge"], 2900)
    assert sandbox.get(f"/v1/charges/{refund['charge']}")["refunded"] is True


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"capture_method": "later"}, "capture_method"),
        ({"payment_method": "pm_Missing"}, "payment_method"),
        ({"payment_method": "pm_Other"}, "payment_method"),
        ({"source": "tok_visa"}, "source"),
    ],
)
def test_a_bad_intent_is_refused_and_nothing_is_left(
    sandbox: Driver, changes: dict[str, str], param: str
) -> None:
    sandbox.get("/v1/customers/cus_Other")  # the owner of pm_Other
    response = sandbox.post(URL, OFF_SESSION | changes)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    state = sandbox.state()
    assert (state["payment_intents"], state["charges"]) == ([], [])


def test_a_default_card_pays_an_intent(sandbox: Driver) -> None:
    customer = sandbox.get("/v1/customers/cus_Abc123")
    card = customer["invoice_settings"]["default_payment_method"]
    assert sandbox.post(URL, OFF_SESSION | {"payment_method": card}).status_code == 200
