"""Paths written so that a filter and a server might read two different ones."""

from __future__ import annotations

from tests.attacks.attack import Attack

# Every one of these means POST /v1/charges or another charge to some server somewhere.
_INVALID = """
///v1/charges
/v1//charges
/v1/charges/
/v1/charges.
/v1/charges//
/v1/./charges
/./v1/charges
/v1/../v1/charges
/v1/customers/../charges
/v1/%2e%2e/v1/charges
/v1/%2E%2E/v1/charges
/v1/customers/.%2e/charges
/v1%2fcharges
/v1%2Fcharges
/v1/charges%2f
/v1/charges%00
/v1/charges%0a
/v1/charges%0d%0aX-A:%20b
/v1/charges%09
/v1/charges%20
/v1/charges;a=b
/v1;x/charges
/v1/charges%3b
/v1/charges%23
/v1/charges%3f
/v1/%2563harges
/v1/charges%252f
/v1/charges%5c
/v1\\charges
/v1/c%ZZharges
/v1/charge%7
/v1/charges%
/v1/%c0%afcharges
/v1/%ef%bc%8fcharges
/v1/ch%c3%a4rges
/stripe///v1/charges
""".split()
_UNKNOWN = """
/V1/charges
/v1/Charges
/v1/CHARGES
/v2/charges
/v2/core/accounts
/charges
/v1
/stripe
/stripe/stripe/v1/charges
/api/v1/charges
/_sandbox/state
/admin/v1/keys
""".split()
_UNKNOWN_PREFIX = {"/v1": "path_unknown", "/stripe": "path_unknown"}

ATTACKS = (
    *(Attack(family="paths", name=path, target=path, code="path_invalid") for path in _INVALID),
    *(Attack(family="unknown paths", name=path, target=path, code="path_unknown")
      for path in _UNKNOWN),
    *(Attack(family="paths", name=f"accepted {path}", target=path, code=None)
      for path in ("/v1/charges", "/stripe/v1/charges", "/stripe//v1/charges", "//v1/charges",
                   "/v1/%63harges")),
    Attack(family="unknown paths", name="accepted neighbour", code=None),
)  # fmt: skip
