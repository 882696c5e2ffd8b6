from __future__ import annotations

import asyncio

from kb_mcp.proxy.edge.app import BEGIN_AT_ONCE, ROOM, AdmissionQueue


async def begin(
    turns: AdmissionQueue, begun: list[int], number: int, first: asyncio.Event | None = None
) -> None:
    assert await turns.acquire()
    begun.append(number)
    if first is not None:
        first.set()


async def passes(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_where_there_is_room_nobody_waits() -> None:
    async def story() -> None:
        turns = AdmissionQueue(lambda: ROOM - 1)
        for _ in range(3):
            coroutine = turns.acquire()
            try:
                coroutine.send(None)
            except StopIteration:
                await passes(1)
            else:
                raise AssertionError("it waited")

    asyncio.run(story())


def test_one_pass_begins_no_more_than_there_is_room_for() -> None:
    async def story() -> None:
        turns, begun = AdmissionQueue(lambda: 0), list[int]()
        tasks = [asyncio.create_task(begin(turns, begun, number)) for number in range(ROOM + 10)]
        await passes(2)
        assert begun == list(range(ROOM))
        await asyncio.gather(*tasks)
        assert begun == list(range(ROOM + 10))

    asyncio.run(story())


def test_who_waits_begins_in_the_order_of_arrival_once_the_queue_is_short() -> None:
    async def story() -> None:
        queued, begun = [ROOM], list[int]()
        turns = AdmissionQueue(lambda: queued[0])
        tasks = [asyncio.create_task(begin(turns, begun, number)) for number in range(40)]
        await passes(5)
        assert begun == []
        queued[0] = 0
        late = asyncio.create_task(begin(turns, begun, 40))
        await asyncio.gather(*tasks, late)
        assert begun == list(range(41))

    asyncio.run(story())


def test_one_turn_of_those_who_waited_is_bounded() -> None:
    async def story() -> None:
        queued, begun, first = [ROOM], list[int](), asyncio.Event()
        turns = AdmissionQueue(lambda: queued[0])
        tasks = [asyncio.create_task(begin(turns, begun, number, first)) for number in range(40)]
        await passes(2)
        queued[0] = 0
        await first.wait()
        assert len(begun) == BEGIN_AT_ONCE
        await asyncio.gather(*tasks)

    asyncio.run(story())


def test_a_client_that_went_away_takes_nobody_s_turn() -> None:
    async def story() -> None:
        queued, begun = [ROOM], list[int]()
        turns = AdmissionQueue(lambda: queued[0])
        tasks = [asyncio.create_task(begin(turns, begun, number)) for number in range(3)]
        await passes(2)
        tasks[1].cancel()
        queued[0] = ROOM - 2
        await asyncio.gather(*tasks, return_exceptions=True)
        assert begun == [0, 2]

    asyncio.run(story())


def test_who_has_waited_too_long_is_told_so_and_keeps_nobody_waiting() -> None:
    async def story() -> None:
        queued = [ROOM]
        turns = AdmissionQueue(lambda: queued[0], wait_max_ms=0)
        assert not await turns.acquire()
        queued[0] = 0
        while not await turns.acquire():
            pass  # until it is noticed that nobody waits there any more

    asyncio.run(story())
