"""Answers and Stripe's own sentences for saying no.

Floor: sandbox, ground. Pure. A `Rejected` is raised for a request that Stripe refuses before it
begins: its transaction is undone and nothing is kept under its idempotency key. An answer that is
returned, a decline too, has happened. Wording: docs.stripe.com/error-codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

Json: TypeAlias = dict[str, Any]

ACCOUNT_ID: Final = "acct_1KbSandbox000001"
_DOCS: Final = "https://stripe.com/docs/error-codes/"


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and the JSON object that goes with it."""

    status: int
    body: Json


class Rejected(Exception):  # noqa: N818  a no of Stripe's is an answer, named as such
    """A request that is refused before anything began; nothing of it is kept."""

    def __init__(self, answer: Answer) -> None:
        """Keep the answer to give."""
        super().__init__(answer.body["error"]["message"])
        self.answer = answer


def error_answer(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    **more: object,
) -> Answer:
    """Build an answer in Stripe's error shape; what is None is left out."""
    doc_url = None if code is None else _DOCS + code.replace("_", "-")
    fields = {"code": code, "doc_url": doc_url, "message": message, "param": param, "type": kind}
    error = {name: value for name, value in (fields | more).items() if value is not None}
    return Answer(status, {"error": error})


def invalid(message: str, code: str | None = None, param: str | None = None) -> Rejected:
    """Refuse a request with 400."""
    return Rejected(error_answer(400, message, code=code, param=param))


def missing_param(name: str) -> Rejected:
    """Refuse a request that lacks a required parameter."""
    return invalid(f"Missing required param: {name}.", "parameter_missing", name)


def missing_object(kind: str, object_id: str, param: str, status: int = 400) -> Rejected:
    """Refuse a request that names an object which isn't there: 404 in the path, else 400."""
    noun = "PaymentMethod" if kind == "payment_method" else kind
    message = f"No such {noun}: '{object_id}'"
    return Rejected(error_answer(status, message, code="resource_missing", param=param))


def below_one(param: str) -> Rejected:
    """Refuse a number that is to be one or more."""
    sentence = "This value must be greater than or equal to 1."
    return invalid(sentence, "parameter_invalid_integer", param)


def unknown_url(method: str, path: str) -> Rejected:
    """Refuse a method and path that no endpoint has."""
    message = (
        f"Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs "
        "or we can help at https://support.stripe.com/."
    )
    return Rejected(error_answer(404, message))


def key_mismatch(key: str, path: str, first_path: str) -> Answer:
    """Answer a key that comes back on another endpoint than the first, or with other parameters."""
    only = (
        "with the same parameters they were first used with"
        if path == first_path
        else f"for the same endpoint they were first used for ('{path}' vs '{first_path}')"
    )
    message = (
        f"Keys for idempotent requests can only be used {only}. Try using a key other than "
        f"'{key}' if you meant to execute a different request."
    )
    return error_answer(400, message, kind="idempotency_error")


def key_in_use(key: str) -> Answer:
    """Answer a key whose first request is still under way."""
    message = (
        "There is currently another in-progress request using this Idempotent Key (that probably "
        "means you submitted twice, and the other request is still going through): "
        f"{key}. Please try again later."
    )
    return error_answer(409, message, code="idempotency_key_in_use")


def rate_limited() -> Answer:
    """Answer one request too many."""
    message = (
        "Request rate limit exceeded. Learn more about rate limits here "
        "https://stripe.com/docs/rate-limits."
    )
    return error_answer(429, message, code="rate_limit")


def server_error() -> Answer:
    """Answer with the 500 after which nobody knows what happened."""
    return error_answer(500, "An unknown error occurred", kind="api_error")


def bad_api_key(token: str) -> Answer:
    """Answer an API key that this account does not have."""
    return error_answer(401, f"Invalid API Key provided: {mask(token)}")


def no_api_key() -> Answer:
    """Answer a request without any API key."""
    message = (
        "You did not provide an API key. You need to provide your API key in the Authorization "
        "header, using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY'). See "
        "https://stripe.com/docs/api#authentication for details, or we can help at "
        "https://support.stripe.com/."
    )
    return error_answer(401, message)


def not_permitted(token: str) -> Answer:
    """Answer a restricted key that lacks the permission; like Stripe, it names key and account."""
    message = (
        f"The provided key '{mask(token)}' does not have the required permissions for this "
        f"endpoint on account '{ACCOUNT_ID}'. Having more permissions would allow this request "
        "to continue."
    )
    return error_answer(403, message)


def declined(
    charge: str | None, *, reason: str = "generic_decline", payment_method: Json | None = None
) -> Answer:
    """Answer a card that says no; `charge` names the failed charge that remains."""
    decline = DECLINES[reason]
    return error_answer(
        402,
        decline.message,
        kind="card_error",
        code=decline.code,
        decline_code=decline.decline_code,
        charge=charge,
        payment_method=payment_method,
    )


@dataclass(frozen=True, slots=True)
class Decline:
    """What a bank's no looks like: error code, sentence, and the bank's own code if it told one."""

    code: str
    message: str
    decline_code: str | None


def _by_the_bank(decline_code: str, message: str = "Your card was declined.") -> Decline:
    return Decline("card_declined", message, decline_code)


DECLINES: Final = {
    "generic_decline": _by_the_bank("generic_decline"),
    "insufficient_funds": _by_the_bank("insufficient_funds", "Your card has insufficient funds."),
    "lost_card": _by_the_bank("lost_card"),
    "stolen_card": _by_the_bank("stolen_card"),
    "fraudulent": _by_the_bank("fraudulent"),
    "card_velocity_exceeded": _by_the_bank(
        "card_velocity_exceeded",
        "Your card was declined for making repeated attempts too frequently or exceeding its "
        "amount limit.",
    ),
    "expired_card": Decline("expired_card", "Your card has expired.", None),
    "incorrect_cvc": Decline(
        "incorrect_cvc", "Your card's security code is incorrect.", "incorrect_cvc"
    ),
    "processing_error": Decline(
        "processing_error",
        "An error occurred while processing your card. Try again in a little bit.",
        "processing_error",
    ),
    "authentication_required": Decline(
        "authentication_required",
        "Your card was declined. This transaction requires authentication.",
        "authentication_required",
    ),
}
"""Why a bank says no -> what Stripe answers. Source: docs.stripe.com/declines/codes."""


def mask(token: str) -> str:
    """Show a key's prefix and last four characters, as Stripe's messages do."""
    prefix = "_".join(token.split("_", 2)[:2]) + "_" if token.count("_") >= 2 else ""
    secret = token[len(prefix) :]
    shown = secret[-4:] if len(secret) > 4 else ""
    return prefix + "*" * max(len(secret) - len(shown), 4) + shown
