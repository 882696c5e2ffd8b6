"""What every store must do, held over SQLite and PostgreSQL alike, each opened by two processes."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from kb_mcp.proxy.audit.chain import verify_audit
from kb_mcp.proxy.ledger.counts import Delivery
from kb_mcp.proxy.ledger.port import LedgerUnavailableError, Step
from kb_mcp.proxy.ledger.records import (
    Approval,
    Attempt,
    AttemptOutcome,
    AuditDraft,
    Bill,
    BilledPeriod,
    Changes,
    KeyId,
    Lineage,
    LineageId,
    NamedBy,
    Operation,
    OperationId,
    Refs,
    State,
    Tally,
    VaultKey,
    Window,
    WindowKey,
)
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores.rows import differing
from kb_mcp.wiring.stores import MasterKeyError, Store
from tests.proxy.stores.conftest import Open, Run

LINEAGE = LineageId("lin_1")
DAY = WindowKey("key", LINEAGE, "day", "2026-11-24", "usd")
KEY = VaultKey(
    id=KeyId("key_1"), lineage_id=LINEAGE, token_hash="0" * 64, mode="test", role="billing",
    label=None, agent="é\U0001f680", policy="{}", created_at=5, expires_at=None,
)  # fmt: skip


def operation(number: int = 1, **values: object) -> Operation:
    plain: dict[str, object] = {
        "id": OperationId(f"op_{number}"), "name": f"name_{number}", "named_by": NamedBy.CONTENT,
        "route": "POST /v1/charges", "customer": "cus_1", "amount": 2900, "currency": "usd",
        "period": "2026-11", "period_start": "2026-11-01", "period_end": "2026-11-30",
        "reference": None, "fingerprint": "f", "upstream_name": "k", "state": State.SUCCEEDED,
        "first_arrival_at": 1_000, "key_id": KEY.id, "lineage_id": LINEAGE, "created_at": number,
        "updated_at": number, "object_id": f"ch_{number}", "held": 2900, "attempt": 1,
    }  # fmt: skip
    return Operation(**(plain | values))  # type: ignore[arg-type] # values are checked by the test


def attempt(number: int = 1, **values: object) -> Attempt:
    plain: dict[str, object] = {
        "operation_id": OperationId(f"op_{number}"), "number": 1, "upstream_key": f"k_{number}",
        "path": "/v1/charges", "stripe_version": None, "body": b"a=\x00\xff", "first_sent_at": 1,
        "last_sent_at": 2, "key_id": KEY.id, "object_id": f"ch_{number}",
    }  # fmt: skip
    return Attempt(**(plain | values))  # type: ignore[arg-type] # values are checked by the test


async def write(store: Store, changes: Changes, refs: Refs | None = None) -> None:
    await store.ledger.transact(lambda _: refs or Refs(), lambda _: (None, changes))


async def read(store: Store, refs: Refs) -> Snapshot:
    return await store.ledger.transact(lambda _: refs, lambda snapshot: (snapshot, Changes()))


def add(amount: int) -> Changes:
    return Changes(windows=(Window(DAY, reserved=amount),))


def test_what_one_process_committed_another_reads_back_whole(open_one: Open, run: Run) -> None:
    one, two = open_one(), open_one()
    wanted = operation(
        state=State.UNKNOWN, answer=b"\x00secret", answer_status=200, reopened=True, voided_at=7,
        lease_owner="somebody", lease_token=3, lease_until=9, approval_id="ap_1",
    )  # fmt: skip
    approval = Approval(
        id="ap_1", operation_id=wanted.id, lineage_id=LINEAGE, key_id=KEY.id,
        endpoint="POST /v1/charges", customer="cus_1", amount=2900, currency="usd",
        period="2026-11", reference="r", payment_method="pm_1", destination="acct_1",
        fingerprint="f", state="pending", expires_at=10**14, created_at=1,
    )  # fmt: skip
    changes = Changes(
        operations=(wanted,), attempts=(attempt(),), windows=(Window(DAY, 1, 2, 3, 4),),
        tallies=(Tally("cus_1|2026-11|", 2, 8, wanted.id),), keys=(KEY,),
        lineages=(Lineage(LINEAGE, 4, "why"),), approvals=(approval,),
        deliveries=(Delivery("alert|a|page", 2, 8),),
    )  # fmt: skip
    run(write(one, changes))
    found = run(read(two, Refs(operations=frozenset({wanted.id}), windows=frozenset({DAY}),
                               tallies=frozenset({"cus_1|2026-11|"}), keys=frozenset({KEY.id}),
                               objects=frozenset({"ch_1"}),
                               deliveries=frozenset({"alert|a|page"}))))  # fmt: skip
    assert found.operations == {wanted.id: wanted}
    assert found.deliveries == {"alert|a|page": Delivery("alert|a|page", 2, 8)}
    assert found.attempts == {(wanted.id, 1): attempt()}
    assert found.windows[DAY] == Window(DAY, 1, 2, 3, 4)
    assert found.tallies == {"cus_1|2026-11|": Tally("cus_1|2026-11|", 2, 8, wanted.id)}
    assert (found.keys, found.lineages) == ({KEY.id: KEY}, {LINEAGE: Lineage(LINEAGE, 4, "why")})
    assert (found.approvals, found.object_owners) == ({"ap_1": approval}, {"ch_1": wanted.id})
    assert (found.unresolved, found.outstanding_approvals) == ({LINEAGE: 1}, {LINEAGE: 1})


def test_every_column_of_a_row_that_was_loaded_can_change(open_one: Open, run: Run) -> None:
    one, two = open_one(), open_one()
    before, sent = operation(answer=b"first", answer_status=200), attempt()
    run(write(one, Changes(operations=(before,), attempts=(sent,), keys=(KEY,),
                           lineages=(Lineage(LINEAGE), Lineage(LineageId("lin_2"))))))  # fmt: skip
    changed = operation(
        name="other", generation=1, named_by=NamedBy.BODY, route="POST /v1/refunds",
        customer="cus_2", amount=1, currency="eur", period="2026-12", period_start="2026-12-01",
        period_end="2026-12-31", reference="r", fingerprint="g", upstream_name="l",
        state=State.UNKNOWN, final=False, held=1, reserved_at=2,
        first_arrival_at=3, attempt=2, lease_owner="me", lease_token=4, lease_until=5,
        key_id=KeyId("key_2"), lineage_id=LineageId("lin_2"), object_id="ch_9",
        stripe_status="pending", code="x", answer_status=402, answer=b"second", reopened=True,
        waived=True, permit_amount=7, successor=OperationId("op_8"), released=True, refunded_at=9,
        refund_read_at=10, overshoot=True, voided_at=6, empty_listings=1, void_look_at=5,
        next_read_at=7,
        approval_id="ap_9", created_at=8, updated_at=9, gives_back="ch_8", paid_before=3,
    )  # fmt: skip
    assert set(differing(before, changed)) == set(changed.__struct_fields__) - {"id"}
    again = attempt(
        upstream_key="l_1", path="/v1/refunds", stripe_version="2026-10-28.endive", body=b"b",
        first_sent_at=3, last_sent_at=4, sends=2, open_sends=2, status=500, object_id="ch_9",
        outcome=AttemptOutcome.VOIDED, key_id=KeyId("key_2"),
    )  # fmt: skip
    assert set(differing(sent, again)) == set(again.__struct_fields__) - {"operation_id", "number"}
    refs = Refs(operations=frozenset({before.id}))
    # What is handed over as it was leaves nothing to write.
    run(write(one, Changes(operations=(before,), attempts=(sent,)), refs))
    run(write(one, Changes(operations=(changed,), attempts=(again,)), refs))
    found = run(read(two, refs))
    assert (found.operations, found.attempts) == ({before.id: changed}, {(before.id, 1): again})


def test_steps_that_wait_together_see_each_other_in_their_order(open_one: Open, run: Run) -> None:
    store = open_one()
    refs = Refs(windows=frozenset({DAY}))

    async def together() -> list[int]:
        def step(snapshot: Snapshot) -> tuple[int, Changes]:
            amount = snapshot.window(DAY).reserved
            return amount, add(amount + 1)

        return list(await asyncio.gather(*(store.ledger.transact(lambda _: refs, step)
                                           for _ in range(40))))  # fmt: skip

    assert run(together()) == list(range(40))


def test_many_processes_adding_to_one_window_lose_nothing(open_one: Open, run: Run) -> None:
    stores = [open_one() for _ in range(4)]
    refs = Refs(windows=frozenset({DAY}))

    def step(snapshot: Snapshot) -> tuple[None, Changes]:
        return None, add(snapshot.window(DAY).reserved + 1)

    async def everywhere() -> None:
        await asyncio.gather(*(store.ledger.transact(lambda _: refs, step)
                               for _ in range(30) for store in stores))  # fmt: skip

    run(everywhere())
    assert run(read(stores[0], refs)).window(DAY).reserved == 120


def test_a_row_that_steps_change_without_naming_it_is_never_lost(open_one: Open, run: Run) -> None:
    one, two = open_one(), open_one()
    run(write(one, Changes(operations=(operation(),))))
    op_1 = OperationId("op_1")
    # One process reaches the row by its guard, the other by its id.
    by_guard = Refs(bills=frozenset({Bill("cus_1", 2900, "usd", since=0)}))
    by_id = Refs(operations=frozenset({op_1}))

    def step(snapshot: Snapshot) -> tuple[None, Changes]:
        peer = snapshot.operations[op_1]
        return None, Changes(operations=(replace(peer, lease_token=peer.lease_token + 1),))

    async def again_and_again(store: Store, refs: Refs) -> None:
        for _ in range(40):
            await store.ledger.transact(lambda _: refs, step)

    async def both() -> None:
        await asyncio.gather(again_and_again(one, by_guard), again_and_again(two, by_id))

    run(both())
    assert run(read(one, by_id)).operations[op_1].lease_token == 80


def test_a_step_that_raises_fails_alone_and_leaves_nothing(open_one: Open, run: Run) -> None:
    store = open_one()
    refs = Refs(windows=frozenset({DAY}))

    def broken(_: Snapshot) -> tuple[None, Changes]:
        raise ZeroDivisionError

    def sound(snapshot: Snapshot) -> tuple[None, Changes]:
        return None, add(snapshot.window(DAY).reserved + 1)

    async def together() -> list[object]:
        steps = [sound, broken, sound]
        waiting = [store.ledger.transact(lambda _: refs, step) for step in steps]
        return list(await asyncio.gather(*waiting, return_exceptions=True))

    outcomes = run(together())
    assert [type(each) for each in outcomes] == [type(None), ZeroDivisionError, type(None)]
    assert run(read(store, refs)).window(DAY).reserved == 2


def test_what_the_schema_refuses_fails_alone(open_one: Open, run: Run) -> None:
    store = open_one()
    refs = Refs(windows=frozenset({DAY}))

    def sound(snapshot: Snapshot) -> tuple[None, Changes]:
        return None, add(snapshot.window(DAY).reserved + 1)

    def negative(_: Snapshot) -> tuple[None, Changes]:
        other = replace(DAY, start="2026-11-25")
        return None, Changes(windows=(Window(other, reserved=-1),))

    async def together() -> list[object]:
        waiting = [store.ledger.transact(lambda _: refs, s) for s in (sound, negative, sound)]
        return list(await asyncio.gather(*waiting, return_exceptions=True))

    outcomes = run(together())
    assert isinstance(outcomes[1], LedgerUnavailableError)
    assert (outcomes[0], outcomes[2]) == (None, None)
    assert run(read(store, refs)).window(DAY).reserved == 2


def test_an_object_concludes_one_attempt_and_never_another(open_one: Open, run: Run) -> None:
    one, two = open_one(), open_one()
    run(write(one, Changes(operations=(operation(),), attempts=(attempt(),))))
    second = replace(attempt(2), object_id="ch_1")
    with pytest.raises(LedgerUnavailableError):
        run(write(two, Changes(operations=(operation(2, object_id="ch_1"),), attempts=(second,))))
    assert run(read(one, Refs(objects=frozenset({"ch_1"})))).object_owners == {"ch_1": "op_1"}


def test_a_name_loads_its_newest_generation_and_a_guard_every_live_peer(
    open_one: Open, run: Run
) -> None:
    store = open_one()
    rows = (
        operation(1, name="n"), operation(2, name="n", generation=1),
        operation(3, state=State.FAILED), operation(4, amount=1, period="2026-12",
                  period_start="2026-12-01", period_end="2026-12-31"),
        operation(5, state=State.RESERVED, first_arrival_at=0, period=None, period_start=None,
                  period_end=None),
        operation(6, customer="cus_2"),
    )  # fmt: skip
    run(write(store, Changes(operations=rows)))
    by_name = run(read(store, Refs(names=frozenset({"n"}))))
    assert by_name.operations.keys() == {"op_2"}
    november = BilledPeriod("cus_1", "", "2026-11", "2026-11-01", "2026-11-30")
    period = run(read(store, Refs(periods=frozenset({november}))))
    assert period.operations.keys() == {"op_1", "op_2"}
    bill = Bill("cus_1", 2900, "usd", since=9_000_000_000_000)
    assert run(read(store, Refs(bills=frozenset({bill})))).operations.keys() == {"op_5"}


def test_a_charge_loads_all_its_refunds_and_no_bill_is_taken_for_one(
    open_one: Open, run: Run
) -> None:
    one, two = open_one(), open_one()
    bill = operation(1)
    refunds = [
        operation(2, gives_back="ch_1", period=None, route="POST /v1/refunds"),
        operation(3, gives_back="ch_1", period=None, state=State.FAILED, object_id=None),
        operation(4, gives_back="ch_9", period=None),
    ]
    run(write(one, Changes(operations=(bill, *refunds))))
    guard = Bill(customer="cus_1", amount=2900, currency="usd", since=0)
    found = run(read(two, Refs(charges=frozenset({"ch_1"}), bills=frozenset({guard}))))
    assert {each.id for each in found.refunds_of("ch_1")} == {refunds[0].id, refunds[1].id}
    assert [each.id for each in found.bill_peers(guard)] == [bill.id]


def test_refunds_of_one_charge_wait_for_each_other(open_one: Open, run: Run) -> None:
    stores = [open_one() for _ in range(3)]
    refs = Refs(charges=frozenset({"ch_1"}))

    def one_more(number: int) -> Step[bool]:
        def step(snapshot: Snapshot) -> tuple[bool, Changes]:
            given = sum(each.amount for each in snapshot.refunds_of("ch_1"))
            if given + 900 > 2900:
                return False, Changes()
            made = operation(number, gives_back="ch_1", amount=900, period=None, attempt=0)
            return True, Changes(operations=(made,))

        return step

    async def crowd() -> list[bool]:
        asked = (
            stores[number % 3].ledger.transact(lambda _: refs, one_more(number))
            for number in range(1, 31)
        )
        return await asyncio.gather(*asked)

    assert run(crowd()).count(True) == 3


def test_a_revocation_is_seen_by_every_process_at_once(open_one: Open, run: Run) -> None:
    one, two = open_one(), open_one()
    run(write(one, Changes(keys=(KEY,), lineages=(Lineage(LINEAGE),))))
    assert run(two.ledger.find_key(KEY.id)) == (KEY, Lineage(LINEAGE))
    revoked = replace(KEY, revoked_at=7, revoke_reason="lost")
    run(write(one, Changes(keys=(revoked,), lineages=(Lineage(LINEAGE, 8, "x"),))))
    assert run(two.ledger.find_key(KEY.id)) == (revoked, Lineage(LINEAGE, 8, "x"))
    assert run(two.ledger.find_key(KeyId("nobody"))) is None


def test_an_operation_is_found_by_its_object_though_no_attempt_of_it_owns_that(
    open_one: Open, run: Run
) -> None:
    store = open_one()
    untold = operation(1, amount=0, held=0, object_id="in_1")
    superseded = operation(2, object_id="ch_new")
    tried = (attempt(1, object_id=None), attempt(2, object_id="ch_old"))
    run(write(store, Changes(operations=(untold, superseded), attempts=tried)))

    def found(charge_id: str) -> list[str]:
        return [each.id for each, _ in run(store.records.operations(charge_id=charge_id))]

    assert found("in_1") == ["op_1"]
    assert found("ch_old") == []  # it turned up, and is not what the operation came to


def test_every_process_has_a_chain_of_its_own_and_all_verify(open_one: Open, run: Run) -> None:
    stores = [open_one(), open_one()]

    async def note(store: Store, text: str) -> None:
        await write(store, Changes(audit=(AuditDraft(kind="admin", note=text),)))

    async def everywhere() -> None:
        await asyncio.gather(*(note(s, f"{n}") for n in range(25) for s in stores))

    run(everywhere())
    reads, key = stores[0].records, stores[0].chain_key
    outcome = verify_audit(reads.nodes(), reads.writers(), reads.chain, key, {}, {})
    assert (outcome.breaks, outcome.rows, len(outcome.ends)) == ((), 50, 2)
    rows = list(stores[0].records.audit(node=stores[1].node))
    assert [row["seq"] for row in rows] == list(range(1, 26))
    assert {row["note"] for row in rows} == {str(number) for number in range(25)}


def test_time_never_runs_back_from_one_process_to_the_next(open_one: Open, run: Run) -> None:
    stores, seen = [open_one() for _ in range(3)], []
    for turn in range(12):
        store = stores[turn % 3]
        seen.append(run(read(store, Refs())).now)
        run(write(store, add(turn)))
    assert seen == sorted(seen)


def test_another_master_key_opens_nothing(open_one: Open, run: Run) -> None:
    store = open_one()
    run(write(store, Changes(operations=(operation(answer=b"x"),), windows=(Window(DAY),))))
    with pytest.raises(MasterKeyError, match="another master key"):
        open_one(KEYBRAKE_MASTER_KEY="another-master-key-0123456789-0123456789")
    assert run(read(store, Refs(windows=frozenset({DAY})))).windows


def test_closing_runs_what_still_waits(open_one: Open, run: Run) -> None:
    store = open_one()

    async def close_meanwhile() -> list[object]:
        waiting = [asyncio.create_task(write(store, add(number))) for number in range(5)]
        await asyncio.sleep(0)
        await store.ledger.close()
        return list(await asyncio.gather(*waiting, return_exceptions=True))

    assert run(close_meanwhile()) == [None] * 5
    with pytest.raises(LedgerUnavailableError):
        run(write(store, add(9)))
