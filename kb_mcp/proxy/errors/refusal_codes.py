"""The closed list of refusals: each code with its status, its type and its one sentence.

Floor: the bottom of wing B. Pure. This is the only place where their wording stands, and the
error reference is generated from it. A sentence says what was wrong and what to do, to a model
and to a person, and never invites a retry that could hurt.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Self


class Code(StrEnum):
    """Every code that a refusal can carry, with its HTTP status."""

    _value_: str
    status: int

    def __new__(cls, value: str, status: int) -> Self:
        """Make the code `value`, which is answered with `status`."""
        code = str.__new__(cls, value)
        code._value_, code.status = value, status
        return code

    VAULT_KEY_MISSING = "vault_key_missing", 401
    VAULT_KEY_UNKNOWN = "vault_key_unknown", 401
    VAULT_KEY_EXPIRED = "vault_key_expired", 401
    VAULT_KEY_REVOKED = "vault_key_revoked", 401
    VAULT_KEY_NOT_AUTHORIZED = "vault_key_not_authorized", 403
    VAULT_KEY_FROZEN = "vault_key_frozen", 403
    IDENTITY_NOT_GRANTED = "identity_not_granted", 403
    IDENTITY_AMBIGUOUS = "identity_ambiguous", 403
    TOOL_NOT_GRANTED = "tool_not_granted", 403
    TOO_MANY_UNRESOLVED = "too_many_unresolved", 403
    ATTEMPTS_EXHAUSTED = "attempts_exhausted", 403
    PARAMETER_NOT_ALLOWED = "parameter_not_allowed", 403
    HEADER_NOT_ALLOWED = "header_not_allowed", 403
    SPEND_CAP_EXCEEDED = "spend_cap_exceeded", 403
    CHARGE_COUNT_EXCEEDED = "charge_count_exceeded", 403
    CURRENCY_NOT_ALLOWED = "currency_not_allowed", 403
    AMOUNT_NOT_METERED = "amount_not_metered", 403
    REFUND_CAP_EXCEEDED = "refund_cap_exceeded", 403
    REFUND_COUNT_EXCEEDED = "refund_count_exceeded", 403
    CHARGE_NOT_REFUNDABLE = "charge_not_refundable", 400
    CHARGE_DISPUTED = "charge_disputed", 400
    ALREADY_REFUNDED = "already_refunded", 400
    REFUND_EXCEEDS_CHARGE = "refund_exceeds_charge", 400
    AMOUNT_CHANGED = "amount_changed", 400
    APPROVAL_REQUIRED = "approval_required", 403
    PARAMETER_UNKNOWN = "parameter_unknown", 400
    PARAMETER_INVALID = "parameter_invalid", 400
    PARAMETER_DUPLICATE = "parameter_duplicate", 400
    PARAMETER_MISSING = "parameter_missing", 400
    BODY_INVALID = "body_invalid", 400
    PATH_INVALID = "path_invalid", 400
    PERIOD_OUT_OF_WINDOW = "period_out_of_window", 400
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused", 400
    IDEMPOTENCY_KEY_REQUIRED = "idempotency_key_required", 400
    PERIOD_ALREADY_CHARGED = "period_already_charged", 400
    DUPLICATE_SUSPECTED = "duplicate_suspected", 400
    IDEMPOTENCY_KEY_IN_USE = "idempotency_key_in_use", 409
    PATH_UNKNOWN = "path_unknown", 404
    METHOD_NOT_ALLOWED = "method_not_allowed", 405
    BODY_TOO_LARGE = "body_too_large", 413
    RATE_LIMITED = "rate_limited", 429
    UPSTREAM_UNREACHABLE = "upstream_unreachable", 502
    UPSTREAM_REJECTED_KEY = "upstream_rejected_key", 502
    LEDGER_UNAVAILABLE = "ledger_unavailable", 503
    LEDGER_BEHIND = "ledger_behind", 503
    DRAINING = "draining", 503
    OVERLOADED = "overloaded", 503
    ISSUER_UNREACHABLE = "issuer_unreachable", 503
    OUTCOME_UNKNOWN = "outcome_unknown", 504

    @property
    def type(self) -> str:
        """The `type` of Stripe's error shape."""
        if self is Code.IDEMPOTENCY_KEY_REUSED:
            return "idempotency_error"
        if self.status == 429:
            return "rate_limit_error"
        return "api_error" if self.status >= 500 else "invalid_request_error"

    @property
    def should_retry(self) -> str:
        """What `Stripe-Should-Retry` says: "true" only where nothing was or will be sent twice."""
        return "true" if self.status in {409, 503} else "false"


