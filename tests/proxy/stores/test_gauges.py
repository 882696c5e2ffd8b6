"""What a scrape and a page ask the stores, held over SQLite and PostgreSQL alike."""

from __future__ import annotations

import json

from msgspec.structs import replace

from kb_mcp.operators.reports.views import KEY_STATUSES
from kb_mcp.proxy.ledger.records import (
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
from kb_mcp.proxy.stores.gauges import KeyCounts
from kb_mcp.wiring.stores import Store
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


def test_keys_that_hold_money_under_no_cap_come_before_those_that_hold_none(
    open_one: Open, run: Run
) -> None:
    store = open_one()
    keys = (
        key("a-idle"),
        key("b-voided"),
        key("y-free", policy="{}"),
        key("z-ended", revoked_at=1),
    )
    windows = (
        window("b-voided", "day", 0),
        window("y-free", "day", 5),
        window("z-ended", "day", 10),
    )
    lineages = tuple(Lineage(each.lineage_id) for each in keys)
    run(write(store, Changes(keys=keys, lineages=lineages, windows=windows)))
    found = run(store.records.fullest_keys(DAY, MONTH, NOW, 3))
    assert found == ["z-ended", "y-free", "a-idle"]


def test_every_key_has_its_window_of_the_day_and_of_the_month(open_one: Open, run: Run) -> None:
    store, day = open_one(), "2026-11-26"
    newer = key("newer", created_at=2)
    older = key("older", created_at=1, lineage_id=newer.lineage_id, rotated_to=newer.id)
    windows = (
        window("newer", "day", 5, day),
        window("newer", "month", 7, currency="eur"),
        window("newer", "day", 9),  # of another day, which began with the month
        replace(window("newer", "day", 0, day, currency=""), sends=2),
    )
    lineages = (Lineage(newer.lineage_id),)
    run(write(store, Changes(keys=(older, newer), lineages=lineages, windows=windows)))
    keys = run(store.records.caps_of_keys())
    assert [(each.key_id, each.lineage_id, each.rotated) for each in keys] == [
        ("older", newer.lineage_id, True), ("newer", newer.lineage_id, False)
    ]  # fmt: skip
    assert {
        (tuple(each.caps.daily.items()), tuple(each.caps.monthly.items())) for each in keys
    } == {((("usd", 1_000),), (("usd", 10_000),))}
    assert run(store.records.held_of_keys("key", day, MONTH)) == {
        (newer.lineage_id, "day"): {"usd": (3, 2)},
        (newer.lineage_id, "month"): {"eur": (4, 3)},
    }


def paged(store: Store, run: Run, most: int = 10, **wanted: str) -> list[str]:
    return [each.id for each, _ in run(store.records.key_page(NOW, most, **wanted))]


def issued(store: Store, run: Run, *keys: VaultKey, frozen: str = "") -> None:
    lineages = tuple(
        Lineage(each.lineage_id, 5 if each.id == frozen else None, "declines") for each in keys
    )
    run(write(store, Changes(keys=keys, lineages=lineages)))


def test_keys_are_turned_over_a_page_at_a_time_newest_first(open_one: Open, run: Run) -> None:
    store = open_one()
    ages = {"old": 1, "b": 2, "a": 2, "c": 2, "new": 3}
    issued(store, run, *(key(name, created_at=at) for name, at in ages.items()))
    assert paged(store, run) == ["new", "c", "b", "a", "old"]
    seen, after = list[str](), dict[str, str]()
    while found := paged(store, run, 2, **after):
        seen, after = seen + found, {"after": found[-1]}
    assert seen == ["new", "c", "b", "a", "old"]
    assert paged(store, run, after="unheard-of") == []


def test_keys_are_found_by_their_id_and_by_parts_of_what_they_are_called(
    open_one: Open, run: Run
) -> None:
    store = open_one()
    keys = (
        key("k1", label="Night 100%", agent=None, role="billing"),
        key("k2", label=None, agent="nightly_owl", role="billing"),
        key("k3", label="day", agent="lark", role="NIGHT-shift"),
        key("k4", label=None, agent=None, role="support"),
    )  # fmt: skip
    issued(store, run, *keys)
    found = {
        text: set(paged(store, run, text=text))
        for text in ("k1", "k", "nIGHT", "0%", "%", "_", "billing", "none")
    }
    assert found == {
        "k1": {"k1"}, "k": {"k3"}, "nIGHT": {"k1", "k2", "k3"}, "0%": {"k1"}, "%": {"k1"},
        "_": {"k2"}, "billing": {"k1", "k2"}, "none": set(),
    }  # fmt: skip


def test_keys_are_found_by_their_status_as_they_are_counted(open_one: Open, run: Run) -> None:
    store = open_one()
    keys = (
        key("active", expires_at=NOW + 1), key("frozen"), key("expired", expires_at=NOW),
        key("revoked", revoked_at=1, expires_at=1),
    )  # fmt: skip
    issued(store, run, *keys, frozen="frozen")
    for status in KEY_STATUSES:
        assert paged(store, run, status=status) == [status]
    assert paged(store, run, status="unheard-of") == []
    assert paged(store, run, status="frozen", text="active") == []
    ((_, lineage),) = run(store.records.key_page(NOW, 1, status="frozen"))
    assert (lineage.frozen_at, lineage.frozen_reason) == (5, "declines")


def test_keys_are_read_by_their_ids_and_no_others(open_one: Open, run: Run) -> None:
    store = open_one()
    keys = (key("b", created_at=2), key("a", created_at=1), key("c", created_at=3))
    issued(store, run, *keys)
    found = run(store.records.keys_by_id(["b", "a", "b", "unheard-of"]))
    assert [each for each, _ in found] == [keys[1], keys[0]]
    assert [lineage.id for _, lineage in found] == ["a", "b"]
    assert run(store.records.keys_by_id([])) == []


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
    assert sorted(found["ended"].windows, key=lambda each: each.reserved) == list(windows[:2])
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
