"""Operators in the simulation: they approve, deny, void, resolve, reopen, rotate, freeze and set.

What they choose is drawn from a stream of its own, and only in some seeds: the others play as they
would without them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from kb_mcp.operators.actions.keys import KeyEndedError, revoke_key, rotate_key, unfreeze_key
from kb_mcp.operators.actions.operations import (
    By,
    NotPendingError,
    Reopening,
    Verdict,
    decide_approval,
)
from kb_mcp.operators.actions.resolve import StripeActs
from kb_mcp.proxy.ledger.clock import StoredTime
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import AuditDraft, Changes, LineageId, Operation, Refs, State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores.database import StoreAdmin
from kb_mcp.proxy.stores.sqlite.database import SqliteDatabase
from tests.faults.process import Process
from tests.faults.simulation import CEILINGS, DAY_MS, REFUND_CEILINGS, Key, Simulation

SHARE = 0.4  # of the seeds have them
REDATED = ("next_read_at", "voided_at", "lease_until")
OVER_MS = 15 * 60_000  # since it changed last: its send and the grace are over
OVERLAPS_MS = (0, 60_000, DAY_MS)
Act = Callable[[Simulation, Process], Awaitable[object]]


async def busy_operator(simulation: Simulation, think: Callable[[], Awaitable[None]]) -> None:
    """Do some of what operators do, at any moment; mostly what there is something to do about."""
    aside = simulation.aside
    for _ in range(aside.randint(4, 12)):
        await think()
        if simulation.processes:
            process = aside.choice(simulation.processes)
            fitting = await _fitting(process)
            if simulation.refunding:
                fitting += [("set refund ceiling", set_refund_ceiling)]
            name, act = aside.choice(fitting)
            await done_by_operator(simulation, process, name, act)


async def _fitting(process: Process) -> list[tuple[str, Act]]:
    states = {operation.state for operation, _ in await process.records.operations()}
    fitting = [*ANY_TIME]
    if await process.records.approvals():
        fitting += [("decide", decide_one)] * 8
    if State.UNKNOWN in states:
        fitting += [("void", void), ("void", void), ("resolve", resolve), ("resolve", resolve)]
    if State.VOIDED in states or State.FAILED in states:
        fitting += [("resolve", resolve), ("void", void)]
    if State.SUCCEEDED in states:
        fitting += [("reopen", reopen)] * 3
    return fitting


async def done_by_operator(simulation: Simulation, process: Process, what: str, act: Act) -> None:
    """Run an operator's act in `process`; it may fail only as the store does."""
    simulation.log(f"the operator at {process.owner}: {what}")

    async def work() -> object:
        return await act(simulation, process)

    task = process.spawn(work())
    await asyncio.wait({task})
    broke = None if task.cancelled() else task.exception()
    expected = LedgerUnavailableError | KeyEndedError | NotPendingError
    if broke is not None and not isinstance(broke, expected):
        simulation.fail(f"the operator's {what} broke: {broke!r}")
    if not task.cancelled() and broke is None and task.result() is not None:
        simulation.log(f"  {what}: {task.result()!s:.150}")


async def approve_all(simulation: Simulation, process: Process) -> None:
    for approval in sorted(await process.records.approvals(), key=lambda each: each.id):
        with suppress(NotPendingError):
            await decide_approval(process.ledger, approval.id, "approved", "ann")


async def decide_one(simulation: Simulation, process: Process) -> object:
    """Approve or deny one of those that wait, by what the operator is shown."""
    waiting = sorted(await process.records.approvals(), key=lambda each: each.id)
    if not waiting:
        return None
    seen = simulation.aside.choice(waiting)
    verdicts: tuple[Verdict, ...] = ("approved", "approved", "denied")
    verdict = simulation.aside.choice(verdicts)
    return await decide_approval(process.ledger, seen.id, verdict, "ann")


async def revoke(simulation: Simulation, process: Process) -> object:
    key = simulation.chance.choice(simulation.keys)
    return await revoke_key(process.ledger, process.records, key.id, "over", "ann", wait_s=1)


async def unfreeze(simulation: Simulation, process: Process) -> object:
    key = simulation.chance.choice(simulation.aside.choice(simulation.keys_of_all))
    return await unfreeze_key(process.ledger, key.id, "looked", "ann")


async def freeze(simulation: Simulation, process: Process) -> None:
    lineage = simulation.chance.choice(simulation.aside.choice(simulation.keys_of_all)).lineage
    refs = Refs(lineages=frozenset({lineage}))
    await process.ledger.transact(lambda _: refs, _freeze(lineage))


async def rotate(simulation: Simulation, process: Process) -> None:
    keys = simulation.aside.choice(simulation.keys_of_all)
    old = simulation.aside.choice(keys)
    overlap_ms = simulation.aside.choice(OVERLAPS_MS)
    made, minted = await rotate_key(
        process.ledger, old.id, overlap_ms, simulation.aside.randbytes, "ann"
    )
    keys.append(Key(made.id, made.lineage_id, minted.token, old.policy))


