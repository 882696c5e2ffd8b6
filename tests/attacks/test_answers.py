"""Answers: what Stripe says is checked and scrubbed before an agent may see it."""

from __future__ import annotations

from typing import Any

import pytest

from kb_mcp.proxy.access.policy import Policy
from tests.attacks.attack import Attack, octets
from tests.attacks.attacked_proxy import AttackedProxy, Issued
from tests.attacks.wire import Answer, ask

FAMILY = "answers"
MINE = {"ids": ("cus_Mine1",)}
PREFIX = {"prefix": "cus_Mine"}
BLUE = {"metadata": {"team": "blue"}}
_KEY = {"Authorization": "Bearer rk_test_sandbox"}
_OTHERS = """
/v1/charges/{charge} /v1/charges?customer=cus_Yours1 /v1/charges /v1/customers/cus_Yours1
/v1/refunds
""".split()
READS = ("GET /v1/charges", "GET /v1/charges/*", "GET /v1/customers/*", "GET /v1/refunds")


def _policy(customers: dict[str, Any]) -> Policy:
    return Policy.model_validate(
        {"role": "reader", "allow": (*READS, "POST /v1/charges"), "customers": customers}
    )


def _send(attacked: AttackedProxy, key: Issued, method: str, target: str, **form: str) -> Answer:
    attack = Attack(family=FAMILY, name="", code=None, method=method, target=target, form=form)
    return ask(attacked.agents, octets(attacked, attack, key))


def _at_stripe(attacked: AttackedProxy, path: str, **form: Any) -> Any:
    made = attacked.stripe.post(path, data=form, headers=_KEY)
    assert made.status_code == 200, made.text
    return made.json()


@pytest.fixture(scope="module")
def others(attacked: AttackedProxy) -> str:
    """Return a charge of a customer that is nobody's."""
    fields = {"amount": "4242", "currency": "usd", "customer": "cus_Yours1"}
    return str(_at_stripe(attacked, "/v1/charges", **fields)["id"])


@pytest.mark.parametrize("customers", [MINE, PREFIX, BLUE], ids=["ids", "prefix", "metadata"])
@pytest.mark.parametrize("target", _OTHERS)
def test_another_customers_objects_are_not_shown(
    attacked: AttackedProxy, others: str, customers: dict[str, Any], target: str
) -> None:
    key = attacked.issue(_policy(customers))
    if target == "/v1/refunds":
        charge = _at_stripe(
            attacked, "/v1/charges", amount=1000, currency="usd", customer="cus_Yours2"
        )
        _at_stripe(attacked, "/v1/refunds", charge=charge["id"])
    answer = _send(attacked, key, "GET", target.replace("{charge}", others))
    assert (answer.status, answer.code) == (403, "vault_key_not_authorized")
    assert b"4242" not in answer.body
    assert [row["code"] for row in attacked.rows(key)] == ["vault_key_not_authorized"]


@pytest.mark.parametrize("team", ["red", "Blue", None])
def test_a_customer_without_the_metadata_is_not_charged(
    attacked: AttackedProxy, team: str | None
) -> None:
    marks = {} if team is None else {"metadata[team]": team}
    customer = _at_stripe(attacked, "/v1/customers", **marks)["id"]
    key = attacked.issue(_policy(BLUE))
    charges = attacked.reached()[1]
    refused = _send(attacked, key, "POST", "/v1/charges", customer=customer, amount="100",
                    currency="usd")  # fmt: skip
    assert (refused.status, refused.code) == (403, "vault_key_not_authorized")
    assert attacked.reached()[1] == charges
    assert [row["code"] for row in attacked.rows(key)] == ["vault_key_not_authorized"]


def test_a_customer_with_the_metadata_is_charged_and_shown(attacked: AttackedProxy) -> None:
    customer = _at_stripe(attacked, "/v1/customers", **{"metadata[team]": "blue"})["id"]
    key = attacked.issue(_policy(BLUE))
    made = _send(
        attacked, key, "POST", "/v1/charges", customer=customer, amount="100", currency="usd"
    )
    assert made.status == 200
    assert _send(attacked, key, "GET", f"/v1/customers/{customer}").status == 200


def test_a_list_with_one_customer_of_others_is_not_shown(attacked: AttackedProxy) -> None:
    for team in ("blue", "red"):
        _at_stripe(attacked, "/v1/customers", **{"metadata[team]": team})
    rules = {"role": "lister", "allow": ("GET /v1/customers",), "customers": BLUE}
    key = attacked.issue(Policy.model_validate(rules))
    answer = _send(attacked, key, "GET", "/v1/customers")
    assert (answer.status, answer.code) == (403, "vault_key_not_authorized")
    assert [row["code"] for row in attacked.rows(key)] == ["vault_key_not_authorized"]


def test_own_charges_are_shown(attacked: AttackedProxy) -> None:
    fields = {"amount": "1234", "currency": "usd", "customer": "cus_Mine1"}
    mine = str(_at_stripe(attacked, "/v1/charges", **fields)["id"])
    key = attacked.issue(_policy(MINE))
    shown = _send(attacked, key, "GET", f"/v1/charges/{mine}")
    assert (shown.status, shown.json()["amount"]) == (200, 1234)


@pytest.mark.parametrize("kind", ["401", "403"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_stripes_refusal_of_our_key_names_no_key_and_no_account(
    attacked: AttackedProxy, kind: str, method: str
) -> None:
    key = attacked.issue("billing" if method == "POST" else "audit")
    path = "/v1/charges" if method == "POST" else "/v1/charges/ch_1"
    fault = {"match": f"{method} {path}", "kind": kind}
    assert attacked.stripe.post("/_sandbox/faults", json=[fault]).status_code == 200
    number = attacked.next()
    fields = {"customer": f"cus_K{number}", "amount": "2900", "currency": "usd"}
    answer = _send(attacked, key, method, path, **(fields if method == "POST" else {}))
    assert (answer.status, answer.code) == (502, "upstream_rejected_key")
    for secret in (b"rk_test", b"sk_", b"acct_", b"****", b"sandbox"):
        assert secret not in answer.body
    rows = attacked.rows(key)
    assert rows[-1]["stripe_status"] == int(kind)
    if method == "POST":
        assert rows[-1]["code"] == "upstream_rejected_key"
    assert "rk_test" not in str(rows)
