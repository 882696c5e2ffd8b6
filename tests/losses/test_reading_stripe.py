"""What a start and an hour do while Stripe's lists cannot be read, or are long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from kb_mcp.proxy.store_walk import LOOK_BACK_AT_START_MS, LostObjects, Whole
from kb_mcp.settings import load_settings
from kb_mcp.wiring.proxy import Proxy, UpstreamKeyError
from kb_mcp.wiring.upstream import build_sandbox
from tests.losses.elsewhere import in_test_mode
from tests.losses.host import BEHIND, Host
from tests.proxy.stores.conftest import run

__all__ = ["run"]

Run = Callable[[Any], Any]
LISTS = {
    "/v1/charges": "Charges: Read",
    "/v1/payment_intents": "PaymentIntents: Read",
    "/v1/refunds": "Refunds: Read",
}


@pytest.fixture
def testing(host: Host) -> Iterator[Host]:
    with in_test_mode(host) as built:
        yield built


def fault(host: Host, kind: str, path: str, times: int = 1) -> None:
    host.steer("faults", [{"match": f"GET {path}", "kind": kind, "times": times}])


@pytest.mark.parametrize("path", LISTS)
def test_a_list_that_the_key_may_not_read_refuses_the_start_and_names_the_permission(
    testing: Host, path: str
) -> None:
    token = testing.token()
    # The time is read from the list of charges first.
    fault(testing, "403", path, times=2 if path == "/v1/charges" else 1)
    with pytest.raises(UpstreamKeyError, match=LISTS[path]):
        testing.charge(token, "2026-11")
    assert testing.charge(token, "2026-11").status_code == 200


def test_a_key_that_stripe_refuses_does_not_start(testing: Host) -> None:
    token = testing.token()
    fault(testing, "401", "/v1/charges", times=2)
    with pytest.raises(UpstreamKeyError, match="wrong, expired or revoked"):
        testing.charge(token, "2026-11")


@pytest.mark.parametrize("kind", ["500_before", "drop_before"])
@pytest.mark.parametrize("path", LISTS)
def test_a_list_that_cannot_be_read_at_the_start_sends_nothing_until_it_can(
    testing: Host, kind: str, path: str
) -> None:
    token = testing.token()
    # Once for the start, and once for the timer that tries again at once; the time is read from
    # the list of charges before both.
    fault(testing, kind, path, times=3 if path == "/v1/charges" else 2)
    assert testing.error(testing.charge(token, "2026-11")) == BEHIND
    # Each start takes one fault at least, so that the third finds none.
    answers = [testing.charge(token, "2026-11") for _ in range(2)]
    assert answers[-1].status_code == 200
    assert len(testing.succeeded()) == 1


def test_every_page_is_read_and_a_broken_walk_goes_on_where_it_stopped(
    host: Host, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kb_mcp.proxy.stripe.reader.PAGE", 1)
    token = host.token()
    for month in ("2026-07", "2026-08", "2026-09"):
        host.charge(token, month)
    host.save()
    lost = host.charge(token, "2026-10").json()["id"]
    host.put_back()
    assert host.error(host.charge(token, "2026-11")) == BEHIND
    host.put_back()
    proxy = opened(host, run)
    walk = proxy.walks.walk
    read: list[str] = []
    get = walk.reads.get

    async def counted(path: str, *within_ms: int) -> Any:
        read.append(path)
        return await get(path, *within_ms)

    monkeypatch.setattr(type(walk.reads), "get", lambda _, *asked: counted(*asked))
    fault(host, "500_before", "/v1/payment_intents")
    assert run(walk.run(LOOK_BACK_AT_START_MS, resume=True)).why == "Stripe answered 500"
    # Four pages of charges, what was lost once more, and the list that broke off.
    assert len(read) == 6
    assert "walk" in run(walk.records.facts())
    read.clear()
    outcome = run(walk.run(LOOK_BACK_AT_START_MS, resume=True))
    assert outcome.objects == (lost,)
    # The last page of charges again, then the two lists that follow.
    assert len(read) < 5
    run(proxy.stop(0))


def opened(host: Host, run: Run) -> Proxy:
    settings = load_settings(host.env)
    sandbox = build_sandbox(settings) if settings.upstream_base is None else None

    async def build() -> Proxy:
        proxy = Proxy(settings, sandbox)
        await proxy.app.pipeline.follow()
        return proxy

    built: Proxy = run(build())
    return built


def test_a_list_that_repeats_itself_is_never_whole(
    host: Host, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = host.token()
    host.charge(token, "2026-10")
    proxy = opened(host, run)
    walk = proxy.walks.walk
    get = walk.reads.get

    async def repeating(path: str) -> Any:
        found = await get(path.split("&starting_after", maxsplit=1)[0])
        assert isinstance(found, Mapping)
        return {**found, "has_more": True}

    monkeypatch.setattr(type(walk.reads), "get", lambda _, path: repeating(path))
    assert run(walk.run(LOOK_BACK_AT_START_MS)).why == "Stripe's list repeats itself"
    run(proxy.stop(0))


def test_the_hourly_walk_finds_what_was_made_behind_the_store_and_three_failures_are_told(
    host: Host, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = host.token()
    store = host.charge(token, "2026-10").json()["metadata"]["keybrake_store"]
    proxy = opened(host, run)
    walks, now = proxy.walks, [1_000_000]
    monkeypatch.setattr("kb_mcp.wiring.proxy.boottime_ms", lambda: now[0])
    run(walks.begin())
    assert not walks.gate.closed
    fault(host, "500_before", "/v1/charges", times=3)
    now[0] += 3_600_000
    for _ in range(3):
        run(walks.tick())
        assert not walks.gate.closed
    rows = [row for row in host.json("audit", "list") if row["decision"] == "walk_failed"]
    assert len(rows) == 1
    run(walks.tick())
    assert isinstance(run(walks.walk.run(0)), Whole)
    marks = {"keybrake_operation": "op_1", "keybrake_attempt": "a" * 32, "keybrake_key": "x"}
    form = {f"metadata[{name}]": value for name, value in marks.items()}
    bill = {"amount": "500", "currency": "usd", "customer": "cus_X", **form}
    made = host.stripe("POST", "/v1/charges", bill | {"metadata[keybrake_store]": store})["id"]
    now[0] += 3_600_000
    run(walks.tick())
    assert walks.gate.closed
    run(proxy.stop(0))
    assert host.error(host.charge(token, "2026-11")) == BEHIND
    assert made in str(host.json("doctor", code=1))


def test_at_most_ten_reads_a_second_are_made(run: Run) -> None:
    from kb_mcp.proxy.store_walk import Pace

    now, waits = [0], []

    async def pause(milliseconds: int) -> None:
        waits.append(milliseconds)
        now[0] += milliseconds

    async def take(count: int) -> None:
        pace = Pace(lambda: now[0], pause)
        for _ in range(count):
            await pace.take()

    run(take(10))
    assert waits == []
    run(take(31))
    assert now[0] == 3_000


def test_what_was_cancelled_after_its_page_was_read_is_not_lost(
    testing: Host, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = testing.token()
    store = testing.charge(token, "2026-10").json()["metadata"]["keybrake_store"]
    marks = {"keybrake_operation": "op_1", "keybrake_attempt": "a" * 32, "keybrake_store": store}
    form = {f"metadata[{name}]": value for name, value in marks.items()}
    bill = {"amount": "500", "currency": "usd", "customer": "cus_X", **form}
    intent = testing.stripe("POST", "/v1/payment_intents", bill)["id"]
    proxy = opened(testing, run)
    walk = proxy.walks.walk
    ids = type(walk.records).ids

    async def after_a_cancel(records: Any, name: str, **values: Any) -> Any:
        if name == "known_objects" and intent in values["ids"]:
            form = {"cancellation_reason": "abandoned"}
            path = f"/v1/payment_intents/{intent}"
            if (await asyncio.to_thread(testing.stripe, "GET", path))["status"] != "canceled":
                await asyncio.to_thread(testing.stripe, "POST", f"{path}/cancel", form)
        return await ids(records, name, **values)

    assert isinstance(run(walk.run(LOOK_BACK_AT_START_MS, writes=False)), LostObjects)
    monkeypatch.setattr(type(walk.records), "ids", after_a_cancel)
    assert isinstance(run(walk.run(LOOK_BACK_AT_START_MS)), Whole)
    run(proxy.stop(0))


def test_a_last_walk_that_is_dated_in_the_future_hides_nothing(host: Host) -> None:
    token = host.token()
    host.charge(token, "2026-10")
    host.save()
    lost = host.charge(token, "2026-11").json()["id"]
    host.put_back()
    later = "UPDATE facts SET value = '1995864048948' WHERE name = 'walked_until_ms'"
    host.tamper(later) if host.database is None else host.database.query(later)
    assert host.error(host.charge(token, "2026-12")) == BEHIND
    assert lost in str(host.json("doctor", code=1))