async def void(simulation: Simulation, process: Process) -> object:
    """Void an operation: two looks, a minute apart, once its grace is over."""
    found = await _some(simulation, process, State.UNKNOWN, State.VOIDED)
    if found is None:
        return None
    acts, by = _acts(process), By("ann", "nothing there")
    done: object = None
    for pause_ms in simulation.aside.choice(((0,), (0, 61_000), (601_000, 61_000, 61_000))):
        await simulation.loop.pause(pause_ms)
        done = await acts.resolve(found, None, by)
    return done


async def resolve(simulation: Simulation, process: Process) -> object:
    """Settle an operation with its own charge, or with one that is not.

    What people made by hand is named for it once its own request cannot arrive any more.
    """
    found = await _some(simulation, process, State.UNKNOWN, State.VOIDED, State.FAILED)
    account = simulation.stripe.account
    made = account.charges if found is None or found.gives_back is None else account.refunds
    if found is None or not made:
        return None
    own = [each for each in made if each.operation == found.id]
    named = simulation.aside.choice(own or list(made))
    if not named.operation and simulation.stripe.now_ms < found.updated_at + OVER_MS:
        return None
    return await _acts(process).resolve(found, named.id, By("ann", "seen"))


async def reopen(simulation: Simulation, process: Process) -> object:
    """Reopen a bill, mostly after its charge was refunded by hand, or a refund."""
    found = await _some(simulation, process, State.SUCCEEDED)
    if found is None:
        return None
    for charge in simulation.stripe.charges:
        if charge.id == found.object_id and simulation.aside.random() < 0.7:
            simulation.stripe.give_back_by_hand(charge)
    return await _acts(process).reopen(found, By("ann", "wrong bill"), Reopening())


async def set_ceiling(simulation: Simulation, process: Process) -> object:
    """Lower or raise the account's ceiling, for every process from now on."""
    factor = simulation.aside.choice((0, 50, 100, 200))
    ceilings = {currency: cap * factor // 100 for currency, cap in CEILINGS.items()}
    _set_facts(simulation, {"ceilings": json.dumps(ceilings)})
    simulation.mirror.ceilings = ceilings
    return ceilings


async def set_refund_ceiling(simulation: Simulation, process: Process) -> object:
    """Lower or raise what may be given back a day, for every process from now on."""
    factor = simulation.aside.choice((50, 100, 200))
    ceilings = {currency: cap * factor // 100 for currency, cap in REFUND_CEILINGS.items()}
    _set_facts(simulation, {"refund_ceilings": json.dumps(ceilings)})
    simulation.mirror.refund_ceilings = ceilings
    return ceilings


async def confirm_clock(simulation: Simulation, process: Process) -> object:
    """Say that the host's clock is right; when it is not, nobody can know better from then on."""
    if abs(simulation.offset_ms) > 60_000:
        simulation.true_time.excused = True
    admin = StoreAdmin(SqliteDatabase(simulation.path))
    word = process.clock.word_of_operator(StoredTime.of_facts(admin.facts()))
    admin.confirm_clock(word, process.clock.host_ms())
    admin.close()
    simulation.mirror.high_water = 0  # an operator may set time back
    for stored, _ in await process.records.operations():
        held = simulation.mirror.operations[stored.id]
        dates = {name: getattr(stored, name) for name in REDATED}
        simulation.mirror.operations[stored.id] = replace(held, **dates)
    return "the host's"


ANY_TIME: tuple[tuple[str, Act], ...] = (
    ("freeze", freeze), ("unfreeze", unfreeze), ("unfreeze", unfreeze), ("rotate", rotate),
    ("set ceiling", set_ceiling), ("confirm clock", confirm_clock),
)  # fmt: skip


async def _some(simulation: Simulation, process: Process, *states: State) -> Operation | None:
    stored = [operation for operation, _ in await process.records.operations()]
    fitting = sorted((each for each in stored if each.state in states), key=lambda each: each.id)
    return simulation.aside.choice(fitting) if fitting else None


def _acts(process: Process) -> StripeActs:
    return StripeActs(process.ledger, process.recovery.stripe, process.recovery)


def _set_facts(simulation: Simulation, facts: dict[str, str]) -> None:
    admin = StoreAdmin(SqliteDatabase(simulation.path))
    admin.set_facts(facts)
    admin.close()


def _freeze(lineage: LineageId) -> Callable[[Snapshot], tuple[None, Changes]]:
    def step(snapshot: Snapshot) -> tuple[None, Changes]:
        frozen = replace(
            snapshot.lineage(lineage), frozen_at=snapshot.now, frozen_reason="the operator"
        )
        row = AuditDraft(kind="admin", decision="freeze")
        return None, Changes(lineages=(frozen,), audit=(row,))

    return step


def operator_of(what: str) -> Act:
    """Return the act that a mood's operators know by this word."""
    acts: dict[str, Any] = {"revoke": revoke, "thaw": unfreeze, "freeze": freeze}
    found: Act = acts.get(what, approve_all)
    return found
