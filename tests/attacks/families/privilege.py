"""Keys that are good, for something else."""

from __future__ import annotations

from tests.attacks.attack import Attack

_BILLING_MAY_NOT = """
GET /v1/charges/ch_1
GET /v1/charges
GET /v1/charges/search
GET /v1/customers
GET /v1/customers/cus_A1
GET /v1/customers/cus_A1/payment_methods
GET /v1/payment_intents/pi_1
GET /v1/balance
GET /v1/account
GET /v1/events
POST /v1/charges/ch_1
POST /v1/charges/ch_1/capture
POST /v1/payment_intents
POST /v1/payment_intents/pi_1/confirm
POST /v1/refunds
POST /v1/payouts
POST /v1/topups
POST /v1/transfers
POST /v1/invoices
POST /v1/invoices/in_1/pay
POST /v1/subscriptions
POST /v1/customers
POST /v1/checkout/sessions
POST /v1/payment_links
DELETE /v1/subscriptions/sub_1
""".strip().splitlines()
_AUDIT_MAY_NOT = """
POST /v1/charges
GET /v1/charges
GET /v1/charges/search
GET /v1/refunds/re_1
GET /v1/payment_intents/pi_1
GET /v1/customers/cus_A1
GET /v1/balance
POST /v1/charges/ch_1
POST /v1/charges/ch_1/capture
POST /v1/refunds
""".strip().splitlines()
# `*` is one id of the right prefix: nothing here is one.
_NO_ID = """
ch_
ch
charge
CH_1
cus_A1
pi_1
ch_1_2
ch-1
ch_1/refunds
ch_1/refund
*
""".split()
_NOWHERE = """
POST /v1/account_links
POST /v1/accounts
POST /v1/ephemeral_keys
POST /v1/tokens
POST /v1/sources
POST /v1/webhook_endpoints
POST /v1/apps/secrets
GET /v1/files
POST /v2/core/events
POST /v1/test_helpers/test_clocks
""".strip().splitlines()


def _may_not(policy: str, family: str, line: str, code: str) -> Attack:
    method, target = line.split(" ")
    body = b"" if method != "POST" else None
    return Attack(family=family, name=f"{policy}: {line}", policy=policy, method=method,
                  target=target, body=body, code=code)  # fmt: skip


ATTACKS = (
    *(_may_not("billing", "privilege", line, "vault_key_not_authorized")
      for line in _BILLING_MAY_NOT),
    *(_may_not("audit", "privilege of readers", line, "vault_key_not_authorized")
      for line in _AUDIT_MAY_NOT),
    *(_may_not("audit", "privilege of readers", f"GET /v1/charges/{name}", "path_invalid"
               if "*" in name else "path_unknown") for name in _NO_ID),
    *(_may_not("billing", "unknown paths", line, "path_unknown") for line in _NOWHERE),
    *(Attack(family="privilege of readers", name=f"reading with {query}", policy="audit",
             method="GET", target=f"/v1/charges/ch_1?{query}", code="parameter_not_allowed")
      for query in ("expand[]=customer", "expand[0]=refunds", "limit=100", "customer=cus_A1")),
    Attack(family="privilege of readers", name="billing key asks for bills", method="GET",
           target="/keybrake/v1/operations?charge_id=ch_1", code="vault_key_not_authorized"),
    Attack(family="privilege of readers", name="accepted: one charge", policy="audit",
           method="GET", target="/v1/charges/ch_1", code=None, accepted=(404,)),
    Attack(family="privilege", name="accepted neighbour", code=None),
)  # fmt: skip
