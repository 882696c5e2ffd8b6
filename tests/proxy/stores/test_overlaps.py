"""Overlapping periods that are asked for at once, by processes on one store of either kind."""

from __future__ import annotations

import asyncio
import uuid
from email.utils import formatdate

import pytest
from msgspec.structs import replace

from kb_mcp.periods import parse_period
from kb_mcp.proxy.ledger.records import (
    BilledPeriod,
    Changes,
    KeyId,
    Lineage,
    LineageId,
    OperationId,
    Refs,
    State,
)
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules.command import Command, Decision, Proceed
from kb_mcp.proxy.rules.decide import decide
from kb_mcp.serving.machine import host_ms
from kb_mcp.wiring.stores import Store
from tests.proxy.rules.one_key import ALICE, OneKey
from tests.proxy.stores.conftest import Open, Run
from tests.proxy.stores.test_conformance import operation, read, write

# In a currency and of a key each, so that nothing but their days makes them wait for each other.
PERIODS = {"2026-11": "usd", "2026-Q4": "eur", "2026": "gbp", "2026-W46": "chf",
           "2026-11-11": "jpy", "2026-11-02/2026-11-20": "sek"}  # fmt: skip
CUSTOMERS = 8


def hearing(store: Store) -> Store:
    """Let a process hear Stripe tell the time, without which it sends nothing."""
    store.clock.observe(formatdate(host_ms() // 1000, usegmt=True))
    return store


async def asked(store: Store, command: Command) -> Decision:
    def step(snapshot: Snapshot) -> tuple[Decision, Changes]:
        decision = decide(snapshot, command)
        return decision, decision.changes

    return await store.ledger.transact(command.refs, step)


def test_of_overlapping_periods_asked_for_at_once_one_is_charged(open_one: Open, run: Run) -> None:
    stores = [hearing(open_one()) for _ in PERIODS]
    keys = [replace(ALICE, id=KeyId(name), lineage_id=LineageId(name)) for name in "abcdef"]
    lineages = tuple(Lineage(key.lineage_id) for key in keys)
    run(write(stores[0], Changes(keys=tuple(keys), lineages=lineages)))
    one_key = OneKey()

    async def everything(customer: str) -> list[Decision]:
        bills = [
            replace(
                one_key.intend(customer=customer, period=period, currency=currency),
                key_id=key.id, lineage_id=key.lineage_id,
                fresh_id=OperationId(f"op_{customer}_{key.id}"),
            )
            for key, (period, currency) in zip(keys, PERIODS.items(), strict=True)
        ]  # fmt: skip
        sent = [asked(store, bill) for store, bill in zip(stores, bills, strict=True)]
        return list(await asyncio.gather(*sent))

    for number in range(CUSTOMERS):
        decided = run(everything(f"cus_{number}"))
        assert [isinstance(each, Proceed) for each in decided].count(True) == 1


def test_of_two_bodies_under_one_key_asked_for_at_once_one_is_charged(
    open_one: Open, run: Run
) -> None:
    stores = [hearing(open_one()) for _ in PERIODS]
    keys = [replace(ALICE, id=KeyId(name), lineage_id=LineageId(name)) for name in "abcdef"]
    lineages = tuple(Lineage(key.lineage_id) for key in keys)
    run(write(stores[0], Changes(keys=tuple(keys), lineages=lineages)))
    one_key = OneKey()

    async def everything(number: int) -> list[Decision]:
        made_up = str(uuid.UUID(int=number, version=4))
        bills = [
            replace(
                one_key.intend(made_up, customer=f"cus_{number}", currency=currency),
                key_id=key.id, lineage_id=key.lineage_id,
                fresh_id=OperationId(f"op_{number}_{key.id}"),
            )
            for key, currency in zip(keys, PERIODS.values(), strict=True)
        ]  # fmt: skip
        sent = [asked(store, bill) for store, bill in zip(stores, bills, strict=True)]
        return list(await asyncio.gather(*sent))

    for number in range(CUSTOMERS):
        decided = run(everything(number))
        assert [isinstance(each, Proceed) for each in decided].count(True) == 1


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2025-11-10", "2026-11-10"),  # as long as a period may be, and as early
        ("2026-11-10", "2026-11-10"),
        ("2026-11-10", "2027-11-10"),
        ("2026-01-01", "2026-12-31"),
        ("2026-11-09", "2026-11-15"),  # a week
        ("2026-11-10", "2026-11-11"),
    ],
)
@pytest.mark.parametrize("reference", [None, "seat-2"])
def test_a_periods_guard_loads_every_live_bill_that_shares_a_day(
    open_one: Open, run: Run, start: str, end: str, reference: str | None
) -> None:
    label = parse_period(f"{start}/{end}").label
    of_peer: dict[str, object] = {"period": label, "period_start": start, "period_end": end}
    rows = (
        operation(1, reference=reference, **of_peer), operation(2, reference="other", **of_peer),
        operation(3, customer="cus_2", reference=reference, **of_peer),
        operation(4, reference=reference, state=State.FAILED, **of_peer),
        operation(5, reference=reference, period="2028", period_start="2028-01-01",
                  period_end="2028-12-31", amount=7),
        operation(6, reference=reference, period=None, period_start=None, period_end=None),
    )  # fmt: skip
    store = open_one()
    run(write(store, Changes(operations=rows)))
    day = BilledPeriod("cus_1", reference or "", "2026-11-10", "2026-11-10", "2026-11-10")
    found = run(read(store, Refs(periods=frozenset({day}))))
    assert found.operations.keys() == {"op_1"}
    late = BilledPeriod("cus_1", reference or "", "2029", "2029-01-01", "2029-12-31")
    assert run(read(store, Refs(periods=frozenset({late})))).operations.keys() == set()
