"""Which guard rows are locked: everything that a decision depends on, in one global order."""

from __future__ import annotations

from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import (
    Bill,
    BilledPeriod,
    Changes,
    Lineage,
    LineageId,
    OperationId,
    Refs,
    State,
    Tally,
    Window,
    WindowKey,
)
from kb_mcp.proxy.ledger.snapshot import Operations, Snapshot, StoreSettings
from kb_mcp.proxy.ledger.windows import windows_at
from kb_mcp.proxy.stores.postgres.load import Guard, lock, locks_changed, locks_named
from tests.proxy.stores.test_conformance import LINEAGE, operation

NOVEMBER = BilledPeriod("cus_1", "", "2026-11", "2026-11-01", "2026-11-30")


def nobody(_: OperationId) -> None:
    """Know no operation yet."""


def kinds(locks: set[tuple[int, str]]) -> list[Guard]:
    return [Guard(kind) for kind, _ in sorted(locks)]


def changed(*, before: State | None, after: State) -> set[tuple[int, str]]:
    loaded = {} if before is None else {OperationId("op_1"): operation(state=before)}
    operations = Operations(loaded.values())
    snapshot = Snapshot(now=1, settings=StoreSettings("a", "test"), operations=operations)
    snapshot.apply(Changes(operations=(operation(state=after),)))
    return locks_changed(snapshot, loaded)


def test_a_charge_locks_from_the_widest_row_to_its_own() -> None:
    refs = Refs(
        lineages=frozenset({LINEAGE}), names=frozenset({"n"}),
        periods=frozenset({NOVEMBER}),
        bills=frozenset({Bill("cus_1", 2900, "usd", since=0)}),
        windows=frozenset(windows_at(0, LINEAGE, "cus_1", "usd").all()),
        tallies=frozenset({"cus_1|2026-11|"}),
    )  # fmt: skip
    assert kinds(locks_named([refs], nobody)) == [
        Guard.ACCOUNT_DAY, Guard.LINEAGE, Guard.CUSTOMER_DAY, Guard.REFERENCE, Guard.PERIOD,
        Guard.BILL, Guard.OPERATION,
    ]  # fmt: skip


def test_periods_that_share_days_share_the_row_of_customer_and_reference() -> None:
    quarter = BilledPeriod("cus_1", "", "2026-Q4", "2026-10-01", "2026-12-31")
    one, other = (locks_named([Refs(periods=frozenset({each}))], nobody)
                  for each in (NOVEMBER, quarter))  # fmt: skip
    assert kinds(one & other) == [Guard.REFERENCE]
    seat = replace(quarter, reference="seat-2")
    assert not one & locks_named([Refs(periods=frozenset({seat}))], nobody)


def test_an_operation_named_by_its_id_is_locked_by_its_name_once_that_is_known() -> None:
    refs = Refs(operations=frozenset({OperationId("op_1")}))
    assert locks_named([refs], nobody) == set()
    known: dict[OperationId, tuple[str, LineageId]] = {OperationId("op_1"): ("name_1", LINEAGE)}
    assert locks_named([refs], known.get) == {
        lock(Guard.OPERATION, "name_1"), lock(Guard.LINEAGE, LINEAGE)
    }  # fmt: skip


def test_a_tally_without_a_period_is_its_operations() -> None:
    refs = Refs(tallies=frozenset({"name|n"}))
    assert locks_named([refs], nobody) == {lock(Guard.OPERATION, "n")}


def test_what_becomes_live_must_hold_the_guards_that_it_occupies() -> None:
    assert kinds(changed(before=None, after=State.RESERVED)) == [
        Guard.LINEAGE, Guard.REFERENCE, Guard.PERIOD, Guard.BILL, Guard.OPERATION
    ]  # fmt: skip
    assert Guard.PERIOD in kinds(changed(before=State.FAILED, after=State.RESERVED))
    assert kinds(changed(before=State.RESERVED, after=State.SUCCEEDED)) == [
        Guard.LINEAGE, Guard.OPERATION
    ]  # fmt: skip
    assert Guard.BILL not in kinds(changed(before=State.RESERVED, after=State.FAILED))


def test_every_changed_row_needs_the_guard_that_stands_for_it() -> None:
    snapshot = Snapshot(now=1, settings=StoreSettings("a", "test"))
    account = WindowKey("account", "", "day", "2026-11-24", "usd")
    customer = replace(account, scope="customer", scope_id="cus_1")
    key = replace(account, scope="key", scope_id="lin_2")
    snapshot.apply(
        Changes(
            windows=(Window(account), Window(customer), Window(key)),
            tallies=(Tally("cus_1|2026-11|"),),
            lineages=(Lineage(LineageId("lin_3")),),
        )
    )
    assert locks_changed(snapshot, {}) == {
        lock(Guard.ACCOUNT_DAY, "2026-11-24", "usd"),
        lock(Guard.CUSTOMER_DAY, "cus_1", "2026-11-24", "usd"),
        lock(Guard.LINEAGE, "lin_2"),
        lock(Guard.LINEAGE, "lin_3"),
        lock(Guard.PERIOD, "cus_1|2026-11|"),
    }


def test_parts_that_read_alike_when_joined_are_different_rows() -> None:
    assert lock(Guard.BILL, "cus_1", 29, "usd") != lock(Guard.BILL, "cus_12", 9, "usd")
