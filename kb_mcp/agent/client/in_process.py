"""The line into a proxy of this process: the ASGI application that a socket would reach.

Floor: wing A, above line. It spares a tool call an HTTP client; on the application's own event loop
also the threads that would both block.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from typing_extensions import override

from kb_mcp.agent.client.line import (
    ANSWER_TIMEOUT_S,
    Answer,
    Line,
    MaybeSentError,
    NeverSentError,
    Request,
)
from kb_mcp.agent.wording import UNAVAILABLE
from kb_mcp.in_process import AsgiApp, Exchange

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InProcessLine(Line):
    """Requests to `app`, which runs on `loop`, a loop of another thread, or on that of the caller.

    `extensions` go with every request beside its headers, where no client can put anything.
    `livemode` is the mode of that application's keys, where it is known. `pid` names the process
    in which that other thread runs.
    """

    app: AsgiApp
    loop: asyncio.AbstractEventLoop | None = None
    extensions: Mapping[str, object] = field(default_factory=dict)
    livemode: bool | None = None
    pid: int = field(default_factory=os.getpid)

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of that of the loop: no thread runs it here."""
        return self.pid != os.getpid()

    @property
    @override
    def on_loop(self) -> bool:
        return self.loop is None

    @override
    async def exchange(self, request: Request) -> Answer:
        headers = [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in request.headers.items()
        ]
        if request.body:
            headers.append((b"content-length", str(len(request.body)).encode()))
        target = request.path.encode("ascii")
        exchange = Exchange(
            request.method, target, headers, request.body, extensions=self.extensions
        )
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await exchange.run(self.app)
        except Exception as error:
            logger.error("The proxy in this process gave no answer: %s", type(error).__name__)  # noqa: TRY400 - no frames, no keys
            raise MaybeSentError(again=False) from error  # it may have acted, whatever broke
        raw = ((name.lower(), text) for name, text in exchange.headers)
        named = {name.decode("latin-1"): text.decode("latin-1") for name, text in raw}
        return Answer(exchange.status, named, bytes(exchange.body))

    @override
    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @override
    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._running_loop())
        except RuntimeError as error:
            work.close()
            detail = f"The proxy in this process cannot be asked: {error}"
            logger.error("%s", detail)  # noqa: TRY400 - no frames, no keys
            raise NeverSentError(UNAVAILABLE, detail, again=False) from error
        return future.result()

    @override
    def close(self) -> None:
        """Close nothing: the application belongs to whoever serves it."""

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the other thread. Raises: RuntimeError, where there is none."""
        if self.loop is None:
            raise RuntimeError("it is asked on its own event loop, not from a thread")
        if self.is_forked:
            raise RuntimeError("this process was forked, and the thread of its event loop was not")
        return self.loop
