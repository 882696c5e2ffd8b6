"""Caps: what a lineage, a customer and the account may still spend, and how declines count.

Floor: above policy and the snapshot, below decide and conclude. Pure. Every kind of cap is checked
against the same snapshot, in the transaction that reserves. Declines are counted per bill, whatever
its amount, and per lineage and day: too many in a day look like card testing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from kb_mcp.money import UNTOLD_CURRENCY, Money, format_money
from kb_mcp.proxy.access.policy import CapRules, RefundCapRules
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.records import Changes, Lineage, Operation, WindowKey
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import OperationWindows, resets_at, windows_of, windows_then
from kb_mcp.proxy.rules.command import Command
from kb_mcp.proxy.rules.operation_names import tally_of


def check_caps(
    snapshot: Snapshot, command: Command, holding: Operation | None = None
) -> Refusal | None:
    """Return the first cap that `command` would break, or None.

    Order: currency and per charge, sends and declines per day, key day, key month, customer day,
    account day. `left` in the facts is what the window still admits, in minor units. What
    `holding` holds already is no more to spend; a key that made it has counted its send, too.
    """
    windows = command.windows(snapshot.now)
    refused = check_amount_caps(snapshot, command) or _check_customer(command, windows)
    if refused is not None:
        return refused
    own: dict[WindowKey, int] = {}
    if holding is not None:
        own = dict.fromkeys(windows_of(holding).money(), holding.held)
    if holding is None or holding.lineage_id != command.lineage_id:
        counted = _check_counts(snapshot, command, windows)
        if counted is not None:
            return counted
    return _check_windows(snapshot, command, windows, own)


def check_amount_caps(snapshot: Snapshot, command: Command) -> Refusal | None:
    """Return the cap that `command` breaks whatever was spent before: its currency, its amount."""
    money, tables = command.money, caps_of(command).tables()
    for limits in (*tables, _ceilings(snapshot, command)):
        if limits and money.currency not in limits:
            return currency_refused(money.currency, limits)
    most = tables[0].get(money.currency)
    if most is not None and money.amount > most:
        return _exceeded(command, most, most, None)
    return None


def caps_of(command: Command) -> CapRules | RefundCapRules:
    """Return the caps that hold `command`."""
    return command.policy.caps if command.refund is None else command.policy.refund_caps


def _ceilings(snapshot: Snapshot, command: Command) -> Mapping[str, int]:
    settings = snapshot.settings
    return settings.ceilings if command.refund is None else settings.refund_ceilings


def _check_customer(command: Command, windows: OperationWindows) -> Refusal | None:
    """Refuse what names no customer where caps per customer are all that bound the key."""
    caps = caps_of(command)
    if windows.customer_day is not None or caps.daily or caps.monthly:
        return None
    if not caps.per_customer_daily:
        return None
    reason = "only caps per customer bound it, and this names no customer"
    return refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason=reason)


def _check_counts(
    snapshot: Snapshot, command: Command, windows: OperationWindows
) -> Refusal | None:
    kind, code = "daily_charges", Code.CHARGE_COUNT_EXCEEDED
    limit = command.policy.daily_charges
    if command.refund is not None:
        kind, code = "daily_refunds", Code.REFUND_COUNT_EXCEEDED
        limit = command.policy.daily_refunds
    if limit is None or snapshot.window(windows.counts).sends < limit:
        return None
    facts: dict[str, Fact] = {
        "cap": limit,
        "cap_kind": kind,
        "window": "day",
        "left": 0,
        "resets_at": resets_at(windows.counts),
    }
    return refuse(code, facts=facts)


def _check_windows(
    snapshot: Snapshot, command: Command, windows: OperationWindows, own: Mapping[WindowKey, int]
) -> Refusal | None:
    money = command.money
    for kind, key, limits in _limits(snapshot, command, windows):
        limit = limits.get(money.currency)
        if limit is None:
            continue
        window = snapshot.window(key)
        left = max(limit - window.reserved - window.settled + own.get(key, 0), 0)
        if money.amount > left:
            return _exceeded(command, limit, left, key, kind)
    return None


def _limits(
    snapshot: Snapshot, command: Command, windows: OperationWindows
) -> Iterator[tuple[str, WindowKey, Mapping[str, int]]]:
    caps = caps_of(command)
    yield "per key and day", windows.key_day, caps.daily
    yield "per key and month", windows.key_month, caps.monthly
    if windows.customer_day is not None:
        yield "per customer and day", windows.customer_day, caps.per_customer_daily
    yield "account and day", windows.account_day, _ceilings(snapshot, command)


def _exceeded(
    command: Command, limit: int, left: int, window: WindowKey | None, kind: str | None = None
) -> Refusal:
    """Refuse by the cap `kind`, or by the one of a single charge or refund."""
    money = command.money
    act = "charge" if command.refund is None else "refund"
    code = Code.SPEND_CAP_EXCEEDED if command.refund is None else Code.REFUND_CAP_EXCEEDED
    kind = kind or f"per {act}"
    facts: dict[str, Fact] = {
        "cap": limit,
        "cap_kind": kind,
        "window": act if window is None else window.window,
        "left": left,
        "currency": money.currency,
        "amount": money.amount,
    }
    then = "ask an operator"
    if window is not None:
        facts |= {"window_start": window.start, "resets_at": resets_at(window)}
        # More than the whole cap is too much on the next day, too.
        then += f", or wait until {facts['resets_at']}" if money.amount <= limit else ""
    return refuse(
        code,
        facts=facts,
        window=kind,
        cap=format_money(Money(limit, money.currency)),
        left=format_money(Money(left, money.currency)),
        then=then,
    )


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
    tally = snapshot.tally(tally_of(operation))
    counted = replace(
        tally,
        declines=tally.declines + 1,
        last_declined_at=snapshot.now,
        last_operation=operation.id,
    )
    today = snapshot.window(windows_then(operation, snapshot.now).counts)
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
