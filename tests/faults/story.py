"""What happens in a world: callers, operators, clocks, crashes and recoveries; then rest.

`run_seed` plays one seed to the end and raises `ViolationError` where an invariant does not hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from msgspec.structs import replace

from kb_mcp.proxy.audit import Broken, read_row, verify_chain
from kb_mcp.proxy.ledger import AuditDraft, Changes, LedgerUnavailableError, LineageId, Refs
from kb_mcp.proxy.messages import Reply, Request
from kb_mcp.proxy.ops.approvals import decide_approval
from kb_mcp.proxy.ops.keys import revoke_key, unfreeze_key
from kb_mcp.proxy.standing import Standing
from tests.faults.checks import Answer, check_answer, check_end
from tests.faults.loop import StalledError
from tests.faults.moods import MOODS, Mood, draw_bill, drift
from tests.faults.process import CALL, Process
from tests.faults.store import CHAIN_KEY
from tests.faults.stripe import HOUR, MINUTE, SECOND
from tests.faults.world import DAY_MS, Key, World, new_world

HOSTS = ("north", "south")


JUMPS = (5 * SECOND, 2 * MINUTE, 2 * HOUR, DAY_MS)
RESTS = (61 * SECOND, 11 * MINUTE, 61 * MINUTE, 24 * HOUR, 26 * HOUR, 26 * HOUR, HOUR)
RETRIED = {409, 429, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class Report:
    """What one seed came to."""

    seed: int
    calls: int
    charges: int
    commits: int
    turns: int
    crashed_at: tuple[str, ...]
    trace: tuple[str, ...]


@dataclass(slots=True)
class Book:
    """Every answer that a caller got, to be held against Stripe again at the end."""

    calls: int = 0
    answers: list[tuple[int, dict[str, str], Answer]] = field(default_factory=list)


def run_seed(
    seed: int, plant: Callable[[World], AbstractContextManager[None]] | None = None
) -> Report:
    """Play `seed` to its end. `plant` puts a bug into the product while it is played.

    Raises: ViolationError.
    """
    with new_world(seed) as world, plant(world) if plant else nullcontext():
        book = Book()
        try:
            world.loop.run_until_complete(_play(world, book))
        except StalledError as stalled:
            world.fail(str(stalled))
        _check(world, book)
        return Report(
            seed=seed,
            calls=book.calls,
            charges=len(world.stripe.charges),
            commits=world.commits,
            turns=world.loop.turns,
            crashed_at=tuple(world.crashed_at),
            trace=tuple(world.trace),
        )


async def _play(world: World, book: Book) -> None:
    chance = world.chance
    mood = chance.choices(MOODS, [each.weight for each in MOODS])[0]
    world.pauses, world.stripe.fates = mood.pauses, mood.fates
    for name in HOSTS:
        world.start(name)
    work: list[Coroutine[Any, Any, None]] = [
        _caller(world, book, mood) for _ in range(chance.randint(*mood.callers))
    ]
    work += [_recoverer(world, name, chance.randint(*mood.recoveries)) for name in HOSTS]
    work += [_crasher(world) for _ in range(chance.choice((0, 1, 2)))]
    work += [_clock_turner(world) for _ in range(chance.choice((0, 0, 1)))]
    work += [_operator(world) for _ in range(chance.choice(mood.operators))]
    await asyncio.gather(*(world.loop.create_task(each) for each in work))
    await _rest(world)


async def _caller(world: World, book: Book, mood: Mood) -> None:
    chance = world.chance
    form, headers = draw_bill(world, mood)
    key = chance.choice(world.keys)
    for _ in range(chance.randint(1, 5)):
        await _think(world)
        answer = await _call(world, book, key, form, headers)
        settled = answer is not None and answer.status not in RETRIED
        if chance.random() < (0.5 if settled else 0.15):
            form, headers = drift(world, mood, form, headers)
        if chance.random() < 0.2:
            key = chance.choice(world.keys)


async def _call(
    world: World, book: Book, key: Key, form: dict[str, str], headers: dict[str, str]
) -> Answer | None:
    """Send one request to a living process; None where the connection broke."""
    if not world.processes:
        return None
    process = world.chance.choice(world.processes)
    book.calls += 1
    call = book.calls
    world.log(f"call {call} at {process.owner} with {key.id}: {form} {headers or ''}")
    request = Request(
        method="POST",
        raw_path=b"/v1/charges",
        query=b"",
        headers=(
            ("authorization", f"Bearer {key.token}"),
            ("content-type", "application/x-www-form-urlencoded"),
            *headers.items(),
        ),
        body=urlencode(form).encode(),
        request_id=f"req_{call}",
    )
    CALL.set(call)
    task = process.spawn(_served(world, process, request))
    if world.chance.random() < 0.08:
        world.loop.after_turns(world.chance.randrange(1, 40), task.cancel)  # the client hangs up
    await asyncio.wait({task})
    if task.cancelled():
        world.log(f"call {call}: the connection broke")
        return None
    reply = task.result()
    answer = Answer.read(reply.status, reply.body)
    world.log(f"call {call}: {answer.status} {answer.code or answer.body.get('id')}")
    book.answers.append((call, form, answer))
    wrong = check_answer(call, form, answer, world.stripe.charges)
    if wrong:
        world.fail(wrong)
    return answer


async def _served(world: World, process: Process, request: Request) -> Reply:
    try:
        return await process.serve(request)
    except LedgerUnavailableError:
        return Reply(503, b'{"error": {"code": "ledger_unavailable"}}')
    except Exception as error:
        world.fail(f"a request broke its process: {error!r}")
        raise


async def _recoverer(world: World, host: str, passes: int) -> None:
    for _ in range(passes):
        await _think(world)
        process = next((each for each in world.processes if each.name == host), None)
        if process is not None:
            await _recover(world, process)


async def _recover(world: World, process: Process) -> None:
    world.log(f"{process.owner} recovers")
    task = process.spawn(process.recovery.run())
    await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        states = {name[-6:]: str(state) for name, state in task.result().states.items()}
        world.log(f"{process.owner} recovered {states or 'nothing'}")
    elif not task.cancelled() and not isinstance(task.exception(), LedgerUnavailableError):
        world.fail(f"recovery broke: {task.exception()!r}")


async def _crasher(world: World) -> None:
    """End a process after some turns of the loop, wherever its tasks are then; start another."""
    chance = world.chance
    await _think(world)
    struck = asyncio.Event()
    world.loop.after_turns(chance.randrange(1, 60), struck.set)
    # Where nobody acts any more the turns do not go on: then time strikes.
    waiting = world.loop.create_task(struck.wait())
    await asyncio.wait({waiting}, timeout=chance.choice((1, 30, 3000)))
    waiting.cancel()
    if world.processes:
        world.end(chance.choice(world.processes), "killed")
    await world.loop.pause(chance.choice((0, 2 * SECOND, 2 * MINUTE)))
    _restart(world)


def _restart(world: World) -> None:
    running = {process.name for process in world.processes}
    for name in HOSTS:
        if name not in running:
            world.start(name)


async def _clock_turner(world: World) -> None:
    for _ in range(world.chance.randint(1, 2)):
        await _think(world)
        world.offset_ms += world.chance.choice((-1, 1)) * world.chance.choice(JUMPS)
        world.log(f"the clock of the host is {world.offset_ms} ms off now")


async def _operator(world: World) -> None:
    """Revoke, freeze, thaw and approve, as people do."""
    chance = world.chance
    for _ in range(chance.randint(1, 3)):
        await _think(world)
        if not world.processes:
            continue
        process = chance.choice(world.processes)
        what = chance.choice(("revoke", "freeze", *("thaw",) * 3, *("approve",) * 4))
        world.log(f"the operator at {process.owner}: {what}")
        task = process.spawn(_operate(world, process, what))
        await asyncio.wait({task})
        broke = None if task.cancelled() else task.exception()
        if broke is not None and not isinstance(broke, LedgerUnavailableError):
            world.fail(f"the operator's {what} broke: {broke!r}")


async def _operate(world: World, process: Process, what: str) -> None:
    key, ledger = world.chance.choice(world.keys), process.ledger
    if what == "revoke":
        await revoke_key(ledger, process.records, key.id, "over", "ann", wait_s=1)
    elif what == "thaw":
        await unfreeze_key(ledger, key.id, "looked", "ann")
    elif what == "freeze":
        await ledger.transact(_lineage_refs(key.lineage), _freeze(key.lineage))
    else:
        for approval in sorted(await process.records.approvals(), key=lambda each: each.id):
            await decide_approval(ledger, approval.id, "approved", "ann")


def _lineage_refs(lineage: LineageId) -> Callable[[int], Refs]:
    return lambda _: Refs(lineages=frozenset({lineage}))


def _freeze(lineage: LineageId) -> Callable[[Standing], tuple[None, Changes]]:
    def step(standing: Standing) -> tuple[None, Changes]:
        frozen = replace(
            standing.lineage(lineage), frozen_at=standing.now, frozen_reason="the operator"
        )
        row = AuditDraft(kind="admin", decision="freeze")
        return None, Changes(lineages=(frozen,), audit=(row,))

    return step


async def _think(world: World) -> None:
    longest, weights = zip(*world.pauses, strict=True)
    await world.loop.pause(world.chance.randrange(world.chance.choices(longest, weights)[0]))


async def _rest(world: World) -> None:
    """Let everything that is under way arrive, with nothing failing any more, and recover."""
    world.log("rest: nothing fails any more")
    world.odds.die = world.odds.disk = 0
    world.stripe.faulty = False
    _restart(world)
    world.offset_ms = 0
    for pause in RESTS:
        await world.loop.pause(pause)
        world.stripe.settle_pending()
        for process in list(world.processes):
            await _recover(world, process)
        _fail_if_broken(world)


def _fail_if_broken(world: World) -> None:
    for what in (*world.mirror.broken, *world.stripe.wrong):
        world.fail(what)


def _check(world: World, book: Book) -> None:
    _fail_if_broken(world)
    for call, form, answer in book.answers:
        wrong = check_answer(call, form, answer, world.stripe.charges)
        if wrong:
            world.fail(wrong)
    records = world.processes[0].records
    stored = [operation for operation, _ in _now(records.operations())]
    if {each.id: each for each in stored} != world.mirror.operations:
        world.fail("the store does not hold what was committed")
    windows, stripe = _now(records.windows()), world.stripe
    for wrong in check_end(stored, windows, stripe.charges, stripe.overtaken):
        world.fail(wrong)
    for node in records.writers():
        chain = verify_chain((read_row(row) for row in records.chain(node)), CHAIN_KEY)
        if isinstance(chain, Broken):
            world.fail(f"the audit of {node} is {chain.reason} at {chain.seq}")


def _now(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")
