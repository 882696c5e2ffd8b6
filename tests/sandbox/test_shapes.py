"""Answers hold against Stripe's published OpenAPI: nothing missing, nothing invented.

The document is not part of the repository; where it is absent, these tests are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema
import pytest

from kb_mcp.sandbox.params import REQUESTS
from tests.sandbox.driver import CHARGE, Driver

Json: TypeAlias = dict[str, Any]

DOCUMENT = Path(__file__).parents[3] / "shared" / "stripe" / "openapi-subset.json"
INTENT = CHARGE | {"payment_method": "pm_card_visa"}
CONFIRMED = INTENT | {"confirm": "true", "off_session": "true"}
INTENTS = "/v1/payment_intents"


@pytest.fixture(scope="module")
def openapi() -> Json:
    if not DOCUMENT.exists():
        pytest.skip("Stripe's OpenAPI subset is not beside this checkout")
    document: Json = json.loads(DOCUMENT.read_text())
    return document


@pytest.fixture(scope="module")
def schemas(openapi: Json) -> Json:
    return {"components": {"schemas": translated(openapi["components"]["schemas"])}}


def translated(node: object) -> object:
    """Turn OpenAPI 3.0's `nullable` into JSON Schema, and allow no property that isn't named."""
    if isinstance(node, list):
        return [translated(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {name: translated(value) for name, value in node.items() if name != "nullable"}
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        out.setdefault("additionalProperties", False)
    return {"anyOf": [out, {"type": "null"}]} if node.get("nullable") is True else out


def holds(body: Json, name: str, schemas: Json) -> None:
    schema = schemas | {"$ref": f"#/components/schemas/{name}"}
    jsonschema.validate(body, schema, cls=jsonschema.Draft202012Validator)


def test_the_check_itself_finds_what_is_missing_and_what_is_invented(
    sandbox: Driver, schemas: Json
) -> None:
    charge = sandbox.charge().json()
    for wrong in (charge | {"amount": "2900"}, charge | {"invented": 1}, charge | {"paid": None}):
        with pytest.raises(jsonschema.ValidationError):
            holds(wrong, "charge", schemas)


@pytest.mark.parametrize("changes", [{}, {"capture": "false"}, {"customer": "cus_Declined1"}])
def test_charges_hold(sandbox: Driver, schemas: Json, changes: dict[str, str]) -> None:
    sandbox.charge(**{"metadata[a]": "b", "description": "June"} | changes)
    [charge] = sandbox.get("/v1/charges")["data"]
    holds(charge, "charge", schemas)


def test_a_list_has_stripes_wrapper(sandbox: Driver) -> None:
    sandbox.charge()
    page = sandbox.get("/v1/charges")
    assert {name: page[name] for name in page if name != "data"} == {
        "object": "list",
        "has_more": False,
        "url": "/v1/charges",
    }


@pytest.mark.parametrize(
    ("sent", "act", "status"),
    [
        (CHARGE, None, "requires_payment_method"),
        (INTENT, None, "requires_confirmation"),
        (CONFIRMED, None, "succeeded"),
        (CONFIRMED | {"capture_method": "manual"}, None, "requires_capture"),
        (CONFIRMED | {"capture_method": "manual"}, "capture", "succeeded"),
        (INTENT, "cancel", "canceled"),
        (CONFIRMED | {"customer": "cus_Declined1"}, None, "requires_payment_method"),
        (
            INTENT | {"confirm": "true", "payment_method": "pm_Authentication"},
            None,
            "requires_action",
        ),
        (
            CONFIRMED | {"automatic_payment_methods[enabled]": "true"},
            None,
            "succeeded",
        ),
    ],
)
def test_intents_hold_in_every_state(
    sandbox: Driver, schemas: Json, sent: dict[str, str], act: str | None, status: str
) -> None:
    sandbox.post(INTENTS, sent)
    [intent] = sandbox.get(INTENTS)["data"]
    if act is not None:
        intent = sandbox.post(f"{INTENTS}/{intent['id']}/{act}").json()
    assert intent["status"] == status
    holds(intent, "payment_intent", schemas)
    for charge in sandbox.get("/v1/charges")["data"]:
        holds(charge, "charge", schemas)


def test_refunds_customers_and_payment_methods_hold(sandbox: Driver, schemas: Json) -> None:
    charge = sandbox.charge().json()
    refund = {"charge": charge["id"], "reason": "duplicate"}
    holds(sandbox.post("/v1/refunds", refund).json(), "refund", schemas)
    customer = sandbox.post("/v1/customers", {"email": "a@example.com", "name": "A"}).json()
    holds(customer, "customer", schemas)
    [card] = sandbox.get(f"/v1/customers/{customer['id']}/payment_methods")["data"]
    holds(card, "payment_method", schemas)
    expanded = sandbox.get(f"/v1/charges/{charge['id']}?expand[]=customer")
    assert expanded["customer"]["object"] == "customer"
    holds(expanded, "charge", schemas)


@pytest.mark.parametrize("name", ["cus_Abc123", "cus_PendingRefund1", "cus_RefundAction1"])
@pytest.mark.parametrize("later", [None, "succeeded", "failed", "canceled"])
def test_refunds_hold_in_every_state(
    sandbox: Driver, schemas: Json, name: str, later: str | None
) -> None:
    charge = sandbox.charge(customer=name).json()["id"]
    refund = sandbox.post("/v1/refunds", {"charge": charge, "amount": "900"}).json()
    if later is not None:
        moved = {"refund": refund["id"], "status": later}
        refund = sandbox.post("/_sandbox/refunds", json=moved).json()
    holds(refund, "refund", schemas)
    holds(sandbox.get(f"/v1/charges/{charge}"), "charge", schemas)


@pytest.mark.parametrize("kind", ["400", "401", "402", "403", "409", "429", "500_before"])
def test_injected_errors_hold(sandbox: Driver, schemas: Json, kind: str) -> None:
    sandbox.fault(kind)
    holds(sandbox.charge().json(), "error", schemas)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/v1/charges", CHARGE | {"amount": "x"}),
        ("/v1/charges", CHARGE | {"customer": "cus_Declined1"}),
        (INTENTS, CONFIRMED | {"customer": "cus_Declined1"}),
        (INTENTS, CONFIRMED | {"payment_method": "pm_Authentication"}),
        (f"{INTENTS}/pi_none/confirm", {}),
        ("/v1/nowhere", {}),
    ],
)
def test_refusals_hold(sandbox: Driver, schemas: Json, path: str, sent: dict[str, str]) -> None:
    response = sandbox.post(path, sent)
    assert response.status_code >= 400
    holds(response.json(), "error", schemas)


def test_endpoints_take_the_parameters_that_stripe_publishes(openapi: Json) -> None:
    for path, methods in openapi["requests"].items():
        for method, operation in methods.items():
            row = REQUESTS[f"{method.upper()} {path}"]
            placed = {item["name"] for item in operation["parameters"] if item["in"] != "path"}
            assert set(row["parameters"]) == placed | set(operation["requestSchema"]["properties"])
            assert row["required"] == operation["requestSchema"].get("required", [])


FIXTURES = DOCUMENT.with_name("fixtures-subset.json")
# Beside the published schemas: of an API version before the pinned one, or of a preview.
NOT_OURS = {"charge": {"refunds", "source"}, "payment_intent": {"source"}}


def test_every_key_of_stripes_own_examples_is_there(sandbox: Driver, openapi: Json) -> None:
    if not FIXTURES.exists():
        pytest.skip("Stripe's example objects are not beside this checkout")
    examples = json.loads(FIXTURES.read_text())["resources"]
    customer = sandbox.post("/v1/customers", {"payment_method": "pm_card_visa"}).json()
    card = customer["invoice_settings"]["default_payment_method"]
    sandbox.charge(customer=customer["id"])
    mine = {
        "charge": sandbox.get("/v1/charges")["data"][0],
        "customer": customer,
        "payment_intent": sandbox.post(INTENTS, CONFIRMED).json(),
        "payment_method": sandbox.get(f"/v1/payment_methods/{card}"),
    }
    for name, body in mine.items():
        published = openapi["components"]["schemas"][name]["properties"].keys()
        wanted = (examples[name].keys() & published) - NOT_OURS.get(name, set())
        assert wanted - body.keys() == set(), name
    shown = mine["charge"]["payment_method_details"]["card"].keys()
    assert {"authorization_code", "regulated_status"} <= shown
    assert {"display_brand", "regulated_status"} <= mine["payment_method"]["card"].keys()


def test_a_customer_account_is_kept_on_its_intent(sandbox: Driver, schemas: Json) -> None:
    sent = INTENT | {"customer_account": "acct_9", "excluded_payment_method_types[0]": "klarna"}
    intent = sandbox.post(INTENTS, sent).json()
    assert intent["customer_account"] == "acct_9"
    assert intent["excluded_payment_method_types"] == ["klarna"]
    holds(intent, "payment_intent", schemas)
