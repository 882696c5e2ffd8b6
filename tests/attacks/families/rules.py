"""Policies that say more than a role: fixed, required and forbidden parameters, customers, hours,
caps, strictness."""

from __future__ import annotations

from typing import Any

from kb_mcp.proxy.access.policy import Policy
from tests.attacks.attack import Attack, bill

CHARGE = "POST /v1/charges"
_PERIOD = "metadata[billing_period]"


def _policy(**rules: Any) -> Policy:
    return Policy.model_validate({"role": "of-a-test", "allow": (CHARGE,), **rules}, strict=False)


def _parameters(**rule: Any) -> Policy:
    return _policy(parameters={CHARGE: rule})


FIXED = _parameters(fixed={"currency": "eur", "description": "Fees"})
REQUIRED = _parameters(required=("metadata[order]", "description"))
FORBIDDEN = _parameters(forbidden=("description", "metadata[note]"))
ALLOWED = _parameters(allowed=("metadata[order]", "transfer_group"))
LISTED = _policy(customers={"ids": ("cus_Mine1", "cus_Mine2")})
PREFIXED = _policy(customers={"prefix": "cus_Mine"})
OWN = _policy(customers={"metadata": {"team": "blue"}})
CAPPED = _policy(
    caps={"per_charge": {"usd": 3_000, "eur": 3_000}, "daily": {"usd": 5_000, "eur": 100}}
)
NEVER = _policy(hours={"days": ("mon",), "start": "00:00", "end": "00:01"})
STRICT = _policy(idempotency="strict")
NARROW = _policy(period_window={"back": 0, "ahead": 0})
UNMETERED = _policy(allow=(CHARGE, "POST /v1/refunds", "POST /v1/charges/*/capture"),
                    parameters={"POST /v1/refunds": {"allowed": ("charge", "amount")}},
                    caps={"daily": {"usd": 5_000}})  # fmt: skip
APPROVED = _policy(approval_above={"usd": 1_000})
RATED = _policy(rate=1)
READER = _policy(allow=("GET /v1/charges", "GET /v1/charges/*"), customers={"ids": ("cus_Mine1",)})


def _rule(name: str, policy: Policy, code: str | None, **changes: str | None) -> Attack:
    return Attack(family="policies", name=name, policy=policy, code=code, form=bill(**changes))


ATTACKS = (
    _rule("fixed currency, another", FIXED, "parameter_not_allowed", description="Fees"),
    _rule("fixed text, another", FIXED, "parameter_not_allowed",
          currency="eur", description="fees"),
    _rule("fixed currency in capitals", FIXED, "parameter_not_allowed", currency="EUR"),
    _rule("accepted: as fixed", FIXED, None, currency="eur", description="Fees"),
    _rule("required, left out", REQUIRED, "parameter_missing", description="x"),
    _rule("required, another key", REQUIRED, "parameter_missing",
          **{"metadata[orders]": "1", "description": "x"}),
    _rule("accepted: as required", REQUIRED, None, **{"metadata[order]": "1", "description": "x"}),
    _rule("forbidden", FORBIDDEN, "parameter_not_allowed", description="x"),
    _rule("forbidden key of a map", FORBIDDEN, "parameter_not_allowed", **{"metadata[note]": "x"}),
    _rule("accepted: not forbidden", FORBIDDEN, None, **{"metadata[other]": "x"}),
    _rule("allowed, and no more", ALLOWED, "parameter_not_allowed", transfer_groups="x"),
    _rule("allowed, its map", ALLOWED, "parameter_not_allowed", **{"transfer_group[a]": "x"}),
    _rule("another customer than listed", LISTED, "vault_key_not_authorized"),
    _rule("listed, with something behind", LISTED, "vault_key_not_authorized",
          customer="cus_Mine1x"),
    _rule("listed, in capitals", LISTED, "vault_key_not_authorized", customer="cus_MINE1"),
    _rule("no customer at all", LISTED, "vault_key_not_authorized", customer=None),
    _rule("accepted: listed", LISTED, None, customer="cus_Mine2"),
    _rule("another prefix", PREFIXED, "vault_key_not_authorized", customer="cus_Yours1"),
    _rule("prefix in capitals", PREFIXED, "vault_key_not_authorized", customer="cus_mine1"),
    _rule("accepted: of the prefix", PREFIXED, None, customer="cus_Mine{n}"),
    _rule("no customer to look up", OWN, "vault_key_not_authorized", customer=None),
    _rule("above the cap of a charge", CAPPED, "spend_cap_exceeded", amount="3001"),
    _rule("currency without a cap", CAPPED, "currency_not_allowed", currency="gbp"),
    _rule("currency without a cap, in capitals", CAPPED, "currency_not_allowed", currency="GBP"),
    _rule("currency capped lower", CAPPED, "spend_cap_exceeded", currency="eur"),
    _rule("accepted: below the cap", CAPPED, None, amount="3000"),
    _rule("outside its hours", NEVER, "vault_key_not_authorized"),
    _rule("strict, without a period", STRICT, "idempotency_key_required", **{_PERIOD: None}),
    _rule("accepted: strict, with a period", STRICT, None),
    _rule("a period of another month", NARROW, "period_out_of_window", **{_PERIOD: "{last_month}"}),
    _rule("above approval", APPROVED, "approval_required", amount="1001"),
    _rule("accepted: below approval", APPROVED, None, amount="1000"),
    Attack(family="policies", name="refund of any amount", policy=UNMETERED, target="/v1/refunds",
           form={"charge": "ch_1"}, code="amount_not_metered"),
    Attack(family="policies", name="refund that names an amount", policy=UNMETERED,
           target="/v1/refunds", form={"charge": "ch_1", "amount": "1"},
           code="amount_not_metered"),
    Attack(family="policies", name="capture under caps", policy=UNMETERED, body=b"",
           target="/v1/charges/ch_1/capture", code="amount_not_metered"),
    *(Attack(family="policies", name=f"list of {query or 'all'}", policy=READER, method="GET",
             target=f"/v1/charges{query}", code="vault_key_not_authorized")
      for query in ("", "?customer=cus_Other", "?limit=100")),
    Attack(family="policies", name="accepted: own list", policy=READER, method="GET",
           target="/v1/charges?customer=cus_Mine1", code=None),
)  # fmt: skip
