"""Evasion: the same money asked for in another way, by a key that may charge."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from kb_mcp.operators.actions.keys import rotate_key
from kb_mcp.proxy.access.policy import CapRules, Policy
from kb_mcp.proxy.access.roles import built_in
from kb_mcp.proxy.ledger.records import KeyId
from kb_mcp.serving.machine import random_bytes
from tests.attacks.attack import STATUS, Attack, bill, octets
from tests.attacks.attacked_proxy import AttackedProxy, Issued
from tests.attacks.wire import Answer, ask

FAMILY = "evasion"
_PERIOD = "metadata[billing_period]"
_NO_PERIOD = {_PERIOD: None}


def _capped(**caps: dict[str, int]) -> Policy:
    return built_in("billing").model_copy(update={"caps": CapRules(**caps)})


DAILY = _capped(daily={"usd": 5_000, "eur": 5_000})
MONTHLY = _capped(monthly={"usd": 5_000, "eur": 5_000})
CUSTOMERS = _capped(per_customer_daily={"usd": 5_000, "eur": 5_000})
FEW = built_in("billing").model_copy(update={"daily_charges": 1})
SLOW = built_in("billing").model_copy(update={"rate": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class Evasion:
    """After `first`, a charge that is made, comes `then`: `code`, or None for a replay."""

    name: str
    code: str | None
    policy: Policy | str = "billing"
    first: Mapping[str, str | None] = field(default_factory=dict)
    then: Mapping[str, str | None] = field(default_factory=dict)
    header: str | None = None


_OTHER = {"customer": "cus_Other{n}"}
EVASIONS = (
    Evasion(name="another customer, over the day's cap", policy=DAILY, then=_OTHER,
            code="spend_cap_exceeded"),
    Evasion(name="another period, over the day's cap", policy=DAILY,
            then={_PERIOD: "{last_month}"}, code="spend_cap_exceeded"),
    Evasion(name="currency in capitals, over the day's cap", policy=DAILY,
            then={**_OTHER, "currency": "USD"}, code="spend_cap_exceeded"),
    Evasion(name="a period split off, over the month's cap", policy=MONTHLY,
            then={_PERIOD: "{last_month}"}, code="spend_cap_exceeded"),
    Evasion(name="another period, over the customer's cap", policy=CUSTOMERS,
            then={_PERIOD: "{last_month}"}, code="spend_cap_exceeded"),
    Evasion(name="no period, over the customer's cap", policy=CUSTOMERS,
            then={**_NO_PERIOD, "amount": "2901"}, code="spend_cap_exceeded"),
    Evasion(name="a currency without a cap", policy=DAILY, then={**_OTHER, "currency": "gbp"},
            code="currency_not_allowed"),
    Evasion(name="one charge more than a day may have", policy=FEW, then=_OTHER,
            code="charge_count_exceeded"),
    Evasion(name="one request more than a minute may have", policy=SLOW, then=_OTHER,
            code="rate_limited"),
    Evasion(name="the same bill, new key", header="fresh-1", code=None),
    Evasion(name="the same bill, an SDK's key", code=None,
            header="stripe-python-retry-6f0e3c1e-6f6c-4c1c-9d7e-0b8f4c3d2a10"),
    Evasion(name="currency in capitals", then={"currency": "USD"}, code=None),
    Evasion(name="other wording", then={"description": "once more"}, code=None),
    Evasion(name="another note", then={"metadata[try]": "2"}, code=None),
    Evasion(name="period in words", then={_PERIOD: "{month_long}"}, code=None),
    Evasion(name="period in the description", code=None,
            then={**_NO_PERIOD, "description": "Subscription {month}"}),
    Evasion(name="another amount", then={"amount": "2901"}, code="period_already_charged"),
    Evasion(name="a smaller amount", then={"amount": "1"}, code="period_already_charged"),
    Evasion(name="another currency", then={"currency": "eur"}, code="period_already_charged"),
    Evasion(name="part of the period", then={_PERIOD: "{month}-01"},
            code="period_already_charged"),
    Evasion(name="most of the period", then={_PERIOD: "{month}-01/{month}-27"},
            code="period_already_charged"),
    Evasion(name="no period", then=_NO_PERIOD, code="duplicate_suspected"),
    Evasion(name="no period, another key", then=_NO_PERIOD, header="another",
            code="duplicate_suspected"),
    Evasion(name="no period, first", first=_NO_PERIOD, code="duplicate_suspected"),
    Evasion(name="the same key, another amount", code="idempotency_key_reused",
            first=_NO_PERIOD, then={**_NO_PERIOD, "amount": "3000"}, header="june"),
    Evasion(name="a reference", then={"metadata[reference]": "again"},
            code="parameter_not_allowed"),
    Evasion(name="description of another period", code="parameter_invalid",
            then={"description": "Subscription {last_month}"}),
)  # fmt: skip


def _charge(attacked: AttackedProxy, key: Issued, number: int, form: Mapping[str, str | None],
            header: str | None = None) -> Answer:  # fmt: skip
    changes = {"customer": f"cus_E{number}", **form}
    lines = (f"Idempotency-Key: {header}",) if header else ()
    attack = Attack(family=FAMILY, name="", code=None, form=bill(**changes), headers=lines)
    return ask(attacked.agents, octets(attacked, attack, key))


@pytest.mark.parametrize("evasion", EVASIONS, ids=lambda evasion: evasion.name)
def test_the_same_money_is_not_taken_twice(attacked: AttackedProxy, evasion: Evasion) -> None:
    key, number = attacked.issue(evasion.policy), attacked.next()
    requests, charges = attacked.reached()
    header = evasion.header if evasion.code == "idempotency_key_reused" else None
    first = _charge(attacked, key, number, evasion.first, header)
    assert first.status == 200
    then = _charge(attacked, key, number, evasion.then, evasion.header)
    assert attacked.reached() == (requests + 1, charges + 1)
    codes = [row["code"] for row in attacked.rows(key) if row["code"]]
    if evasion.code is None:
        assert then.json()["id"] == first.json()["id"]
        assert then.headers["idempotent-replayed"] == "true"
        assert codes == []
    else:
        assert (then.status, then.code) == (STATUS.get(evasion.code, 403), evasion.code)
        if evasion.code == "rate_limited":
            attacked.expected["rate_limited"] += 1
        else:
            assert codes == [evasion.code]


def test_forty_at_once_stay_below_a_cap_of_five(attacked: AttackedProxy) -> None:
    key = attacked.issue(_capped(daily={"usd": 500}))
    numbers = [attacked.next() for _ in range(40)]
    charges = attacked.reached()[1]
    with ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(lambda number: _charge(attacked, key, number, {"amount": "100"}), numbers)
        )
    assert sorted(answer.status for answer in answers) == [200] * 5 + [403] * 35
    assert attacked.reached()[1] == charges + 5


def test_a_rotated_key_has_no_second_cap(attacked: AttackedProxy) -> None:
    key = attacked.issue(_capped(daily={"usd": 5_000}))
    charges = attacked.reached()[1]
    assert _charge(attacked, key, attacked.next(), {}).status == 200
    rotation = rotate_key(attacked.store.ledger, KeyId(key.id), 60_000, random_bytes, "test")
    successor, minted = attacked.run(rotation)
    refused = _charge(attacked, Issued(successor.id, minted.token), attacked.next(), {})
    assert (refused.status, refused.code) == (403, "spend_cap_exceeded")
    assert attacked.reached()[1] == charges + 1
