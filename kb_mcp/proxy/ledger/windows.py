"""Windows of time and what they hold: UTC days and calendar months, in integer milliseconds.

Floor: beside the records. Pure. A reservation counts in the windows of the moment at which it
was made, for good.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import date, timedelta
from functools import lru_cache

from msgspec import Struct
from msgspec.structs import astuple, replace

from kb_mcp.instants import day_of
from kb_mcp.proxy.ledger.records import LineageId, Operation, Window, WindowKey
from kb_mcp.proxy.ledger.snapshot import Snapshot

REFUNDS = "_refunds"  # ends the scope of a window of refunds


class OperationWindows(Struct, frozen=True):
    """The windows one operation counts in, in lock order; `counts` holds sends and declines."""

    account_day: WindowKey
    key_day: WindowKey
    key_month: WindowKey
    counts: WindowKey
    customer_day: WindowKey | None

    def all(self) -> tuple[WindowKey, ...]:
        """Return every window, money first, in the order in which stores lock them."""
        return tuple(key for key in astuple(self) if key is not None)

    def money(self) -> tuple[WindowKey, ...]:
        """Return the windows that hold money."""
        return tuple(key for key in self.all() if key.currency)


def windows_at(
    at_ms: int, lineage: LineageId, customer: str | None, currency: str, *, refunds: bool = False
) -> OperationWindows:
    """Return the windows of a reservation made at `at_ms`; `refunds` have windows of their own."""
    return _windows(day_of(at_ms), lineage, customer, currency, REFUNDS if refunds else "")


@lru_cache(maxsize=4096)
def _windows(
    day: date, lineage: LineageId, customer: str | None, currency: str, of: str
) -> OperationWindows:
    today, month = day.isoformat(), day.replace(day=1).isoformat()
    return OperationWindows(
        account_day=WindowKey(f"account{of}", "", "day", today, currency),
        key_day=WindowKey(f"key{of}", lineage, "day", today, currency),
        key_month=WindowKey(f"key{of}", lineage, "month", month, currency),
        counts=WindowKey(f"key{of}", lineage, "day", today, ""),
        customer_day=(
            None
            if customer is None
            else WindowKey(f"customer{of}", customer, "day", today, currency)
        ),
    )


def windows_of(operation: Operation) -> OperationWindows:
    """Return the windows in which `operation` was reserved."""
    return windows_then(operation, operation.reserved_at)


def windows_then(operation: Operation, at_ms: int) -> OperationWindows:
    """Return the windows in which `operation` would count if it were reserved at `at_ms`."""
    return windows_at(
        at_ms,
        operation.lineage_id,
        operation.customer,
        operation.currency,
        refunds=operation.gives_back is not None,
    )


def resets_at(window: WindowKey) -> str:
    """Return when `window` turns, RFC 3339 UTC."""
    start = date.fromisoformat(window.start)
    days = 1 if window.window == "day" else monthrange(start.year, start.month)[1]
    return f"{start + timedelta(days=days)}T00:00:00Z"


def count(
    snapshot: Snapshot, operation: Operation, *, reserved: int = 0, settled: int = 0, sends: int = 0
) -> tuple[Window, ...]:
    """Return the windows of `operation` with so much more in each: minor units, and sends."""
    windows = windows_of(operation)
    money = (
        replace(each, reserved=each.reserved + reserved, settled=each.settled + settled)
        for each in map(snapshot.window, windows.money())
    )
    counts = snapshot.window(windows.counts)
    return (*money, *([replace(counts, sends=counts.sends + sends)] if sends else []))


def release(snapshot: Snapshot, operation: Operation) -> tuple[Window, ...]:
    """Give the reservation of `operation` back."""
    return count(snapshot, operation, reserved=-operation.held)


def move(snapshot: Snapshot, before: Operation, after: Operation) -> tuple[Window, ...]:
    """Take what `before` holds out of its windows, and hold what `after` does in its own."""
    if before.held == after.held and windows_of(before) == windows_of(after):
        return ()
    changed: dict[WindowKey, Window] = {}
    for operation, sign in ((before, -1), (after, 1)):
        for key in windows_of(operation).money():
            window = changed.get(key) or snapshot.window(key)
            changed[key] = replace(window, reserved=window.reserved + sign * operation.held)
    return tuple(changed.values())
