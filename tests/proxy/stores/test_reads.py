"""What people and recovery read of a store, held over SQLite and PostgreSQL alike."""

from __future__ import annotations

from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import (
    AttemptOutcome,
    AuditDraft,
    Changes,
    Lineage,
    OperationId,
    State,
    Window,
)
from tests.proxy.stores.conftest import Open, Run
from tests.proxy.stores.test_conformance import DAY, KEY, LINEAGE, attempt, operation, write


def test_people_find_operations_keys_windows_and_approvals(open_one: Open, run: Run) -> None:
    store = open_one()
    rows = (operation(1), operation(2, state=State.UNKNOWN, next_read_at=50, customer="cus_2"),
            operation(3, state=State.RESERVED), operation(4, next_read_at=200, answer=b"x",
                                                          final=True))  # fmt: skip
    again = replace(attempt(), number=2, upstream_key="k_1-2", object_id=None)
    tried = (attempt(), replace(again, outcome=AttemptOutcome.OPEN))
    run(write(store, Changes(operations=rows, attempts=tried, keys=(KEY,),
                             lineages=(Lineage(LINEAGE),), windows=(Window(DAY, 5),))))  # fmt: skip
    records = store.records
    listed = run(records.operations(limit=3))
    assert [found.id for found, _ in listed] == ["op_4", "op_3", "op_2"]
    (found, attempts), = run(records.operations(charge_id="ch_1"))  # fmt: skip
    assert (found.id, [each.number for each in attempts]) == ("op_1", [1, 2])
    assert [o.id for o, _ in run(records.operations(state="unknown", customer_id="cus_2"))] == [
        "op_2"
    ]
    assert set(run(records.ids("to_recover", now=100, most=10))) == {"op_2", "op_3"}
    assert run(records.ids("answered_before", before=100, most=10)) == ["op_4"]
    assert run(records.windows(scope="key", starts=("2026-11-24",))) == [Window(DAY, 5)]
    assert run(records.windows(scope_id="nobody")) == []
    assert run(records.keys()) == [(KEY, Lineage(LINEAGE))]
    assert run(records.approvals()) == []
    assert run(records.ping())


def test_a_reader_of_the_audit_goes_on_where_it_stopped(open_one: Open, run: Run) -> None:
    store = open_one()
    for number in range(4):
        run(write(store, Changes(audit=(AuditDraft(kind="admin", note=str(number)),))))
    assert [row["note"] for row in store.records.audit(after_row=0)] == ["0", "1", "2", "3"]
    first, second = list(store.records.audit(limit=2))
    assert [row["note"] for row in store.records.audit(after_row=second["row"])] == ["2", "3"]
    newest = list(store.records.audit(limit=1, newest_first=True))
    assert [row["note"] for row in newest] == ["3"]
    assert store.records.hash_at(store.node, 1) == first["hash"]
    assert store.records.hash_at(store.node, 9) is None


def test_pages_of_operations_meet_though_many_were_made_at_once(open_one: Open, run: Run) -> None:
    store = open_one()
    rows = tuple(operation(number, created_at=number // 4) for number in range(10))
    run(write(store, Changes(operations=rows)))
    whole = [found.id for found, _ in run(store.records.operations())]
    page = run(store.records.operations(limit=3))
    paged = list[OperationId]()
    while page:
        assert len(page) <= 3
        paged += [found.id for found, _ in page]
        page = run(store.records.operations(limit=3, after=paged[-1]))
    assert paged == whole
    assert len(whole) == len(rows)
