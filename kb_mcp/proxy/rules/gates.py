"""Gates: what stands before every send of a vault key: the key itself, approvals and caps.

Floor: above policy and the snapshot, below reserve and conclude. Pure. A first send passes through
`reserve.check`; a send of what is held already, by its own key or another, passes through
`check_send`. What is held stays in the windows in which it was reserved: nothing is counted twice.

Each request has an approval of its own: another amount, currency or payment method neither replaces
nor uses one that waits or was given. An approval is used once and expires; the number that may wait
for each lineage is bounded, so that one key cannot bury an operator. Declines are counted per bill,
whatever its amount, and per lineage and day: too many in a day look like card testing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qs

from msgspec.structs import replace

from kb_mcp.instants import rfc3339
from kb_mcp.money import UNTOLD_CURRENCY, Money, format_money
from kb_mcp.proxy.access.authorize import check_hours
from kb_mcp.proxy.access.policy import CapRules, RefundCapRules
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.records import (
    HOLDING,
    Approval,
    Attempt,
    Changes,
    Lineage,
    Operation,
    State,
    Tally,
    WindowKey,
)
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import resets_at, windows_of, windows_then
from kb_mcp.proxy.rules.command import Command, Refuse
from kb_mcp.proxy.rules.operation_names import tally_of
from kb_mcp.proxy.stripe.interpret import PAYMENT_FIELDS

APPROVAL_LASTS_MS = 24 * 3_600_000
OUTSTANDING_MAX = 20
_KEEPS_ROWS = frozenset({State.VOIDED, State.SUCCEEDED, *HOLDING})
_THEN = {
    "pending": "send the same request again after it was approved",
    "denied": "an operator denied it, so do not send it again",
}


def check_key(snapshot: Snapshot, command: Command) -> Refusal | None:
    """Return why the key of `command`, which is alive, may not send now, or None."""
    lineage = snapshot.lineage(command.lineage_id)
    if lineage.frozen_at is not None:
        reason = lineage.frozen_reason or "an operator must look"
        return refuse(Code.VAULT_KEY_FROZEN, reason=reason)
    return check_hours(command.policy, snapshot.now)


def check_send(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> Refuse | Changes:
    """Say whether the sender may send on what `operation` holds already.

    `keep` is the attempt that is sent again. Another lineage than the one that reserved must have
    been allowed to reserve it, too. An approval that it needs, and has, is in the answer.
    """
    refused = check_key(snapshot, command)
    if refused is not None:
        return Refuse(refused, operation)
    amount = max(operation.amount, operation.held, command.money.amount)
    whole = replace(command, money=Money(amount, operation.currency))
    approval = check_approval(snapshot, whole, operation, keep, held=True)
    if isinstance(approval, Refuse):
        return approval
    own = operation.lineage_id == command.lineage_id
    over = check_amount_caps(snapshot, whole) if own else check_caps(snapshot, whole, operation)
    return approval if over is None else Refuse(over, operation)


def check_cancel(snapshot: Snapshot, command: Command, operation: Operation) -> Refusal | None:
    """Return why the sender may not cancel the object of `operation`, or None.

    A cancel only releases, so that a frozen key may cancel what its own lineage reserved.
    """
    if operation.lineage_id == command.lineage_id:
        return check_hours(command.policy, snapshot.now)
    money = Money(max(operation.amount, operation.held), operation.currency)
    whole = replace(command, money=money)
    return check_key(snapshot, command) or check_amount_caps(snapshot, whole)


def check_approval(
    snapshot: Snapshot,
    command: Command,
    operation: Operation,
    keep: Attempt | None,
    *,
    held: bool = False,
) -> Refuse | Changes:
    """Say whether `command` may be sent, by an operator's leave where it needs one.

    Return the approval that is used up, if one is needed; or a refusal, with the new approval that
    an operator is asked for by it, if any. `keep` is the attempt whose stored request is sent,
    rather than that of `command`. `held` says that `operation` holds it already: the approval
    under which it was reserved covers that, and another lineage needs its own.
    """
    above = _above(command)
    if above is False:
        return Changes()
    wanted = _wanted(snapshot, command, operation, keep)
    given = snapshot.approvals_of(operation, command.lineage_id)
    if held and any(_reserved_under(each, wanted) for each in given):
        return Changes()
    known = snapshot.operations.get(operation.id)
    if isinstance(above, Refusal):
        return Refuse(above, known)
    for each in given:
        if each.state != "used" and snapshot.now < each.expires_at and _same(each, wanted):
            if each.state == "approved":
                return Changes(approvals=(replace(each, state="used"),))
            return Refuse(_required(each), known)
    if snapshot.outstanding_approvals.get(wanted.lineage_id, 0) >= OUTSTANDING_MAX:
        too_many = refuse(
            Code.APPROVAL_REQUIRED,
            facts={"outstanding": OUTSTANDING_MAX},
            approval="none asked for: too many wait for an operator already",
            then="send it again once operators have decided some of those that wait",
        )
        return Refuse(too_many, known)
    return Refuse(_required(wanted), operation, _asking(snapshot, command, operation, wanted))


def _asking(snapshot: Snapshot, command: Command, operation: Operation, asked: Approval) -> Changes:
    """Return the rows of an approval that an operator is asked for."""
    waiting = replace(operation, approval_id=asked.id, updated_at=snapshot.now)
    # A voided operation keeps its rows, one to go on with what it holds; others hold nothing.
    if operation.state not in _KEEPS_ROWS or operation.id == command.fresh_id:
        asks = command.asks() if command.continues is None else {}
        state = State.AWAITING_APPROVAL
        waiting = replace(waiting, **asks, state=state, held=0, code="approval_required")
    return Changes(operations=(waiting,), approvals=(asked,))


def _above(command: Command) -> bool | Refusal:
    """Say whether the amount is above the limit of its currency; one without a limit is refused."""
    policy, currency = command.policy, command.money.currency
    limits = policy.approval_above if command.refund is None else policy.refund_approval_above
    if limits and currency not in limits:
        return currency_refused(currency, limits)
    return bool(limits) and command.money.amount > limits[currency]


def _wanted(
    snapshot: Snapshot, command: Command, operation: Operation, keep: Attempt | None
) -> Approval:
    """Return the approval that this request would need, as it would be asked for now."""
    reading, gives_back = command.reading, None
    if command.refund is not None:
        gives_back = command.refund.charge
    elif command.invoice is not None:
        gives_back = command.invoice.invoice
    return Approval(
        id=command.fresh_approval_id,
        operation_id=operation.id,
        lineage_id=command.lineage_id,
        key_id=command.key_id,
        endpoint=reading.route.endpoint,
        customer=reading.customer,
        amount=command.money.amount,
        currency=command.money.currency,
        period=None if reading.period is None else reading.period.label,
        reference=reading.reference,
        payment_method=reading.payment_method if keep is None else _sent_with(keep),
        destination=reading.destination,
        gives_back=gives_back,
        fingerprint=command.fingerprint,
        state="pending",
        expires_at=snapshot.now + APPROVAL_LASTS_MS,
        created_at=snapshot.now,
    )


def _sent_with(attempt: Attempt) -> str | None:
    """Return the payment method in the stored request of `attempt`."""
    form = parse_qs(attempt.body.decode("utf-8", "replace"))
    return next((form[name][0] for name in PAYMENT_FIELDS if name in form), None)


def _same(held: Approval, wanted: Approval) -> bool:
    """Say whether `held` is about this very request; its fingerprint covers all the rest."""
    named = ("fingerprint", "endpoint", "amount", "currency", "payment_method")
    return all(getattr(held, name) == getattr(wanted, name) for name in named)


def _reserved_under(held: Approval, wanted: Approval) -> bool:
    """Say whether `held` was used up by what the operation holds now."""
    enough = held.currency == wanted.currency and held.amount >= wanted.amount
    same_method = wanted.payment_method in {None, held.payment_method}
    return held.state == "used" and enough and same_method


def _required(approval: Approval) -> Refusal:
    facts: dict[str, Fact] = {
        "approval": approval.id,
        "state": approval.state,
        "operation": approval.operation_id,
        "expires_at": rfc3339(approval.expires_at),
    }
    shown = f"{approval.id}, {approval.state}"
    return refuse(Code.APPROVAL_REQUIRED, facts=facts, approval=shown, then=_THEN[approval.state])


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
        return _exceeded(bounds, money, most, most, None, f"per {bounds.act}")
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
    if (refused := check_amount_caps(snapshot, command)) is not None:
        return refused
    caps, most = bounds.caps, bounds.sends_max
    if caps.per_customer_daily and not (windows.customer_day or caps.daily or caps.monthly):
        reason = "only caps per customer bound it, and this names no customer"
        return refuse(Code.VAULT_KEY_NOT_AUTHORIZED, reason=reason)
    counted = holding is not None and holding.lineage_id == command.lineage_id
    if most is not None and not counted and snapshot.window(windows.counts).sends >= most:
        facts: dict[str, Fact] = {"cap": most, "cap_kind": f"daily_{bounds.act}s", "window": "day"}
        facts |= {"left": 0, "resets_at": resets_at(windows.counts)}
        return refuse(bounds.too_many, facts=facts)
    own = {} if holding is None else dict.fromkeys(windows_of(holding).money(), holding.held)
    for kind, key, limits in (
        ("per key and day", windows.key_day, caps.daily),
        ("per key and month", windows.key_month, caps.monthly),
        ("per customer and day", windows.customer_day, caps.per_customer_daily),
        ("account and day", windows.account_day, bounds.ceilings),
    ):
        limit = limits.get(money.currency)
        if key is None or limit is None:
            continue
        window = snapshot.window(key)
        left = max(limit - window.reserved - window.settled + own.get(key, 0), 0)
        if money.amount > left:
            return _exceeded(bounds, money, limit, left, key, kind)
    return None


def _exceeded(
    bounds: _Bounds, money: Money, limit: int, left: int, window: WindowKey | None, kind: str
) -> Refusal:
    """Refuse by the cap `kind`; that of a single charge or refund has no `window`."""
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
    allowed, code = tuple(sorted(limits)), Code.CURRENCY_NOT_ALLOWED
    facts: dict[str, Fact] = {"currency": currency, "allowed": allowed}
    return refuse(code, param="currency", facts=facts, allowed=", ".join(allowed))


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
