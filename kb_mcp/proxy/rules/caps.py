"""Caps: what a lineage, a customer and the account may still spend, and how declines count.

Floor: above policy and the snapshot, below decide and conclude. Pure. Every kind of cap is checked
against the same snapshot, in the transaction that reserves. Declines are counted per bill, whatever
its amount, and per lineage and day: too many in a day look like card testing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from msgspec.structs import replace

from kb_mcp.money import UNTOLD_CURRENCY, Money, format_money
from kb_mcp.proxy.access.policy import CapRules, RefundCapRules
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.records import Changes, Lineage, Operation, Tally, WindowKey
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import OperationWindows, resets_at, windows_of, windows_then
from kb_mcp.proxy.rules.command import Command
from kb_mcp.proxy.rules.operation_names import tally_of


class _Bounds(NamedTuple):
    """What bounds charges, or refunds: amounts by currency in minor units, and sends in a day."""

    act: str
    caps: CapRules | RefundCapRules
    ceilings: Mapping[str, int]
    sends_max: int | None
    exceeded: Code
    too_many: Code


def _bounds_of(snapshot: Snapshot, command: Command) -> _Bounds:
    policy, settings = command.policy, snapshot.settings
    if command.refund is None:
        codes = (Code.SPEND_CAP_EXCEEDED, Code.CHARGE_COUNT_EXCEEDED)
        return _Bounds("charge", policy.caps, settings.ceilings, policy.daily_charges, *codes)
    codes = (Code.REFUND_CAP_EXCEEDED, Code.REFUND_COUNT_EXCEEDED)
    ceilings = settings.refund_ceilings
    return _Bounds("refund", policy.refund_caps, ceilings, policy.daily_refunds, *codes)


def check_amount_caps(snapshot: Snapshot, command: Command) -> Refusal | None:
    """Return the cap that `command` breaks whatever was spent before: its currency, its amount."""
    money, bounds = command.money, _bounds_of(snapshot, command)
    tables = bounds.caps.tables()
    for limits in (*tables, bounds.ceilings):
        if limits and money.currency not in limits:
            return currency_refused(money.currency, limits)
    most = tables[0].get(money.currency)
    if most is not None and money.amount > most:
        return _exceeded(bounds, money, most, most)
    return None


def check_caps(
    snapshot: Snapshot, command: Command, holding: Operation | None = None
) -> Refusal | None:
    """Return the first cap that `command` would break, or None.

    Order: currency and per charge, sends and declines per day, key day, key month, customer day,
    account day. `left` in the facts is what the window still admits, in minor units. What
    `holding` holds already is no more to spend; a key that made it has counted its send, too.
    """
    money, windows = command.money, command.windows(snapshot.now)
    bounds = _bounds_of(snapshot, command)
    refused = check_amount_caps(snapshot, command) or _check_customer(bounds.caps, windows)
    if refused is not None:
        return refused
    if holding is None or holding.lineage_id != command.lineage_id:
        most = bounds.sends_max
        if most is not None and snapshot.window(windows.counts).sends >= most:
            return _too_many(bounds, most, windows.counts)
    own = {} if holding is None else dict.fromkeys(windows_of(holding).money(), holding.held)
    for kind, key, limits in _limits(bounds, windows):
        limit = limits.get(money.currency)
        if limit is None:
            continue
        window = snapshot.window(key)
        left = max(limit - window.reserved - window.settled + own.get(key, 0), 0)
        if money.amount > left:
            return _exceeded(bounds, money, limit, left, key, kind)
    return None


def _check_customer(caps: CapRules | RefundCapRules, windows: OperationWindows) -> Refusal | None:
    """Refuse what names no customer where caps per customer are all that bound the key."""
    if windows.customer_day or caps.daily or caps.monthly or not caps.per_customer_daily:
        return None
    reason = "only caps per customer bound it, and this names no customer"
    return refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason=reason)


def _limits(
    bounds: _Bounds, windows: OperationWindows
) -> Iterator[tuple[str, WindowKey, Mapping[str, int]]]:
    caps = bounds.caps
    yield "per key and day", windows.key_day, caps.daily
    yield "per key and month", windows.key_month, caps.monthly
    if windows.customer_day is not None:
        yield "per customer and day", windows.customer_day, caps.per_customer_daily
    yield "account and day", windows.account_day, bounds.ceilings


def _too_many(bounds: _Bounds, limit: int, counts: WindowKey) -> Refusal:
    facts: dict[str, Fact] = {
        "cap": limit,
        "cap_kind": f"daily_{bounds.act}s",
        "window": "day",
        "left": 0,
        "resets_at": resets_at(counts),
    }
    return refuse(bounds.too_many, facts=facts)


def _exceeded(
    bounds: _Bounds,
    money: Money,
    limit: int,
    left: int,
    window: WindowKey | None = None,
    kind: str | None = None,
) -> Refusal:
    """Refuse by the cap `kind`, or by the one of a single charge or refund."""
    kind = kind or f"per {bounds.act}"
    facts: dict[str, Fact] = {
        "cap": limit,
        "cap_kind": kind,
        "window": bounds.act if window is None else window.window,
        "left": left,
        "currency": money.currency,
        "amount": money.amount,
    }
    then = "ask an operator"
    if window is not None:
        facts |= {"window_start": window.start, "resets_at": resets_at(window)}
        # More than the whole cap is too much on the next day, too.
        then += f", or wait until {facts['resets_at']}" if money.amount <= limit else ""
    cap, rest = (format_money(Money(each, money.currency)) for each in (limit, left))
    return refuse(bounds.exceeded, facts=facts, window=kind, cap=cap, left=rest, then=then)


def currency_refused(currency: str, limits: Mapping[str, int]) -> Refusal:
    """Refuse a currency for which `limits`, given by currency, have none."""
    if currency == UNTOLD_CURRENCY:
        return refuse(Code.AMOUNT_NOT_METERED)
    facts: dict[str, Fact] = {"currency": currency, "allowed": tuple(sorted(limits))}
    return refuse(
        Code.CURRENCY_NOT_ALLOWED, param="currency", facts=facts, allowed=", ".join(sorted(limits))
    )


def count_decline(snapshot: Snapshot, operation: Operation, daily_declines: int) -> Changes:
    """Count one decline of `operation`; past `daily_declines` its lineage freezes."""
    now, tally = snapshot.now, snapshot.tally(tally_of(operation))
    counted = Tally(tally.key, tally.declines + 1, now, operation.id)
    today = snapshot.window(windows_then(operation, now).counts)
    today = replace(today, declines=today.declines + 1)
    too_many = today.declines >= daily_declines
    lineages = (freeze(snapshot, operation, "too many declines"),) if too_many else ()
    return Changes(tallies=(counted,), windows=(today,), lineages=lineages)


def freeze(snapshot: Snapshot, operation: Operation, reason: str) -> Lineage:
    """Return the lineage of `operation`, frozen; an older reason stands."""
    lineage = snapshot.lineage(operation.lineage_id)
    if lineage.frozen_at is not None:
        return lineage
    return replace(lineage, frozen_at=snapshot.now, frozen_reason=reason)
