"""Caps: each kind at its edge, in its own order, per currency."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.access.policy import CapRules
from kb_mcp.proxy.ledger.records import Window
from kb_mcp.proxy.ledger.windows import windows_at
from kb_mcp.proxy.rules.gates import check_caps
from tests.proxy.rules.one_key import BILLING, LINEAGE, LOST, OneKey, declined, made, told

DAY = "2026-11-24"


def one_key(ceiling: int | None = None, **policy: Any) -> OneKey:
    caps = {name: policy.pop(name) for name in list(policy) if name in CapRules.model_fields}
    made_room = OneKey(policy=BILLING.model_copy(update={"caps": CapRules(**caps), **policy}))
    if ceiling is not None:
        settings = replace(made_room.snapshot.settings, ceilings={"usd": ceiling})
        made_room.snapshot.settings = settings
    return made_room


KINDS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "per_charge": ({"per_charge": {"usd": 2900}}, "charge", None),
    "daily": ({"daily": {"usd": 2900}}, "day", DAY),
    "monthly": ({"monthly": {"usd": 2900}}, "month", "2026-11-01"),
    "per_customer_daily": ({"per_customer_daily": {"usd": 2900}}, "day", DAY),
    "ceiling": ({"ceiling": 2900}, "day", DAY),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_cap_admits_its_last_unit_and_not_one_more(kind: str) -> None:
    limits, window, start = KINDS[kind]
    full = one_key(**limits)
    refusal = check_caps(full.snapshot, full.intend(amount=2901))
    assert refusal is not None
    facts = refusal.facts
    assert (facts["cap"], facts["left"], facts["amount"], facts["window"]) == (
        2900, 2900, 2901, window,
    )  # fmt: skip
    assert (facts.get("window_start"), facts["currency"]) == (start, "usd")
    assert "the cap is 29.00 USD and 29.00 USD is left" in refusal.message
    assert refusal.message.endswith("try again; ask an operator."), "waiting does not help"
    assert told(full.ask("june")) == "proceed as K"
    if kind != "per_charge":
        after = check_caps(full.snapshot, full.intend(amount=50))
        assert after is not None
        assert after.facts["left"] == 0
        assert str(after.facts["resets_at"]).endswith("T00:00:00Z")
        assert after.message.endswith(f"or wait until {after.facts['resets_at']}.")


@pytest.mark.parametrize(("reserved", "settled"), [(100, 0), (0, 100), (60, 40), (5000, 0)])
def test_what_is_reserved_counts_like_what_is_settled(reserved: int, settled: int) -> None:
    some = one_key(daily={"usd": 1000})
    key = windows_at(some.snapshot.now, LINEAGE, None, "usd").key_day
    some.snapshot.windows[key] = Window(key, reserved=reserved, settled=settled)
    left = max(1000 - reserved - settled, 0)
    if left:
        assert check_caps(some.snapshot, some.intend(amount=left)) is None
    refusal = check_caps(some.snapshot, some.intend(amount=left + 50))
    assert refusal is not None
    assert refusal.facts["left"] == left


def test_another_customer_has_a_window_of_its_own_and_the_key_has_one() -> None:
    some = one_key(daily={"usd": 5000}, per_customer_daily={"usd": 2900})
    some.ask("june")
    refusal = check_caps(some.snapshot, some.intend(amount=50))
    assert refusal is not None
    assert refusal.facts["cap_kind"] == "per customer and day"
    assert check_caps(some.snapshot, some.intend(customer="cus_B2", amount=2100)) is None
    refusal = check_caps(some.snapshot, some.intend(customer="cus_B2", amount=2101))
    assert refusal is not None
    assert refusal.facts["cap_kind"] == "per key and day"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("currency", "amount"), [("eur", 50), ("jpy", 50), ("kwd", 500)])
def test_a_limit_in_one_currency_refuses_every_other(kind: str, currency: str, amount: int) -> None:
    some = one_key(**KINDS[kind][0])
    refusal = check_caps(some.snapshot, some.intend(currency=currency, amount=amount))
    assert refusal is not None
    assert (refusal.code.value, refusal.param) == ("currency_not_allowed", "currency")
    assert (refusal.facts["allowed"], refusal.facts["currency"]) == (("usd",), currency)
    assert f"is set for usd, but not for {currency}" in refusal.message


@pytest.mark.parametrize(
    ("caps", "passes"),
    [
        ({"per_customer_daily": {"usd": 2900}}, False),
        ({"per_customer_daily": {"usd": 2900}, "per_charge": {"usd": 2900}}, False),
        ({"per_customer_daily": {"usd": 2900}, "monthly": {"usd": 2900}}, True),
        ({"daily": {"usd": 2900}}, True),
    ],
)
def test_a_charge_without_a_customer_is_no_way_around_a_cap_per_customer(
    caps: dict[str, Any], passes: bool
) -> None:
    some = one_key(**caps)
    command = some.intend("june")
    nobodys = replace(command, reading=replace(command.reading, customer=None))
    refusal = check_caps(some.snapshot, nobodys)
    assert (refusal is None) == passes
    if refusal is not None:
        assert refusal.code.value == "vault_key_not_authorized"
        assert "names no customer" in refusal.message


def test_sends_per_day_count_every_send_whatever_became_of_it() -> None:
    some = one_key(daily_charges=2)
    some.end(some.ask("june"), declined())
    some.end(some.ask("july", customer="cus_B2"), LOST)
    refused = some.ask("august", customer="cus_C3")
    assert told(refused) == "charge_count_exceeded"
    # The next day they begin anew.
    some.pass_time(86_400_000)
    assert told(some.ask("august", customer="cus_C3")) == "proceed as K"


def test_the_narrowest_kind_is_told_first_in_a_fixed_order() -> None:
    limits: dict[str, Any] = {
        "per_charge": {"usd": 50}, "daily_charges": 1, "daily": {"usd": 50},
        "monthly": {"usd": 50}, "per_customer_daily": {"usd": 50}, "ceiling": 50,
    }  # fmt: skip
    seen = []
    while limits:
        some = one_key(**limits)
        counts = windows_at(some.snapshot.now, LINEAGE, None, "usd").counts
        some.snapshot.windows[counts] = Window(counts, sends=1)
        refusal = check_caps(some.snapshot, some.intend(amount=51))
        assert refusal is not None
        seen.append(refusal.facts["cap_kind"])
        del limits[next(iter(limits))]
    assert seen == [
        "per charge", "daily_charges", "per key and day", "per key and month",
        "per customer and day", "account and day",
    ]  # fmt: skip


def test_a_settled_charge_and_its_refund_leave_the_cap_used() -> None:
    some = one_key(daily={"usd": 2900})
    some.end(some.ask("june"), made("ch_1"))
    assert told(some.ask("july", customer="cus_B2")) == "spend_cap_exceeded"