WORDING: Final[Mapping[Code, tuple[str, str]]] = {
    Code.VAULT_KEY_MISSING: (
        "No vault key was given. Send it as a bearer token, or as the user of Basic "
        "authentication.",
        "The request carries no vault key, or more than one.",
    ),
    Code.VAULT_KEY_UNKNOWN: (
        "This is not a vault key of this proxy. Check that the whole token was copied; "
        "Stripe keys are not accepted here.",
        "No vault key matches: a typo, another store, another mode, or a Stripe key.",
    ),
    Code.VAULT_KEY_EXPIRED: (
        "This vault key has expired. Ask an operator for a new one.",
        "The key's expiry has passed; `kb-mcp keys rotate` issues its successor.",
    ),
    Code.VAULT_KEY_REVOKED: (
        "This vault key was revoked. Ask an operator for a new one.",
        "An operator revoked the key; no reservation is made after that.",
    ),
    Code.VAULT_KEY_NOT_AUTHORIZED: (
        "This vault key may not do that: {reason}. Use a key that was granted it.",
        "Method and path are not on the key's allowlist, the customer is not the key's, or "
        "the key does not serve at this hour.",
    ),
    Code.VAULT_KEY_FROZEN: (
        "This vault key is frozen: {reason}. Nothing was charged. Stop charging with it and "
        "tell an operator.",
        "Too many declines in a day, or a charge that turned up after it was taken for void. "
        "`kb-mcp keys unfreeze` after a look.",
    ),
    Code.IDENTITY_NOT_GRANTED: (
        "This token is valid, but no grant gives its identity a vault key. Nothing was done. "
        "Ask an operator for a grant.",
        "A token of a known issuer that no grant matches, or whose grant was removed; `kb-mcp "
        "grants add` makes one.",
    ),
    Code.IDENTITY_AMBIGUOUS: (
        "This token is valid, but several grants match its identity. Nothing was done. Tell an "
        "operator.",
        "One identity stands for one vault key; `kb-mcp grants list` shows the grants of the "
        "issuer.",
    ),
    Code.TOOL_NOT_GRANTED: (
        "The scopes of this token do not allow that: it needs the scope {scope}. Nothing was "
        "done. Ask for a token with that scope.",
        "A token that has any of the scopes `charge`, `charge_status` and `refund` may do no "
        "more than they say.",
    ),
    Code.TOO_MANY_UNRESOLVED: (
        "Too many charges of this vault key have no known outcome yet. Nothing was charged. "
        "Wait until they are resolved, or tell an operator.",
        "The key's lineage has reached `max_unresolved`; recovery resolves most by itself.",
    ),
    Code.ATTEMPTS_EXHAUSTED: (
        "This bill was declined as often as the policy allows. Nothing was charged now. Do "
        "not try again; tell an operator.",
        "`max_attempts` declines of one bill; `kb-mcp operations reset` starts the count anew.",
    ),
    Code.PARAMETER_NOT_ALLOWED: (
        "This vault key may not send {param}. Leave it out, or use a key whose policy allows it.",
        "The parameter, or its value, is not among those the key's policy allows here.",
    ),
    Code.HEADER_NOT_ALLOWED: (
        "This vault key may not send the header {param}. Leave it out.",
        "Stripe-Account, Stripe-Context and whatever else the policy does not allow.",
    ),
    Code.SPEND_CAP_EXCEEDED: (
        "This charge would exceed a spend cap ({window}): the cap is {cap} and {left} is "
        "left. Nothing was charged. Do not split it or try again; {then}.",
        "The amount is more than what is left under one of the caps: per charge, day, month, "
        "customer or account. `keybrake` says which, what is left and when it begins anew.",
    ),
    Code.CHARGE_COUNT_EXCEEDED: (
        "This vault key has made as many charges today as it may. Nothing was charged. Wait "
        "until the next day (UTC), or ask an operator.",
        "`daily_charges` of the policy is used up.",
    ),
    Code.CURRENCY_NOT_ALLOWED: (
        "A limit of this vault key or of the account is set for {allowed}, but not for "
        "{currency}. Nothing was done. Use a currency that has a limit, or ask an operator.",
        "A cap, `approval_above` or the account's ceiling that is given for one currency refuses "
        "every other; nothing is converted.",
    ),
    Code.AMOUNT_NOT_METERED: (
        "This vault key has caps, and none of them can hold what this request moves, so it may "
        "not send it. Nothing was done.",
        "A cap needs an amount, and this request has none, whatever the allowlist grants; that of "
        "an invoice is read. A refund "
        "gets this code too where the policy has caps, but none on refunds.",
    ),
    Code.REFUND_CAP_EXCEEDED: (
        "This refund would exceed a refund cap ({window}): the cap is {cap} and {left} is left. "
        "Nothing was refunded. Do not split it or try again; {then}.",
        "The amount is more than what is left under one of the refund caps: per refund, day, "
        "month, customer or account. `keybrake` says which, what is left and when it begins anew.",
    ),
    Code.REFUND_COUNT_EXCEEDED: (
        "This vault key has made as many refunds today as it may. Nothing was refunded. Wait "
        "until the next day (UTC), or ask an operator.",
        "`daily_refunds` of the policy is used up.",
    ),
    Code.APPROVAL_REQUIRED: (
        "This needs an operator's approval ({approval}). Nothing was charged or refunded. Do not "
        "change it; {then}.",
        "The amount is above `approval_above`, or `refund_approval_above`; `kb-mcp approvals "
        "approve` lets it through. `keybrake` says in `state` whether it was denied.",
    ),
    Code.PARAMETER_UNKNOWN: (
        "Received unknown parameter: {param}. Leave it out or correct its name.",
        "The name does not have the form of a Stripe parameter.",
    ),
    Code.PARAMETER_INVALID: (
        "{param} is invalid: {reason}",
        "The value is not valid; the message says what to send instead.",
    ),
    Code.PARAMETER_DUPLICATE: (
        "{param} was sent more than once. Send it once.",
        "The same parameter twice, or both as a value and as a list or map.",
    ),
    Code.PARAMETER_MISSING: (
        "Missing required parameter: {param}. Send it.",
        "This endpoint, or the policy, requires the parameter.",
    ),
    Code.BODY_INVALID: (
        "The request body cannot be read: {reason}. Nothing was done. Send form-encoded UTF-8.",
        "Not form-encoded UTF-8, a query string on a POST, a body on a GET.",
    ),
    Code.PATH_INVALID: (
        "The path is not valid: {reason}. Send the path as Stripe documents it.",
        "Dot segments, double slashes, encoded slashes, control characters and the like.",
    ),
    Code.PERIOD_OUT_OF_WINDOW: (
        "The billing period {period} is not one that this vault key may bill: {reason}. "
        "Nothing was charged. Check the period; do not choose another one.",
        "`period_window` of the policy, in calendar months back and ahead, or `period_kinds`, if "
        "it names some.",
    ),
    Code.IDEMPOTENCY_KEY_REQUIRED: (
        "Nothing in this request names the bill. Send metadata[billing_period], for example "
        "2026-06, with customer, amount and currency.",
        "The policy is `strict`, and no key can be derived from the content.",
    ),
    Code.PERIOD_ALREADY_CHARGED: (
        "This customer already has a bill for this period, or for a part of it: {charge}. Nothing "
        "was charged now. Do not change amount, currency or period to charge again; look at that "
        "charge.",
        "Another live bill of the same customer and reference has this period, or shares a day "
        "with it. With `overlaps` in the policy, periods may share days; the same period is "
        "never billed twice.",
    ),
    Code.CHARGE_NOT_REFUNDABLE: (
        "This charge cannot be refunded: {reason}. Nothing was refunded. Check the charge id; "
        "do not try other ids.",
        "The charge is unknown, was not made through this proxy, failed, or was not captured.",
    ),
    Code.CHARGE_DISPUTED: (
        "The customer's bank disputes this charge ({charge}) and has taken the money back, so it "
        "cannot be refunded. Nothing was refunded. Do not try again; tell an operator.",
        "A dispute is open or lost. A dispute that was won, or an inquiry, prevents no refund.",
    ),
    Code.ALREADY_REFUNDED: (
        "This charge was refunded before: {refund}. Nothing was refunded now. Do not refund it "
        "again; if a second refund is meant, ask an operator.",
        "The charge has a refund, or nothing of it is left. `kb-mcp operations reopen` of that "
        "refund, or `max_refunds_per_charge` of the policy, allows one more.",
    ),
    Code.REFUND_EXCEEDS_CHARGE: (
        "The refund is more than what is left of the charge: {left}. Nothing was refunded. "
        "Check the amount with the user; do not split it.",
        "All refunds of a charge together, those under way too, are never more than the charge.",
    ),
    Code.AMOUNT_CHANGED: (
        "The amount at Stripe changed while it was being paid: {reason}. Nothing was charged. "
        "Look at it again before you go on.",
        "An invoice is not what it was when its amount was read. `keybrake` has what was reserved "
        "(`amount`, `currency`) and what is left now (`amount_now`, `currency_now`, `status`).",
    ),
    Code.DUPLICATE_SUSPECTED: (
        "This looks like a bill that was already made: {charge}. Nothing was charged now. "
        "Look at that charge; if it is another bill, tell an operator.",
        "The same customer, amount and currency within `duplicate_window`, and one of the two "
        "bills has no period.",
    ),
    Code.IDEMPOTENCY_KEY_REUSED: (
        "This bill or idempotency key was used before with other parameters. Nothing was "
        "charged now. Send the same parameters to get the first result.",
        "The same operation with another fingerprint, as at Stripe.",
    ),
    Code.IDEMPOTENCY_KEY_IN_USE: (
        "The same bill is being sent right now. Send the same request again in a moment to "
        "get its result; it will not be charged twice.",
        "A second caller waits for the outcome for 10 seconds; it did not come in that time.",
    ),
    Code.PATH_UNKNOWN: (
        "Unrecognized request URL. This proxy does not serve that path.",
        "Not a path of Stripe's v1 API that the proxy knows.",
    ),
    Code.METHOD_NOT_ALLOWED: (
        "That path does not take this method. Use one that Stripe documents for it.",
        "The path is known, but it does not take this method.",
    ),
    Code.BODY_TOO_LARGE: (
        "The request is too large: its body may have 64 KiB, its headers 32 KiB, a token 16 KB. "
        "Nothing was done. Send less.",
        "A body, query or header section beyond its limit.",
    ),
    Code.RATE_LIMITED: (
        "Too many requests with this vault key. Nothing was done. Wait as long as Retry-After "
        "says, then send the same request.",
        "The rate of the policy.",
    ),
    Code.UPSTREAM_UNREACHABLE: (
        "Stripe could not be reached, and nothing was sent. Send the same request later.",
        "No connection was made, so nothing can have been charged.",
    ),
    Code.UPSTREAM_REJECTED_KEY: (
        "Stripe refused the proxy's own key. Nothing was charged. Your vault key is "
        "correct; tell an operator.",
        "The restricted key behind the proxy is wrong, expired, or lacks a permission.",
    ),
    Code.LEDGER_UNAVAILABLE: (
        "The ledger cannot be reached or is not sure of the time, and nothing was sent. "
        "Send the same request later.",
        "Without its store the proxy sends nothing, nor while clocks disagree on what the request "
        "depends on (`clock` is `disputed`): `kb-mcp doctor` says which, and what to do.",
    ),
    Code.LEDGER_BEHIND: (
        "The ledger may lack records, and nothing was sent. An operator must run `kb-mcp doctor`.",
        "Stripe has what the store lacks, its lists cannot be read yet, or the store was moved.",
    ),
    Code.DRAINING: (
        "The proxy is shutting down, and nothing was sent. Send the same request again.",
        "SIGTERM was received; requests under way still finish.",
    ),
    Code.ISSUER_UNREACHABLE: (
        "The issuer of this token cannot be asked for its keys, and nothing was sent. Send the "
        "same request later.",
        "The provider's metadata or keys cannot be fetched or read, and what was fetched before "
        "has reached its end.",
    ),
    Code.OVERLOADED: (
        "Too many requests are waiting, and nothing was sent. Send the same request later.",
        "The proxy refuses work before it reserves anything.",
    ),
    Code.OUTCOME_UNKNOWN: (
        "It may have been sent, and its outcome is not known yet: money may have moved. Do not "
        "charge or refund again; ask charge_status later.",
        "The amount stays reserved until a read of Stripe's list proves what happened.",
    ),
}
"""Code to its sentence, which is a template, and to its entry in the error reference."""
