"""Load on a schedule: requests leave when they are due, whatever the answers do.

A request's time counts from when it was due, so that a stall is not hidden by the clients that it
keeps waiting (coordinated omission). Up to `connections` are open at a time; where all are busy a
request waits its turn, and its clock runs.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
from typing_extensions import override

from stage.machine import cores

_GRACE_S = 40
_FILES = 8192


@dataclass
class Seen:
    """What became of the requests: by status, and how long each took, in ms, in order of answer."""

    due: int = 0
    took_ms: dict[int, list[float]] = field(default_factory=dict)
    in_time: Counter[int] = field(default_factory=Counter)  # answered while requests still came
    broken: int = 0
    late_ms: float = 0  # how far the schedule itself fell behind: the load, not the proxy
    seconds: float = 0

    def note(self, status: int, took_ms: float, *, in_time: bool) -> None:
        """Add one answer."""
        self.took_ms.setdefault(status, []).append(took_ms)
        if in_time:
            self.in_time[status] += 1

    def percentile(self, share: float, status: int = 200) -> float:
        """Return a percentile of the answers with `status`, in ms."""
        found = sorted(self.took_ms.get(status, []))
        return found[min(int(len(found) * share), len(found) - 1)] if found else 0.0


def run_open(
    url: str, make: Callable[[int], bytes], *, rate: float, seconds: float, connections: int
) -> Seen:
    """Send `make(1)`, `make(2)`, … at `rate` a second for `seconds`."""
    import uvloop

    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores()[1]})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FILES, hard), hard))
    gc.disable()  # a pause of ours would count as the proxy's
    try:
        return uvloop.run(_Schedule(url, make, connections).run(rate, seconds))
    finally:
        gc.enable()
        os.sched_setaffinity(0, usable)


def post_charge(host: str, token: str, prefix: str, period: str) -> Callable[[int], bytes]:
    """Return what writes charge number n: the bytes that charges.lua sends."""
    head = (
        f"POST /v1/charges HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
    )

    def make(number: int) -> bytes:
        body = (
            f"amount=100&currency=usd&customer=cus_{prefix}n{number}"
            f"&metadata%5Bbilling_period%5D={period}"
        )
        key = f"Idempotency-Key: bench-{prefix}-{number}\r\n"
        return f"{head}{key}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    return make


class _Schedule:
    def __init__(self, url: str, make: Callable[[int], bytes], connections: int) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname, parts.port)
        self.make = make
        self.most = connections
        self.open = 0
        self.idle: deque[_Client] = deque()
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.seen = Seen()
        self.left = 0
        self.over = asyncio.Event()

    async def run(self, rate: float, seconds: float) -> Seen:
        begun = time.perf_counter()
        total = self.left = int(rate * seconds)
        made = 0
        while made < total:
            now = time.perf_counter()
            owed = min(int((now - begun) * rate) + 1, total)
            while made < owed:
                due = begun + made / rate
                made += 1
                self.seen.late_ms = max(self.seen.late_ms, (now - due) * 1000)
                self.ask(due, self.make(made))
            await asyncio.sleep(max(begun + made / rate - time.perf_counter(), 0))
        self.seen.due = total
        try:
            async with asyncio.timeout(_GRACE_S):
                await self.over.wait()
        except TimeoutError:
            self.seen.broken += self.left
        self.seen.seconds = time.perf_counter() - begun
        for client in self.idle:
            client.close()
        return self.seen

    def ask(self, due: float, request: bytes) -> None:
        while self.idle:
            client = self.idle.pop()
            if client.usable:
                client.send(due, request)
                return
        if self.open < self.most:
            self.open += 1
            asyncio.get_running_loop().create_task(self.connect(due, request))
        else:
            self.waiting.append((due, request))

    async def connect(self, due: float, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, client = await loop.create_connection(lambda: _Client(self), *self.address)
        except OSError:
            self.open -= 1
            self.failed()
        else:
            client.send(due, request)

    def answered(self, client: _Client, status: int, due: float) -> None:
        took_ms = (time.perf_counter() - due) * 1000
        self.seen.note(status, took_ms, in_time=self.seen.due == 0)
        self.count()
        if not client.usable:
            return
        if self.waiting:
            client.send(*self.waiting.popleft())
        else:
            self.idle.append(client)

    def lost(self, *, busy: bool) -> None:
        self.open -= 1
        if busy:
            self.failed()
        if self.waiting and self.open < self.most:
            self.open += 1
            asyncio.get_running_loop().create_task(self.connect(*self.waiting.popleft()))

    def failed(self) -> None:
        self.seen.broken += 1
        self.count()

    def count(self) -> None:
        self.left -= 1
        if not self.left:
            self.over.set()


class _Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, schedule: _Schedule) -> None:
        self.schedule = schedule
        self.transport: Any = None
        self.parser = httptools.HttpResponseParser(self)
        self.due = 0.0
        self.busy = False
        self.usable = True

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, due: float, request: bytes) -> None:
        self.due, self.busy = due, True
        self.transport.write(request)

    @override
    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.busy = False
        self.usable = self.parser.should_keep_alive() and not self.transport.is_closing()
        self.schedule.answered(self, self.parser.get_status_code(), self.due)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self.schedule.lost(busy=self.busy)

    def close(self) -> None:
        self.transport.abort()
