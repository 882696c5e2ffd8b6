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

from kb_mcp.proxy.audit.chain import Break, read_row, verify_chain
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import Changes, Refs, State
from kb_mcp.proxy.stripe.messages import Reply, Request
from tests.faults.checks import Answer, check_answer, check_capture_answer, check_end, check_made_up
from tests.faults.loop import StalledError
from tests.faults.moods import MOODS, Mood, draw_bill, drift, with_card
from tests.faults.people import SHARE, busy_operator, confirm_clock, done_by_operator, operator_of
from tests.faults.process import CALL, Process
from tests.faults.refund_books import check_refund_answer
from tests.faults.refunders import money_back
from tests.faults.simulation import DAY_MS, Key, Simulation, new_world
from tests.faults.store import CHAIN_KEY
from tests.faults.stripe import HOUR, MINUTE, SECOND

HOSTS = ("north", "south")


JUMPS = (5 * SECOND, 2 * MINUTE, 2 * HOUR, DAY_MS)
RESTS = (61 * SECOND, 11 * MINUTE, 61 * MINUTE, 24 * HOUR, 26 * HOUR, 26 * HOUR, HOUR)
# A refund that has come back is found in a reading some days later.
REFUND_RESTS = (5 * DAY_MS, 10 * DAY_MS)
RETRIED = {409, 429, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class Report:
    """What one seed came to."""

    seed: int
    calls: int
    charges: int
    refunds: int
    commits: int
    turns: int
    crashed_at: tuple[str, ...]
    trace: tuple[str, ...]


@dataclass(slots=True)
class Book:
    """Every answer that a caller got, to be held against Stripe again at the end."""

    calls: int = 0
    made_up: dict[int, str] = field(default_factory=dict)  # the SDK's own key of a call, and body
    answers: list[tuple[int, dict[str, str], Answer]] = field(default_factory=list)


def run_seed(
    seed: int, plant: Callable[[Simulation], AbstractContextManager[None]] | None = None
) -> Report:
    """Play `seed` to its end. `plant` puts a bug into the product while it is played.

    Raises: ViolationError.
    """
    with new_world(seed) as simulation, plant(simulation) if plant else nullcontext():
        book = Book()
        try:
            simulation.loop.run_until_complete(_play(simulation, book))
        except StalledError as stalled:
            simulation.fail(str(stalled))
        _check(simulation, book)
        return Report(
            seed=seed,
            calls=book.calls,
            charges=len(simulation.stripe.charges),
            refunds=len(simulation.stripe.account.refunds),
            commits=simulation.commits,
            turns=simulation.loop.turns,
            crashed_at=tuple(simulation.crashed_at),
            trace=tuple(simulation.trace),
        )


async def _play(simulation: Simulation, book: Book) -> None:
    chance = simulation.chance
    mood = chance.choices(MOODS, [each.weight for each in MOODS])[0]
    simulation.pauses, simulation.stripe.fates = mood.pauses, mood.fates
    for name in HOSTS:
        simulation.start(name)
    work: list[Coroutine[Any, Any, None]] = [
        _caller(simulation, book, mood) for _ in range(chance.randint(*mood.callers))
    ]
    work += [_recoverer(simulation, name, chance.randint(*mood.recoveries)) for name in HOSTS]
    work += [_crasher(simulation) for _ in range(chance.choice((0, 1, 2)))]
    work += [_clock_turner(simulation) for _ in range(chance.choice((0, 0, 1)))]
    work += [_operator(simulation) for _ in range(chance.choice(mood.operators))]

    def think() -> Coroutine[Any, Any, None]:
        return _think(simulation)

    def send(
        key: Key, path: str, form: dict[str, str], headers: dict[str, str]
    ) -> Coroutine[Any, Any, Answer | None]:
        return _call(simulation, book, key, form, headers, path)

    if simulation.aside.random() < SHARE:
        work.append(busy_operator(simulation, think))
    work += money_back(simulation, send, think)
    await asyncio.gather(*(simulation.loop.create_task(each) for each in work))
    await _rest(simulation)


async def _caller(simulation: Simulation, book: Book, mood: Mood) -> None:
    chance = simulation.chance
    form, headers = draw_bill(simulation, mood)
    key = chance.choice(simulation.keys)
    captures = simulation.authorising and simulation.later.random() < 0.6
    for _ in range(chance.randint(1, 5)):
        await _think(simulation)
        if simulation.showing_cards:
            form, headers = with_card(simulation.cards, form, headers)
        if captures:
            form = form | {"capture": "false"}
        answer = await _call(simulation, book, key, form, headers)
        settled = answer is not None and answer.status not in RETRIED
        if captures and answer is not None and answer.status == 200:
            await _capture(simulation, book, key, answer.body["id"])
        if chance.random() < (0.5 if settled else 0.15):
            form, headers = drift(simulation, mood, form, headers)
        if chance.random() < 0.2:
            key = chance.choice(simulation.keys)


async def _capture(simulation: Simulation, book: Book, key: Key, charge_id: str) -> None:
    """Take what was authorised, or a part of it; again where no answer said that it was taken."""
    amount = simulation.later.choice((None, None, "2900", "1400"))
    for _ in range(simulation.later.randint(0, 3)):
        await _think(simulation)
        form = {} if amount is None else {"amount": amount}
        await _call(simulation, book, key, form, {}, f"/v1/charges/{charge_id}/capture")
        if simulation.later.random() < 0.3:
            amount = simulation.later.choice((None, "2900", "1400", "3000"))


async def _call(
    simulation: Simulation,
    book: Book,
    key: Key,
    form: dict[str, str],
    headers: dict[str, str],
    path: str = "/v1/charges",
) -> Answer | None:
    """Send one request to a living process; None where the connection broke."""
    if not simulation.processes:
        return None
    process = simulation.chance.choice(simulation.processes)
    book.calls += 1
    call = book.calls
    simulation.log(f"call {call} at {process.owner} with {key.id}: {form} {headers or ''}")
    simulation.mirror.refunds.asked_ms[f"req_{call}"] = simulation.stripe.now_ms
    request = Request(
        method="POST",
        raw_path=path.encode(),
        query=b"",
        headers=(
            ("authorization", f"Bearer {key.token}"),
            ("content-type", "application/x-www-form-urlencoded"),
            *headers.items(),
        ),
        body=urlencode(form).encode(),
        request_id=f"req_{call}",
    )
    key_header = headers.get("idempotency-key", "")
    if "-4" in key_header and "charge" not in form:
        book.made_up[call] = f"{key_header} {sorted(form.items())}"
    CALL.set(call)
    task = process.spawn(_served(simulation, process, request))
    if simulation.chance.random() < 0.08:
        simulation.loop.after_turns(
            simulation.chance.randrange(1, 40), task.cancel
        )  # the client hangs up
    await asyncio.wait({task})
    if task.cancelled():
        simulation.log(f"call {call}: the connection broke")
        return None
    reply = task.result()
    answer = Answer.read(reply.status, reply.body)
    simulation.log(f"call {call}: {answer.status} {answer.code or answer.body.get('id')}")
    book.answers.append((call, form, answer))
    _check_answer(simulation, call, form, answer)
    return answer


def _check_answer(simulation: Simulation, call: int, form: dict[str, str], answer: Answer) -> None:
    account = simulation.stripe.account
    if "customer" not in form and "charge" not in form:
        wrong = check_capture_answer(call, answer, account)
    elif "charge" in form:
        wrong = check_refund_answer(call, form, answer, account)
    else:
        wrong = check_answer(call, form, answer, account.charges)
    if wrong:
        simulation.fail(wrong)


async def _served(simulation: Simulation, process: Process, request: Request) -> Reply:
    try:
        return await process.serve(request)
    except LedgerUnavailableError:
        return Reply(503, b'{"error": {"code": "ledger_unavailable"}}')
    except Exception as error:
        simulation.fail(f"a request broke its process: {error!r}")
        raise


async def _recoverer(simulation: Simulation, host: str, passes: int) -> None:
    for _ in range(passes):
        await _think(simulation)
        process = next((each for each in simulation.processes if each.name == host), None)
        if process is not None:
            await _recover(simulation, process)


async def _recover(simulation: Simulation, process: Process) -> None:
    simulation.log(f"{process.owner} recovers")
    task = process.spawn(process.recover())
    await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        states = {name[-6:]: str(state) for name, state in task.result().items()}
        simulation.log(f"{process.owner} recovered {states or 'nothing'}")
    elif not task.cancelled() and not isinstance(task.exception(), LedgerUnavailableError):
        simulation.fail(f"recovery broke: {task.exception()!r}")


async def _crasher(simulation: Simulation) -> None:
    """End a process after some turns of the loop, wherever its tasks are then; start another."""
    chance = simulation.chance
    await _think(simulation)
    struck = asyncio.Event()
    simulation.loop.after_turns(chance.randrange(1, 60), struck.set)
    # Where nobody acts any more the turns do not go on: then time strikes.
    waiting = simulation.loop.create_task(struck.wait())
    await asyncio.wait({waiting}, timeout=chance.choice((1, 30, 3000)))
    waiting.cancel()
    if simulation.processes:
        simulation.end(chance.choice(simulation.processes), "killed")
    await simulation.loop.pause(chance.choice((0, 2 * SECOND, 2 * MINUTE)))
    _restart(simulation)


def _restart(simulation: Simulation) -> None:
    running = {process.name for process in simulation.processes}
    for name in HOSTS:
        if name not in running:
            simulation.start(name)


async def _clock_turner(simulation: Simulation) -> None:
    for _ in range(simulation.chance.randint(1, 2)):
        await _think(simulation)
        simulation.offset_ms += simulation.chance.choice((-1, 1)) * simulation.chance.choice(JUMPS)
        simulation.log(f"the clock of the host is {simulation.offset_ms} ms off now")


async def _operator(simulation: Simulation) -> None:
    """Revoke, freeze, thaw and approve, as people do."""
    chance = simulation.chance
    for _ in range(chance.randint(1, 3)):
        await _think(simulation)
        if not simulation.processes:
            continue
        process = chance.choice(simulation.processes)
        what = chance.choice(("revoke", "freeze", *("thaw",) * 3, *("approve",) * 4))
        await done_by_operator(simulation, process, what, operator_of(what))


async def _think(simulation: Simulation) -> None:
    longest, weights = zip(*simulation.pauses, strict=True)
    await simulation.loop.pause(
        simulation.chance.randrange(simulation.chance.choices(longest, weights)[0])
    )


async def _rest(simulation: Simulation) -> None:
    """Let everything that is under way arrive, with nothing failing any more, and recover."""
    simulation.log("rest: nothing fails any more")
    simulation.odds.die = simulation.odds.disk = 0
    simulation.stripe.faulty = False
    _restart(simulation)
    simulation.offset_ms = 0
    for pause in (*RESTS, *(REFUND_RESTS if simulation.refunding else ())):
        await simulation.loop.pause(pause)
        simulation.stripe.settle_pending()
        for process in list(simulation.processes):
            await _recover(simulation, process)
            await process.ledger.transact(lambda _: Refs(), lambda _: (None, Changes()))
            if process.clock.dispute:  # as `doctor` tells whoever looks
                await confirm_clock(simulation, process)
                await _recover(simulation, process)
        _fail_if_broken(simulation)


def _fail_if_broken(simulation: Simulation) -> None:
    for what in (*simulation.mirror.broken, *simulation.stripe.wrong):
        simulation.fail(what)


def _check(simulation: Simulation, book: Book) -> None:
    _fail_if_broken(simulation)
    for call, form, answer in book.answers:
        _check_answer(simulation, call, form, answer)
    for wrong in check_made_up(book.made_up, simulation.stripe.charges, simulation.mirror):
        simulation.fail(wrong)
    records = simulation.processes[0].records
    stored = [operation for operation, _ in _now(records.operations())]
    if {each.id: each for each in stored} != simulation.mirror.operations:
        simulation.fail("the store does not hold what was committed")
    windows, stripe = _now(records.windows()), simulation.stripe
    overtaken, missed = stripe.overtaken, set[str]()
    if simulation.true_time.excused:
        # An operator said that a wrong clock was right: then grace is measured by that clock.
        made = (*stripe.account.charges, *stripe.account.refunds)
        over = {each.id for each in stored if each.state in {State.VOIDED, State.FAILED}}
        missed = {each.attempt for each in made if each.operation in over} & overtaken
        overtaken = overtaken | {each.attempt for each in made}
    for wrong in check_end(stored, windows, stripe.account, overtaken, missed):
        simulation.fail(wrong)
    for wrong in simulation.mirror.refunds.check_end(overtaken):
        simulation.fail(wrong)
    for node in records.writers():
        chain = verify_chain((read_row(row) for row in records.chain(node)), CHAIN_KEY)
        if isinstance(chain, Break):
            simulation.fail(f"the audit of {node} is {chain.reason} at {chain.row}")


def _now(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")
