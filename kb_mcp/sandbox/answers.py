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


def refuse_if(
    wrong: object, message: str, code: str | None = None, param: str | None = None
) -> None:
    """Refuse a request with 400 where something is `wrong`. Raises: Rejected."""
    if wrong:
        raise invalid(message, code, param)


_SENTENCES: Final = {
    "bad_api_key": "Invalid API Key provided: {token}",
    "key_in_use": "There is currently another in-progress request using this Idempotent Key (that "
    "probably means you submitted twice, and the other request is still going through): {key}. "
    "Please try again later.",
    "key_mismatch": "Keys for idempotent requests can only be used {only}. Try using a key other "
    "than '{key}' if you meant to execute a different request.",
    "no_api_key": "You did not provide an API key. You need to provide your API key in the "
    "Authorization header, using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY'). See "
    "https://stripe.com/docs/api#authentication for details, or we can help at "
    "https://support.stripe.com/.",
    # Like Stripe, it names key and account.
    "not_permitted": "The provided key '{token}' does not have the required permissions for this "
    f"endpoint on account '{ACCOUNT_ID}'. Having more permissions would allow this request to "
    "continue.",
    "rate_limited": "Request rate limit exceeded. Learn more about rate limits here "
    "https://stripe.com/docs/rate-limits.",
    # After it nobody knows what happened.
    "server_error": "An unknown error occurred",
    "too_large": "Request entity too large.",
    "unknown_url": "Unrecognized request URL ({method}: {path}). Please see "
    "https://stripe.com/docs or we can help at https://support.stripe.com/.",
}
_KINDS: Final = {"key_mismatch": "idempotency_error", "server_error": "api_error"}
_CODES: Final = {"key_in_use": "idempotency_key_in_use", "rate_limited": "rate_limit"}


def said(status: int, name: str, **values: str) -> Answer:
    """Answer what Stripe says at any endpoint: a row of `_SENTENCES`, filled from `values`."""
    kind = _KINDS.get(name, "invalid_request_error")
    message = _SENTENCES[name].format_map(values)
    return error_answer(status, message, kind=kind, code=_CODES.get(name))


_DECLINED: Final = "Your card was declined."
_DECLINES: Final = {
    "authentication_required": f"{_DECLINED} This transaction requires authentication.",
    "card_velocity_exceeded": "Your card was declined for making repeated attempts too frequently "
    "or exceeding its amount limit.",
    "expired_card": "Your card has expired.",
    "fraudulent": _DECLINED,
    "generic_decline": _DECLINED,
    "incorrect_cvc": "Your card's security code is incorrect.",
    "insufficient_funds": "Your card has insufficient funds.",
    "lost_card": _DECLINED,
    "processing_error": "An error occurred while processing your card. Try again in a little bit.",
    "stolen_card": _DECLINED,
}
"""Why a bank says no -> what Stripe answers. Source: docs.stripe.com/declines/codes."""
_OWN_CODES: Final = frozenset(
    "authentication_required expired_card incorrect_cvc processing_error".split()
)


def failure(reason: str) -> tuple[str, str]:
    """Return Stripe's error code and sentence for a bank's no."""
    return reason if reason in _OWN_CODES else "card_declined", _DECLINES[reason]


def declined(
    charge: str | None, *, reason: str = "generic_decline", payment_method: Json | None = None
) -> Answer:
    """Answer a card that says no; `charge` names the failed charge that remains."""
    code, message = failure(reason)
    return error_answer(
        402,
        message,
        kind="card_error",
        code=code,
        decline_code=None if reason == "expired_card" else reason,
        charge=charge,
        payment_method=payment_method,
    )


def mask(token: str) -> str:
    """Show a key's prefix and last four characters, as Stripe's messages do."""
    prefix = "_".join(token.split("_", 2)[:2]) + "_" if token.count("_") >= 2 else ""
    secret = token[len(prefix) :]
    shown = secret[-4:] if len(secret) > 4 else ""
    return prefix + "*" * max(len(secret) - len(shown), 4) + shown
