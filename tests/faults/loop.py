"""An event loop with virtual time, whose order of callbacks is drawn from a seed.

Nothing in it waits: when nobody is ready, time jumps to the next timer. The shipped code runs on
it unchanged; asyncio's own timeouts and sleeps are virtual too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random  # noqa: TID251 seeded by whoever makes the loop
from typing import Any

from typing_extensions import TypeVarTuple, Unpack, override

Ts = TypeVarTuple("Ts")

HELD_BACK = 0.25


class StalledError(Exception):
    """Somebody waits for something that nobody will ever do."""


class _Selector:
    """Stands where the loop would ask the operating system for events."""

    def __init__(self, before: Callable[[float | None], None]) -> None:
        self._before = before

    def select(self, timeout: float | None) -> list[Any]:
        self._before(timeout)
        return []


class SimulatedLoop(asyncio.BaseEventLoop):
    """One seed, one order of events. `now_ms` is milliseconds since the loop began."""

    _ready: deque[asyncio.Handle]

    def __init__(self, chance: Random) -> None:
        super().__init__()
        self._chance = chance
        self._seconds = 0.0
        self._clock_resolution = 1e-6
        self._held: list[asyncio.Handle] = []
        self._hooks: list[tuple[int, Callable[[], object]]] = []
        self._selector = _Selector(self._before_turn)
        self.turns = 0

    @property
    def now_ms(self) -> int:
        return round(self._seconds * 1000)

    @override
    def time(self) -> float:
        return self._seconds

    @override
    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def after_turns(self, turns: int, hook: Callable[[], object]) -> None:
        """Call `hook` between two callbacks, `turns` turns of the loop from now.

        A turn of the loop runs what is ready; so this reaches every await of a path.
        """
        self._hooks.append((self.turns + turns, hook))

    async def pause(self, milliseconds: int) -> None:
        """Let `milliseconds` of virtual time pass."""
        over = self.create_future()
        timer = self.call_later(milliseconds / 1000, _resolve, over)
        try:
            await over
        finally:
            timer.cancel()

    def _before_turn(self, timeout: float | None) -> None:
        self.turns += 1
        self._ready.extend(self._held)
        self._held.clear()
        if not self._ready:
            if timeout is None:
                raise StalledError("everybody waits and nothing is due")
            self._seconds += timeout
        due = [hook for turn, hook in self._hooks if turn <= self.turns]
        self._hooks = [each for each in self._hooks if each[0] > self.turns]
        for hook in due:
            hook()
        self._shuffle()

    def _shuffle(self) -> None:
        if len(self._ready) < 2:
            return
        waiting = list(self._ready)
        self._ready.clear()
        self._chance.shuffle(waiting)
        self._ready.append(waiting.pop())
        for handle in waiting:
            late = self._chance.random() < HELD_BACK
            (self._held if late else self._ready).append(handle)

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no events."""

    def _write_to_self(self) -> None:
        """Nobody sleeps: there is nobody to wake."""


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
