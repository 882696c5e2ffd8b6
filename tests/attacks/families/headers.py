"""Headers that would choose another account, another method, another version, or no key."""

from __future__ import annotations

from tests.attacks.attack import Attack

_REFUSED = {
    "account": ("Stripe-Account: acct_1Evil",),
    "account in capitals": ("STRIPE-ACCOUNT: acct_1Evil",),
    "account, empty": ("Stripe-Account:",),
    "two accounts": ("Stripe-Account: acct_1", "Stripe-Account: acct_2"),
    "context": ("Stripe-Context: ctx_1",),
    "context of a path": ("Stripe-Context: acct_1/acct_2",),
    "version with text": ("Stripe-Version: latest",),
    "version with a header in it": ("Stripe-Version: 2026-01-01%0d%0aStripe-Account: acct_1",),
    "version with blanks": ("Stripe-Version: 2026-01-01 acct",),
    "version of another kind": ("Stripe-Version: 2026-01-01.dahlia; beta=v1",),
    "version, empty": ("Stripe-Version:",),
}
_OVERRIDES = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")
_OVERRIDDEN = ("GET", "DELETE", "PUT", "post")
_TWICE = {
    "two versions": ("Stripe-Version: junk", "Stripe-Version: 2026-05-27.dahlia"),
    "two versions, turned": ("Stripe-Version: 2026-05-27.dahlia", "Stripe-Version: junk"),
    "two idempotency keys": ("Idempotency-Key: june-a", "Idempotency-Key: june-b"),
    "two content types": ("Content-Type: application/json",),
    "two agents": ("Keybrake-Agent: a", "Keybrake-Agent: b"),
    "two sessions": ("Keybrake-Session: a", "Keybrake-Session: b"),
}
_KEYS = {
    "key of 256 characters": "Idempotency-Key: " + "k" * 256,
    "key, empty": "Idempotency-Key:",
    "key of another alphabet": "Idempotency-Key: \xe9t\xe9",
}
_HARMLESS = {
    "cookies": ("Cookie: session=1",),
    "hop by hop": (
        "Connection: keep-alive, Stripe-Account",
        "Keep-Alive: timeout=5",
        "TE: trailers",
    ),
    "forwarded": ("X-Forwarded-For: 1.2.3.4", "X-Forwarded-Host: evil.example", "Forwarded: for=1"),
    "rewritten": ("X-Original-URL: /v1/refunds", "X-Rewrite-URL: /v1/refunds"),
    "a key of Stripe's beside it": ("X-Api-Key: sk_test_51Evil", "Stripe-Signature: t=1"),
    "a version": ("Stripe-Version: 2026-05-27.dahlia",),
    "a proxy's authorization": ("Proxy-Authorization: Bearer sk_test_51Evil",),
}

ATTACKS = (
    *(Attack(family="headers", name=name, headers=lines, code="header_not_allowed")
      for name, lines in _REFUSED.items()),
    *(Attack(family="headers", name=name, headers=lines, code="parameter_duplicate")
      for name, lines in _TWICE.items()),
    *(Attack(family="headers", name=name, headers=(line,), code="parameter_invalid")
      for name, line in _KEYS.items()),
    *(Attack(family="method override", name=f"{name}: {method}", headers=(f"{name}: {method}",),
             code="header_not_allowed") for name in _OVERRIDES for method in _OVERRIDDEN),
    *(Attack(family="method override", name=f"method {method}", method=method, code=code)
      for method, code in (("PUT", "method_not_allowed"), ("PATCH", "method_not_allowed"),
                           ("DELETE", "method_not_allowed"), ("OPTIONS", "method_not_allowed"),
                           ("TRACE", "method_not_allowed"), ("PROPFIND", "method_not_allowed"),
                           ("GET", "vault_key_not_authorized"))),
    Attack(family="method override", name="_method in the body", code="parameter_unknown",
           body=b"customer={customer}&amount=2900&currency=usd&_method=DELETE"),
    Attack(family="method override", name="accepted neighbour", code=None),
    *(Attack(family="headers", name=f"accepted, not passed on: {name}", headers=lines, code=None)
      for name, lines in _HARMLESS.items()),
)  # fmt: skip
