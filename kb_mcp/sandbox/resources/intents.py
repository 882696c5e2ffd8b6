"""PaymentIntents and their states.

Floor: sandbox, ground. Source: docs.stripe.com/payments/paymentintents/lifecycle. How a card's
bank answers: `payment_methods`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from kb_mcp.money import Money
from kb_mcp.sandbox.answers import Answer, Json, Rejected, declined, error_answer, invalid
from kb_mcp.sandbox.listing import saved
from kb_mcp.sandbox.params import Call, check_amount, flag, integer, metadata, required_money, text
from kb_mcp.sandbox.resources.charges import (
    COPIED,
    capture,
    copied,
    needs_the_customer,
    new_charge,
    refusal_of,
)
from kb_mcp.sandbox.resources.customers import require_customer
from kb_mcp.sandbox.resources.payment_methods import require_payment_method

# Empty in a new intent.
_EMPTY_AT_FIRST: Final = (
    "application application_fee_amount canceled_at cancellation_reason last_payment_error "
    "latest_charge next_action payment_method_configuration_details processing review "
    "transfer_data shipping"
).split()

_CONFIRMABLE: Final = ("requires_payment_method", "requires_confirmation", "requires_action")
_CANCELABLE: Final = (*_CONFIRMABLE, "requires_capture", "processing")


def create_intent(call: Call) -> Answer:
    """POST /v1/payment_intents."""
    params = call.params
    money = required_money(params)
    customer, payment_method = text(params, "customer"), text(params, "payment_method")
    if customer is not None:
        require_customer(call, customer, "customer")
    if payment_method is not None:
        require_payment_method(call, payment_method, customer)
    intent = _new_intent(call, money, customer, payment_method)
    if flag(params, "confirm", default=False):
        return _confirm(call, intent)
    return saved(call, intent)


def pay_off_session(
    call: Call, money: Money, customer: str, payment_method: str, earlier: Json | None
) -> Answer:
    """Take `money` while the customer is away, with the intent that failed `earlier` if any."""
    away = replace(call, params={"off_session": "true"})
    intent = earlier or _new_intent(away, money, customer, None)
    return _confirm(away, intent | {"payment_method": payment_method})


def update_intent(call: Call) -> Answer:
    """POST /v1/payment_intents/{intent}."""
    intent, params = _demanded(call, "updated", _CONFIRMABLE), call.params
    if "amount" in params:
        amount = integer(params, "amount") or 0
        check_amount(Money(amount, intent["currency"]))
        intent["amount"] = amount
    _set_payment_method(call, intent)
    return saved(call, intent | copied(params) | {"metadata": metadata(params, intent)})


def confirm_intent(call: Call) -> Answer:
    """POST /v1/payment_intents/{intent}/confirm."""
    intent = _demanded(call, "confirmed", _CONFIRMABLE)
    _set_payment_method(call, intent)
    return _confirm(call, intent)


def capture_intent(call: Call) -> Answer:
    """POST /v1/payment_intents/{intent}/capture."""
    intent = _demanded(call, "captured", ("requires_capture",))
    asked = integer(call.params, "amount_to_capture")
    amount = intent["amount_capturable"] if asked is None else asked
    capture(call, _authorized(call, intent), amount, "amount_to_capture")
    intent |= {"amount_capturable": 0, "amount_received": amount, "status": "succeeded"}
    return saved(call, intent | {"metadata": metadata(call.params, intent)})


def cancel_intent(call: Call) -> Answer:
    """POST /v1/payment_intents/{intent}/cancel."""
    intent = _demanded(call, "canceled", _CANCELABLE)
    if intent["status"] == "requires_capture":
        charge = _authorized(call, intent)
        call.records.save(charge | {"amount_refunded": charge["amount"], "refunded": True})
    intent |= {
        "amount_capturable": 0,
        "canceled_at": call.now,
        "cancellation_reason": text(call.params, "cancellation_reason"),
        "next_action": None,
        "status": "canceled",
    }
    return saved(call, intent)


def increment_intent(call: Call) -> Answer:
    """POST /v1/payment_intents/{intent}/increment_authorization; the amount is the new total."""
    intent = _demanded(call, "incremented", ("requires_capture",))
    amount = integer(call.params, "amount") or 0
    check_amount(Money(amount, intent["currency"]))
    if amount <= intent["amount"]:
        raise invalid(
            "The amount must be greater than the currently authorized amount.",
            "parameter_invalid_integer",
            "amount",
        )
    charge = _authorized(call, intent)
    if call.declines:
        return declined(charge["id"])
    call.records.save(charge | {"amount": amount})
    intent |= {"amount": amount, "amount_capturable": amount} | copied(call.params)
    return saved(call, intent | {"metadata": metadata(call.params, intent)})


def _confirm(call: Call, intent: Json) -> Answer:
    customer, payment_method = intent["customer"], intent["payment_method"]
    if payment_method is None:
        raise _unexpected_state(
            intent,
            "You cannot confirm this PaymentIntent because it's missing a payment method. You can "
            "either update the PaymentIntent with a payment method and then confirm it again, or "
            "confirm it again directly with a payment method or ConfirmationToken.",
        )
    off_session = (call.params.get("off_session") or "false") != "false"
    failure = refusal_of(call, customer, payment_method, off_session=off_session)
    if needs_the_customer(call, customer, payment_method, off_session=off_session):
        # What the bank would say after that is not known before.
        if off_session or flag(call.params, "error_on_requires_action", default=False):
            return _failed(call, intent, "authentication_required")
        if not call.declines:
            action = {
                "type": "use_stripe_sdk",
                "use_stripe_sdk": {"type": "three_d_secure_redirect"},
            }
            return saved(call, intent | {"next_action": action, "status": "requires_action"})
    if failure is not None:
        return _failed(call, intent, failure)
    captured = intent["capture_method"] != "manual"
    charge = _charge(call, intent, failure=None, captured=captured)
    intent |= {
        "amount_capturable": 0 if captured else intent["amount"],
        "amount_received": intent["amount"] if captured else 0,
        "last_payment_error": None,
        "latest_charge": charge["id"],
        "next_action": None,
        "status": "succeeded" if captured else "requires_capture",
    }
    return saved(call, intent)


def _failed(call: Call, intent: Json, reason: str) -> Answer:
    charge = _charge(call, intent, failure=reason, captured=True)
    card = call.records.find("payment_method", intent["payment_method"])
    error = declined(charge["id"], reason=reason, payment_method=card).body["error"]
    intent |= {
        "last_payment_error": error,
        "latest_charge": charge["id"],
        "next_action": None,
        "payment_method": None,
        "status": "requires_payment_method",
    }
    call.records.save(intent)
    return Answer(402, {"error": error | {"payment_intent": intent}})


def _charge(call: Call, intent: Json, *, failure: str | None, captured: bool) -> Json:
    charge = new_charge(
        call,
        Money(intent["amount"], intent["currency"]),
        customer=intent["customer"],
        payment_method=intent["payment_method"],
        captured=captured,
        failure=failure,
        payment_intent=intent["id"],
    )
    wording = ("description", "metadata", "receipt_email", "transfer_group")
    charge |= {name: intent[name] for name in wording}
    call.records.save(charge)
    return charge


def _authorized(call: Call, intent: Json) -> Json:
    return call.require("charge", intent["latest_charge"], "latest_charge")


def _demanded(call: Call, verb: str, states: tuple[str, ...]) -> Json:
    """Return the intent that the path names, in one of `states`. Raises: Rejected."""
    intent = call.named("payment_intent")
    if intent["status"] not in states:
        act = {"canceled": "cancel", "captured": "capture", "confirmed": "confirm"}.get(verb, verb)
        raise _unexpected_state(
            intent,
            f"You cannot {act} this PaymentIntent because it has a status of "
            f"{intent['status']}. Only a PaymentIntent with one of the following statuses may be "
            f"{verb}: {', '.join(states)}.",
        )
    return intent


def _unexpected_state(intent: Json, message: str) -> Rejected:
    code = "payment_intent_unexpected_state"
    return Rejected(error_answer(400, message, code=code, payment_intent=intent))


def _set_payment_method(call: Call, intent: Json) -> None:
    payment_method = text(call.params, "payment_method")
    if payment_method is not None:
        require_payment_method(call, payment_method, intent["customer"])
        intent["payment_method"] = payment_method
        if intent["status"] == "requires_payment_method":
            intent["status"] = "requires_confirmation"


def _new_intent(call: Call, money: Money, customer: str | None, payment_method: str | None) -> Json:
    params, intent_id = call.params, f"pi_{call.new_id()}"
    empty = dict.fromkeys((*_EMPTY_AT_FIRST, *COPIED))
    kinds = params.get("payment_method_types") or {"0": "card"}
    automatic = "automatic_payment_methods" in params
    return (
        empty
        | {
            "id": intent_id,
            "object": "payment_intent",
            "amount": money.amount,
            "amount_capturable": 0,
            "amount_details": {"tip": {}},
            "amount_received": 0,
            "automatic_payment_methods": {"enabled": True} if automatic else None,
            "capture_method": text(params, "capture_method") or "automatic_async",
            "client_secret": f"{intent_id}_secret_{call.new_id()}",
            "confirmation_method": text(params, "confirmation_method") or "automatic",
            "created": call.now,
            "currency": money.currency,
            "customer": customer,
            "customer_account": text(params, "customer_account"),
            "excluded_payment_method_types": list(
                (params.get("excluded_payment_method_types") or {}).values()
            )
            or None,
            "livemode": False,
            "managed_payments": {"enabled": False},
            "metadata": metadata(params),
            "payment_method": payment_method,
            "payment_method_options": {
                "card": {
                    "installments": None,
                    "mandate_options": None,
                    "network": None,
                    "request_three_d_secure": "automatic",
                }
            },
            "payment_method_types": list(kinds.values()),
            "setup_future_usage": text(params, "setup_future_usage"),
            "status": "requires_payment_method"
            if payment_method is None
            else "requires_confirmation",
        }
        | copied(params)
    )
