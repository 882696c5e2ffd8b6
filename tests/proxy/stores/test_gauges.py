"""What a scrape asks the stores, held over SQLite and PostgreSQL alike."""

from __future__ import annotations

import json

from msgspec.structs import replace

from kb_mcp.proxy.ledger import (
    AuditDraft,
    Changes,
    KeyId,
    Lineage,
    LineageId,
    State,
    VaultKey,
    Window,
    WindowKey,
)
from kb_mcp.proxy.ops.gauges import KeyCounts
from tests.proxy.stores.conftest import Open, Run
from tests.proxy.stores.test_conformance import KEY, operation, write

# The first of a month: its day and its month begin on the same date.
DAY = MONTH = "2026-11-01"
NOW = 1_000


def key(name: str, **changed: object) -> VaultKey:
    caps = {"daily": {"usd": 1_000}, "monthly": {"usd": 10_000}}
    made = replace(
        KEY, id=KeyId(name), lineage_id=LineageId(name), policy=json.dumps({"caps": caps})
    )
    return replace(made, **changed)


def window(name: str, kind: str, held: int, start: str = DAY, currency: str = "usd") -> Window:
    settled = held // 2
    return Window(WindowKey("key", name, kind, start, currency), held - settled, settled)


def test_keys_are_counted_by_what_they_may_do(open_one: Open, run: Run) -> None:
    keys = (
        key("serves"), key("frozen"), key("expired", expires_at=NOW),
        key("later", expires_at=NOW + 1), key("revoked", revoked_at=1, expires_at=1),
        key("old", rotated_to=KeyId("serves")),
    )  # fmt: skip
    lineages = [Lineage(each.lineage_id) for each in keys if each.id != "frozen"]
    frozen = Lineage(LineageId("frozen"), 5, "declines")
    store = open_one()
    run(write(store, Changes(keys=keys, lineages=(*lineages, frozen))))
    found = set(run(store.records.key_counts(NOW)))
    assert found == {
        KeyCounts("active", False, 2), KeyCounts("active", True, 1), KeyCounts("frozen", False, 1),
        KeyCounts("expired", False, 1), KeyCounts("revoked", False, 1),
    }  # fmt: skip


def test_the_fullest_keys_come_first_whatever_their_amounts_are(open_one: Open, run: Run) -> None:
    store = open_one()
    large = {"caps": {"daily": {"usd": 10**15}}}
    keys = (
        key("idle"), key("day"), key("month"), key("ended", revoked_at=1), key("free", policy="{}"),
        key("rotated", rotated_to=KeyId("day")), key("large", policy=json.dumps(large)),
    )  # fmt: skip
    windows = (
        window("day", "day", 900), window("day", "month", 900), window("month", "month", 9_500),
        window("month", "day", 100, "2026-10-31"), window("free", "day", 99_999_999_999),
        window("large", "day", 99_999_999_999_999), window("idle", "day", 7, currency=""),
        window("rotated", "day", 1_000),
    )  # fmt: skip
    lineages = tuple(Lineage(each.lineage_id) for each in keys)
    run(write(store, Changes(keys=keys, lineages=lineages, windows=windows)))
    found = run(store.records.fullest_keys(DAY, MONTH, NOW, 10))
    assert found == ["month", "day", "large", "free", "idle", "ended"]
    assert run(store.records.fullest_keys(DAY, MONTH, NOW, 2)) == ["month", "day"]


def test_the_spend_of_keys_is_that_of_the_running_windows(open_one: Open, run: Run) -> None:
    store = open_one()
    keys = (key("idle"), key("ended", revoked_at=1), key("other"))
    windows = (
        window("ended", "day", 900), window("ended", "month", 901), window("other", "day", 5),
        window("ended", "day", 7, "2026-10-31"), window("ended", "day", 8, currency=""),
    )  # fmt: skip
    lineages = tuple(Lineage(each.lineage_id) for each in keys)
    run(write(store, Changes(keys=keys, lineages=lineages, windows=windows)))
    asked = store.records.spend_of_keys([KeyId("idle"), KeyId("ended")], DAY, MONTH, NOW)
    found = {each.key_id: each for each in run(asked)}
    assert (found["idle"].serves, found["idle"].windows) == (True, [])
    assert found["idle"].caps.daily == {"usd": 1_000}
    assert not found["ended"].serves
    assert sorted(found["ended"].windows, key=lambda each: each.settled) == list(windows[:2])
    assert found.keys() == {"idle", "ended"}


def test_operations_without_an_end_are_counted_by_state(open_one: Open, run: Run) -> None:
    store = open_one()
    states = (State.UNKNOWN, State.UNKNOWN, State.RESERVED, State.SUCCEEDED, State.FAILED)
    rows = tuple(operation(number, state=state) for number, state in enumerate(states))
    run(write(store, Changes(operations=rows)))
    assert run(store.records.open_operations()) == {"unknown": 2, "reserved": 1}


def test_audit_rows_are_counted_once_however_many_are_asked_for(open_one: Open, run: Run) -> None:
    store = open_one()
    assert store.records.newest_row() == 0
    drafts = [AuditDraft(kind="admin", decision="x" if number % 2 else None) for number in range(5)]
    for draft in drafts:
        run(write(store, Changes(audit=(draft,))))
    place, counts = 0, list[dict[tuple[str, str, str], int]]()
    for _ in range(4):
        found = run(store.records.audit_counts(place, 2))
        place = found.last_row
        counts.append(dict(found.counts))
    one_each = {("admin", "", ""): 1, ("admin", "x", ""): 1}
    assert counts == [one_each, one_each, {("admin", "", ""): 1}, {}]
    assert place == store.records.newest_row()
