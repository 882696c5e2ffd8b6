"""How each refusal is provoked through an SDK, and the class in which each SDK raises it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CHARGE = "POST /v1/charges"
BIG = {f"note{number}": "x" * 400 for number in range(200)}

# By status, and by type where one status has two: facts of stripe 16.1 and of stripe-node 23.1.
CLASSES = {
    400: ("InvalidRequestError", "StripeInvalidRequestError"),
    401: ("AuthenticationError", "StripeAuthenticationError"),
    402: ("CardError", "StripeCardError"),
    403: ("PermissionError", "StripePermissionError"),
    404: ("InvalidRequestError", "StripeInvalidRequestError"),
    405: ("APIError", "StripeAPIError"),
    409: ("APIError", "StripeAPIError"),
    413: ("APIError", "StripeAPIError"),
    429: ("RateLimitError", "StripeRateLimitError"),
    502: ("APIError", "StripeAPIError"),
    503: ("APIError", "StripeAPIError"),
    504: ("APIError", "StripeAPIError"),
}
REUSED = ("IdempotencyError", "StripeIdempotencyError")

# What no SDK's call can provoke, and where it is provoked instead.
NOT_THROUGH_AN_SDK = {
    "vault_key_missing": "SDKs always send a key; tests/attacks",
    "parameter_duplicate": "SDKs write each name once; tests/attacks",
    "body_invalid": "SDKs write forms; tests/attacks",
    "path_invalid": "SDKs write plain paths; tests/attacks",
    "amount_not_metered": "a test of the surface's table; tests/proxy/stripe/test_interpret.py",
    **dict.fromkeys(
        (
            "already_refunded",
            "charge_disputed",
            "charge_not_refundable",
            "refund_exceeds_charge",
            "refund_cap_exceeded",
            "refund_count_exceeded",
            "amount_changed",
        ),
        "refunds; tests/proxy/test_path_of_a_refund.py and test_refunds_refused.py",
    ),
    **dict.fromkeys(
        ("identity_not_granted", "identity_ambiguous", "tool_not_granted", "issuer_unreachable"),
        "tokens of a provider; tests/identity",
    ),
    "ledger_unavailable": "a store that is gone; answered as draining is, 503",
    "ledger_behind": "a store that was restored; answered as draining is, 503",
    "overloaded": "a thousand waiting requests; tests/scenarios/test_crowds.py has it",
}


@dataclass(frozen=True)
class Case:
    """One refusal: what is charged, by a key with which policy, after what else happened."""

    code: str
    status: int
    params: dict[str, Any] = field(default_factory=dict)  # beside, or instead of, a plain bill's
    policy: dict[str, Any] = field(default_factory=dict)  # beside a plain billing policy
    options: dict[str, Any] = field(default_factory=dict)
    before: tuple[dict[str, Any], ...] = ()  # bills that go first, as params do
    fault: str | None = None  # of the sandbox, for the first call
    raw: tuple[str, str] | None = None
    role: str = "billing"

    @property
    def classes(self) -> tuple[str, str]:
        """Python's class and Node's."""
        return REUSED if self.code == "idempotency_key_reused" else CLASSES[self.status]


NO_PERIOD: dict[str, Any] = {"metadata": {}}
CASES = (
    Case("vault_key_not_authorized", 403, role="audit"),
    Case("vault_key_frozen", 403, policy={"daily_declines": 1}, before=({},), fault="402",
         params={"metadata": {"billing_period": "2026-10"}}),
    Case("attempts_exhausted", 403, policy={"max_attempts": 1, "decline_retry_after": "0ms"},
         before=({},), fault="402"),
    Case("too_many_unresolved", 403, policy={"max_unresolved": 1}, before=({},),
         fault="drop_after", params={"metadata": {"billing_period": "2026-10"}}),
    Case("parameter_not_allowed", 403, params={"on_behalf_of": "acct_1"}),
    Case("header_not_allowed", 403, options={"stripe_account": "acct_1"}),
    Case("spend_cap_exceeded", 403, policy={"caps": {"daily": {"usd": 2899}}}),
    Case("currency_not_allowed", 403, policy={"caps": {"daily": {"usd": 9999}}},
         params={"currency": "eur"}),
    Case("charge_count_exceeded", 403, policy={"daily_charges": 1}, before=({},),
         params={"metadata": {"billing_period": "2026-10"}}),
    Case("approval_required", 403, policy={"approval_above": {"usd": 1000}}),
    Case("parameter_unknown", 400, params={"Amount!": "1"}),
    Case("parameter_invalid", 400, params={"amount": "29.00"}),
    Case("parameter_missing", 400, params={"currency": None}),
    Case("period_out_of_window", 400, params={"metadata": {"billing_period": "2019-01"}}),
    Case("idempotency_key_required", 400, policy={"idempotency": "strict"}, params=NO_PERIOD),
    Case("idempotency_key_reused", 400, before=(NO_PERIOD,), params={**NO_PERIOD, "amount": 9900},
         options={"idempotency_key": "order-77"}),
    Case("period_already_charged", 400, before=({},), params={"amount": 3000}),
    Case("duplicate_suspected", 400, before=({},), params=NO_PERIOD),
    Case("card_declined", 402, fault="402"),
    Case("rate_limited", 429, policy={"rate": 1}, before=({},)),
    Case("path_unknown", 404, raw=("post", "/v1/nothing")),
    Case("method_not_allowed", 405, raw=("delete", "/v1/charges")),
    Case("body_too_large", 413, params={"metadata": BIG}),
    Case("outcome_unknown", 504, fault="drop_after"),
    Case("upstream_rejected_key", 502, fault="401"),
)  # fmt: skip
